"""A system under comparison: its answers to the test, of one run or of several seeds, and what they took.

Comes in: a predictor and the test examples. Goes out: a `SystemRun`. It scores nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina.core.predictor import Example, Prediction, Predictor


@dataclass(frozen=True)
class SystemRun:
    """One system's answers to the test, and what they cost.

    base_model: None for a system without a language model. wall_s: of all predictions together, repeats included.
    train_seconds: of one training. latencies_s: wall seconds of single rows asked alone; empty where a row alone was
    not asked again. peak_memory_bytes: most memory of this process while it answered; None where it cannot be
    measured. seeds: that it was trained or asked with; empty where it has none. predictions: with the first of them.
    repeats: with each of the further seeds, in their order. perplexity: of the gold texts under its model, as
    `evaluation.perplexity` gives it (of the first seed); None where no model's probabilities are at hand.
    """

    name: str
    strategy: str
    base_model: str | None
    predictions: list[Prediction]
    wall_s: float
    train_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    latencies_s: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    repeats: tuple[list[Prediction], ...] = ()
    perplexity: Mapping[str, Any] | None = None

    @property
    def runs(self) -> tuple[list[Prediction], ...]:
        """The answers of every seed."""
        return (self.predictions, *self.repeats)


def run_system(
    predictor: Predictor,
    examples: Sequence[Example],
    strategy: str,
    base_model: str | None = None,
    train_seconds: float | None = None,
    num_timed: int = 20,
) -> SystemRun:
    """Ask the predictor for every example's answer, in order, and measure time and memory.

    num_timed: rows that are asked once more, alone, for the latency a single user sees; 0 where answers cost money.
    train_seconds: the predictor's own `train_seconds` when not given, else 0. An exception of the predictor
    is a bug of ours and is not caught: failures belong inside predictions.
    """
    _reset_peak_memory()
    began = time.perf_counter()
    predictions = list(predictor.predict([example.inputs for example in examples]))
    wall_s = time.perf_counter() - began
    assert len(predictions) == len(examples), (
        f"{predictor.name} gave {len(predictions)} predictions for {len(examples)} examples"
    )
    latencies_s: list[float] = []
    for example in examples[:num_timed]:
        began = time.perf_counter()
        predictor.predict([example.inputs])
        latencies_s.append(time.perf_counter() - began)
    return SystemRun(
        name=predictor.name,
        strategy=strategy,
        base_model=base_model,
        predictions=predictions,
        wall_s=wall_s,
        train_seconds=getattr(predictor, "train_seconds", 0.0) if train_seconds is None else train_seconds,
        peak_memory_bytes=_peak_memory_bytes(),
        latencies_s=tuple(latencies_s),
    )


def with_seeds(runs: Sequence[SystemRun], seeds: Sequence[int]) -> SystemRun:
    """Runs of one system with different seeds as one system; the first gives its name.

    Wall time is their sum, training time their mean (of one training), peak memory their largest.
    """
    assert len(runs) == len(seeds) > 0, f"{len(runs)} runs of {len(seeds)} seeds"
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return replace(
        runs[0],
        wall_s=sum(run.wall_s for run in runs),
        train_seconds=sum(run.train_seconds for run in runs) / len(runs),
        peak_memory_bytes=max(peaks, default=None),
        latencies_s=tuple(latency for run in runs for latency in run.latencies_s),
        seeds=tuple(seeds),
        repeats=tuple(run.predictions for run in runs[1:]),
    )


def _reset_peak_memory() -> None:
    """On Linux, forget the peak so far; elsewhere the peak is the whole process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource  # no such module on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
