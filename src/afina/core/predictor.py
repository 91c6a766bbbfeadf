"""The one seam of evaluation: inputs in, predictions out, in the same order and of the same length.

Nothing that consumes predictions knows how an answer was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

Inputs = Mapping[str, str]
"""One row's inputs: input name -> text."""


@dataclass(frozen=True)
class Usage:
    """What one answer cost. Tokens, forward passes, requests and repairs are counts; cost in US dollars.

    requests: asked of a model elsewhere, those again after an invalid answer included. repairs: of them, answers that
    were read although they were no clean JSON.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    forward_passes: int = 0
    cost_usd: float = 0.0
    requests: int = 0
    repairs: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Prediction:
    """One answer, or the reason why there is none.

    output: a value of the task's output schema; None if and only if `error` is set.
    confidence: field path ("f1.polaridade") -> probability in [0, 1] of the chosen value.
    probabilities: field path -> {label: probability}, where all labels were scored; else absent.
    latency_s: wall time of the batch this answer came in, divided by the batch's size.
    truncated: the inputs were longer than the model's context and were cut.
    reasoning: part key ("" for the whole answer) -> the text that led to its labels; empty where none was asked for.
    trace: how the answer came about, as JSON-ready steps: votes of an ensemble, turns of a debate.
    """

    output: Any = None
    confidence: Mapping[str, float] = field(default_factory=dict)
    probabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    latency_s: float = 0.0
    sources: Sequence[str] = ()
    truncated: bool = False
    error: str | None = None
    reasoning: Mapping[str, str] = field(default_factory=dict)
    trace: Sequence[Mapping[str, Any]] = ()


class Predictor(Protocol):
    """Anything that answers a task. Failures are inside the predictions, never raised."""

    name: str

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One prediction per row, in the same order."""
        ...


@dataclass(frozen=True)
class Example:
    """One usable row.

    id: the row's own id, as text. line: its line (or record number) in the file, from 1.
    output: a value of the task's output schema; None for unlabelled rows.
    reasoning: part key -> free text that leads to its labels; the key "" stands for all parts. Empty where there is
        none.
    cluster: number of its near-duplicate cluster; -1 before clustering.
    """

    id: str
    inputs: Inputs
    output: Any = None
    reasoning: Mapping[str, str] = field(default_factory=dict)
    line: int = 0
    cluster: int = -1

    def rationale(self, part_key: str) -> str | None:
        """The reasoning of one part of the task, or None."""
        return self.reasoning.get(part_key) or self.reasoning.get("") or None
