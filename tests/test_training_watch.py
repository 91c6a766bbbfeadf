"""A training that is followed: what its watcher is told is true, and stopping or killing it changes no weight."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training_levers import questions
from training_material import EOS, VOCABULARY, examples, gpu, here, load, settings_for, tiny_llama

import afina.training.trainer as trainer_module
from afina.core.errors import RunError
from afina.core.storage import read_json
from afina.core.train_config import TrainConfig
from afina.engine.encoded import Encoded
from afina.engine.loader import load_spec, load_specialist, specialist_spec
from afina.training.adapters import go_on, prepare
from afina.training.checkpoints import complete, staged
from afina.training.collate import Layout, collate, make_rows, micro_batches
from afina.training.facts import model_facts
from afina.training.fused_loss import Hits
from afina.training.local import TrainResult, train
from afina.training.loss import logits_full, loss_sum
from afina.training.memory import estimate
from afina.training.planner import USABLE, resolve_batch
from afina.training.recorder import read_metrics
from afina.training.settings import Settings
from afina.training.watch import Measure, StepDone, TrainingStopped, WriteWeights

PAD = 2
SHAPES: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "lora": {"finetuning_type": "lora", "lora_dropout": 0.3, "lora_r": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Notes:
    """A watcher that remembers. stop_at: the step after which it wants to stop."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self.folder, self.stop_at = folder, stop_at
        self.steps: list[StepDone] = []
        self.measured: list[tuple[Any, ...]] = []
        self.saved: list[int] = []
        self.written: list[int] = []

    def on_step(self, done: StepDone, measure: Measure) -> bool:
        self.steps.append(done)
        whole, one, again = measure(), measure(done.step), measure(done.step + 4)
        self.measured.append((whole, one, again))
        return done.step == self.stop_at

    def on_epoch(self, done: StepDone, write: WriteWeights) -> None:
        with staged(self.folder / f"step-{done.step}") as staging:
            write(staging)
        self.written.append(done.step)

    def on_save(self, step: int) -> None:
        self.saved.append(step)


def run(base: Path, folder: Path, watcher: Notes | None, **changes: Any) -> tuple[TrainResult, Any, Settings]:
    data, validation = examples(40), examples(16, seed=1)
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "num_train_epochs": 3,
        "bf16": False,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "logging_steps": 1,
        **SHAPES["full"],
        **changes,
    }
    settings = settings_for(base, data, **options)
    loaded = load(settings)
    return train(loaded, settings, data, validation, folder, 3, watcher=watcher), loaded, settings


