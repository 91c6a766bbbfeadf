"""What leaves this machine: the exact files, proven to load, to a folder or to a Hub that fails in every way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hub_server
import polars
import pytest
import torch
import yaml
from command_line import afina, news, recipe_text, untrained_specialist, write_csv
from hub_server import TOKEN, Fault, HubServer

from afina.catalogue.prepare import prepare_catalogue
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError, RunError
from afina.core.recipe_file import load_recipe
from afina.core.storage import read_json, write_json
from afina.engine.loader import load_specialist, resolve
from afina.publishing import PublishError, Pushed, PushRequest, push
from afina.publishing.files import MANIFEST, list_files
from afina.publishing.private import refuse_private
from afina.publishing.settings import published_recipe
from afina.publishing.target import FolderTarget, HubTarget, parse_target
from afina.strategies.finetuned import Specialist

PATH = os.pathsep.join(str(Path(one).resolve()) for one in sys.path)  # of processes that start in another folder
ROWS = [{"texto": row["f2"]} for row in news(4)]


def agreed(lines: object) -> None:
    pass


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with an adapter on afina/nano, evaluated."""
    place = tmp_path_factory.mktemp("adapter")
    write_csv(place / "news.csv", news(30))
    settings = {"train__lora_r": 4, "compare": ["majority", "finetuned"]}
    (place / "recipe.yaml").write_text(recipe_text(**settings, output_dir=str(place / "run")), encoding="utf-8")
    done = afina("run", place / "recipe.yaml")
    assert done.code == 0, done.err
    return place / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist of whole weights, without a run."""
    return untrained_specialist(tmp_path_factory.mktemp("whole") / "specialist")


def to_folder(source: Path, target: Path, **more: Any) -> Pushed:
    return push(PushRequest(source, f"{target}/", **more), agreed)


# -- a model in a folder ---------------------------------------------------------------------------


def test_an_adapter_loads_plainly_and_as_a_specialist(adapter_run: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = to_folder(adapter_run, tmp_path / "out")
    assert done.num_files == len(list_files(tmp_path / "out")) == done.num_sent
    base: Any = AutoModelForCausalLM.from_pretrained(resolve("afina/nano"), dtype=torch.bfloat16)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("O PIB cresceu.", return_tensors="pt").input_ids
    ours = load_specialist(adapter_run / "specialist", "cpu")
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits, ours.model(input_ids=ids).logits)
    outputs = [
        [(p.output, p.confidence) for p in Specialist.load(place).predict(ROWS)]
        for place in (adapter_run, tmp_path / "out")
    ]
    assert outputs[0] == outputs[1]


def test_merged_weights_answer_alike(adapter_run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    to_folder(adapter_run, tmp_path / "out", merged=True)
    assert not (tmp_path / "out/adapter_config.json").exists()
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(5, 45).unsqueeze(0)
    ours = load_specialist(adapter_run / "specialist", "cpu")
    with torch.no_grad():
        difference = merged(input_ids=ids).logits.float() - ours.model(input_ids=ids).logits.float()
    assert difference.abs().max() < 0.25  # bfloat16 holds 8 bits of logits up to about 16, after six layers
    outputs = [[p.output for p in Specialist.load(place).predict(ROWS)] for place in (adapter_run, tmp_path / "out")]
    assert outputs[0] == outputs[1]


def test_the_files_say_nothing_of_this_machine(adapter_run: Path, tmp_path: Path) -> None:
    to_folder(adapter_run, tmp_path / "out", license_id="mit", languages=["pt"])
    names = list_files(tmp_path / "out")
    assert {"README.md", "recipe.yaml", "afina.json", "adapter_model.safetensors", MANIFEST} <= set(names)
    assert not [name for name in names if "prediction" in name or name.startswith(".") or name.endswith(".sqlite")]
    searched = 0
    for name in names:
        data = (tmp_path / "out" / name).read_bytes()
        searched += 1
        for path in (adapter_run, adapter_run.parent, Path.cwd()):
            assert str(path).encode() not in data, name
    assert searched == len(names) > 8
    front = yaml.safe_load((tmp_path / "out/README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["license"] == "mit"
    assert front["language"] == ["pt"]
    assert "base_model" not in front  # afina/nano is not on the Hub
    assert "afina" in front["tags"]
    assert "accuracy" in front["metrics"]


def test_the_manifest_holds_the_hashes_and_is_the_same_again(adapter_run: Path, tmp_path: Path) -> None:
    to_folder(adapter_run, tmp_path / "one")
    to_folder(adapter_run, tmp_path / "two")
    files = read_json(tmp_path / "one" / MANIFEST)["files"]
    assert len(files) > 8
    for file in files:
        data = (tmp_path / "one" / file["path"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["bytes"])
        assert not (tmp_path / "one" / file["path"]).is_symlink()
        assert data == (tmp_path / "two" / file["path"]).read_bytes()


def test_the_recipe_is_the_runs_own(adapter_run: Path, tmp_path: Path) -> None:
    to_folder(adapter_run, tmp_path / "out")
    published = tmp_path / "out/recipe.yaml"
    again = load_recipe(published, [f"data.path={adapter_run.parent / 'news.csv'}"])
    assert again.hash == read_json(adapter_run / "recipe.json")["hash"]
    assert "output_dir" not in published.read_text(encoding="utf-8")


def test_a_recipe_without_keys_and_addresses(tmp_path: Path) -> None:
    resolved = {
        "hash": "x",
        "task": {"name": "t", "instruction": "i", "inputs": ["a"], "output": "/home/ana/schema.json"},
        "data": {"path": "/home/ana/rows.csv", "test_path": "C:\\data\\test.csv", "id_column": None},
        "train": {"base_model": "/home/ana/models/llama", "max_length": 300, "lora_r": 16},
        "models": {
            "big": {"provider": "http://10.0.0.7:8000/v1", "model": "m", "api_key_env": "MINE", "prices": "/p.yaml"},
            "other": {"provider": "openai", "model": "gpt-4.1-mini-2025-04-14", "max_tokens": 99},
        },
        "strategies": {"cot": {"strategy": "cot", "model": "big"}, "zero": {"strategy": "zero-shot", "model": "other"}},
        "compare": ["tfidf", "cot"],
        "output_dir": "/home/ana/run",
    }
    schema = {"type": "object", "properties": {"x": {"enum": ["p", "q"]}}, "required": ["x"]}
    text = published_recipe(resolved, schema)
    for private in ("home", "ana", "10.0.0.7", "MINE", "C:"):
        assert private not in text
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.path == tmp_path / "rows.csv"
    assert recipe.data.test_path == tmp_path / "test.csv"
    assert recipe.train.base_model == "llama"
    assert recipe.train.model_fields_set == {"base_model", "max_length"}
    assert recipe.models["other"].max_tokens == 99


def test_a_specialist_without_a_run(whole: Path, tmp_path: Path) -> None:
    to_folder(whole, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "It was not evaluated" in card
    assert not (tmp_path / "out/recipe.yaml").exists()
    assert read_json(tmp_path / "out/base.json")["name"] == whole.name  # of a folder the name alone
    assert Specialist.load(tmp_path / "out").predict(ROWS)[0].output is not None
    with pytest.raises(PublishError, match="whole weights, so --merged has no effect"):
        to_folder(whole, tmp_path / "other", merged=True)


def test_an_adapter_on_a_folder_of_this_machine(adapter_run: Path, tmp_path: Path) -> None:
    """Nobody else has the base, so the adapter alone is refused; merged it is whole."""
    base = shutil.copytree(resolve("afina/nano"), tmp_path / "bases" / "mine")
    specialist = shutil.copytree(adapter_run / "specialist", tmp_path / "specialist")
    write_json(specialist / "base.json", {**read_json(specialist / "base.json"), "name": str(base)})
    write_json(specialist / "afina.json", {**read_json(specialist / "afina.json"), "base_model": str(base)})
    with pytest.raises(PublishError, match=r"a folder of this machine.*Pass --merged"):
        to_folder(specialist, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    to_folder(specialist, tmp_path / "out", merged=True)
    assert read_json(tmp_path / "out/afina.json")["base_model"] == "mine"


def test_what_would_not_load_is_not_published(whole: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(whole, tmp_path / "broken")
    write_json(broken / "config.json", {**read_json(broken / "config.json"), "num_hidden_layers": 9})
    with pytest.raises(PublishError, match=r"would not load elsewhere, so nothing was sent.*weights are missing"):
        to_folder(broken, tmp_path / "out")
    other = shutil.copytree(whole, tmp_path / "other")
    write_json(other / "afina.json", {**read_json(other / "afina.json"), "fingerprint": "0" * 16})
    with pytest.raises(PublishError, match=r"would not load elsewhere.*rendered otherwise"):
        to_folder(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- nothing private -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("README.md", "use sk-proj-abcdefghijklmnopqrstuvwx", "looks like a key"),
        ("recipe.yaml", f"token: {TOKEN}", "looks like a key"),
        ("recipe.yaml", "url: https://ana:geheim@host/v1", "looks like a key"),
        ("afina.json", "my-own-secret-value-123", "looks like a key"),
        ("afina.json", f'{{"path": "{Path.cwd().as_posix()}"}}', "a path of this machine"),
        (".lock", "", "no file to publish"),
        ("answers.sqlite", "x", "no file to publish"),
        ("training/optimizer.pt", "x", "no file to publish"),
    ],
)
def test_private_content_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "my-own-secret-value-123")
    (tmp_path / "ok.json").write_text("{}", encoding="utf-8")
    refuse_private(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PublishError, match=said) as caught:
        refuse_private(tmp_path)
    assert "my-own-secret" not in str(caught.value)
    assert TOKEN not in str(caught.value)


# -- the folder ------------------------------------------------------------------------------------


def test_the_same_again_writes_nothing(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = to_folder(whole, out)
    before = {name: (out / name).stat().st_mtime_ns for name in list_files(out)}
    again = to_folder(whole, out)
    assert (first.num_sent, again.num_sent) == (first.num_files, 0)
    assert before == {name: (out / name).stat().st_mtime_ns for name in list_files(out)}


def test_a_folder_of_somebody_else_is_refused(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    to_folder(whole, out)  # empty is fine
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PublishError, match=r"notes\.txt, which the earlier publication did not write"):
        to_folder(whole, out, overwrite=True)
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("better", encoding="utf-8")
    with pytest.raises(PublishError, match=r"README\.md was changed since"):
        to_folder(whole, out)
    assert (out / "README.md").read_text(encoding="utf-8") == "better"
    assert to_folder(whole, out, overwrite=True).num_sent == 1
    (out / MANIFEST).unlink()
    with pytest.raises(PublishError, match="not empty and holds no publication"):
        to_folder(whole, out, overwrite=True)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(PublishError, match="found a file"):
        push(PushRequest(whole, str(tmp_path / "file")), agreed)


@pytest.mark.parametrize("moment", ["before the first rename", "between the renames"])
def test_a_killed_replacement_leaves_a_whole_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    out = tmp_path / "out"
    to_folder(whole, out)
    rename, count = Path.rename, [0]

    def killed(self: Path, target: Any) -> Any:
        count[0] += 1
        if count[0] == (1 if moment.startswith("before") else 2):
            os._exit(9)
        return rename(self, target)

    if not (child := os.fork()):  # killed without any clean-up
        monkeypatch.setattr(Path, "rename", killed)
        to_folder(whole, out, license_id="mit")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    to_folder(whole, out, license_id="apache-2.0")
    assert "license: apache-2.0" in (out / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


# -- targets ---------------------------------------------------------------------------------------


def test_what_a_target_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_target("ana/news") == HubTarget("ana/news")
    assert parse_target("hf://ana/news") == HubTarget("ana/news")
    assert parse_target("hf://datasets/ana/news") == HubTarget("ana/news", "dataset")
    for text in ("news", "./ana/news", "/tmp/ana/news", "a/b/c", "~/news"):
        assert isinstance(parse_target(text), FolderTarget), text
    (tmp_path / "ana").mkdir()
    with pytest.raises(PublishError, match=r"may mean two things. Write \./ana/news .* hf://ana/news"):
        parse_target("ana/news")
    assert parse_target("hf://ana/news") == HubTarget("ana/news")
    for text, said in (
        ("https://huggingface.co/ana/news", "is an address"),
        ("hf://news", "expected hf://"),
        (" ", "empty"),
    ):
        with pytest.raises(PublishError, match=said):
            parse_target(text)


def test_options_without_effect_are_errors(whole: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"private": True}, "--private is of the Hub"),
        ({"revision": "x"}, "--revision is of the Hub"),
        ({"shards": "0"}, "holds no catalogue"),
    ]
    for settings, said in cases:
        with pytest.raises(PublishError, match=said):
            to_folder(whole, tmp_path / "out", **settings)
    with pytest.raises(PublishError, match="no such folder"):
        to_folder(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(PublishError, match="neither a specialist nor a catalogue"):
        to_folder(tmp_path, tmp_path / "out")


# -- a catalogue -----------------------------------------------------------------------------------


UIDS = [f"{'X' if at % 7 else '000'}{at:06d}" for at in range(80)]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared catalogue of two shards; ids begin with zeros, or are no numbers."""
    place = tmp_path_factory.mktemp("catalogue")
    rows = [
        {
            "uid": uid,
            "title": f"Product {at}",
            "content": f"Number {at} of the list: {'very ' * (at % 9)}good {at * 37}.",
        }
        for at, uid in enumerate(UIDS)
    ]
    (place / "trn.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = CatalogueConfig(path=place / "trn.json", shard_rows=40)
    shares = {"train": 0.7, "validation": 0.15, "test": 0.15}
    assert prepare_catalogue(config, place / "catalogue", seed=1, shares=shares).num_shards == 2
    return place / "catalogue"


@pytest.fixture
def catalogue_run(catalogue: Path, tmp_path: Path) -> Path:
    shutil.copytree(catalogue, tmp_path / "run" / "catalogue")
    return tmp_path / "run"


def test_load_dataset_reads_the_splits(catalogue_run: Path, tmp_path: Path) -> None:
    from datasets import Value, load_dataset

    done = to_folder(catalogue_run, tmp_path / "out", shards="0-1", languages=["en"])
    assert done.kind == "dataset"
    loaded: Any = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    wanted = read_json(catalogue_run / "catalogue/manifest.json")["shards"]
    counts = {name: sum(shard["splits"][name] for shard in wanted) for name in ("train", "validation", "test")}
    assert {name: len(rows) for name, rows in loaded.items()} == counts
    assert sum(counts.values()) == 80
    assert loaded["test"].features["uid"] == Value("string")
    assert sorted(uid for rows in loaded.values() for uid in rows["uid"]) == sorted(UIDS)
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "`uid` is text" in card
    assert "made of `trn.json` (sha256" in card
    assert str(catalogue_run.parent) not in card
    assert "split" not in loaded["train"].column_names


def test_only_the_chosen_shards(catalogue_run: Path, tmp_path: Path) -> None:
    to_folder(catalogue_run, tmp_path / "out", shards="1")
    assert [name for name in list_files(tmp_path / "out") if name.endswith(".parquet")] == [
        f"data/{split}/shard-00001.parquet" for split in ("test", "train", "validation")
    ]
    assert read_json(tmp_path / "out" / MANIFEST)["shards"] == [1]
    to_folder(catalogue_run / "catalogue", tmp_path / "all")  # the catalogue itself: all of it
    assert read_json(tmp_path / "all" / MANIFEST)["shards"] == [0, 1]


def test_a_catalogue_that_is_not_whole(catalogue_run: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="pass --shards, as 0-4 or all"):
        to_folder(catalogue_run, tmp_path / "out")
    with pytest.raises(PublishError, match="--merged is of a model"):
        to_folder(catalogue_run, tmp_path / "out", shards="0", merged=True)
    with pytest.raises(DataError, match="there is no 2"):
        to_folder(catalogue_run, tmp_path / "out", shards="1-2")
    shard = catalogue_run / "catalogue/shards/shard-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(PublishError, match="its hash is another"):
        to_folder(catalogue_run, tmp_path / "out", shards="0")
    shard.write_bytes(whole[:-1])
    with pytest.raises(RunError, match="is not as it was written"):
        to_folder(catalogue_run, tmp_path / "out", shards="0")
    (catalogue_run / "catalogue/manifest.json").write_text('{"shards": 3}', encoding="utf-8")
    with pytest.raises(RunError, match="no complete catalogue"):
        to_folder(catalogue_run, tmp_path / "out", shards="0")
    assert not (tmp_path / "out").exists()


def test_numbers_as_ids_are_refused(catalogue_run: Path, tmp_path: Path) -> None:
    folder = catalogue_run / "catalogue"
    shard = folder / "shards/shard-00000.parquet"
    rows = polars.read_parquet(shard).with_columns(uid=polars.int_range(40))
    rows.write_parquet(shard)
    manifest = read_json(folder / "manifest.json")
    manifest["shards"][0]["parquet_bytes"] = shard.stat().st_size
    manifest["shards"][0]["parquet_sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(PublishError, match="holds uid as Int64, expected text"):
        to_folder(catalogue_run, tmp_path / "out", shards="0")


# -- the Hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[HubServer]:
    """A Hub on this machine, and the user's token for it."""
    from huggingface_hub import constants

    with hub_server.running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another protocol
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its five tries
        monkeypatch.chdir(tmp_path)
        yield server


def to_hub(source: Path, **more: Any) -> Pushed:
    return push(PushRequest(source, "ana/news", **more), agreed)


def test_a_model_on_the_hub(whole: Path, hub: HubServer, tmp_path: Path) -> None:
    shown: list[str] = []
    done = push(PushRequest(whole, "ana/news", private=True), lambda lines: shown.extend(lines))
    repository = hub.repositories["ana/news"]
    assert repository.private
    assert repository.kind == "model"
    assert len(repository.commits) == 1
    to_folder(whole, tmp_path / "out")
    wanted = {name: (tmp_path / "out" / name).read_bytes() for name in list_files(tmp_path / "out")}
    assert {name: data for name, data in repository.main.items() if name != ".gitattributes"} == wanted
    assert done.where == f"{hub.url}/ana/news/commit/{1:040x}"
    assert shown[0].startswith(f"model to {hub.url}/ana/news (main), for you alone")
    assert all(any(name in line for line in shown) for name in wanted)  # each file was agreed to


def test_the_same_again_sends_nothing(whole: Path, hub: HubServer) -> None:
    first = to_hub(whole)
    hub.calls.clear()
    again = to_hub(whole)
    assert (first.num_sent, again.num_sent) == (first.num_files, 0)
    assert "put" not in hub.steps()
    assert "commit" not in hub.steps()
    changed = to_hub(whole, license_id="mit")
    assert changed.num_sent == 2
    assert sorted(hub.repositories["ana/news"].commits[-1]["changed"]) == ["README.md", MANIFEST]
    assert hub.steps().count("put") == 0


def test_files_of_an_earlier_publication_go(adapter_run: Path, hub: HubServer) -> None:
    """A merged model beside the adapter of before would be loaded with it."""
    to_hub(adapter_run)
    assert "adapter_config.json" in hub.repositories["ana/news"].main
    to_hub(adapter_run, merged=True)
    assert "adapter_config.json" not in hub.repositories["ana/news"].main
    assert "model.safetensors" in hub.repositories["ana/news"].main


def test_a_catalogue_on_the_hub(catalogue_run: Path, hub: HubServer) -> None:
    done = to_hub(catalogue_run, shards="all")
    repository = hub.repositories["ana/news"]
    assert (done.kind, repository.kind) == ("dataset", "dataset")
    assert sum(name.endswith(".parquet") for name in repository.main) == 6
    assert "# news" in repository.main["README.md"].decode()
    with pytest.raises(PublishError, match="names a model repository, but a dataset is published"):
        push(PushRequest(catalogue_run, "hf://models/ana/news", shards="0"), agreed)


def test_a_public_repository_is_not_private(whole: Path, hub: HubServer) -> None:
    hub.repositories["ana/news"] = hub_server.Repository("model", private=False)
    with pytest.raises(PublishError, match="everybody can read it, but --private was asked"):
        to_hub(whole, private=True)
    assert not hub.objects
    assert not hub.repositories["ana/news"].commits


def test_files_of_somebody_else_on_the_hub(whole: Path, hub: HubServer) -> None:
    hub.repositories["ana/news"] = hub_server.Repository("model", private=False)
    hub.repositories["ana/news"].main["pytorch_model.bin"] = b"old"
    with pytest.raises(PublishError, match=r"no publication wrote \(pytorch_model\.bin\), so nothing was sent"):
        to_hub(whole)
    assert not hub.objects


def test_a_branch(whole: Path, hub: HubServer) -> None:
    with pytest.raises(PublishError, match=r"has no branch 'v2'. Make it there"):
        to_hub(whole, revision="v2")
    assert not hub.objects
    hub.repositories["ana/news"].files["v2"] = {}
    to_hub(whole, revision="v2")
    assert "model.safetensors" in hub.repositories["ana/news"].files["v2"]
    assert "model.safetensors" not in hub.repositories["ana/news"].main


PAGE = b"<html><body>welcome</body></html>"
FAULTS: list[tuple[str, Fault, str]] = [
    ("create", Fault(401, "Invalid credentials in Authorization header"), "does not know the token"),
    ("create", Fault(403, f"no rights for {TOKEN}"), "may not write there"),
    ("create", Fault(500, "oops"), "fails with status 500"),
    ("create", Fault(0), "the connection to .* failed"),
    ("create", Fault(200, body=PAGE), "Is HF_ENDPOINT right"),
    ("tree", Fault(503), "fails with status 503"),
    ("validate-yaml", Fault(500, body=PAGE), "Is HF_ENDPOINT right"),
    ("validate-yaml", Fault(400, body=b'{"errors": [{"message": "license is wrong"}]}'), "status 400"),
    ("preupload", Fault(429, "slow down"), "asks to wait.*slow down"),
    ("preupload", Fault(403, "read-only"), "may not write there"),
    ("batch", Fault(500), "fails with status 500"),
    ("batch", Fault(413), "does not take so much"),
    ("put", Fault(0), "the connection to .* failed"),
    ("put", Fault(500), "fails with status 500"),
    ("commit", Fault(0), "the connection to .* failed"),
    ("commit", Fault(409, "conflict"), "changed by somebody else"),
    ("commit", Fault(412, "not the parent"), "changed by somebody else"),
    ("commit", Fault(403, "gone"), "may not write there"),
]


@pytest.mark.parametrize(("step", "fault", "said"), FAULTS, ids=[f"{s}-{f.status}" for s, f, _ in FAULTS])
def test_every_failure_is_one_line_and_can_be_given_again(
    catalogue_run: Path, hub: HubServer, step: str, fault: Fault, said: str
) -> None:
    hub.faults[step] = fault
    with pytest.raises(PublishError, match=said) as caught:
        to_hub(catalogue_run, shards="0")
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    assert text.startswith("ana/news: ")
    stored = set(hub.objects)
    assert not hub.repositories.get("ana/news", hub_server.Repository("dataset", False)).commits
    # The same command, when all is well again, sends what is missing.
    hub.faults.clear()
    hub.calls.clear()
    to_hub(catalogue_run, shards="0")
    sent = {call.path.rsplit("/", 1)[-1] for call in hub.calls if call.method == "PUT"}
    assert sent.isdisjoint(stored)
    assert len(sent) + len(stored) == 3
    assert len(hub.repositories["ana/news"].commits) == 1


def test_every_step_failed_once() -> None:
    assert {step for step, _, _ in FAULTS} == {"create", "tree", "validate-yaml", "preupload", "batch", "put", "commit"}


def test_a_storage_that_refuses(catalogue_run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go through hf_xet where it is installed; its errors are its own."""
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(PublishError, match=r"the connection to .* failed") as caught:
        to_hub(catalogue_run, shards="0")
    assert TOKEN not in str(caught.value)
    assert not hub.repositories["ana/news"].commits


@pytest.mark.parametrize("step", ["preupload", "batch", "put"])
def test_what_fails_once_is_tried_again(catalogue_run: Path, hub: HubServer, step: str) -> None:
    hub.faults[step] = Fault(500, times=1)
    assert to_hub(catalogue_run, shards="0").num_sent == 5


def test_a_token_without_rights_and_one_that_is_not_known(
    whole: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 34)
    with pytest.raises(PublishError, match="does not know the token") as caught:
        to_hub(whole)
    assert "hf_" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.calls.clear()
    with pytest.raises(PublishError, match=r"no token for .* Set HF_TOKEN .* hf auth login"):
        to_hub(whole)
    assert not hub.calls


def test_offline_is_respected(whole: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        to_hub(whole)
    assert not hub.calls


def test_not_agreed_to(whole: Path, hub: HubServer) -> None:
    def refuse(lines: object) -> None:
        raise PublishError("not agreed to; nothing was sent.")

    with pytest.raises(PublishError, match="not agreed to"):
        push(PushRequest(whole, "ana/news"), refuse)
    assert not hub.calls


COMMAND = "import sys; from afina.cli.push import push; import typer; a = typer.Typer(); a.command()(push); a()"


def run_push(hub: HubServer, *arguments: str | Path) -> subprocess.Popen[str]:
    left_out = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    environment = {**kept, "PYTHONPATH": PATH, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_upload_sends_the_rest(catalogue_run: Path, hub: HubServer) -> None:
    """Killed while the second file is under way; what was stored by then is not sent again."""
    reached, go_on, first = threading.Event(), threading.Event(), threading.Lock()

    def hold(call: hub_server.Call) -> None:
        if call.step == "put" and not first.acquire(blocking=False):
            reached.set()
            go_on.wait(30)

    hub.before = hold
    process = run_push(hub, catalogue_run, "ana/news", "--shards", "0", "--yes")
    assert reached.wait(60), process.poll()
    while not hub.objects:  # the first is stored
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.before = lambda call: None
    stored = set(hub.objects)
    assert len(stored) == 1
    assert not hub.repositories["ana/news"].commits
    hub.calls.clear()
    to_hub(catalogue_run, shards="0")
    sent = {call.path.rsplit("/", 1)[-1] for call in hub.calls if call.step == "put"}
    go_on.set()
    assert len(sent) == 2
    assert not sent & stored
    assert len(hub.repositories["ana/news"].commits) == 1


@pytest.mark.slow
def test_the_command_line(catalogue_run: Path, hub: HubServer) -> None:
    """Exit codes, streams, what is sent with each request, and that only --yes agrees without a terminal."""
    asked = run_push(hub, catalogue_run, "ana/news", "--shards", "0", "--json")
    out, err = asked.communicate(timeout=100)
    assert "Pass --yes to agree" in err
    assert not hub.calls
    sent = run_push(hub, catalogue_run, "ana/news", "--shards", "0", "--json", "--yes")
    out, err = sent.communicate(timeout=100)
    assert sent.returncode == 0, err
    assert json.loads(out) == {
        "kind": "dataset",
        "where": f"{hub.url}/datasets/ana/news/commit/{1:040x}",
        "num_files": 5,
        "num_bytes": sum(len(data) for name, data in hub.repositories["ana/news"].main.items() if name[0] != "."),
        "num_sent": 5,
    }
    assert "data/train/shard-00000.parquet" in err
    assert "%" not in err  # no bars of a library where nobody looks
    assert not [call.path for call in hub.calls if "agent-harnesses" in call.path]  # the library's own curiosity
    agents = {call.headers["user-agent"] for call in hub.calls if call.step != "put"}
    assert len(agents) == 1, agents
    assert re.match(r"afina/[\d.]+; hf_hub/[\d.]+; python/[\d.]+$", agents.pop())  # nothing of what else is installed
    assert all("authorization" not in call.headers for call in hub.calls if call.step == "put")  # a foreign storage


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import afina.cli.push, sys; print([m for m in ('torch', 'huggingface_hub', 'polars') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PATH}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
