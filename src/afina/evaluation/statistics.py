"""Intervals and tests over clusters: what a difference on a small test set can and cannot show.

Comes in: sums that a metric is computed from, one row per cluster of the test (a news item and its
near-duplicates stand or fall together, so whole clusters are resampled or swapped, never rows). Goes out:
intervals and p-values. It knows nothing of fields or systems: a metric is a function from sums to values.

Shapes: C clusters, S seeds of one system, K summed columns, B resamples or permutations. Every accuracy, F1 or
mean error is a function of sums over clusters, so B resamples are one matrix product, and there is no loop over
rows. Clusters come first; what follows (K, or S and K) is carried along. The caller owns the random generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums (..., K) -> the metric's values (...). Over seeds: (..., S, K) -> (...)."""

NUM_RESAMPLES = 2_000
NUM_PERMUTATIONS = 10_000
LEVEL = 0.95
BLOCK_CELLS = 8_000_000  # of a random matrix held at once: 64 MB
EQUAL = 1e-12  # differences of equal fractions, computed in another order, differ by less


def over_seeds(statistic: Statistic) -> Statistic:
    """The mean over seeds of a metric that is computed for each seed by itself: (..., S, K) -> (...)."""

    def mean(sums: np.ndarray) -> np.ndarray:
        return statistic(sums).mean(axis=-1)

    return mean


def same_number_of_seeds(a_CSK: np.ndarray, b_CSK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each system's runs repeated, all equally often, until both have as many: every mean over seeds stays."""
    together = math.lcm(a_CSK.shape[1], b_CSK.shape[1])
    a, b = (np.tile(sums, (1, together // sums.shape[1], 1)) for sums in (a_CSK, b_CSK))
    return a, b


def cluster_sums(values_NK: np.ndarray, cluster_N: np.ndarray, num_clusters: int) -> np.ndarray:
    """Sum rows by cluster: (N, K) and cluster numbers in [0, C) -> (C, K)."""
    sums = np.zeros((num_clusters, values_NK.shape[1]))
    np.add.at(sums, cluster_N, values_NK)
    return sums


def cluster_numbers(clusters: Sequence[int]) -> tuple[np.ndarray, int]:
    """Cluster ids -> numbers in [0, C) and C. A negative id means "not clustered": a cluster of its own."""
    known: dict[int | tuple[int], int] = {}
    numbers = [known.setdefault(c if c >= 0 else (i,), len(known)) for i, c in enumerate(clusters)]
    return np.array(numbers, dtype=np.int64), len(known)


def bootstrap_sums(sums_CK: np.ndarray, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Total sums of `num_resamples` draws of C clusters with replacement: (C, ..., K) -> (B, ..., K)."""
    num_clusters, shape = len(sums_CK), sums_CK.shape[1:]
    flat, blocks = sums_CK.reshape(num_clusters, -1), list[np.ndarray]()
    for count in _blocks(num_resamples, num_clusters):
        drawn = rng.integers(num_clusters, size=(count, num_clusters))
        drawn += np.arange(count)[:, None] * num_clusters
        weights = np.bincount(drawn.ravel(), minlength=count * num_clusters).reshape(count, num_clusters)
        blocks.append(weights.astype(np.float64) @ flat)
    return np.concatenate(blocks).reshape(num_resamples, *shape)


def _blocks(total: int, width: int) -> Iterator[int]:
    block = max(1, BLOCK_CELLS // max(1, width))
    for start in range(0, total, block):
        yield min(block, total - start)


def jackknife_sums(sums_CK: np.ndarray) -> np.ndarray:
    """Total sums with each cluster left out once: (C, ..., K), as they came."""
    return sums_CK.sum(axis=0) - sums_CK


def bca_interval(
    estimate: float, resampled_B: np.ndarray, left_out_C: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987), as in scipy.stats.bootstrap.

    Macro-F1 needs the correction: a resample that misses a rare label scores 0 on it, so its distribution
    lies below the estimate. Falls back to the percentile interval where the correction is undefined
    (all resamples on one side of the estimate).
    """
    tail = (1 - level) / 2
    below = (np.mean(resampled_B < estimate) + np.mean(resampled_B <= estimate)) / 2
    tails = np.array([tail, 1 - tail])
    if 0 < below < 1:
        bias = ndtri(below)
        gaps = left_out_C.mean() - left_out_C
        spread = float(np.sum(gaps**2))
        acceleration = float(np.sum(gaps**3)) / (6 * spread**1.5) if spread > EQUAL**2 else 0.0
        normal = bias + ndtri(tails)
        tails = ndtr(bias + normal / (1 - acceleration * normal))
    low, high = np.quantile(resampled_B, tails)
    return float(low), float(high)


def unanimous_interval(share: float, num_clusters: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share when every cluster agrees: 0 or 1.

    The bootstrap would answer [1, 1] after five right answers out of five; this answers [0.48, 1].
    """
    assert share in (0.0, 1.0), f"share is {share}"
    edge = ((1 - level) / 2) ** (1 / num_clusters)
    return (edge, 1.0) if share == 1.0 else (0.0, 1 - edge)


def permutation_p(
    a_CK: np.ndarray,
    b_CK: np.ndarray,
    statistic: Statistic,
    rng: np.random.Generator,
    num_permutations: int = NUM_PERMUTATIONS,
) -> float:
    """Two-sided p of the paired permutation test that systems a and b are interchangeable.

    Under the null hypothesis it does not matter which system gave which answer, so their answers to each
    cluster are swapped by a coin; those of all seeds together, where systems have several (C, S, K).
    p = (1 + #{|permuted difference| >= |observed|}) / (1 + permutations), which is never 0 (Phipson & Smyth
    2010). Equal systems give 1.
    """
    total_a, total_b = a_CK.sum(axis=0), b_CK.sum(axis=0)
    observed = abs(float(statistic(total_a) - statistic(total_b)))
    shape, change = a_CK.shape[1:], (b_CK - a_CK).reshape(len(a_CK), -1)
    change = change[np.any(change != 0, axis=1)]  # swapping equal answers changes nothing
    at_least = 0
    for count in _blocks(num_permutations, len(change)):
        swapped = rng.integers(2, size=(count, len(change)), dtype=np.int8).astype(np.float64) @ change
        swapped = swapped.reshape(count, *shape)
        difference = statistic(total_a + swapped) - statistic(total_b - swapped)
        at_least += int(np.sum(np.abs(difference) >= observed - EQUAL))
    return (1 + at_least) / (1 + num_permutations)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction, in the order given: each >= its p, at most 1, order kept.

    The chance of even one false "better" in the whole family stays below the level.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    corrected = np.empty_like(values)
    corrected[order] = stepped
    return [float(v) for v in corrected]
