"""Preferences on a tiny Llama: what is preferred becomes likelier, and nothing of TRL's own habits is left."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_material import EOS, load, settings_for, tiny_llama

from afina.core.errors import MachineError, RunError
from afina.engine.encoded import Encoded
from afina.engine.loader import load_spec, load_specialist
from afina.training import dpo
from afina.training.adapters import go_on, prepare
from afina.training.dpo import Pair, PairSchedule, pair_batch
from afina.training.local import TrainResult
from afina.training.settings import Settings
from afina.training.watch import Measure, StepDone, TrainingStopped, WriteWeights

SHAPES: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full", "learning_rate": 1e-3},
    "lora": {"finetuning_type": "lora", "lora_r": 4, "lora_dropout": 0.2, "learning_rate": 1e-2},
}
CHECKPOINTED = {**SHAPES["lora"], "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL counts its users; here that would fail the test."""
    import trl.trainer.base_trainer as base_trainer

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr(base_trainer, "send_telemetry", refuse)


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Of two answers the one with 11 is preferred; prompts and answers of uneven length."""
    draw = random.Random(seed)
    made: list[Pair] = []
    for _ in range(count):
        prompt = (0, *(draw.randint(30, 100) for _ in range(draw.randint(2, 12))))
        tail = tuple(draw.randint(60, 63) for _ in range(draw.randint(0, 3)))
        made.append(Pair(prompt, (11, *tail, EOS), (21, EOS)))
    return made


def margin(model: Any, data: list[Pair]) -> float:
    """Mean log-probability of preferred minus other answers, plainly."""

    def logp(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        with torch.no_grad():
            logp_TV = model(torch.tensor([(*prompt, *answer)])).logits[0].float().log_softmax(-1)
        return sum(float(logp_TV[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    return sum(logp(p.prompt_ids, p.chosen_ids) - logp(p.prompt_ids, p.rejected_ids) for p in data) / len(data)


class Notes:
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps: list[StepDone] = []
        self.measured: list[Any] = []

    def on_step(self, done: StepDone, measure: Measure) -> bool:
        self.steps.append(done)
        self.measured.append((measure(), measure(done.step)))
        return done.step == self.stop_at

    def on_epoch(self, done: StepDone, write: WriteWeights) -> None: ...

    def on_save(self, step: int) -> None: ...


def settings_of(base: Path, data: list[Pair], **train: Any) -> Settings:
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 3}
    options |= {"lr_scheduler_type": "constant", "bf16": False, "logging_steps": 1, **dpo.WITHOUT, **train}
    return settings_for(base, [Encoded((0,) * p.num_read, 1) for p in data], **options)


def run(base: Path, folder: Path, watcher: Notes | None = None, **train: Any) -> tuple[TrainResult, Any]:
    data = pairs(16)
    settings = settings_of(base, data, **train)
    loaded = load(settings)
    return dpo.train(loaded, settings, data, pairs(6, seed=1), folder, 3, beta=0.1, watcher=watcher), loaded


def weights(folder: Path, result: TrainResult) -> dict[str, torch.Tensor]:
    name = "adapter_model" if result.weights == "adapter" else "model"
    return load_file(folder / result.weights / f"{name}.safetensors")


@pytest.mark.parametrize("train", [*SHAPES.values(), CHECKPOINTED], ids=[*SHAPES, "checkpointed"])
def test_the_preferred_answer_becomes_likelier(base: Path, tmp_path: Path, train: dict[str, Any]) -> None:
    unseen = pairs(12, seed=5)
    before = margin(load_spec(settings_of(base, unseen).base, "cpu").model, unseen)
    notes = Notes()
    result, loaded = run(base, tmp_path / "t", notes, **train)
    assert margin(loaded.model, unseen) > before + 0.5
    assert result.steps == len(notes.steps) == 9  # 16 pairs by 6 are 3 steps, three times
    assert [d.step for d in notes.steps if d.ends_epoch] == [3, 6, 9]
    assert notes.steps[0].train_loss == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are still one
    assert notes.steps[-1].train_loss < notes.steps[0].train_loss - 0.02
    assert notes.measured[-1][0].loss < math.log(2)
    assert all(0 <= d.train_mean_token_accuracy <= 1 for d in notes.steps)
    # What is left is what any training leaves.
    served = load_specialist(tmp_path / "t", "cpu")
    assert margin(served.model, unseen) == pytest.approx(margin(loaded.model, unseen), abs=1e-5)
    assert "forward" not in loaded.model.__dict__
    if result.weights == "adapter":
        assert list(loaded.model.peft_config) == ["default"]
        assert not (tmp_path / "t" / "adapter" / "ref").exists()
    assert not list(tmp_path.rglob("README.md"))


@pytest.mark.parametrize("kind", SHAPES)
def test_the_loss_is_that_of_the_paper(base: Path, tmp_path: Path, kind: str) -> None:
    """After some steps, on validation: -log sigmoid(beta x (margin of the policy - margin of the reference))."""
    notes = Notes()
    _, loaded = run(base, tmp_path / "t", notes, **SHAPES[kind])
    data = pairs(6, seed=1)
    reference = load_spec(settings_of(base, data).base, "cpu").model
    losses = []
    for pair in data:
        delta = margin(loaded.model, [pair]) - margin(reference, [pair])
        losses.append(math.log1p(math.exp(-0.1 * delta)))
    assert notes.measured[-1][0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
def test_stopped_and_continued_gives_the_same_weights(base: Path, tmp_path: Path, kind: str) -> None:
    whole, _ = run(base, tmp_path / "whole", Notes(), **SHAPES[kind])
    for stop_at in (2, 7):
        with pytest.raises(TrainingStopped) as stopped:
            run(base, tmp_path / "cut", Notes(stop_at), **SHAPES[kind])
        assert stopped.value.step == stop_at
    notes = Notes()
    resumed, _ = run(base, tmp_path / "cut", notes, **SHAPES[kind])
    assert [done.step for done in notes.steps] == [8, 9]
    one, other = weights(tmp_path / "whole", whole), weights(tmp_path / "cut", resumed)
    assert one.keys() == other.keys()
    assert len(one) >= 14
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_an_adapter_is_trained_further_against_itself(base: Path, tmp_path: Path) -> None:
    """The reference is the model that training began with, the earlier adapter included."""
    first, _ = run(base, tmp_path / "one", Notes(), **SHAPES["lora"])
    data = pairs(16)
    settings = settings_of(base, data, **{**SHAPES["lora"], "learning_rate": 3e-3})
    loaded = go_on(load(settings), tmp_path / "one" / "adapter")
    began = margin(loaded.model, data)
    notes = Notes()
    result = dpo.train(loaded, settings, data, [], tmp_path / "two", 4, beta=0.1, watcher=notes)
    assert notes.steps[0].train_loss == pytest.approx(math.log(2), abs=1e-5)
    assert notes.measured[0] == (None, None)
    assert margin(loaded.model, data) > began
    assert list(loaded.model.peft_config) == ["default"]
    one, two = weights(tmp_path / "one", first), weights(tmp_path / "two", result)
    assert one.keys() == two.keys()
    assert [p.name for p in (tmp_path / "two" / "adapter").iterdir() if p.is_dir()] == []


def test_an_update_is_the_same_in_any_micro_batches(base: Path, tmp_path: Path) -> None:
    sizes = {"one": (6, 1), "many": (2, 3)}
    found = {}
    for name, (size, accumulation) in sizes.items():
        shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        result, _ = run(base, tmp_path / name, Notes(), **SHAPES["full"], **shape, num_train_epochs=1)
        found[name] = weights(tmp_path / name, result)
    for key, tensor in found["one"].items():
        assert torch.allclose(tensor, found["many"][key], atol=1e-4), key


def test_other_beta_is_another_training(base: Path, tmp_path: Path) -> None:
    data = pairs(16)
    settings = settings_of(base, data, num_train_epochs=1, **SHAPES["lora"])
    dpo.train(load(settings), settings, data, [], tmp_path / "t", 3, beta=0.1)
    with pytest.raises(RunError, match="other data or other settings"):
        dpo.train(load(settings), settings, data, [], tmp_path / "t", 3, beta=0.2)


def test_rows_are_those_of_trl(base: Path) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    data = pairs(5)
    ours = pair_batch(data, 2)
    rows = [{name: list(ids) for name, ids in vars(pair).items()} for pair in data]
    theirs = DataCollatorForPreference(pad_token_id=2)(rows)
    assert ours.inputs.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours.inputs[name], tensor), name
    assert ours.num_chosen == sum(len(p.chosen_ids) for p in data)
    assert ours.num_tokens == int(theirs["attention_mask"].sum())


def test_every_epoch_has_every_pair_once(base: Path) -> None:
    data = pairs(16)
    settings = settings_of(base, data)
    schedule = PairSchedule(data, settings, 3, 2)
    assert (len(schedule), schedule.steps_per_epoch) == (9, 3)
    for epoch in range(3):
        seen = [n for step in schedule.order.order(epoch) for n in step]
        assert sorted(seen) == list(range(16))
        assert sum(b.num_pairs for i in range(3) for b in schedule[3 * epoch + i].batches) == 16


def test_adapters_on_few_bits_keep_their_precision(base: Path, tmp_path: Path) -> None:
    data = pairs(8)
    settings = settings_of(base, data, load_in_4bit=True, dequantize=False, lora_r=4, num_train_epochs=1)
    loaded = load(settings)
    dpo.train(loaded, settings, data, [], tmp_path / "t", 3, beta=0.1, watcher=Notes())
    kinds = {p.dtype for n, p in prepare(loaded, settings).model.named_parameters() if "lora_" in n}
    assert kinds == {torch.float32}


def test_absent_trl_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "trl" else found(name, *a))
    settings = replace(settings_of(base, pairs(2)), total_steps=1)
    with pytest.raises(MachineError, match=r"trl.*pip install 'afina\[serve\]'"):
        dpo.train(load(settings), settings, pairs(2), [], tmp_path / "t", 3, beta=0.1)
