"""Optuna's samplers, asked so that a proposal depends on the seed, the trial's number and finished trials alone.

Comes in: parameters. Goes out: an Optuna sampler. Optuna's own draw from one stream of random numbers, so that a sweep
that was continued would go another way than one that was not disturbed. Imported only where Optuna is installed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from afina.core.storage import digest
from afina.sweeping.space import Parameter, Value

STARTUP = 10  # trials drawn at random before TPE has something to learn from (Optuna's own number)
ATTEMPTS = 20  # proposals that were tried before, until one of the others is drawn
FEW_COMBINATIONS = 20_000  # of which all are listed


def distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


class Proposals(BaseSampler):
    """All parameters of a trial at once, and never the same combination twice where there is another.

    kind: "tpe" (Bergstra et al., NeurIPS 2011) or "random". start: of the first trial; what it lacks is drawn.
    tried: the settings of all finished trials; a sampler itself is shown those of its hyperband bracket alone.
    """

    def __init__(
        self,
        kind: str,
        parameters: Sequence[Parameter],
        seed: int,
        start: dict[str, Value],
        tried: Callable[[], Iterable[dict[str, Any]]],
    ) -> None:
        self.kind, self.parameters, self.seed, self.start, self.tried = kind, list(parameters), seed, start, tried
        self.space = {p.key: distribution(p) for p in parameters}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        tried = {self._combination(params) for params in self.tried()}
        found: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            found = self._draw(study, trial, draw_for(self.seed, trial.number, attempt))
            if self._combination(found) not in tried:
                return found
        other = untried(self.parameters, tried, draw_for(self.seed, trial.number))
        return dict(zip(self.space, other, strict=True)) if other is not None else found

    def _draw(self, study: Study, trial: FrozenTrial, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.kind == "tpe":
            tpe = TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=False)  # one trial at a time
            found = tpe.sample_relative(study, trial, self.space)
        if not found:
            by_chance = RandomSampler(seed=seed)
            found = {key: by_chance.sample_independent(study, trial, key, values) for key, values in self.space.items()}
        if trial.number == 0:
            found |= self.start
        return {p.key: p.rounded(found[p.key]) for p in self.parameters}

    def _combination(self, params: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(params.get(p.key) for p in self.parameters)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} was drawn with the others")


def draw_for(*of: Any) -> int:
    """A seed for a random generator, of what decides it."""
    return int(digest(list(of)), 16) % 2**32


def untried(parameters: Sequence[Parameter], tried: set[tuple[Value, ...]], seed: int) -> tuple[Value, ...] | None:
    """One of the combinations that are left; None where they cannot be listed, or none is left."""
    sizes = [p.num_values for p in parameters]
    if any(size is None for size in sizes) or math.prod(size or 0 for size in sizes) > FEW_COMBINATIONS:
        return None
    values = [p.choices or tuple(range(int(p.low), int(p.high) + 1)) for p in parameters]
    left = [one for one in itertools.product(*values) if one not in tried]
    return random.Random(seed).choice(left) if left else None
