"""Systems on the untouched test -> the report that others read (report.json).

Comes in: predictors, or their recorded predictions, and the test examples. Goes out: one JSON-ready mapping
with every figure, its interval, the tests of the specialist against each rival, and the verdict in words.
This is the only reader of the test split. It knows only `predict(inputs) -> list[Prediction]`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afina.core import schema as schemas
from afina.core.predictor import Example, Prediction, Predictor
from afina.core.task import Task
from afina.evaluation import metrics, statistics
from afina.evaluation.metrics import Coded, Unit
from afina.evaluation.verdict import verdict

REPORT_VERSION = 1
SPECIALIST = "finetuned"  # the strategy whose claim to be better is tested
WHOLE = "answer"  # stands for the field where the whole answer is meant


@dataclass(frozen=True)
class SystemRun:
    """One system's answers to the test, and what they cost.

    base_model: None for a system without a language model. wall_s: of all predictions together.
    latencies_s: wall seconds of single rows asked alone; empty where a row alone was not asked again.
    peak_memory_bytes: most memory of this process while it answered; None where it cannot be measured.
    """

    name: str
    strategy: str
    base_model: str | None
    predictions: list[Prediction]
    wall_s: float
    train_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    latencies_s: tuple[float, ...] = ()


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


# -- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """A metric of a unit as a function of sums. `columns`: where the unit's sums stand."""

    field: str
    metric: str
    columns: slice
    statistic: statistics.Statistic


def evaluate(
    task: Task, test: Sequence[Example], train: Sequence[Example], systems: Sequence[SystemRun], seed: int
) -> dict[str, Any]:
    """The report of these systems' answers to `test`.

    train: read only for the labels that occur in it. systems: predictions in the order of `test`.
    seed: of all resampling; equal arguments give an equal report. Every float is finite.
    """
    assert test, "there is no test example"
    golds = [example.output for example in test]
    assert all(gold is not None for gold in golds), "a test example has no gold answer"
    cluster_of, num_clusters = statistics.cluster_numbers([example.cluster for example in test])
    singles, groups = metrics.units(task)
    units = list({unit.name: unit for unit in [*groups, *singles]}.values())
    known = golds + [example.output for example in train if example.output is not None]
    coded = [[metrics.encode(unit, golds, system.predictions) for unit in units] for system in systems]
    measures = _measures(units, [c.labels for c in coded[0]] if coded else [], known)
    sums = [_sums(row, cluster_of, num_clusters) for row in coded]
    draws = [statistics.bootstrap_sums(s, np.random.default_rng(seed)) for s in sums]  # one seed: paired draws
    entries = [
        _system(task, units, *parts, measures, num_clusters) for parts in zip(systems, coded, sums, draws, strict=True)
    ]
    family = [m for m in measures if _tested(m, groups, task)]
    tests = _tests(systems, sums, draws, family, seed)
    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "task": task.name,
        "num_test": len(test),
        "num_clusters": num_clusters,
        "seed": seed,
        "method": _method(tests, num_clusters, seed),
        "groups": {unit.name: [field.path or WHOLE for field in unit.fields] for unit in groups},
        "systems": entries,
        "tests": tests,
    }
    return {**report, "verdict": verdict(task, report)}


def _measures(units: Sequence[Unit], labels: Sequence[tuple[Any, ...]], known: Sequence[Any]) -> list[_Measure]:
    """Every measure with an interval; the last is the whole answer's exact match."""
    found, start = [], 0
    for unit, unit_labels in zip(units, labels, strict=False):
        columns = slice(start, start + metrics.HEAD + 3 * len(unit_labels))
        start = columns.stop
        found.append(_Measure(unit.name, "accuracy", columns, metrics.accuracy))
        scored = metrics.labels_in_gold(unit, unit_labels, known)
        if scored.any():
            found.append(_Measure(unit.name, "macro_f1", columns, metrics.macro_f1(scored)))
        if unit.is_number:
            found.append(_Measure(unit.name, "mae", columns, metrics.mean_absolute_error))
    return [*found, _Measure(WHOLE, "exact_match", slice(start, start + metrics.HEAD), metrics.accuracy)]


