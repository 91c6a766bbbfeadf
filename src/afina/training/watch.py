"""Somebody who follows a training while it runs, and may stop it.

What a trainer tells (`StepDone`), what it can be asked (`Measure`), what it hands out (`WriteWeights`), and what the
one who listens must answer (`Watcher`). Knows nothing of files, logs or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StepDone:
    """One update of the weights.

    step: from 1. ends_epoch: it was the last of an epoch, or of the training. train_loss: in nats, of the weights
    before the update, mean over the step's trained tokens (of preferences: over its pairs).
    train_mean_token_accuracy: share of its trained tokens that were the most likely ones, in [0, 1] (of preferences:
    of the tokens of the preferred answers).
    """

    step: int
    total_steps: int
    ends_epoch: bool
    train_loss: float
    train_mean_token_accuracy: float


@dataclass(frozen=True)
class Measured:
    """Loss and accuracy on validation examples, meant as in `StepDone`."""

    loss: float
    mean_token_accuracy: float


class Measure(Protocol):
    """Measures the weights as they are; changes nothing that a continued training would notice."""

    def __call__(self, number: int | None = None) -> Measured | None:
        """On the whole validation set, or on its micro-batch `number`, counted round. None where there is no set."""
        ...


WriteWeights = Callable[[Path], None]  # weights, tokenizer and base.json into a folder that exists


class Watcher(Protocol):
    """Called from the training's own thread; what it raises ends the training."""

    def on_step(self, done: StepDone, measure: Measure) -> bool:
        """After every update. True: save a checkpoint and stop, with TrainingStopped."""
        ...

    def on_epoch(self, done: StepDone, write: WriteWeights) -> None:
        """At the end of an epoch, after `on_step`. After a kill it may be called again for the same step."""
        ...

    def on_save(self, step: int) -> None:
        """Before a checkpoint: a continued training does not come back to steps up to this one."""
        ...


class TrainingStopped(Exception):  # noqa: N818  what was asked for is no error
    """The watcher asked for it. step: the last one that was saved; the same call continues behind it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
