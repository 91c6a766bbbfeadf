"""Systems against a reference on the same clusters: differences, intervals, corrected p-values.

Comes in: scored systems and which pairs to compare on which measures. Goes out: the `tests` of report.json.
It does not choose whom to recommend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.core.errors import RecipeError
from afina.core.task import Task
from afina.evaluation import statistics
from afina.evaluation.metrics import Unit
from afina.evaluation.scores import Measure, Scores
from afina.evaluation.system import SystemRun

SPECIALIST = "finetuned"  # the strategy whose claim to be better is tested when no other reference is named
LEVEL = 0.05
SMALL_TEST = 30  # clusters; below, intervals are too wide to separate systems that are not far apart


def find_reference(systems: Sequence[SystemRun], reference: str | None) -> int | None:
    """Position of the system that the others are tested against: named, or finetuned, or the first.

    reference: a system's name, or else a strategy (its first system). None where there is no system.
    Raises RecipeError for what is neither.
    """
    if not systems:
        return None
    names, strategies = [system.name for system in systems], [system.strategy for system in systems]
    if reference is None:
        return strategies.index(SPECIALIST) if SPECIALIST in strategies else 0
    for known in (names, strategies):
        if reference in known:
            return known.index(reference)
    raise RecipeError(
        f"comparison.reference: found {reference!r}, expected one of the systems compared: {', '.join(names)}. "
        "Name one of them, or add it to compare."
    )


def choose_pairs(systems: Sequence[SystemRun], reference: str | None) -> list[tuple[int, int]]:
    """(a, b) of each test. A specialist as reference is `a`: it is its claim that is tested. Any other is `b`.

    Where no reference is named and several specialists answered, each of them is tested against all others.
    """
    chosen = find_reference(systems, reference)
    if chosen is None:
        return []
    specialists = [i for i, system in enumerate(systems) if system.strategy == SPECIALIST]
    if reference is None and specialists:
        return [(a, b) for a in specialists for b in range(len(systems)) if b not in specialists or b > a]
    others = [i for i in range(len(systems)) if i != chosen]
    return [(chosen, i) if chosen in specialists else (i, chosen) for i in others]


def is_tested(measure: Measure, groups: Sequence[Unit], task: Task) -> bool:
    """Whether a measure belongs to the family of tests: each group's accuracy and macro-F1, and the exact match.

    An open number is tested by its mean absolute error: to hit one exactly is luck. The exact match of a
    one-field answer is that field's accuracy, and testing it twice would only weaken the correction.
    """
    if measure.metric == "exact_match":
        return len(task.fields) > 1
    unit = next((unit for unit in groups if unit.name == measure.field), None)
    if unit is None:
        return False
    return measure.metric == "mae" if unit.kind == "number" else measure.metric in ("accuracy", "macro_f1")


def paired_tests(
    scored: Sequence[Scores],
    pairs: Sequence[tuple[int, int]],
    measures: Sequence[Measure],
    family: Sequence[Measure],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Every pair on each measure of the family; p_holm corrects for all of them together.

    family: some of `measures`, in which the scores stand. seed: each test's own generator starts from it.
    """
    found: list[dict[str, Any]] = []
    places = [measures.index(measure) for measure in family]
    for number, (a, b) in enumerate(pairs):
        for index, (at, measure) in enumerate(zip(places, family, strict=True)):
            rng = np.random.default_rng([*seed, number, index])
            found.append(
                {
                    "a": scored[a].system.name,
                    "b": scored[b].system.name,
                    "field": measure.field,
                    "metric": measure.metric,
                    **_difference(measure, at, scored[a], scored[b], rng),
                }
            )
    corrected = statistics.holm([test["p"] for test in found])
    return [{**test, "p_holm": p} for test, p in zip(found, corrected, strict=True)]


def _difference(measure: Measure, at: int, a: Scores, b: Scores, rng: np.random.Generator) -> dict[str, Any]:
    """a minus b: value, interval over resamples of the same clusters for both, and p."""
    one, two = a.measured[at], b.measured[at]
    value = one.value - two.value
    around = statistics.bca_interval(value, one.resampled - two.resampled, one.left_out - two.left_out)
    sums = statistics.same_number_of_seeds(a.sums[..., measure.columns], b.sums[..., measure.columns])
    p = statistics.permutation_p(*sums, statistics.over_seeds(measure.statistic), rng)
    return {"difference": value, "ci": list(around), "p": p}


def least_p(num_clusters: int) -> float:
    """The smallest p that a test over so many clusters can reach."""
    return max(2.0 ** (1 - num_clusters), 1 / (1 + statistics.NUM_PERMUTATIONS))
