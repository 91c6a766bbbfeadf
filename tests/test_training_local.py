"""Training end to end on a tiny Llama: results, metrics, resume after SIGKILL, merging, full disks."""

from __future__ import annotations

import json
import os
import resource
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
from safetensors.torch import load_file, save_file
from training_material import examples, load, settings_for, tiny_llama

from afina.core.errors import MachineError, ModelError, RunError
from afina.engine.encoded import Encoded
from afina.engine.loader import load_specialist
from afina.training.adapters import merge, prepare
from afina.training.checkpoints import complete, staged
from afina.training.collate import Layout, micro_batches
from afina.training.local import TrainResult, measure_step_s, require_reporters, train
from afina.training.loss import loss_sum
from afina.training.recorder import read_metrics
from afina.training.settings import Settings
from afina.training.trainer import out_of_patience

IDS = torch.arange(3, 23).unsqueeze(0)

SIXTEEN = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}  # examples per update


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small lose more in waiting for a second thread than they gain, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def run(base: Path, folder: Path, *, seed: int = 3, **changes: Any) -> tuple[TrainResult, Any, Settings]:
    data, validation = examples(48), examples(16, seed=1)
    settings = settings_for(
        base, data, **{**SIXTEEN, "learning_rate": 5e-3, "num_train_epochs": 4, "bf16": False, **changes}
    )
    loaded = load(settings)
    return train(loaded, settings, data, validation, folder, seed), loaded, settings


