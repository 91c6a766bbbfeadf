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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

FREE = ("notes", "logging_steps", "torch_compile")  # may change between the parts of a continued training
CHECKPOINTS, METRICS, RESULT, IDENTITY = "checkpoints", "metrics.jsonl", "training.json", "identity.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training did. Losses in nats per trained token; history: the rows of metrics.jsonl.

    best_step: whose weights were kept; the last step where there is no validation set.
    best_validation_loss: the loss that chose it, after temperature scaling of the choices.
    peak_memory_bytes: of the process on a CPU, of the device on a GPU.
    weights: "adapter" or "model", the folder's part that holds the result.
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


def train(
    loaded: LoadedModel,
    settings: Settings,
    train_set: Sequence[Encoded],
    validation_set: Sequence[Encoded],
    folder: Path,
    seed: int,
    report_to: Sequence[str] = (),
    label: str = "training",
) -> TrainResult:
    """Train `loaded` in place and leave `folder`/adapter or `folder`/model, metrics.jsonl and training.json.

    The same call after a kill continues; after the end it only loads the result. Afterwards `loaded` is in
    evaluation mode with the best weights. Uses and seeds the global random generators.
    Raises MachineError (disk, absent library), RunError (the folder holds another training).
    """
    no_telemetry()
    require_reporters(report_to)
    _open_folder(folder, loaded, settings, train_set, validation_set, seed)
    import transformers

    with quiet():
        transformers.set_seed(seed)
    prepare(loaded, settings)
    target = folder / ("adapter" if loaded.has_adapter else "model")
    if (folder / RESULT).exists() and target.is_dir():
        restore_weights(loaded, target)
        _rest(loaded)
        return _read_result(folder)
    result = _run(loaded, settings, train_set, validation_set, folder, seed, report_to, label)
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
    train_set: Sequence[Encoded],
    validation_set: Sequence[Encoded],
    folder: Path,
    seed: int,
    report_to: Sequence[str],
    label: str,
) -> TrainResult:
    from afina.training.trainer import StepTrainer, out_of_patience

    # 1. Which short ways hold for this model.
    passes = Passes(loaded, settings)
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

    # 2. From the last whole checkpoint, if there is one.
    home = folder / CHECKPOINTS
    done = checkpoints.complete(home)
    state = read_json(done[-1][1] / "trainer_state.json") if done else {}
    from_step = done[-1][0] if done else 0
    recorder = Recorder(folder / METRICS, label, settings.total_steps, from_step)
    arguments = _arguments(settings, home, seed, report_to, has_validation=bool(validation))
    torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
    try:
        with quiet():
            trainer = StepTrainer(loaded, settings, schedule, validation, home, recorder, passes, arguments)
            trainer.label_names = []
            stopped = from_step >= settings.total_steps or out_of_patience(
                state.get("log_history", []), state.get("best_global_step"), settings.early_stopping_patience
            )
            if stopped:  # killed between the last step and the final save
                best = state.get("best_global_step") or from_step
                restore_weights(loaded, checkpoints.checkpoint_path(home, best))
                loss, steps = state.get("best_metric"), from_step
            else:
                trainer.train(resume_from_checkpoint=str(done[-1][1]) if done else None)
                best = trainer.state.best_global_step or trainer.state.global_step
                loss, steps = trainer.state.best_metric, trainer.state.global_step
    finally:
        recorder.close()
        passes.close()
    return TrainResult(
        steps=steps,
        epochs=round(steps / schedule.steps_per_epoch, 4),
        train_seconds=round(recorder.elapsed_s, 3),
        best_step=best,
        best_validation_loss=loss,
        peak_memory_bytes=peak_memory_bytes(),
        trainable_parameters=loaded.num_trainable,
        parameters=loaded.num_parameters,
        weights="adapter" if loaded.has_adapter else "model",
        history=recorder.rows,
        settings=settings.to_json(),
        notes=(*settings.notes, *passes.notes),
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


def _open_folder(
    folder: Path,
    loaded: LoadedModel,
    settings: Settings,
    train_set: Sequence[Encoded],
    validation_set: Sequence[Encoded],
    seed: int,
) -> None:
    """Make the folder, or check that it holds this very training."""
    kept = {k: v for k, v in settings.to_json().items() if k not in FREE}
    identity = digest([kept, seed, loaded.has_adapter, _tokens_digest(train_set), _tokens_digest(validation_set)])
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
    return digest([[e.input_ids, e.num_prompt, sorted(e.choices.items())] for e in examples])


def _read_result(folder: Path) -> TrainResult:
    raw: dict[str, Any] = read_json(folder / RESULT)
    raw |= {"notes": tuple(raw["notes"]), "history": read_metrics(folder / METRICS)}
    return TrainResult(**raw)


def _arguments(settings: Settings, home: Path, seed: int, report_to: Sequence[str], *, has_validation: bool) -> Any:
    from transformers import TrainingArguments

    optim = "adamw_torch_fused" if settings.optim == "adamw_torch" else settings.optim
    optim = {"adamw_8bit": "adamw_bnb_8bit"}.get(optim, optim)
    return TrainingArguments(
        output_dir=str(home),
        max_steps=settings.total_steps,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * settings.total_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=optim,
        use_liger_kernel=settings.use_liger_kernel,
        fp16=settings.compute_dtype == "float16",
        eval_strategy="no" if not has_validation else "steps",
        eval_steps=settings.eval_steps if has_validation else None,
        save_strategy="steps",
        save_steps=settings.eval_steps,
        load_best_model_at_end=has_validation,
        metric_for_best_model="eval_calibrated_loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        logging_strategy="steps",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        use_cpu=settings.device == "cpu",
        seed=seed,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
