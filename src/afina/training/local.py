"""Training on this machine: a loaded base and token lists in, a folder with the trained weights out.

A killed training is continued by the same call: from its last whole checkpoint, to the same weights. Which examples
make a good specialist, and how good it is, is not known here.
"""

from __future__ import annotations

import importlib.util
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from afina.core.errors import MachineError, RunError
from afina.core.storage import digest, ensure_folder, read_json, write_json
from afina.engine.encoded import Encoded
from afina.engine.hub import no_telemetry, quiet
from afina.engine.loader import LoadedModel
from afina.training import checkpoints
from afina.training.adapters import prepare, restore_weights, save_final
from afina.training.collate import Schedule, micro_batches
from afina.training.loss import unwrap
from afina.training.passes import Passes
from afina.training.recorder import Recorder, read_metrics
from afina.training.settings import Settings
from afina.training.watch import TrainingStopped, Watcher

if TYPE_CHECKING:  # transformers' Trainer takes seconds to import
    from afina.training.trainer import Sitting, Updates

FREE = ("notes", "logging_steps", "torch_compile")  # may change between the parts of a continued training
CHECKPOINTS, METRICS, RESULT, IDENTITY = "checkpoints", "metrics.jsonl", "training.json", "identity.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training did. Losses in nats per trained token; history: the rows of metrics.jsonl.

    best_step: whose weights were kept; the last step where there is no validation set.
    best_validation_loss: the loss that chose it, after temperature scaling of the choices.
    peak_memory_bytes: of the process on a CPU, of the device on a GPU.
    weights: "adapter" or "model", the folder's part that holds the result.
    trained_tokens: read in all updates, prompts included; None for preferences.
    """

    steps: int
    epochs: float
    train_seconds: float
    best_step: int
    best_validation_loss: float | None
    peak_memory_bytes: int
    trainable_parameters: int
    parameters: int
    weights: str
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    trained_tokens: int | None = None


def train(
    loaded: LoadedModel,
    settings: Settings,
    train_set: Sequence[Encoded],
    validation_set: Sequence[Encoded],
    folder: Path,
    seed: int,
    report_to: Sequence[str] = (),
    label: str = "training",
    watcher: Watcher | None = None,
) -> TrainResult:
    """Train `loaded` in place and leave `folder`/adapter or `folder`/model, metrics.jsonl and training.json.

    The same call after a kill continues; after the end it only loads the result. Afterwards `loaded` is in
    evaluation mode with the best weights. Uses and seeds the global random generators.

    watcher: follows every step. With one, the last step's weights are the result, not the best by validation, and a
    checkpoint is written at every epoch's end and every half minute.
    Raises MachineError (disk, absent library), RunError (the folder holds another training), TrainingStopped (the
    watcher asked for it).
    """
    require_reporters(report_to)

    def make(sitting: Sitting) -> Updates:
        from afina.training.trainer import StepTrainer

        passes = Passes(loaded, settings)  # which short ways hold for this model
        schedule = Schedule(
            train_set,
            settings.total_steps,
            batch_size=settings.per_device_train_batch_size,
            accumulation=settings.gradient_accumulation_steps,
            group_by_length=settings.group_by_length,
            seed=seed,
            layout=passes.layout,
        )
        validation = micro_batches(validation_set, settings.per_device_train_batch_size, passes.layout)
        return StepTrainer(sitting, schedule, validation, passes)

    told = [_tokens_digest(train_set), _tokens_digest(validation_set)]
    evaluate = bool(validation_set) and watcher is None
    return carry_out(
        loaded, settings, make, folder, seed, told, report_to=report_to, label=label, watcher=watcher, evaluate=evaluate
    )


def carry_out(
    loaded: LoadedModel,
    settings: Settings,
    make: Callable[[Sitting], Updates],
    folder: Path,
    seed: int,
    told: Sequence[Any],
    *,
    report_to: Sequence[str] = (),
    label: str = "training",
    watcher: Watcher | None = None,
    evaluate: bool = False,
) -> TrainResult:
    """`train`, whatever is learned. make: its trainer, from the model prepared for training.

    told: what, beside settings and seed, says which training this is. evaluate: measure now and then on validation,
    and keep the best weights.
    """
    no_telemetry()
    _open_folder(folder, loaded, settings, seed, told)
    import transformers

    with quiet():
        transformers.set_seed(seed)
    prepare(loaded, settings)
    target = folder / ("adapter" if loaded.has_adapter else "model")
    if (folder / RESULT).exists() and target.is_dir():
        restore_weights(loaded, target)
        _rest(loaded)
        return _read_result(folder)
    options = _arguments(
        settings, folder / CHECKPOINTS, seed, report_to, evaluate=evaluate, watched=watcher is not None
    )
    result = _run(loaded, settings, make, folder, label, watcher, options)
    with checkpoints.staged(target) as staging, quiet():
        save_final(loaded, settings, staging)
    restore_weights(loaded, target)  # what is evaluated next is what was written, its rounding included
    _rest(loaded)
    write_json(folder / RESULT, asdict(result))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return result


def _run(
    loaded: LoadedModel,
    settings: Settings,
    make: Callable[[Sitting], Updates],
    folder: Path,
    label: str,
    watcher: Watcher | None,
    options: dict[str, Any],
) -> TrainResult:
    from afina.training.trainer import Sitting, out_of_patience

    # From the last whole checkpoint, if there is one.
    home = folder / CHECKPOINTS
    done = checkpoints.complete(home)
    state = read_json(done[-1][1] / "trainer_state.json") if done else {}
    from_step = done[-1][0] if done else 0
    recorder = Recorder(folder / METRICS, label, settings.total_steps, from_step)
    torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
    trainer: Updates | None = None
    try:
        with quiet():
            trainer = make(Sitting(loaded, settings, home, recorder, options, watcher))
            over = from_step >= settings.total_steps or out_of_patience(
                state.get("log_history", []), state.get("best_global_step"), settings.early_stopping_patience
            )
            if over:  # killed between the last step and the final save
                best = state.get("best_global_step") or from_step
                restore_weights(loaded, checkpoints.checkpoint_path(home, best))
                loss, steps = state.get("best_metric"), from_step
            else:
                trainer.train(resume_from_checkpoint=str(done[-1][1]) if done else None)
                best = trainer.state.best_global_step or trainer.state.global_step
                loss, steps = trainer.state.best_metric, trainer.state.global_step
    finally:
        recorder.close()
        if trainer is not None:
            trainer.close()
    assert trainer is not None, "made, or an error is on its way"
    if watcher is not None and steps < settings.total_steps:
        raise TrainingStopped(steps)
    return TrainResult(
        steps=steps,
        epochs=round(steps / trainer.plan.steps_per_epoch, 4),
        train_seconds=round(recorder.elapsed_s, 3),
        best_step=best,
        best_validation_loss=loss,
        peak_memory_bytes=peak_memory_bytes(),
        trainable_parameters=loaded.num_trainable,
        parameters=loaded.num_parameters,
        weights="adapter" if loaded.has_adapter else "model",
        history=recorder.rows,
        settings=settings.to_json(),
        notes=(*settings.notes, *trainer.notes),
        trained_tokens=trainer.tokens_read(steps),
    )


def measure_step_s(loaded: LoadedModel, settings: Settings, train_set: Sequence[Encoded], seed: int) -> float:
    """Seconds of one update here: forward and backward of up to three steps, the first not counted.

    Prepares `loaded` for training and leaves its weights as they were.
    """
    prepare(loaded, settings)
    passes = Passes(loaded, settings)
    schedule = Schedule(
        train_set,
        4 if settings.torch_compile else 3,
        batch_size=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
        group_by_length=settings.group_by_length,
        seed=seed,
        layout=passes.layout,
    )
    times: list[float] = []
    for index in range(len(schedule)):
        began = time.perf_counter()
        passes.learn(schedule[index], lambda loss: loss.backward())
        times.append(time.perf_counter() - began)
        if times[0] > 30 and not settings.torch_compile:
            break  # a slow machine: one step says enough
    passes.close()
    loaded.model.zero_grad(set_to_none=True)
    loaded.model.eval()
    return sum(times[1:]) / len(times[1:]) if len(times) > 1 else times[0]


def peak_memory_bytes() -> int:
    """Most memory held so far by the GPU, or else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def require_reporters(report_to: Sequence[str]) -> None:
    """Raise MachineError for a `report_to` whose library is not installed."""
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise MachineError(
                f"train.report_to: {name} is not installed. Install it with: pip install 'afina[{name}]', or remove it."
            )


