"""Guesses made worse on purpose: what answering costs when the drafter knows the specialist less well.

Comes in: a drafter and how often a field's guess is to miss. Goes out: a drafter that misses that often, by a fixed
seed. Random weights trained for minutes answer nearly every request alike, so their answers are guessed for nothing;
with misses as frequent as on a model whose answers differ, the figure is one that a real specialist would give.
It knows nothing of models: the engine checks every guess, so the answers stay the same.
"""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from afina.core.predictor import Inputs
from afina.core.schema import assign, fields
from afina.core.task import Part
from afina.engine.draft import Drafter, Guess


@dataclass
class MissingDrafter:
    """`inner`, but each field with labels is guessed wrong with probability `rate`."""

    inner: Drafter
    rate: float
    seed: int = 0

    def draft(self, part: Part, inputs: Inputs) -> Guess | None:
        guess = self.inner.draft(part, inputs)
        if guess is None:
            return None
        key = zlib.crc32("\n".join(text for _, text in part.shown(inputs)).encode())
        chance = random.Random(self.seed * 2**32 + key)  # the same misses for the same request
        labelled = [one for one in fields(part.schema) if one.labels and not one.multi]
        missed: dict[str, Any] = {}
        for one in labelled:
            others = [label for label in one.labels or () if label != value_at(guess.value, one.path)]
            if chance.random() < self.rate and others:
                missed[one.path] = chance.choice(others)
        return MissingGuess(guess, self.rate, [one.path for one in labelled], missed)


@dataclass
class MissingGuess:
    """One row's guess. missed: field -> wrong label, of fields that the model has not decided yet."""

    inner: Guess
    rate: float
    order: list[str]
    missed: dict[str, Any]
    value: Any = field(init=False)

    def __post_init__(self) -> None:
        self.value = self._spoilt(self.inner.value)

    def revise(self, path: str, agrees: Callable[[Any], bool]) -> Any | None:
        """The inner guess again, as far as the model agrees, with the misses that are still to come."""
        decided = self.order.index(path) + 1 if path in self.order else 0
        self.missed = {p: label for p, label in self.missed.items() if p in self.order[decided:]}
        known = self.inner.value
        if not agrees(known):
            known = self.inner.revise(path, agrees)
        if known is None:
            return None
        self.value = self._spoilt(known)
        return self.value if agrees(self.value) else known

    def confidence(self, path: str) -> float:
        """A drafter that misses so often also knows it."""
        return self.inner.confidence(path) * (1 - self.rate if path in self.order else 1)

    def _spoilt(self, value: Any) -> Any:
        worse = copy.deepcopy(value)
        for path, label in self.missed.items():
            assign(worse, path, label)
        return worse


def value_at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value
