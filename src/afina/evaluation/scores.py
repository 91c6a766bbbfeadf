"""One system's answers -> every measure with its interval, and the system's entry in report.json.

Comes in: a system's answers to the test, coded by `metrics`. Goes out: values, resamples, and a JSON-ready entry.
It knows nothing of other systems: all that two of them share is the clusters and the seed of the resampling.

A system that was trained or asked with several seeds is scored for each seed, and a measure is the mean over them.
Its interval resamples clusters and takes that mean in each resample: it says how the value would vary over other
rows, for these very runs. How it varies over seeds stands beside it (`by_seed`, `seed_std`), never inside it.

Shapes: C clusters, S seeds, K summed columns, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afina.core.task import Task
from afina.evaluation import metrics, statistics
from afina.evaluation.costs import costs
from afina.evaluation.metrics import Coded, Unit
from afina.evaluation.system import SystemRun

WHOLE = "answer"  # stands for the field where the whole answer is meant
OF_WHOLE = ("exact_match", "mean_accuracy")
SHARES = ("accuracy", *OF_WHOLE)


@dataclass(frozen=True)
class Measure:
    """A metric of a unit as a function of sums. `columns`: where the unit's sums stand.

    is_share: it is a share of answers, or a mean of values in [0, 1], so that 0 or 1 of few clusters is not certain.
    """

    field: str
    metric: str
    columns: slice
    statistic: statistics.Statistic
    is_share: bool = False


@dataclass(frozen=True)
class Score:
    """A measure of one system. value: the mean of by_seed. resampled: (B,). left_out: (C,), one cluster less each."""

    value: float
    by_seed: tuple[float, ...]
    resampled: np.ndarray
    left_out: np.ndarray


@dataclass(frozen=True)
class Scores:
    """One system, scored. coded: by seed, then by unit. sums: (C, S, K). measured: a score for each measure."""

    system: SystemRun
    coded: tuple[tuple[Coded, ...], ...]
    sums: np.ndarray
    measured: tuple[Score, ...]


def measures_of(
    units: Sequence[Unit], groups: Sequence[Unit], labels: Sequence[tuple[Any, ...]], known: Sequence[Any]
) -> list[Measure]:
    """Every measure with an interval; the last two are of the whole answer.

    labels: of each unit, as coded. known: gold outputs, for the labels that macro-F1 is over.
    """
    found: list[Measure] = []
    start, begins = 0, dict[str, int]()
    for unit, unit_labels in zip(units, labels, strict=True):
        columns = slice(start, start + metrics.HEAD + 3 * len(unit_labels))
        begins[unit.name], start = start, columns.stop
        found.append(Measure(unit.name, "accuracy", columns, metrics.accuracy))
        scored = metrics.labels_in_gold(unit, unit_labels, known)
        if scored.any():
            found.append(Measure(unit.name, "macro_f1", columns, metrics.macro_f1(scored)))
        if unit.is_number:
            found.append(Measure(unit.name, "mae", columns, metrics.mean_absolute_error))
    whole = slice(start, start + metrics.HEAD)
    mean = metrics.mean_accuracy([begins[group.name] for group in groups])
    found.append(Measure(WHOLE, "mean_accuracy", slice(0, whole.stop), mean))
    return [*found, Measure(WHOLE, "exact_match", whole, metrics.accuracy)]


def encode_runs(system: SystemRun, units: Sequence[Unit], golds: Sequence[Any]) -> tuple[tuple[Coded, ...], ...]:
    """Each seed's answers, coded unit by unit."""
    return tuple(tuple(metrics.encode(unit, golds, run) for unit in units) for run in system.runs)


def score(
    system: SystemRun,
    coded: tuple[tuple[Coded, ...], ...],
    measures: Sequence[Measure],
    cluster_of: np.ndarray,
    num_clusters: int,
    seed: int,
) -> Scores:
    """Values and resamples. seed: equal for all systems, so that all are seen on the same resamples."""
    sums = np.stack([_sums(run, cluster_of, num_clusters) for run in coded], axis=1)
    return Scores(system, coded, sums, score_sums(sums, measures, seed))


def score_sums(sums: np.ndarray, measures: Sequence[Measure], seed: int) -> tuple[Score, ...]:
    """A score for each measure of summed columns (C, S, K)."""
    num_clusters = len(sums)
    draws = statistics.bootstrap_sums(sums, np.random.default_rng(seed))
    found: list[Score] = []
    for measure in measures:
        part, over = sums[..., measure.columns], statistics.over_seeds(measure.statistic)
        by_seed = measure.statistic(part.sum(axis=0))
        value = float(by_seed.mean())
        left_out = over(statistics.jackknife_sums(part)) if num_clusters > 1 else np.array([value])
        found.append(Score(value, tuple(map(float, by_seed)), over(draws[..., measure.columns]), left_out))
    return tuple(found)


