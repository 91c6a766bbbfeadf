"""Systems on the untouched test -> the report that others read (report.json).

Comes in: recorded predictions and the test examples. Goes out: one JSON-ready mapping with every figure, its
interval, the tests of systems against a reference, who is on the Pareto front, a recommendation, and the verdict in
words. With `system`, this is the only reader of the test split. It knows only `predict(inputs) -> list[Prediction]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afina.core.predictor import Example
from afina.core.task import Task
from afina.evaluation import metrics, statistics
from afina.evaluation.paired import choose_pairs, find_reference, is_tested, paired_tests
from afina.evaluation.pareto import QUALITY, fronts
from afina.evaluation.recommendation import recommend
from afina.evaluation.scores import WHOLE, Measure, Scores, encode_runs, entry, measures_of, score
from afina.evaluation.system import SystemRun, run_system, with_seeds
from afina.evaluation.verdict import verdict

__all__ = ["REPORT_VERSION", "WHOLE", "SystemRun", "evaluate", "run_system", "with_seeds"]

REPORT_VERSION = 1
RECOMMENDING = 2**31  # sets the generators of the recommendation's tests apart from the others'


def evaluate(
    task: Task,
    test: Sequence[Example],
    train: Sequence[Example],
    systems: Sequence[SystemRun],
    seed: int,
    *,
    reference: str | None = None,
    priority: str = "accuracy",
    machine_usd_per_hour: float | None = None,
) -> dict[str, Any]:
    """The report of these systems' answers to `test`.

    train: read only for the labels that occur in it. systems: predictions in the order of `test`.
    seed: of all resampling; equal arguments give an equal report. Every float is finite.
    reference: name (or strategy) of the system that the others are tested against; finetuned, or else the first.
    priority: what the recommendation goes by: accuracy, cost, latency or explanation.
    machine_usd_per_hour: what wall time costs; None: nothing. Raises RecipeError for an unknown reference.
    """
    assert test, "there is no test example"
    golds = [example.output for example in test]
    assert all(gold is not None for gold in golds), "a test example has no gold answer"
    cluster_of, num_clusters = statistics.cluster_numbers([example.cluster for example in test])
    singles, groups = metrics.units(task)
    units = list({unit.name: unit for unit in [*groups, *singles]}.values())
    known = golds + [example.output for example in train if example.output is not None]
    coded = [encode_runs(system, units, golds) for system in systems]
    measures = measures_of(units, groups, [c.labels for c in coded[0][0]], known) if coded else []
    scored = [
        score(system, runs, measures, cluster_of, num_clusters, seed)
        for system, runs in zip(systems, coded, strict=True)
    ]
    entries = [entry(task, units, scores, measures, machine_usd_per_hour) for scores in scored]
    family = [measure for measure in measures if is_tested(measure, groups, task)]
    tests = paired_tests(scored, choose_pairs(systems, reference), measures, family, [seed])
    chosen = find_reference(systems, reference)

    def against(best: int) -> list[dict[str, Any]]:
        return _best_against_others(best, scored, measures, seed)

    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "task": task.name,
        "num_test": len(test),
        "num_clusters": num_clusters,
        "seed": seed,
        "method": method(systems, tests, num_clusters, seed, None if reference is None else chosen),
        "groups": {unit.name: [field.path or WHOLE for field in unit.fields] for unit in groups},
        "systems": entries,
        "reference": None if chosen is None else systems[chosen].name,
        "tests": tests,
        "quality": QUALITY,
        "pareto": fronts(entries),
        "recommendation": recommend(entries, against, priority, num_clusters),
        "machine_usd_per_hour": machine_usd_per_hour,
    }
    return {**report, "verdict": verdict(task, report)}


def _best_against_others(
    best: int, scored: Sequence[Scores], measures: Sequence[Measure], seed: int
) -> list[dict[str, Any]]:
    """One system against each other, on the quality that the recommendation goes by."""
    pairs = [(best, other) for other in range(len(scored)) if other != best]
    family = [measure for measure in measures if measure.metric == QUALITY]
    return paired_tests(scored, pairs, measures, family, [seed, RECOMMENDING])


def method(
    systems: Sequence[SystemRun], tests: Sequence[Any], num_clusters: int, seed: int, reference: int | None
) -> str:
    """How the figures were made, for the reader of the report. reference: position of a named one."""
    text = (
        "Macro-F1: mean F1 over the labels that occur in the gold of train or test, the same for every system; "
        "a label neither in the test's gold nor predicted counts 0. A failed answer counts as wrong. "
        f"Intervals: 95 %, BCa bootstrap of {statistics.NUM_RESAMPLES:,} resamples of the test's {num_clusters} "
        "near-duplicate clusters, the same for every system; the exact binomial interval over clusters where "
        "all answers are right or all are wrong. Calibration error: 15 equal bins, over answers with a confidence."
    )
    several = any(system.repeats for system in systems)
    if several:
        text += (
            " Several seeds: each figure is the mean over a system's seeds, computed for each seed by itself; a "
            "resample of clusters is taken for all seeds together. So intervals say how a figure varies over rows, for "
            "the models as trained. How it varies over seeds stands apart (by_seed, and seed_std with n - 1). "
            "Confusion matrices, scores by label and reliability bins count the answers of all seeds."
        )
    if tests:
        text += (
            f" Tests: two-sided paired permutation test, {statistics.NUM_PERMUTATIONS:,} swaps of the two systems' "
            f"answers by cluster{_SWAPPED_SEEDS if several else ''}. Primary metric: accuracy (of an open number: mean "
            f"absolute error). Holm's correction over the whole family of {len(tests)} tests: "
            f"{_compared(systems, reference)}, on each group of fields by accuracy and macro-F1, and on the exact "
            "match of the whole answer. Intervals are not corrected."
        )
    return f"{text} Seed: {seed}."


_SWAPPED_SEEDS = ", of all seeds together (the answers of a system with fewer runs stand for each of the other's)"


def _compared(systems: Sequence[SystemRun], reference: int | None) -> str:
    if reference is None and any(system.strategy == "finetuned" for system in systems):
        return "the specialist against each other system"
    name = systems[reference or 0].name
    if systems[reference or 0].strategy == "finetuned":
        return f"{name} against each other system"
    return f"each other system against {name}"
