"""The report in plain words: what the numbers support, and never more.

Comes in: the mapping that `runner.evaluate` makes. Goes out: text. It computes no statistic of its own; a
difference is called one only where p after Holm's correction is below 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afina.core.task import Task
from afina.evaluation import statistics

LEVEL = 0.05
SMALL_TEST = 30  # clusters; below, intervals are too wide to separate systems that are not far apart
FRIENDLY = {
    "majority": "the majority answer",
    "tfidf": "TF-IDF",
    "zero-shot": "the base model zero-shot",
}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mae": "mean absolute error", "exact_match": "exact match"}
LOWER_IS_BETTER = {"mae"}


def verdict(task: Task, report: Mapping[str, Any]) -> str:
    """Sentences, one a line: are the answers valid; where is the specialist better, worse, or not shown to differ.

    report: `systems`, `tests`, `num_test` and `num_clusters` of report.json are read.
    """
    systems: Sequence[Mapping[str, Any]] = report["systems"]
    if not systems:
        return f"No system answered the test of {task.name}, so there is nothing to compare."
    specialists = [s for s in systems if s["strategy"] == "finetuned"]
    sentences = [_validity(s, report["num_test"], len(systems) > 1) for s in specialists or systems]
    if not specialists:
        sentences.append("No specialist is among the systems, so whether fine-tuning helps cannot be told.")
    elif len(systems) < 2:
        sentences.append(
            "The specialist was compared with no other system, so whether it beats a baseline cannot be told."
        )
    tests: Sequence[Mapping[str, Any]] = report["tests"]
    for pair in dict.fromkeys((test["a"], test["b"]) for test in tests):
        names = [_who(systems, name, len(specialists) > 1) for name in pair]
        sentences += _comparison(names[0], names[1], [t for t in tests if (t["a"], t["b"]) == pair])
    sentences += _limits(tests, report["num_clusters"])
    return "\n".join(sentences)


def _validity(system: Mapping[str, Any], num_test: int, named: bool) -> str:
    whose = f" of {system['name']}" if named and system["strategy"] != "finetuned" else ""
    return f"{percent(system['valid_rate'])} of {num_test} answers{whose} are valid."


def percent(share: float) -> str:
    """Rounded down, so that 100 % means all of them."""
    tenths = math.floor(share * 1000 + 1e-9) / 10
    return f"{tenths:.0f} %" if tenths == int(tenths) else f"{tenths:.1f} %"


def _who(systems: Sequence[Mapping[str, Any]], name: str, several: bool) -> str:
    strategy = next(s["strategy"] for s in systems if s["name"] == name)
    alike = sum(s["strategy"] == strategy for s in systems) > 1
    if strategy == "finetuned":
        return f"the specialist {name}" if several else "the specialist"
    return name if alike else FRIENDLY.get(strategy, name)


def _comparison(a: str, b: str, tests: Sequence[Mapping[str, Any]]) -> list[str]:
    better = [t for t in tests if t["p_holm"] < LEVEL and _gain(t) > 0]
    worse = [t for t in tests if t["p_holm"] < LEVEL and _gain(t) < 0]
    unclear = [t for t in tests if t not in better and t not in worse]
    clauses = []
    if better:
        clauses.append(f"is better than {b} on {_places(better, _significant)}")
    if worse:
        clauses.append(f"is worse than {b} on {_places(worse, _significant)}")
    sentences = [f"{a[0].upper()}{a[1:]} {' and '.join(clauses)}."] if clauses else []
    if unclear:
        sentences.append(f"No difference from {b} shown on {_places(unclear, _undecided)}.")
    return sentences


def _gain(test: Mapping[str, Any]) -> float:
    return -test["difference"] if test["metric"] in LOWER_IS_BETTER else test["difference"]


def _places(tests: Sequence[Mapping[str, Any]], describe: Any) -> str:
    """Fields in order, each with its metrics: "polaridade (...; ...) and emocao (...)"."""
    fields: dict[str, list[str]] = {}
    for test in tests:
        name = "the whole answer" if test["metric"] == "exact_match" else test["field"]
        fields.setdefault(name, []).append(describe(test))
    listed = [f"{name} ({'; '.join(found)})" for name, found in fields.items()]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def _significant(test: Mapping[str, Any]) -> str:
    return f"{METRICS[test['metric']]} {_signed(test['difference'])}, p = {_p(test['p_holm'])}"


def _undecided(test: Mapping[str, Any]) -> str:
    low, high = test["ci"]
    return f"{METRICS[test['metric']]} {_signed(test['difference'])} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.4g}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _p(value: float) -> str:
    """Never rounded across the level: 0.0496 is not 0.05."""
    if value < 0.001:
        return f"{value:.4f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _limits(tests: Sequence[Mapping[str, Any]], num_clusters: int) -> list[str]:
    """What the size of the test keeps from being told."""
    sentences = []
    if tests:
        sentences.append(
            f"In brackets: 95 % intervals. The p values are corrected for all {len(tests)} comparisons (Holm)."
            if len(tests) > 1
            else "In brackets: 95 % intervals. The p value is of the one comparison made."
        )
        least_p = max(2.0 ** (1 - num_clusters), 1 / (1 + statistics.NUM_PERMUTATIONS))
        if least_p * len(tests) >= LEVEL:
            sentences.append(
                f"With {num_clusters} independent test items, hardly any difference could reach p < {LEVEL}: who is "
                "better cannot be told from this test."
            )
            return sentences
    if num_clusters < SMALL_TEST:
        sentences.append(
            f"The test has only {num_clusters} independent items, so small differences cannot be told from chance."
        )
    return sentences