def _sums(coded: Sequence[Coded], cluster_of: np.ndarray, num_clusters: int) -> np.ndarray:
    """All units' columns, then the whole answer's, summed by cluster: (C, K)."""
    blocks = [statistics.cluster_sums(c.columns(), cluster_of[c.example], num_clusters) for c in coded]
    right = np.ones(len(cluster_of), dtype=bool)
    for c in coded:
        np.logical_and.at(right, c.example, c.right)
    whole = np.stack([np.ones(len(right)), right, np.zeros(len(right))], axis=1)
    return np.concatenate([*blocks, statistics.cluster_sums(whole, cluster_of, num_clusters)], axis=1)


def interval(measure: Measure, found: Score) -> list[float]:
    """The 95 % interval over clusters."""
    if (measure.is_share or measure.metric in SHARES) and found.value in (0.0, 1.0):
        return list(statistics.unanimous_interval(found.value, len(found.left_out)))
    return list(statistics.bca_interval(found.value, found.resampled, found.left_out))


# -- the entry in report.json ---------------------------------------------------------------------


def entry(
    task: Task,
    units: Sequence[Unit],
    scores: Scores,
    measures: Sequence[Measure],
    machine_usd_per_hour: float | None,
) -> dict[str, Any]:
    """One entry of `systems`."""
    system = scores.system
    fields: dict[str, dict[str, Any]] = {unit.name: {} for unit in units}
    whole: dict[str, Any] = {}
    for measure, found in zip(measures, scores.measured, strict=True):
        put(whole if measure.metric in OF_WHOLE else fields[measure.field], measure, found)
    for at, unit in enumerate(units):
        fields[unit.name] |= _details([run[at] for run in scores.coded])
    return system_entry(task, system, {"fields": fields, **whole}, machine_usd_per_hour)


def put(place: dict[str, Any], measure: Measure, found: Score) -> None:
    """A measure's value, interval and, of several seeds, how it varies between them, under its name."""
    place |= {measure.metric: found.value, f"{measure.metric}_ci": interval(measure, found)}
    if len(found.by_seed) > 1:
        place.setdefault("by_seed", {})[measure.metric] = list(found.by_seed)
        place.setdefault("seed_std", {})[measure.metric] = float(np.std(found.by_seed, ddof=1))


def system_entry(
    task: Task, system: SystemRun, measured: dict[str, Any], machine_usd_per_hour: float | None
) -> dict[str, Any]:
    """A system's name, what was measured of its answers, and what they took."""
    known = {"seeds": list(system.seeds)} if system.seeds else {}
    return {
        "name": system.name,
        "strategy": system.strategy,
        "base_model": system.base_model,
        **measured,
        **known,
        **costs(system, task.output, machine_usd_per_hour),
        "train_seconds": float(system.train_seconds),
        "peak_memory_bytes": system.peak_memory_bytes,
    }


def _details(runs: Sequence[Coded]) -> dict[str, Any]:
    """What a field's entry holds beside its measures: calibration, labels, confusion.

    runs: one per seed. Scores are means over seeds; counts (reliability, per label, confusion) are of all seeds.
    """
    together = metrics.pooled(runs)
    stated = ~np.isnan(together.confidence)
    details: dict[str, Any] = {
        "kind": together.unit.kind,
        "paths": [field.path or WHOLE for field in together.unit.fields],
        "support": len(runs[0].right),
        "ece": _mean([_calibration_error(run) for run in runs]),
        "brier": _mean([metrics.brier(run) for run in runs]),
        "num_with_confidence": int(stated.sum()),
        "reliability": metrics.reliability(together.confidence[stated], together.right[stated]) if stated.any() else [],
    }
    if together.labels:
        rows = metrics.per_label(together)
        details["per_label"] = {str(row.pop("label")): row for row in rows}
    if together.unit.kind == "label":
        details["confusion"] = metrics.confusion(together)
    if together.unit.kind == "labels":
        details["micro_f1"] = float(np.mean([metrics.micro_f1(run.columns().sum(axis=0)) for run in runs]))
    return details


def _calibration_error(run: Coded) -> float | None:
    stated = ~np.isnan(run.confidence)
    return metrics.expected_calibration_error(run.confidence[stated], run.right[stated])


def _mean(values: Sequence[float | None]) -> float | None:
    """None where some seed has none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
