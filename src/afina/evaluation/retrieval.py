"""Retrieval: how often the right product stands first, among the first five, and how far down it stands.

Comes in: for each question, the uids that were found, best first, and the right one. Goes out: recall@1, recall@5 and
the mean reciprocal rank (MRR, Voorhees 1999) with 95 % intervals over clusters of questions. It knows nothing of how
products are found.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afina.evaluation import statistics

DEPTHS = (1, 5)


@dataclass(frozen=True)
class Ranked:
    """One question. found: uids, best first. gold: the right ones, any of which counts. cluster: -1 for its own."""

    found: Sequence[str]
    gold: Collection[str]
    cluster: int = -1

    @property
    def rank(self) -> int | None:
        """Of the first right one, from 1; None where it was not found."""
        return next((rank for rank, uid in enumerate(self.found, 1) if uid in self.gold), None)


def retrieval_scores(questions: Sequence[Ranked], seed: int = 0) -> dict[str, Any]:
    """JSON-ready: {"num_questions", "recall_at_1", "recall_at_1_ci", ..., "mrr", "mrr_ci"}; scores in [0, 1].

    A question without an answer among those found counts 0. Without questions every score is None.
    """
    names = [*(f"recall_at_{depth}" for depth in DEPTHS), "mrr"]
    if not questions:
        return {"num_questions": 0} | {key: None for name in names for key in (name, f"{name}_ci")}
    ranks = np.array([question.rank or np.inf for question in questions])
    values = np.stack([*((ranks <= depth).astype(float) for depth in DEPTHS), 1 / ranks, np.ones(len(ranks))], axis=1)
    cluster_of, num_clusters = statistics.cluster_numbers([question.cluster for question in questions])
    sums = statistics.cluster_sums(values, cluster_of, num_clusters)
    draws = statistics.bootstrap_sums(sums, np.random.default_rng(seed))
    left_out = statistics.jackknife_sums(sums)
    found: dict[str, Any] = {"num_questions": len(questions)}
    for at, name in enumerate(names):
        value = float(values[:, at].mean())
        if value in (0.0, 1.0):
            interval = statistics.unanimous_interval(value, num_clusters)
        elif num_clusters == 1:
            interval = (0.0, 1.0)  # one cluster tells nothing of others
        else:
            interval = statistics.bca_interval(value, draws[:, at] / draws[:, -1], left_out[:, at] / left_out[:, -1])
        found |= {name: value, f"{name}_ci": list(interval)}
    return found
