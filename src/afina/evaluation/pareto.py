"""Which systems no other beats at both: quality and cost, or quality and latency.

Comes in: entries of report.json. Goes out: names. It knows nothing of chance: a point is where it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

QUALITY = "exact_match"  # of the whole answer; mean_accuracy is the second view
PRICES = {"cost": "cost_per_1000_usd", "latency": "latency_p50_s"}


def front(quality: Sequence[float], price: Sequence[float]) -> list[int]:
    """Positions of the points that are not dominated, in order.

    One point dominates another where its quality is at least as high and its price at most as high, and one of the
    two is strictly better. Equal points do not dominate each other.
    """
    points = list(zip(quality, price, strict=True))
    return [
        i for i, (q, c) in enumerate(points) if not any(q2 >= q and c2 <= c and (q2 > q or c2 < c) for q2, c2 in points)
    ]


def fronts(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Quality metric -> "cost" and "latency" -> names of the systems on the front."""
    return {
        metric: {
            name: [entries[i]["name"] for i in front([e[metric] for e in entries], [e[key] for e in entries])]
            for name, key in PRICES.items()
        }
        for metric in (QUALITY, "mean_accuracy")
    }
