"""Several rankings of the same things as one: reciprocal-rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009).

Comes in: uids, best first, from each way of searching. Goes out: all of them with one score. Scores of different kinds
are never compared: only places count.
"""

from __future__ import annotations

from collections.abc import Sequence

K = 60  # of the paper: how little the very first places outweigh the next


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = K) -> list[tuple[str, float]]:
    """(uid, sum over rankings of 1 / (k + place from 1)), highest first; equal ones by uid."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for place, uid in enumerate(dict.fromkeys(ranking), 1):
            scores[uid] = scores.get(uid, 0.0) + 1 / (k + place)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