@pytest.mark.parametrize(
    "changes",
    [
        {"finetuning_type": "full"},
        {"finetuning_type": "full", "loss_on": "choices", "packing": False, "lr_scheduler_type": "cosine"},
        {"finetuning_type": "lora", "lora_dropout": 0.0},
        {"finetuning_type": "lora", "use_dora": True, "use_rslora": True, "gradient_checkpointing": True},
        {"load_in_4bit": True, "lora_r": 8, "optim": "paged_adamw_32bit"},
    ],
    ids=["full", "choices", "lora", "dora", "qlora"],
)
def test_it_learns_and_reloads_alike(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    result, loaded, settings = run(base, tmp_path / "t", **changes)
    losses = [row["calibrated_loss"] for row in result.history if "calibrated_loss" in row]
    assert len(losses) >= 6
    assert result.best_validation_loss == pytest.approx(min(losses))
    # An adapter on random frozen weights can learn little; all weights learn the task.
    assert min(losses) < (0.8 if result.weights == "model" else 0.96) * losses[0]
    assert result.steps == settings.total_steps == 12
    assert (tmp_path / "t" / result.weights).is_dir()
    assert not list((tmp_path / "t").rglob("*.bin")) + list((tmp_path / "t").rglob("*.pt*"))
    assert torch.equal(logits(load_specialist(tmp_path / "t", "cpu").model), logits(loaded.model))
    # Merging rounds nothing but the last bits of a float32 sum (arXiv:2106.09685, section 4.1).
    assert torch.allclose(logits(merge(tmp_path / "t", "cpu").model), logits(loaded.model), atol=1e-4)


def test_it_stops_early_and_keeps_the_best_weights(base: Path, tmp_path: Path) -> None:
    # A rate that destroys the model after a while: the best evaluation is not the last one.
    result, loaded, settings = run(
        base,
        tmp_path / "t",
        finetuning_type="full",
        learning_rate=0.2,
        lr_scheduler_type="constant",
        eval_steps=1,
        early_stopping_patience=2,
        num_train_epochs=20,
    )
    assert result.steps == result.best_step + 2 < settings.total_steps
    batches = micro_batches(examples(16, seed=1), 16, Layout("completion", 2))
    with torch.no_grad():
        again = sum(float(loss_sum(loaded.model, b)) for b in batches) / sum(len(b.target_N) for b in batches)
    assert again == pytest.approx(result.best_validation_loss, rel=1e-4)
    assert out_of_patience([{"step": 3, "eval_loss": 1}, {"step": 4, "eval_loss": 1}], 2, 2)
    assert not out_of_patience([{"step": 3, "eval_loss": 1}], 2, 2)


def test_metrics_and_warmup(base: Path, tmp_path: Path) -> None:
    result, _, _ = run(
        base,
        tmp_path / "t",
        finetuning_type="full",
        lr_scheduler_type="constant_with_warmup",
        warmup_ratio=0.5,
        logging_steps=1,
    )
    rows = read_metrics(tmp_path / "t" / "metrics.jsonl")
    assert rows == result.history
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert set(steps[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_s", "elapsed_s"}
    rates = [row["learning_rate"] for row in steps]
    assert rates == sorted(rates)
    assert rates[0] < rates[3] < rates[-1] == 5e-3


def test_accumulation_changes_nothing(base: Path, tmp_path: Path) -> None:
    shapes = {"one": (16, 1), "four": (4, 4)}
    weights = {}
    for name, (batch, accumulation) in shapes.items():
        run(
            base,
            tmp_path / name,
            finetuning_type="full",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-3,
        )
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert len(weights["one"]) > 10
    for key, value in weights["one"].items():
        assert torch.allclose(value, weights["four"][key], atol=1e-4), key


def test_the_same_call_again_only_loads(base: Path, tmp_path: Path) -> None:
    first, loaded, _ = run(base, tmp_path / "t", finetuning_type="lora")
    before = (tmp_path / "t" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    second, again, _ = run(base, tmp_path / "t", finetuning_type="lora")
    assert second == first or json.dumps(vars(second), default=list) == json.dumps(vars(first), default=list)
    assert (tmp_path / "t" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert torch.equal(logits(again.model), logits(loaded.model))
    with pytest.raises(RunError, match="other data or other settings"):
        run(base, tmp_path / "t", finetuning_type="lora", seed=4)


def test_peft_is_applied_once(base: Path, tmp_path: Path) -> None:
    texts = [Encoded(e.input_ids, 1) for e in examples(16)]
    settings = settings_for(base, texts, finetuning_type="lora", bf16=False, num_train_epochs=1)
    loaded = load(settings)
    train(loaded, settings, texts, [], tmp_path / "adapt", 1)
    adapted = loaded.model
    result = train(loaded, settings, examples(16), [], tmp_path / "task", 1)
    assert loaded.model is adapted
    assert list(loaded.model.peft_config) == ["default"]
    assert result.best_validation_loss is None
    assert result.best_step == result.steps
    assert torch.equal(logits(load_specialist(tmp_path / "task", "cpu").model), logits(loaded.model))


def test_measuring_a_step_changes_nothing(base: Path) -> None:
    data = examples(20)
    settings = settings_for(base, data, finetuning_type="full", bf16=False)
    loaded = load(settings)
    before = logits(loaded.model)
    assert measure_step_s(loaded, settings, data, 0) > 0
    assert torch.equal(logits(loaded.model), before)
    assert all(p.grad is None for p in loaded.model.parameters())


def test_absent_reporter_is_refused_by_name() -> None:
    with pytest.raises(MachineError, match=r"no_such_reporter is not installed.*afina\[no_such_reporter\]"):
        require_reporters(["no_such_reporter"])


# -- kills and full disks ------------------------------------------------------------------------------

CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
import afina.training.trainer as t
from test_training_local import interrupted_run
# Slow steps, so that the kill falls between them wherever the machine is fast.
inner = t.StepTrainer.training_step
def slow(self, *a, **k):
    import time; time.sleep(0.03)
    return inner(self, *a, **k)
t.StepTrainer.training_step = slow
interrupted_run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def interrupted_run(base: Path, folder: Path) -> TrainResult:
    """Dropout, shuffling, packing, accumulation and a schedule: everything that a resume could get wrong."""
    return run(
        base,
        folder,
        finetuning_type="lora",
        lora_dropout=0.3,
        num_train_epochs=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        eval_steps=4,
        logging_steps=1,
    )[0]


@pytest.mark.slow
def test_kill_and_resume_gives_the_same_weights(base: Path, tmp_path: Path) -> None:
    whole = interrupted_run(base, tmp_path / "whole")
    cut = tmp_path / "cut"
    kills = 0
    for wait_for in (5, 17, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(base), str(cut), str(Path(__file__).parent)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and child.poll() is None:
            rows = read_metrics(cut / "metrics.jsonl")
            if rows and rows[-1]["step"] >= wait_for:
                break
            time.sleep(0.01)
        assert child.poll() is None, child.stderr.read().decode() if child.stderr else ""
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        (cut / "checkpoints" / ".writing").mkdir(exist_ok=True)  # as a kill during a save leaves it
        (cut / "checkpoints" / "checkpoint-999").mkdir(exist_ok=True)  # no trainer_state.json: not whole
        assert 1 <= len(complete(cut / "checkpoints")) <= 2
    assert kills == 3
    resumed = interrupted_run(base, cut)
    a, b = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (tmp_path / "whole", cut))
    assert len(a) == 28
    assert max(float((a[k] - b[k]).abs().max()) for k in a) <= 1e-6
    assert resumed.best_step == whole.best_step
    for kind in ("loss", "validation_loss"):
        numbers = [[(r["step"], r[kind]) for r in x.history if kind in r] for x in (whole, resumed)]
        assert len(numbers[0]) == (60 if kind == "loss" else 15)
        assert [s for s, _ in numbers[0]] == [s for s, _ in numbers[1]]
        assert all(abs(p - q) < 1e-5 for (_, p), (_, q) in zip(*numbers, strict=True))


def _save_safetensors(at: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, at / "x.safetensors")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    home = tmp_path / "checkpoints"
    with staged(home / "checkpoint-1") as staging:
        (staging / "trainer_state.json").write_text("{}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        for write in (lambda at: torch.save(torch.zeros(100_000), at / "x.pt"), _save_safetensors):
            with pytest.raises(MachineError, match="disk is full"), staged(home / "checkpoint-2") as staging:
                write(staging)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [step for step, _ in complete(home)] == [1]
    assert not (home / ".writing").exists()


def test_a_folder_of_another_kind_is_replaced_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "adapter") as staging:
        (staging / "a").write_text("1")
    with staged(tmp_path / "adapter") as staging:
        (staging / "b").write_text("2")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["b"]


def test_prepare_refuses_full_tuning_of_an_adapter(base: Path) -> None:
    data = examples(4)
    settings = settings_for(base, data, finetuning_type="lora", bf16=False)
    loaded = prepare(load(settings), settings)
    with pytest.raises(ModelError, match="has an adapter"):
        prepare(loaded, replace(settings, finetuning_type="full"))