def _sums(coded: Sequence[Coded], cluster_of: np.ndarray, num_clusters: int) -> np.ndarray:
    """All units' columns, then the whole answer's, summed by cluster: (C, K)."""
    blocks = [statistics.cluster_sums(c.columns(), cluster_of[c.example], num_clusters) for c in coded]
    right = np.ones(len(cluster_of), dtype=bool)
    for c in coded:
        np.logical_and.at(right, c.example, c.right)
    whole = np.stack([np.ones(len(right)), right, np.zeros(len(right))], axis=1)
    return np.concatenate([*blocks, statistics.cluster_sums(whole, cluster_of, num_clusters)], axis=1)


def _interval(measure: _Measure, sums: np.ndarray, draws: np.ndarray, num_clusters: int) -> tuple[float, list[float]]:
    """A measure's value and its 95 % interval."""
    part = sums[:, measure.columns]
    value = float(measure.statistic(part.sum(axis=0)))
    if measure.metric in ("accuracy", "exact_match") and value in (0.0, 1.0):
        return value, list(statistics.unanimous_interval(value, num_clusters))
    left_out = measure.statistic(statistics.jackknife_sums(part)) if num_clusters > 1 else np.array([value])
    return value, list(statistics.bca_interval(value, measure.statistic(draws[:, measure.columns]), left_out))


def _system(
    task: Task,
    units: Sequence[Unit],
    system: SystemRun,
    coded: Sequence[Coded],
    sums: np.ndarray,
    draws: np.ndarray,
    measures: Sequence[_Measure],
    num_clusters: int,
) -> dict[str, Any]:
    """One entry of `systems`."""
    fields: dict[str, dict[str, Any]] = {unit.name: {} for unit in units}
    whole: dict[str, Any] = {}
    for measure in measures:
        value, interval = _interval(measure, sums, draws, num_clusters)
        place = whole if measure.metric == "exact_match" else fields[measure.field]
        place |= {measure.metric: value, f"{measure.metric}_ci": interval}
    for unit, c in zip(units, coded, strict=True):
        fields[unit.name] |= _details(c)
    answers = system.predictions
    usages = [p.usage for p in answers]
    latencies = np.array(system.latencies_s or [p.latency_s for p in answers])
    valid = [p.error is None and schemas.problems(p.output, task.output) is None for p in answers]
    return {
        "name": system.name,
        "strategy": system.strategy,
        "base_model": system.base_model,
        "fields": fields,
        **whole,
        "valid_rate": float(np.mean(valid)),
        "num_failed": sum(p.error is not None for p in answers),
        "num_truncated": sum(p.truncated for p in answers),
        "latency_p50_s": float(np.quantile(latencies, 0.5)),
        "latency_p95_s": float(np.quantile(latencies, 0.95)),
        "answers_per_s": len(answers) / max(system.wall_s, 1e-9),
        "prompt_tokens": float(np.mean([u.prompt_tokens for u in usages])),
        "completion_tokens": float(np.mean([u.completion_tokens for u in usages])),
        "forward_passes": float(np.mean([u.forward_passes for u in usages])),
        "cost_usd": float(sum(u.cost_usd for u in usages)),
        "train_seconds": float(system.train_seconds),
        "peak_memory_bytes": system.peak_memory_bytes,
    }


