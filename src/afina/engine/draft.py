"""Guessed answers as tokens: what the engine checks in the pass that reads the prompt.

Comes in: a guessed value of a part's schema. Goes out: its `Script`: the tokens of the answer and, at each
decision, what the grammar allows there and what the guess takes. A script is recorded from the Writer that
serves, so a guess can be wrong but never out of step. Knows nothing of models, nor where guesses come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from afina.core.errors import SchemaError
from afina.core.predictor import Inputs
from afina.core.schema import Schema, problems
from afina.core.storage import canonical_json
from afina.core.task import Part
from afina.engine.writer import Decision, Writer

MAX_SCRIPTS = 4096  # kept per schema; each is a few kilobytes
NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Step:
    """One decision of a script.

    at: answer tokens before it. token: what the guess takes; -1 where nothing is guessed.
    path, allowed, is_open: as in Decision; of a script's open steps, `allowed` is not kept.
    """

    at: int
    path: str
    allowed: np.ndarray
    is_open: bool
    token: int = -1


@dataclass(frozen=True)
class Script:
    """A whole answer, decision by decision. tokens: all of the answer. text: what it says."""

    tokens: list[int]
    steps: tuple[Step, ...]
    text: str

    @cached_property
    def finite(self) -> tuple[int, ...]:
        """Indices of the steps that choose among finitely many texts."""
        return tuple(n for n, step in enumerate(self.steps) if not step.is_open)

    def agrees(self, chosen: Sequence[int]) -> bool:
        """Whether the tokens taken at the first finite decisions are these. What an open value says changes
        nothing of what follows it, so open values need not agree."""
        return len(chosen) <= len(self.finite) and all(
            self.steps[n].token == token for n, token in zip(self.finite, chosen, strict=False)
        )

    def until_open(self, first: int) -> int:
        """Index of the next open step from `first` on, or the number of steps."""
        while first < len(self.steps) and not self.steps[first].is_open:
            first += 1
        return first


class Scripts:
    """The scripts of one part's answers, made once each.

    schema: of the part. writer: makes the Writer that serves, without arguments, and one that follows a value,
        given it.
    """

    def __init__(self, schema: Schema, writer: Callable[..., Writer]) -> None:
        self._schema, self._writer = schema, writer
        self._kept: dict[str, Script | None] = {}

    def of(self, value: Any) -> Script | None:
        """The script of a value; None where the engine could not write that value."""
        key = canonical_json(value)
        if key not in self._kept:
            if len(self._kept) >= MAX_SCRIPTS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._record(value)
        return self._kept[key]

    def _record(self, value: Any) -> Script | None:
        """Lead the serving Writer along the tokens of one that knows the value."""
        if problems(value, self._schema) is not None:
            return None
        steps: list[Step] = []
        try:
            served, led = self._writer(), self._writer(value)
            while (decision := served.need()) is not None:
                known = led.need()
                if known is None or known.gold is None or not _same_place(decision, known):
                    return None
                allowed = NOTHING if decision.is_open else decision.allowed  # an open set is most of the vocabulary
                steps.append(Step(len(served.tokens), decision.path, allowed, decision.is_open, known.gold))
                served.take(known.gold)
                led.take(known.gold)
        except SchemaError:
            return None  # an open value beyond its limit
        return Script(list(served.tokens), tuple(steps), served.text)


def _same_place(one: Decision, other: Decision) -> bool:
    """An answer that is led may be longer than one that is served: then they part here."""
    assert other.gold is not None, "asked of a decision that is led"
    if (one.path, one.is_open) != (other.path, other.is_open):
        return False
    return bool(np.any(one.allowed == other.gold)) if one.is_open else np.array_equal(one.allowed, other.allowed)


class Guess(Protocol):
    """One row's guessed answer."""

    value: Any

    def confidence(self, path: str) -> float:
        """Probability that the model agrees with the field at `path`, if it did with those before; in [0, 1]."""
        ...

    def revise(self, path: str, agrees: Callable[[Any], bool]) -> Any | None:
        """Another whole value, after the model decided otherwise; None if nothing better is known.

        path: the field where it did. agrees: whether a value fits all that is decided so far; the value
        returned must.
        """
        ...


class Drafter(Protocol):
    """Guesses answers. Can only change the speed: what is guessed is checked."""

    def draft(self, part: Part, inputs: Inputs) -> Guess | None:
        """A guess for one row; None to guess nothing."""
        ...
