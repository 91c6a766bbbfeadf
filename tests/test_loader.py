"""Models load from safetensors only, and every refusal is one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from training_material import tiny_llama

from afina.core.errors import ModelError
from afina.engine import hub
from afina.engine.loader import load_base, load_specialist, load_tokenizer, pad_token_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def test_a_folder_loads_in_evaluation_mode(folder: Path) -> None:
    loaded = load_base(str(folder), device="cpu")
    assert not loaded.model.training
    assert loaded.quantisation == "none"
    assert loaded.num_parameters == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.pad_token_id == 2


def test_pad_is_never_eos_where_another_token_can_fill(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.pad_token = tokenizer.eos_token
    assert pad_token_id(tokenizer) == 2  # the reserved <pad> is found again
    assert pad_token_id(tokenizer) != tokenizer.eos_token_id


@pytest.mark.shared
def test_foreign_checkpoint_without_pad(shared_data: Path) -> None:
    loaded = load_base(str(shared_data / "models" / "stories260K"), device="cpu")
    assert loaded.tokenizer.pad_token_id is None
    assert loaded.pad_token_id == loaded.tokenizer.unk_token_id != loaded.tokenizer.eos_token_id
    ids = loaded.tokenizer("Once upon a time", return_tensors="pt").input_ids
    text = loaded.tokenizer.decode(loaded.model.generate(ids, max_new_tokens=20, do_sample=False)[0])
    assert "there was a" in text


@pytest.mark.parametrize("quantisation", ["4bit", "8bit"])
def test_stored_quantisation_is_kept(folder: Path, tmp_path: Path, quantisation: str) -> None:
    first = load_base(str(folder), quantisation=quantisation, device="cpu")  # type: ignore[arg-type]
    first.model.save_pretrained(tmp_path / "q")
    first.tokenizer.save_pretrained(tmp_path / "q")
    again = load_base(str(tmp_path / "q"), device="cpu")
    assert again.quantisation == quantisation
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, again.model(ids).logits)
    assert first.num_parameters == load_base(str(folder), device="cpu").num_parameters


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def no_config(at: Path) -> None:
    (at / "config.json").unlink()


def bad_config(at: Path) -> None:
    (at / "config.json").write_text("{")


def no_weights(at: Path) -> None:
    (at / "model.safetensors").unlink()


def only_pickle(at: Path) -> None:
    (at / "model.safetensors").rename(at / "pytorch_model.bin")


def cut_weights(at: Path) -> None:
    raw = (at / "model.safetensors").read_bytes()
    (at / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def no_tokenizer(at: Path) -> None:
    (at / "tokenizer.json").unlink()
    (at / "tokenizer_config.json").unlink()


def other_shape(at: Path) -> None:
    config = json.loads((at / "config.json").read_text())
    (at / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


DAMAGE = {
    no_config: "lacks config.json",
    bad_config: "config",
    no_weights: "lacks model.safetensors",
    only_pickle: "pickled weights",
    cut_weights: "model.safetensors is damaged",
    no_tokenizer: "tokenizer.json",
    other_shape: "weights are missing",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damaged_folder_is_one_line(folder: Path, tmp_path: Path, damage: object) -> None:
    broken = copy(folder, tmp_path / "broken")
    damage(broken)  # type: ignore[operator]
    with pytest.raises(ModelError) as caught:
        load_base(str(broken), device="cpu")
    assert DAMAGE[damage] in str(caught.value)  # type: ignore[index]
    assert "\n" not in str(caught.value)


def test_every_damage_was_tried() -> None:
    assert len(DAMAGE) == 7


@pytest.mark.parametrize("name", ["/no/such/folder", "a b c", "x/y/z"])
def test_misnamed_model(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder here nor a Hugging Face id"):
        load_base(name)


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no name service")))
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_base("meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("GatedRepoError", "Accept its licence .* hf auth login"),
        ("RepositoryNotFoundError", "HF_TOKEN"),
        ("RevisionNotFoundError", "no such revision"),
    ],
)
def test_what_the_hub_answers_is_explained(kind: str, wanted: str) -> None:
    error_class = getattr(errors, kind)
    error = error_class.__new__(error_class, "refused")  # its __init__ wants the HTTP answer
    with pytest.raises(ModelError, match=wanted), hub.explain("owner/model"):
        raise error


def test_specialist_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither adapter"):
        load_specialist(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_specialist(tmp_path / "absent")


def test_bitsandbytes_fetches_no_code(tmp_path: Path) -> None:
    """With a package `kernels` that says when it is asked, the training layer is imported without asking it."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked for code from the hub')", encoding="utf-8")
    code = "import afina.training.local, sys; assert 'bitsandbytes' in sys.modules; assert 'kernels' not in sys.modules"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels" not in done.stderr