def _details(coded: Coded) -> dict[str, Any]:
    """What a field's entry holds beside its measures: calibration, labels, confusion."""
    stated = ~np.isnan(coded.confidence)
    confidence, right = coded.confidence[stated], coded.right[stated]
    total = coded.columns().sum(axis=0)
    details: dict[str, Any] = {
        "kind": coded.unit.kind,
        "paths": [field.path or WHOLE for field in coded.unit.fields],
        "support": len(coded.right),
        "ece": metrics.expected_calibration_error(confidence, right),
        "brier": metrics.brier(coded),
        "num_with_confidence": int(stated.sum()),
        "reliability": metrics.reliability(confidence, right) if stated.any() else [],
    }
    if coded.labels:
        rows = metrics.per_label(coded)
        details["per_label"] = {str(row.pop("label")): row for row in rows}
    if coded.unit.kind == "label":
        details["confusion"] = metrics.confusion(coded)
    if coded.unit.kind == "labels":
        details["micro_f1"] = float(metrics.micro_f1(total))
    return details


# -- the specialist against its rivals --------------------------------------------------------------


def _tested(measure: _Measure, groups: Sequence[Unit], task: Task) -> bool:
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


def _tests(
    systems: Sequence[SystemRun],
    sums: Sequence[np.ndarray],
    draws: Sequence[np.ndarray],
    family: Sequence[_Measure],
    seed: int,
) -> list[dict[str, Any]]:
    """The specialist against each other system on each measure; p_holm corrects for all of them together."""
    found: list[dict[str, Any]] = []
    specialists = [i for i, system in enumerate(systems) if system.strategy == SPECIALIST]
    pairs = [(a, b) for a in specialists for b in range(len(systems)) if b not in specialists or b > a]
    for number, (a, b) in enumerate(pairs):
        for index, measure in enumerate(family):
            rng = np.random.default_rng([seed, number, index])
            found.append(
                {
                    "a": systems[a].name,
                    "b": systems[b].name,
                    "field": measure.field,
                    "metric": measure.metric,
                    **_difference(measure, sums[a], sums[b], draws[a], draws[b], rng),
                }
            )
    corrected = statistics.holm([test["p"] for test in found])
    return [{**test, "p_holm": p} for test, p in zip(found, corrected, strict=True)]


def _difference(
    measure: _Measure,
    a: np.ndarray,
    b: np.ndarray,
    draws_a: np.ndarray,
    draws_b: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """a minus b: value, interval over resamples of the same clusters for both, and p."""
    metric, columns = measure.statistic, measure.columns

    def gap(sums_a: np.ndarray, sums_b: np.ndarray) -> np.ndarray:
        return metric(sums_a[..., columns]) - metric(sums_b[..., columns])

    value = float(gap(a.sum(axis=0), b.sum(axis=0)))
    left_out: Callable[[np.ndarray], np.ndarray] = statistics.jackknife_sums
    around = gap(left_out(a), left_out(b)) if len(a) > 1 else np.array([value])
    return {
        "difference": value,
        "ci": list(statistics.bca_interval(value, gap(draws_a, draws_b), around)),
        "p": statistics.permutation_p(a[:, columns], b[:, columns], metric, rng),
    }


def _method(tests: Sequence[dict[str, Any]], num_clusters: int, seed: int) -> str:
    """How the figures were made, for the reader of the report."""
    text = (
        "Macro-F1: mean F1 over the labels that occur in the gold of train or test, the same for every system; "
        "a label neither in the test's gold nor predicted counts 0. A failed answer counts as wrong. "
        f"Intervals: 95 %, BCa bootstrap of {statistics.NUM_RESAMPLES:,} resamples of the test's {num_clusters} "
        "near-duplicate clusters, the same for every system; the exact binomial interval over clusters where "
        "all answers are right or all are wrong. Calibration error: 15 equal bins, over answers with a confidence."
    )
    if tests:
        text += (
            f" Tests: two-sided paired permutation test, {statistics.NUM_PERMUTATIONS:,} swaps of the two systems' "
            "answers by cluster. Primary metric: accuracy (of an open number: mean absolute error). Holm's correction "
            f"over the whole family of {len(tests)} tests: the specialist against each other system, on each group of "
            "fields by accuracy and macro-F1, and on the exact match of the whole answer. Intervals are not corrected."
        )
    return f"{text} Seed: {seed}."