# -- details ---------------------------------------------------------------------------------------


def _rest(loaded: LoadedModel) -> None:
    loaded.model.eval()
    loaded.model.config.use_cache = True
    with suppress(AttributeError):
        unwrap(loaded.model).activation_checkpointing_disable()


def _open_folder(folder: Path, loaded: LoadedModel, settings: Settings, seed: int, told: Sequence[Any]) -> None:
    """Make the folder, or check that it holds this very training."""
    kept = {k: v for k, v in settings.to_json().items() if k not in FREE}
    identity = digest([kept, seed, loaded.has_adapter, *told])
    ensure_folder(folder)
    note = folder / IDENTITY
    if note.exists() and read_json(note)["identity"] != identity:
        raise RunError(
            f"{folder}: holds a training of other data or other settings. Remove the folder, or choose another "
            "output_dir."
        )
    if not note.exists():
        write_json(note, {"identity": identity})


def _tokens_digest(examples: Sequence[Encoded]) -> str:
    return digest([_told(example) for example in examples])


def _told(example: Encoded) -> list[Any]:
    learned: list[Any] = [] if example.trained_at is None else [example.trained_at]
    if example.second is not None:
        learned.append([_told(example.second), example.second_weight])
    return [example.input_ids, example.num_prompt, sorted(example.choices.items()), *learned]


def _read_result(folder: Path) -> TrainResult:
    raw: dict[str, Any] = read_json(folder / RESULT)
    raw |= {"notes": tuple(raw["notes"]), "history": read_metrics(folder / METRICS)}
    return TrainResult(**raw)


def _arguments(
    settings: Settings, home: Path, seed: int, report_to: Sequence[str], *, evaluate: bool, watched: bool
) -> dict[str, Any]:
    """transformers' TrainingArguments. watched: checkpoints are written when the watcher's rules say so."""
    optim = "adamw_torch_fused" if settings.optim == "adamw_torch" else settings.optim
    optim = {"adamw_8bit": "adamw_bnb_8bit"}.get(optim, optim)
    return {
        "output_dir": str(home),
        "max_steps": settings.total_steps,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * settings.total_steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": optim,
        "use_liger_kernel": settings.use_liger_kernel,
        "fp16": settings.compute_dtype == "float16",
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": settings.eval_steps if evaluate else None,
        "save_strategy": "no" if watched else "steps",
        "save_steps": settings.eval_steps,
        "load_best_model_at_end": evaluate,
        "metric_for_best_model": "eval_calibrated_loss" if evaluate else None,
        "greater_is_better": False if evaluate else None,
        "logging_strategy": "steps",
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": list(report_to) or "none",
        "use_cpu": settings.device == "cpu",
        "seed": seed,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }
