"""Models load from safetensors only, and every refusal is one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import afina, news, recipe_text, write_csv
from huggingface_hub import errors
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file
from training_material import here, tiny_llama

from afina.core.errors import ModelError
from afina.core.predictor import Example
from afina.core.train_config import TrainConfig
from afina.engine import hub
from afina.engine.loader import BaseSpec, load_base, load_spec, load_specialist, load_tokenizer, pad_token_id
from afina.publishing import PushRequest, push
from afina.strategies.finetuned import Specialist
from afina.training.adapters import merge
from afina.training.facts import model_facts
from afina.training.memory import estimate
from afina.training.planner import resolve


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


# -- a base that is stored in few bits, as unsloth/tinyllama-chat-bnb-4bit is --------------------------

# TinyLlama's own: each turn ends with eos, and the padding is eos too.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def stored_nano(folder: Path, quantisation: str, **settings: Any) -> Path:
    first = load_base("afina/nano", quantisation=quantisation, dtype="bfloat16", device="cpu", **settings)  # type: ignore[arg-type]
    first.model.save_pretrained(folder)
    first.tokenizer.chat_template = CHAT_TEMPLATE
    first.tokenizer.pad_token = first.tokenizer.eos_token
    first.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return stored_nano(tmp_path_factory.mktemp("stored") / f"nano-bnb-{request.param}", request.param), request.param


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_nano(tmp_path_factory.mktemp("stored") / "nano-bnb-4bit", "4bit")


def test_stored_bits_are_not_quantised_again(stored: tuple[Path, str]) -> None:
    """What is in memory is what stands in the file, whatever else is asked for."""
    folder, kind = stored
    file = load_file(folder / "model.safetensors")
    loaded = load_base(str(folder), quantisation="none", dtype="bfloat16", device="cpu")
    assert loaded.quantisation == kind
    held = loaded.model.state_dict()
    packed = [name for name, value in file.items() if value.dtype in (torch.uint8, torch.int8) and name in held]
    assert len(packed) > 40
    for name in packed:
        assert torch.equal(held[name], file[name]), name


@pytest.mark.parametrize(
    ("quant_type", "double"), [("nf4", True), ("nf4", False), ("fp4", True)], ids=["tinyllama's", "single", "fp4"]
)
def test_the_spec_says_how_it_is_stored(tmp_path: Path, quant_type: str, double: bool) -> None:
    folder = stored_nano(tmp_path / "q", "4bit", bnb_quant_type=quant_type, bnb_double_quant=double)
    asked = load_base(str(folder), quantisation="4bit", dtype="float32", device="cpu")  # nf4, double: the defaults
    assert (asked.spec.bnb_quant_type, asked.spec.bnb_double_quant) == (quant_type, double)
    kept = next(m for m in asked.model.modules() if type(m).__name__ == "Linear4bit")
    assert kept.weight.quant_state.quant_type == quant_type
    assert kept.weight.quant_state.nested == double
    assert kept.compute_dtype == torch.float32  # stored on a machine with bfloat16; asked for without
    assert asked.model.get_input_embeddings().weight.dtype == torch.float32
    assert asked.model.get_output_embeddings().weight is asked.model.get_input_embeddings().weight  # still tied
    with torch.no_grad():
        kept_whole = asked.model(torch.arange(5, 15).unsqueeze(0)).logits
        written = load_spec(BaseSpec(str(folder)), "cpu", dequantize=True)
        assert torch.equal(written.model(torch.arange(5, 15).unsqueeze(0)).logits, kept_whole)


def test_written_out_bit_for_bit(four_bits: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    spec = BaseSpec(str(four_bits), dtype="bfloat16", bnb_compute_dtype="bfloat16")
    kept, written = load_spec(spec, "cpu"), load_spec(spec, "cpu", dequantize=True)
    assert written.dequantized
    layers = dict(written.model.named_modules())
    compared = 0
    for name, module in kept.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            values = dequantize_4bit(module.weight.data, module.weight.quant_state).to(torch.bfloat16)
            assert torch.equal(layers[name].weight.data, values), name
            compared += 1
    assert compared == 7 * kept.model.config.num_hidden_layers
    ids = torch.arange(5, 60).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(kept.model(ids).logits, written.model(ids).logits)
    assert kept.num_parameters == written.num_parameters == load_base("afina/nano", device="cpu").num_parameters


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "hqq", "torchao", ""])
def test_other_methods_are_refused_by_name(folder: Path, tmp_path: Path, method: str) -> None:
    other = copy(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    settings = {"quant_method": method or "bitsandbytes", "bits": 4, "group_size": 128}
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    said = rf"quantised with {method}, .*bnb-4bit" if method else "neither load_in_4bit nor load_in_8bit"
    for ask in (load_base, model_facts):  # the planner refuses it before anything is trained
        with pytest.raises(ModelError, match=said) as caught:
            ask(str(other))
        assert "\n" not in str(caught.value)


def test_the_planner_counts_what_is_held(four_bits: Path) -> None:
    """Weights and scales of the plan against the tensors of the model that training holds."""
    facts = model_facts(str(four_bits))
    assert facts.stored == "4bit"
    lora = {"lora_r": 4, "lora_target_modules": ["q_proj"]}
    for dequantize in (False, True):
        train = TrainConfig(base_model=str(four_bits), dequantize=dequantize, load_in_4bit=False, **lora)
        settings = resolve(train, facts, [40] * 8, here(bf16=True))
        assert any("stored in 4bit, and is trained as it is stored" in note for note in settings.notes)
        planned = estimate(settings, facts, [40] * 8)
        loaded = load_spec(settings.base, "cpu", dequantize=settings.dequantize)
        model = loaded.model if settings.dequantize else prepare_model_for_kbit_training(loaded.model)
        held = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
        scales = 0
        for module in model.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                scales += state.absmax.numel() + 4 * state.state2.absmax.numel()
        assert planned.weights == pytest.approx(sum(held.values()), rel=0.01)
        assert planned.quantisation_overhead == pytest.approx(scales, rel=0.05)


@pytest.mark.slow
def test_a_run_on_a_stored_base(stored: tuple[Path, str], tmp_path: Path) -> None:
    """Train, answer, reload, merge; with a chat template whose padding is the token that ends an answer."""
    base, kind = stored
    write_csv(tmp_path / "news.csv", news(40))
    settings: dict[str, Any] = {"train__base_model": str(base), "train__lora_r": 4, "train__load_in_4bit": False}
    text = recipe_text(compare=["majority", "finetuned"], output_dir=str(tmp_path / "run"), **settings)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    done = afina("run", tmp_path / "recipe.yaml")
    assert done.code == 0, done.err
    assert f"is stored in {kind}, and is trained as it is stored" in " ".join(done.err.split())  # it stands in a table
    place = tmp_path / "run/specialist"
    saved = json.loads((place / "base.json").read_text())
    assert (saved["name"], saved["quantisation"]) == (str(base), kind)
    assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    # 1. An answer ends: its end is learned, and is not the padding's.
    specialist = Specialist.load(place)
    renderer = specialist.predictor.renderer
    assert renderer.style == "chat"
    example = Example("1", {"texto": "O PIB cresceu."}, {"polaridade": "positivo"})
    encoded = renderer.encode(specialist.task.parts[0], example)
    assert encoded is not None
    eos = load_tokenizer(str(base)).eos_token_id
    assert eos in encoded.input_ids[encoded.num_prompt :]
    assert pad_token_id(load_tokenizer(str(base))) != eos
    answers = specialist.predict([{"texto": row["f1"]} for row in news(3)])
    assert [a.error for a in answers] == [None] * 3
    # 2. Merged into the very values that were stored.
    merged = merge(place)
    assert merged.quantisation == "none"
    adapter = load_specialist(place, "cpu", dtype="float32")
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.no_grad():
        difference = merged.model(ids).logits - adapter.model(ids).logits
    assert difference.abs().max() < (0.3 if kind == "8bit" else 0.1)  # 8-bit products round their inputs too
    push(PushRequest(place, f"{tmp_path / 'out'}/", merged=True), lambda lines: None)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    assert Specialist.load(tmp_path / "out").predict([{"texto": "a"}])[0].error is None


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