def weights(folder: Path, result: TrainResult) -> dict[str, torch.Tensor]:
    name = "adapter_model" if result.weights == "adapter" else "model"
    return load_file(folder / result.weights / f"{name}.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) >= 14
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# -- what is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["completion", "choices"])
@pytest.mark.parametrize("train_kind", ["full", "lora"])
def test_accuracy_is_that_of_the_full_logits(base: Path, loss_on: str, train_kind: str) -> None:
    data = questions(30)
    settings = settings_for(base, data, loss_on=loss_on, bf16=False, **SHAPES[train_kind])
    loaded = prepare(load(settings), settings)
    loaded.model.eval()
    layout = Layout(loss_on, PAD)
    batch = collate(make_rows(data, layout), layout)
    with torch.no_grad():
        logits_NV = logits_full(loaded.model, batch)
    for at, allowed in zip(batch.finite_M.tolist(), batch.allowed_MK.tolist(), strict=True):
        forbidden = torch.ones(VOCABULARY, dtype=torch.bool)
        forbidden[[token for token in allowed if token >= 0]] = False
        logits_NV[at, forbidden] = float("-inf")
    wanted = int((logits_NV.argmax(1) == batch.target_N).sum())
    assert 0 < wanted < len(batch.target_N)
    for logits_at in (None, logits_full):
        hits = Hits()
        with_hits = loss_sum(loaded.model, batch, logits_at, hits)
        assert int(hits.right) == wanted
        assert float(with_hits.detach()) == float(loss_sum(loaded.model, batch, logits_at).detach())


def test_a_watcher_is_told_every_step(base: Path, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "models")
    result, loaded, settings = run(base, tmp_path / "t", notes)
    assert settings.total_steps == 15
    assert [done.step for done in notes.steps] == list(range(1, 16))
    assert [done.step for done in notes.steps if done.ends_epoch] == [5, 10, 15] == notes.written
    assert notes.saved == [5, 10, 15]
    logged = [row["loss"] for row in read_metrics(tmp_path / "t" / "metrics.jsonl")]
    assert [done.train_loss for done in notes.steps] == pytest.approx(
        logged, abs=1e-4
    )  # transformers rounds to 4 places
    accuracies = [done.train_mean_token_accuracy for done in notes.steps]
    assert all(0 <= a <= 1 for a in accuracies)
    assert sum(accuracies[-3:]) > sum(accuracies[:3])
    # The last weights are kept, whichever were best.
    assert result.best_step == result.steps == 15
    assert result.best_validation_loss is None
    validation = micro_batches(examples(16, seed=1), 4, Layout("completion", PAD))
    assert len(validation) == 4
    with torch.no_grad():
        hits = Hits()
        losses = [float(loss_sum(loaded.model, batch, None, hits)) for batch in validation]
    whole, one, again = notes.measured[-1]
    count = sum(len(b.target_N) for b in validation)
    assert whole.loss == pytest.approx(sum(losses) / count, rel=1e-5)
    assert whole.mean_token_accuracy == int(hits.right) / count
    assert one == again  # counted round
    assert one.loss == pytest.approx(losses[15 % 4] / len(validation[3].target_N), rel=1e-5)


def test_watching_changes_no_weight(base: Path, tmp_path: Path) -> None:
    whole, _, _ = run(base, tmp_path / "watched", Notes(tmp_path / "models"))
    plain, _, _ = run(base, tmp_path / "plain", None, eval_steps=15)
    assert plain.best_step == 15, "the last step is the best, so both kept it"
    assert_equal(weights(tmp_path / "watched", whole), weights(tmp_path / "plain", plain))


@pytest.mark.parametrize("kind", SHAPES)
def test_epochs_leave_servable_folders(base: Path, tmp_path: Path, kind: str) -> None:
    result, loaded, _ = run(base, tmp_path / "t", Notes(tmp_path / "models"), **SHAPES[kind])
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        wanted = loaded.model(ids).logits
        last = load_specialist(tmp_path / "models" / "step-15", "cpu")
        assert torch.equal(last.model(ids).logits, wanted)
        first = load_specialist(tmp_path / "models" / "step-5", "cpu")
        assert not torch.equal(first.model(ids).logits, wanted)
    assert (result.weights == "adapter") == last.has_adapter
    if kind == "full":
        configs = [read_json(p / "config.json") for p in (tmp_path / "models" / "step-15", tmp_path / "t" / "model")]
        assert configs[0] == configs[1]
        assert configs[0]["use_cache"] is True


def test_a_checkpoint_now_and_then(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "WATCHED_EVERY_S", 0.0)
    notes = Notes(tmp_path / "models")
    run(base, tmp_path / "t", notes)
    assert notes.saved == list(range(1, 16))


# -- stopped and killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_stopped_and_continued_gives_the_same_weights(base: Path, tmp_path: Path, kind: str) -> None:
    whole, _, _ = run(base, tmp_path / "whole", Notes(tmp_path / "a"), **SHAPES[kind])
    stops = sorted(random.Random(kind).sample(range(1, 15), 3))
    told: list[int] = []
    for stop_at in stops:
        notes = Notes(tmp_path / "b", stop_at)
        with pytest.raises(TrainingStopped) as stopped:
            run(base, tmp_path / "cut", notes, **SHAPES[kind])
        assert stopped.value.step == stop_at
        assert complete(tmp_path / "cut" / "checkpoints")[-1][0] == stop_at
        told += [done.step for done in notes.steps]
    notes = Notes(tmp_path / "b")
    resumed, _, _ = run(base, tmp_path / "cut", notes, **SHAPES[kind])
    assert told + [done.step for done in notes.steps] == list(range(1, 16))
    assert_equal(weights(tmp_path / "whole", whole), weights(tmp_path / "cut", resumed))
    for step in (5, 10, 15):
        name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
        assert_equal(*(load_file(tmp_path / p / f"step-{step}" / name) for p in "ab"))


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from test_training_watch import SHAPES, Notes, run
class Slow(Notes):
    def on_step(self, done, measure):
        print(done.step, flush=True)
        time.sleep(0.03)
        return super().on_step(done, measure)
run(Path(sys.argv[1]), Path(sys.argv[2]) / "cut", Slow(Path(sys.argv[2]) / "b"), **SHAPES[sys.argv[4]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_killed_and_continued_gives_the_same_weights(base: Path, tmp_path: Path, kind: str) -> None:
    whole, _, _ = run(base, tmp_path / "whole", Notes(tmp_path / "a"), **SHAPES[kind])
    kills = 0
    for wait_for in (3, 8):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(base), str(tmp_path), str(Path(__file__).parent), kind],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdout is not None
        assert any(line.strip() == str(wait_for) for line in child.stdout), "it told of the step"
        time.sleep(random.Random(wait_for).random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills == 2
    assert complete(tmp_path / "cut" / "checkpoints"), "something was saved, and the rest was lost"
    resumed, _, _ = run(base, tmp_path / "cut", Notes(tmp_path / "b"), **SHAPES[kind])
    assert_equal(weights(tmp_path / "whole", whole), weights(tmp_path / "cut", resumed))


# -- positions that are learned ---------------------------------------------------------------------------


def test_trained_at_is_what_is_learned(base: Path) -> None:
    turns = Encoded((0, 40, 41, 11, EOS, 42, 43, 12, EOS), 3, trained_at=(3, 4, 7, 8))
    assert turns.trained("completion") == [3, 4, 7, 8]
    batch = collate([[turns]], Layout("completion", PAD))
    assert batch.target_N.tolist() == [11, EOS, 12, EOS]
    assert batch.source_N.tolist() == [2, 3, 6, 7]
    model = load(settings_for(base, [turns], bf16=False)).model
    with torch.no_grad():
        logp_TV = model(torch.tensor([turns.input_ids])).logits[0].log_softmax(-1)
    wanted = -sum(float(logp_TV[at - 1, turns.input_ids[at]]) for at in (3, 4, 7, 8))
    assert float(loss_sum(model, batch).detach()) == pytest.approx(wanted, rel=1e-5)
    # Packed, and behind a shared beginning, the same positions count.
    other = Encoded((0, 40, 41, 12, EOS, 50, 11, EOS), 3, trained_at=(3, 4))
    for share in (False, True):
        layout = Layout("completion", PAD, share_prefix=share)
        packed = collate([[turns, other]], layout)
        assert sorted(packed.target_N.tolist()) == sorted([11, EOS, 12, EOS, 12, EOS])
        alone = sum(float(loss_sum(model, collate([[e]], layout)).detach()) for e in (turns, other))
        assert float(loss_sum(model, packed).detach()) == pytest.approx(alone, rel=1e-4)


def test_trained_at_leaves_choices_alone() -> None:
    choices: dict[int, tuple[int, ...] | None] = {3: (11, 12)}
    assert Encoded((0, 40, 41, 11, EOS), 3, choices, trained_at=(4,)).trained("completion") == [3, 4]
    assert Encoded((0, 40, 41, 11, EOS), 3, choices).trained("choices") == [3, 4]


def test_other_positions_are_another_training(base: Path, tmp_path: Path) -> None:
    data = [Encoded((0, 40, 41, 11, EOS, 42, 12, EOS), 3, trained_at=(3, 4, 6, 7))] * 8
    fewer = [replace(e, trained_at=(3, 4)) for e in data]
    settings = settings_for(base, data, num_train_epochs=1, bf16=False)
    train(load(settings), settings, data, [], tmp_path / "t", 1)
    with pytest.raises(RunError, match="other data"):
        train(load(settings), settings, fewer, [], tmp_path / "t", 1)


# -- from an earlier fine-tune ----------------------------------------------------------------------------


def test_an_adapter_is_trained_further(base: Path, tmp_path: Path) -> None:
    _, first, settings = run(base, tmp_path / "one", Notes(tmp_path / "a"), **SHAPES["lora"])
    spec = specialist_spec(tmp_path / "a" / "step-15")
    assert spec.name == str(base)
    loaded = go_on(load_spec(spec, "cpu"), tmp_path / "a" / "step-15")
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, first.model(ids).logits)
    before = weights(tmp_path / "one", train_result := run(base, tmp_path / "one", None, **SHAPES["lora"])[0])
    assert train_result.steps == 15
    result = train(loaded, settings, examples(40, seed=9), [], tmp_path / "two", 4, watcher=Notes(tmp_path / "b"))
    assert list(loaded.model.peft_config) == ["default"]
    after = weights(tmp_path / "two", result)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert result.trainable_parameters == sum(t.numel() for t in after.values())
    # One adapter over the original base, and that base is as it was.
    again = load_specialist(tmp_path / "b" / f"step-{result.steps}", "cpu")
    assert specialist_spec(tmp_path / "b" / f"step-{result.steps}").name == str(base)
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)


# -- updates of an exact size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 12, 256])
def test_an_update_has_exactly_the_size_asked_for(base: Path, batch_size: int) -> None:
    facts, lengths = model_facts(str(base)), [100] * 300
    config = TrainConfig(base_model=str(base), num_train_epochs=2)
    settings = resolve_batch(config, facts, lengths, here(), batch_size=batch_size)
    assert settings.effective_batch == batch_size
    assert settings.total_steps == 2 * -(-300 // batch_size)
    assert settings.per_device_train_batch_size * 100 <= 2048  # tokens in a CPU's cache, by the planner's rule
    on_gpu = resolve_batch(config, facts, lengths, here(gpus=(gpu(),)), batch_size=batch_size)
    assert on_gpu.per_device_train_batch_size == batch_size


def test_smaller_micro_batches_come_before_checkpointing(base: Path) -> None:
    facts, lengths = model_facts(str(base)), [250] * 64
    config = TrainConfig(base_model=str(base), max_length=256)
    roomy = resolve_batch(config, facts, lengths, here(), batch_size=8)
    assert roomy.per_device_train_batch_size == 8
    assert not roomy.gradient_checkpointing
    needed = {n: estimate(replace(roomy, per_device_train_batch_size=n), facts, lengths).peak for n in (1, 2, 8)}
    between = here(available_bytes=int((needed[1] + needed[2]) / 2 / USABLE))
    tight = resolve_batch(config, facts, lengths, between, batch_size=8)
    assert (tight.per_device_train_batch_size, tight.gradient_accumulation_steps) == (1, 8)
    assert not tight.gradient_checkpointing
    none = resolve_batch(config, facts, lengths, here(available_bytes=1 << 20), batch_size=8)
    assert none.gradient_checkpointing
    assert none.effective_batch == 8
