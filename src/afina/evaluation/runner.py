"""Systems on the untouched test -> the report that others read (report.json).

Comes in: recorded predictions and the test examples. Goes out: one JSON-ready mapping with every figure, its
interval, the tests of systems against a reference, who is on the Pareto front, a recommendation, and the verdict in
words. With `system`, this is the only reader of the test split. It knows only `predict(inputs) -> list[Prediction]`.

Answers with fields are judged by accuracy and F1, free text by chrF and ROUGE-L; all that follows is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afina.core.predictor import Example
from afina.core.task import Task
from afina.evaluation import metrics, statistics
from afina.evaluation.method import method
from afina.evaluation.paired import choose_pairs, find_reference, is_tested, paired_tests
from afina.evaluation.pareto import fronts, qualities
from afina.evaluation.recommendation import recommend
from afina.evaluation.samples import side_by_side
from afina.evaluation.scores import WHOLE, Measure, Scores, encode_runs, entry, measures_of, score
from afina.evaluation.setting import Setting
from afina.evaluation.system import SystemRun, run_system, with_seeds
from afina.evaluation.text_scores import TESTED, score_texts, text_entry
from afina.evaluation.text_scores import measures as text_measures
from afina.evaluation.verdict import verdict

__all__ = ["REPORT_VERSION", "WHOLE", "SystemRun", "evaluate", "run_system", "with_seeds"]

REPORT_VERSION = 1
RECOMMENDING = 2**31  # sets the generators of the recommendation's tests apart from the others'


@dataclass(frozen=True)
class Judged:
    """Every system's scores on the same measures. family: the measures that are tested.

    entries: of report.json. groups: name -> field paths. more: what else the report holds.
    """

    measures: Sequence[Measure]
    family: Sequence[Measure]
    scored: Sequence[Scores]
    entries: Sequence[dict[str, Any]]
    groups: dict[str, list[str]]
    more: dict[str, Any]


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
    max_text_tokens: int | None = None,
) -> dict[str, Any]:
    """The report of these systems' answers to `test`.

    train: read only for the labels that occur in it; of free text, for what answers repeat of it. systems: predictions
    in the order of `test`.
    seed: of all resampling; equal arguments give an equal report. Every float is finite.
    reference: name (or strategy) of the system that the others are tested against; finetuned, or else the first.
    priority: what the recommendation goes by: accuracy, cost, latency or explanation.
    machine_usd_per_hour: what wall time costs; None: nothing.
    max_text_tokens: where a free-text answer was made to end; None: not known.
    Raises RecipeError for an unknown reference, MachineError where free text cannot be judged.
    """
    assert test, "there is no test example"
    assert all(example.output is not None for example in test), "a test example has no gold answer"
    cluster_of, num_clusters = statistics.cluster_numbers([example.cluster for example in test])
    on = Setting(task, test, train, cluster_of, num_clusters, seed, machine_usd_per_hour, max_text_tokens)
    judged = (_judge_texts if task.free_text else _judge_fields)(on, systems)
    tests = paired_tests(judged.scored, choose_pairs(systems, reference), judged.measures, judged.family, [seed])
    chosen = find_reference(systems, reference)
    metrics_of_quality = qualities(task)

    def against(best: int) -> list[dict[str, Any]]:
        return _best_against_others(best, judged, metrics_of_quality[0], seed)

    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "task": task.name,
        "num_test": len(test),
        "num_clusters": num_clusters,
        "seed": seed,
        "method": method(task, systems, tests, num_clusters, seed, None if reference is None else chosen),
        "groups": judged.groups,
        "systems": judged.entries,
        "reference": None if chosen is None else systems[chosen].name,
        "tests": tests,
        "quality": metrics_of_quality[0],
        "pareto": fronts(judged.entries, metrics_of_quality),
        "recommendation": recommend(judged.entries, against, priority, num_clusters, metrics_of_quality[0]),
        "machine_usd_per_hour": machine_usd_per_hour,
        **judged.more,
    }
    return {**report, "verdict": verdict(task, report)}


def _judge_fields(on: Setting, systems: Sequence[SystemRun]) -> Judged:
    golds = [example.output for example in on.test]
    singles, groups = metrics.units(on.task)
    units = list({unit.name: unit for unit in [*groups, *singles]}.values())
    known = golds + [example.output for example in on.train if example.output is not None]
    coded = [encode_runs(system, units, golds) for system in systems]
    measures = measures_of(units, groups, [c.labels for c in coded[0][0]], known) if coded else []
    scored = [
        score(system, runs, measures, on.cluster_of, on.num_clusters, on.seed)
        for system, runs in zip(systems, coded, strict=True)
    ]
    return Judged(
        measures=measures,
        family=[measure for measure in measures if is_tested(measure, groups, on.task)],
        scored=scored,
        entries=[entry(on.task, units, scores, measures, on.machine_usd_per_hour) for scores in scored],
        groups={unit.name: [field.path or WHOLE for field in unit.fields] for unit in groups},
        more={},
    )


def _judge_texts(on: Setting, systems: Sequence[SystemRun]) -> Judged:
    measures = text_measures()
    texts = score_texts(on, systems, measures)
    return Judged(
        measures=measures,
        family=[measure for measure in measures if measure.metric in TESTED],
        scored=[one.scores for one in texts],
        entries=[text_entry(on, one, measures) for one in texts],
        groups={},
        more={"samples": side_by_side(on.test, systems, on.seed)},
    )


def _best_against_others(best: int, judged: Judged, quality: str, seed: int) -> list[dict[str, Any]]:
    """One system against each other, on the quality that the recommendation goes by."""
    pairs = [(best, other) for other in range(len(judged.scored)) if other != best]
    family = [measure for measure in judged.measures if measure.metric == quality]
    return paired_tests(judged.scored, pairs, judged.measures, family, [seed, RECOMMENDING])
