"""Rescue: a hosted fine-tune is asked, learned from, and agreed with; against `afina serve` as the hosted side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import afina, news, write_csv
from hosted_material import completion, hosted_recipe, scripted

from afina.core.errors import DataError
from afina.core.recipe_file import load_recipe, make_recipe
from afina.core.task_config import load_task
from afina.data.infer import infer_shape, read_object
from afina.data.wrapping import Exchange, Wrapping, find_wrapping
from afina.labelling import Request, label
from afina.providers.cache import AnswerCache
from afina.providers.client import find_provider

QUICK = ("train.max_steps=3", "train.max_length=128")


# -- the shape of answers -----------------------------------------------------------------------------


def test_objects_of_one_shape() -> None:
    texts = [
        json.dumps({"polaridade": ["positivo", "negativo"][i % 2], "nota": i % 7, "certo": i % 3 == 0,
                    "onde": {"uf": ["PE", "SP"][i % 2]}, "temas": ["a", "b"][: i % 3], "motivo": f"porque {i}"})
        for i in range(40)
    ]  # fmt: skip
    texts[3] = "não sei"
    texts[4] = '{"polaridade": "positivo"}'
    texts[5] = str(json.loads(texts[5]))  # Python's single quotes
    texts[6] = f"```json\n{texts[6]}\n```"
    shape = infer_shape(texts)
    properties = shape.output["properties"]
    assert list(properties) == ["polaridade", "nota", "certo", "onde", "temas", "motivo"]
    assert sorted(properties["polaridade"]["enum"]) == ["negativo", "positivo"]
    assert properties["nota"] == {"type": "integer", "minimum": 0, "maximum": 6}
    assert properties["certo"] == {"type": "boolean"}
    assert sorted(properties["onde"]["properties"]["uf"]["enum"]) == ["PE", "SP"]
    assert properties["temas"]["uniqueItems"] is True
    assert properties["motivo"] == {"type": "string"}
    assert [i for i, value in enumerate(shape.values) if value is None] == [3, 4]
    task = {"name": "t", "instruction": "i", "inputs": ["x"], "output": shape.output}
    assert load_task(make_recipe({"task": task, "data": {"path": "x.csv"}}).task).fields


def test_labels_and_text() -> None:
    labels = infer_shape(["positivo", " negativo", "positivo "] * 10)
    assert (labels.output, labels.values[:2]) == (["positivo", "negativo"], ["positivo", "negativo"])
    text = infer_shape([f"Resumo número {i}." for i in range(20)])
    assert (text.output, text.values[0]) == ("text", "Resumo número 0.")
    mixed = infer_shape(['{"a": 1}', '{"b": 2}', "c", "d"] * 5)
    assert not mixed.is_object


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[1]", "null", '{"a.b": 1}', '{"a": [{"b": 1}]}', "{1: 2}", "{" * 5000, "{'a': __import__('os')}"],
)
def test_no_usable_object(text: str) -> None:
    assert read_object(text) is None


# -- how a model was asked ------------------------------------------------------------------------------


def test_wrapping_of_a_training_file() -> None:
    texts = [f"Frase {word}" for word in ("um", "dois", "três", "quatro", "cinco", "seis")]
    found = find_wrapping([Exchange("Classifique.", f'texto: "{t}"\nResposta:', "x") for t in texts], "f")
    assert (found.system, found.before, found.after) == ("Classifique.", 'texto: "', '"\nResposta:')
    assert [found.unwrap(found.messages(t)[1]["content"]) for t in texts] == texts
    plain = find_wrapping([Exchange(None, t, "x") for t in texts], "f")
    assert plain == Wrapping(None)  # that all begin with "Frase" is no template
    few = find_wrapping([Exchange(None, f"texto: {t}", "x") for t in texts[:3]], "f")
    assert few == Wrapping(None)
    with pytest.raises(DataError, match="2 different system messages"):
        find_wrapping([Exchange("a", "x", "y"), Exchange("b", "x", "y")], "f")
    with pytest.raises(DataError, match="no line of one question"):
        find_wrapping([], "f")


# -- asking, with a provider that says what it is told ----------------------------------------------------


def free(lines: Any, cost_usd: float | None) -> None:
    """Agrees."""


def request(folder: Path, url: str, **changes: Any) -> Request:
    options: dict[str, Any] = {"batch": False, "instruction": "Classifique.", "input_columns": ["f1"], **changes}
    inputs = write_csv(folder / "rows.csv", news(30))
    return Request("ft:m:me::x", find_provider(url), inputs, "afina/nano", folder / "out", **options)


def test_every_answer_is_paid_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    asked: list[Any] = []

    def answer(raw: bytes) -> Any:
        asked.append(json.loads(raw))
        return completion('{"polaridade": "positivo"}' if len(asked) % 2 else '{"polaridade": "negativo"}')

    with scripted({"POST /v1/chat/completions": answer}) as told:
        first = label(request(tmp_path, told.url), free)
        again = label(request(tmp_path, told.url), free)
        assert told.count("POST /v1/chat/completions") == 30
    assert first.rows == again.rows
    assert len(first.rows) == 30
    assert asked[0]["messages"][0] == {"role": "system", "content": "Classifique."}
    assert asked[0]["temperature"] == 0
    assert {text["messages"][1]["content"] for text in asked} == {row["f1"] for row in news(30)}
    assert first.task["output"]["properties"]["polaridade"]["enum"]


def test_killed_half_way_the_rest_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    monkeypatch.setattr("afina.providers.client.NUM_RETRIES", 0)
    answers = [completion("positivo")] * 12 + [(500, {"error": {"message": "down"}})]
    with scripted({"POST /v1/chat/completions": answers}) as told:
        code = afina(*command(tmp_path, told.url, "--instruction", "x", "--input-column", "f1", "--no-batch"))
        assert code.code == 2
        assert "failed while asking" in code.err.splitlines()[-1]
        kept = told.count("POST /v1/chat/completions")
        told.answers["POST /v1/chat/completions"] = completion("negativo")
        found = label(request(tmp_path, told.url, instruction="x"), free)
        asked = told.count("POST /v1/chat/completions") - kept
    assert len(found.rows) == 30
    assert asked == 30 - 12
    assert sum(row["_answer"] == "positivo" for row in found.rows) == 12


def test_batches_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is stopped while the batch runs; the next one reads that batch and creates none."""
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    lines: list[bytes] = []
    batch: dict[str, Any] = {
        "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-1",
        "created_at": 1, "completion_window": "24h", "status": "in_progress", "output_file_id": None, "metadata": {},
        "request_counts": {"total": 30, "completed": 0, "failed": 0},
    }  # fmt: skip

    def upload(raw: bytes) -> Any:
        lines.extend(line for line in raw.split(b"\n") if line.startswith(b'{"custom_id"'))
        file = {
            "id": "file-1",
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "x",
            "purpose": "batch",
            "status": "processed",
        }
        return 200, file

    def output(raw: bytes) -> Any:
        rows = [
            {"id": "r", "custom_id": json.loads(line)["custom_id"], "error": None,
             "response": {"status_code": 200, "request_id": "x", "body": completion("neutro")[1]}}
            for line in lines[:-1]
        ]  # fmt: skip
        return 200, b"\n".join(json.dumps(row).encode() for row in rows)

    def stop(raw: bytes) -> Any:
        raise AssertionError("never asked")

    empty = (200, {"object": "list", "data": [], "has_more": False})
    script = {
        "GET /v1/files": empty, "POST /v1/files": upload, "GET /v1/batches": empty, "POST /v1/batches": (200, batch),
        "GET /v1/batches/batch_1": [(200, batch), (404, {"error": {"message": "gone for a moment"}})],
        "GET /v1/files/file-2/content": output, "POST /v1/chat/completions": completion("positivo"),
    }  # fmt: skip
    monkeypatch.setattr("afina.providers.asking.time.sleep", lambda seconds: None)
    with scripted(script) as told:
        with pytest.raises(Exception, match="gone for a moment"):
            label(request(tmp_path, told.url, batch=True), free)
        assert len(lines) == 30
        done = {**batch, "status": "completed", "output_file_id": "file-2"}
        told.answers["GET /v1/batches/batch_1"] = (200, done)
        found = label(request(tmp_path, told.url, batch=True), free)
        assert told.count("POST /v1/batches") == 1
        assert told.count("POST /v1/chat/completions") == 1  # the one that the batch did not answer
    answers = [row["_answer"] for row in found.rows]
    assert (answers.count("neutro"), answers.count("positivo")) == (29, 1)


