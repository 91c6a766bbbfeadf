"""One trial: a training with other settings, judged by its validation loss, and given up when it lags behind.

Comes in: rows as tokens, settings, a trial of the study. Goes out: `Ended`. A killed training goes on from its
checkpoint; what was measured before is read back and judged again, to the same verdicts. Weights are not kept: of a
trial only its figures are wanted. Test rows are not known here.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from afina.core.storage import ensure_folder, read_json, write_json
from afina.engine.encoded import Encoded
from afina.engine.hub import quiet
from afina.engine.loader import BaseSpec, LoadedModel, load_spec
from afina.training import local
from afina.training.settings import Settings
from afina.training.watch import Measure, StepDone, WriteWeights

NOTE = "trial.json"


@dataclass
class Ended:
    """How a trial ended. state: "complete", "pruned" or "failed", with its reason where there is one.

    losses: validation loss at each evaluation, in nats per trained token. steps: updates done, of total_steps.
    """

    state: str
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    total_steps: int = 0
    eval_steps: int = 0
    seconds: float = 0.0
    reason: str | None = None

    @property
    def value(self) -> float | None:
        """The lowest loss: that of the weights which a training keeps."""
        return min((loss for loss in self.losses if math.isfinite(loss)), default=None)

    @property
    def best_step(self) -> int | None:
        return None if self.value is None else (self.losses.index(self.value) + 1) * self.eval_steps


class Judge(Protocol):
    """An optuna.Trial, as far as a trial knows it."""

    def report(self, value: float, step: int) -> None: ...
    def should_prune(self) -> bool: ...


class Over(Exception):  # noqa: N818  what was asked for is no error
    """The trial has been judged; nothing of its training is kept."""


class Follower:
    """Measures when an ordinary training would, and ends the training at its last evaluation or before.

    An evaluation is noted before it is judged, so that a kill in between loses no measurement and no verdict.
    """

    def __init__(self, folder: Path, settings: Settings, judge: Judge) -> None:
        self.folder, self.settings, self.judge = folder, settings, judge
        self.found = _read_note(folder)
        self.found.total_steps, self.found.eval_steps = settings.total_steps, settings.eval_steps
        self._before_s, self._began = self.found.seconds, time.monotonic()
        for number in range(1, len(self.found.losses) + 1):
            if self._is_over(number):
                break

    @property
    def is_over(self) -> bool:
        return self.found.state != "running"

    def on_step(self, done: StepDone, measure: Measure) -> bool:
        number, rest = divmod(done.step, self.settings.eval_steps)
        if rest or number <= len(self.found.losses):
            return False  # a continued training comes by evaluations that are noted
        measured = measure()
        assert measured is not None, "a sweep has validation rows"
        self.found.losses.append(measured.loss)
        self.found.seconds = round(self._before_s + time.monotonic() - self._began, 3)
        write_json(self.folder / NOTE, asdict(self.found))
        if self._is_over(number):
            raise Over
        return False

    def _is_over(self, number: int) -> bool:
        """The verdict after so many evaluations."""
        losses = self.found.losses[:number]
        self.found.steps = number * self.settings.eval_steps
        self.judge.report(losses[-1], number)
        patience = self.settings.early_stopping_patience
        if not math.isfinite(losses[-1]):
            self.found.state = "pruned"
            self.found.reason = f"diverged: the validation loss is {losses[-1]} at update {self.found.steps}"
        elif number == self.settings.total_steps // self.settings.eval_steps:
            self.found.state = "complete"
        elif self.judge.should_prune():
            self.found.state = "pruned"
            self.found.reason = f"behind the other trials at update {self.found.steps}"
        elif patience is not None and number - (losses.index(min(losses)) + 1) >= patience:
            self.found.state, self.found.reason = "complete", f"no better for {patience} evaluations"
        return self.is_over

    def on_epoch(self, done: StepDone, write: WriteWeights) -> None:
        pass

    def on_save(self, step: int) -> None:
        pass


def _read_note(folder: Path) -> Ended:
    try:
        return Ended(**read_json(folder / NOTE))
    except (OSError, ValueError, TypeError):
        return Ended("running")


class Bases:
    """The base model, loaded once for all trials that leave its weights as they are."""

    def __init__(self) -> None:
        self._held: tuple[BaseSpec, bool, LoadedModel] | None = None

    def take(self, settings: Settings) -> LoadedModel:
        """A model in the state of a freshly loaded one. The one that was taken before is no longer used."""
        wanted = (settings.base, settings.dequantize)
        if self._held is not None and self._held[:2] == wanted and self._held[2].has_adapter:
            loaded = self._held[2]
            with quiet():
                loaded.model = loaded.model.unload()
            return loaded
        self._held = None
        loaded = load_spec(settings.base, dequantize=settings.dequantize)
        self._held = (*wanted, loaded) if settings.finetuning_type == "lora" else None
        return loaded


def run_trial(
    number: int,
    folder: Path,
    settings: Settings,
    judge: Judge,
    train_set: Sequence[Encoded],
    validation_set: Sequence[Encoded],
    seed: int,
    prepare: Callable[[Settings], LoadedModel],
) -> Ended:
    """Train until the trial is judged. prepare: a model to train, adapted to the domain where the recipe says so.

    Raises MachineError for a full disk and what `prepare` raises; too little memory fails the trial.
    """
    ensure_folder(folder)
    follower = Follower(folder, settings, judge)
    if not follower.is_over:
        try:
            local.train(
                prepare(settings), settings, train_set, validation_set, folder / "training", seed,
                label=f"trial {number}", watcher=follower,
            )  # fmt: skip
        except Over:
            pass
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            follower.found.state, follower.found.reason = "failed", f"ran out of memory: {str(error).splitlines()[0]}"
    assert follower.is_over, "a training ends with its last evaluation at the latest"
    return follower.found


def _is_out_of_memory(error: Exception) -> bool:
    """torch raises a plain RuntimeError where a CPU's memory is short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def settings_of_trial(folder: Path, resolve: Callable[[], Settings]) -> Settings:
    """A trial's settings, as they were resolved when it began: free memory may have changed since, and with it what
    the planner would choose now."""
    path = folder / "settings.json"
    try:
        raw: dict[str, Any] = read_json(path)
        raw |= {name: tuple(raw[name]) for name in ("lora_target_modules", "notes")}
        return Settings(**raw)
    except (OSError, ValueError, TypeError, KeyError):
        settings = resolve()
        shutil.rmtree(folder, ignore_errors=True)
        ensure_folder(folder)
        write_json(path, settings.to_json())
        return settings
