"""Which systems no other beats at both: quality and cost, or quality and latency.

Comes in: entries of report.json. Goes out: names. It knows nothing of chance: a point is where it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afina.core.task import Task

PRICES = {"cost": "cost_per_1000_usd", "latency": "latency_p50_s"}


def qualities(task: Task) -> tuple[str, str]:
    """What systems are ranked by, and the second view.

    To get six fields right at once is mostly luck for who gets half of them right, so several fields are ranked by the
    mean of their accuracies. Of one field the two are the same figure.
    """
    if task.free_text:
        return "chrf", "rouge_l"
    return ("mean_accuracy", "exact_match") if len(task.fields) > 1 else ("exact_match", "mean_accuracy")


def measured(entry: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """The part of a system's entry in which a measure of the whole answer stands, with its interval."""
    text: Mapping[str, Any] = entry.get("text") or {}
    return text if metric in text else entry


def quality(entry: Mapping[str, Any], metric: str) -> float:
    """A measure of the whole answer."""
    return measured(entry, metric)[metric]


def front(values: Sequence[float], price: Sequence[float]) -> list[int]:
    """Positions of the points that are not dominated, in order.

    One point dominates another where its quality is at least as high and its price at most as high, and one of the
    two is strictly better. Equal points do not dominate each other.
    """
    points = list(zip(values, price, strict=True))
    return [
        i for i, (q, c) in enumerate(points) if not any(q2 >= q and c2 <= c and (q2 > q or c2 < c) for q2, c2 in points)
    ]


def fronts(entries: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Quality metric -> "cost" and "latency" -> names of the systems on the front."""
    return {
        metric: {
            name: [entries[i]["name"] for i in front([quality(e, metric) for e in entries], [e[key] for e in entries])]
            for name, key in PRICES.items()
        }
        for metric in metrics
    }