def command(folder: Path, url: str, *options: str) -> list[str]:
    inputs = write_csv(folder / "rows.csv", news(30))
    return ["rescue", "ft:m:me::x", "--inputs", str(inputs), "--base-model", "afina/nano", "--base-url", url,
            "--output", str(folder / "out"), *options]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "how is the hosted model to be asked?"),
        (["--instruction", "x"], "which column is the model asked with?"),
        (["--instruction", "x", "--input-column", "f9"], "has no column 'f9'"),
        (["--recipe", "r.yaml", "--instruction", "x"], "--instruction has no effect"),
        (["--instruction", "x", "--input-column", "f1", "--max-cost-usd", "1"], "the cap cannot be kept"),
        (["--training-file", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_what_cannot_be_asked(options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    outcome = afina(*command(tmp_path, "https://example.org/v1", *options))
    assert outcome.code == 2, outcome.err
    assert words in outcome.err.strip().splitlines()[-1]


# -- the round trip -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosted(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a fine-tune made on the real server, and its name."""
    folder = tmp_path_factory.mktemp("hosted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_API_KEY", server.key)
        recipe = hosted_recipe(
            folder, f"{server.url}/v1", num_rows=80, train__hyperparameters={"n_epochs": 3, "batch_size": 8}
        )
        outcome = afina("train", recipe)
        assert outcome.code == 0, outcome.err
        yield folder, outcome.out.strip().removeprefix("Model: ")


def inputs_of(path: Path) -> set[str]:
    return {json.dumps(json.loads(line)["inputs"]) for line in path.read_text(encoding="utf-8").splitlines()}


def check_agreement(outcome: Any, folder: Path, num_rows: int) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    agreement = json.loads(outcome.out)
    assert agreement == json.loads((folder / "agreement.json").read_text())
    assert agreement["num_answered"] + agreement["num_failed"] == num_rows
    found = agreement["student"]["fields"]["polaridade"]
    assert 0 <= found["ci"][0] <= found["agreement"] <= found["ci"][1] <= 1
    # The report's own figure, on rows that the student never saw.
    report = json.loads((folder / "run" / "report.json").read_text())
    student = next(system for system in report["systems"] if system["strategy"] == "finetuned")
    assert student["fields"]["polaridade"]["accuracy"] == found["agreement"]
    texts = {name: inputs_of(folder / "run" / "data" / f"{name}.jsonl") for name in ("train", "test")}
    assert len(texts["test"]) == agreement["num_test"]
    assert not texts["train"] & texts["test"]
    assert (folder / "run" / "specialist" / "afina.json").exists()
    assert (folder / "run" / "report.html").exists()
    return agreement


@pytest.mark.slow
def test_round_trip_with_the_training_file(hosted: tuple[Path, str], server: Any, tmp_path: Path) -> None:
    """Batched; gold and the hosted model's answers are learned together; a second call asks and trains nothing."""
    folder, model = hosted
    inputs = write_csv(tmp_path / "rows.csv", news(160)[100:])
    argv = ["rescue", model, "--inputs", str(inputs), "--input-column", "f1", "--base-model", "afina/nano",
            "--training-file", str(folder / "run" / "hosted" / "training.jsonl"), "--base-url", server.url,
            "--output", str(tmp_path / "out"), "--max-tokens", "40", "--json", *QUICK]  # fmt: skip
    outcome = afina(*argv)
    agreement = check_agreement(outcome, tmp_path / "out", 60)
    assert agreement["num_gold"] == 56
    assert "user: texto: " in outcome.err  # asked as it was trained
    assert "batch batch_" in outcome.err
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert recipe.task.instruction == "Classifique a frase."
    weights = next((tmp_path / "out" / "run" / "specialist").rglob("*.safetensors"))
    before = weights.stat().st_mtime_ns
    again = afina(*argv)
    assert json.loads(again.out) == agreement
    assert "are here already" in again.err
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_round_trip_with_the_recipe(hosted: tuple[Path, str], server: Any, tmp_path: Path) -> None:
    """Asked one by one, held to the task's schema."""
    folder, model = hosted
    inputs = write_csv(tmp_path / "rows.csv", news(260)[200:])
    outcome = afina(
        "rescue", model, "--inputs", inputs, "--base-model", "afina/nano", "--recipe", folder / "recipe.yaml",
        "--base-url", server.url, "--output", tmp_path / "out", "--no-batch", "--json", *QUICK,
    )  # fmt: skip
    agreement = check_agreement(outcome, tmp_path / "out", 60)
    assert agreement["num_failed"] == 0  # the grammar allows no other answer
    cache = AnswerCache(tmp_path / "out" / "answers.sqlite")
    assert cache.spent_usd == 0


@pytest.fixture(autouse=True)
def _key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server's key for the tests that ask it."""
    if "server" in request.fixturenames:
        monkeypatch.setenv("AFINA_API_KEY", request.getfixturevalue("server").key)
