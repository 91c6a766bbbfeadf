"""Intervals and tests against scipy.stats, by coverage, and by their laws."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from afina.evaluation import metrics, statistics


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 1] / sums[..., 0]


def columns(values: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(values)), values], axis=1)


def test_bca_interval_equals_scipy_on_the_same_resamples() -> None:
    cases = 0
    for seed in range(5):
        values = np.random.default_rng(seed).exponential(size=25)
        reference = stats.bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(1))
        left_out = mean(statistics.jackknife_sums(columns(values)))
        mine = statistics.bca_interval(values.mean(), reference.bootstrap_distribution, left_out)
        assert mine == pytest.approx(tuple(reference.confidence_interval), rel=1e-9)
        cases += 1
    assert cases == 5


def test_bootstrap_sums_have_scipy_s_spread() -> None:
    values = np.random.default_rng(0).normal(size=60)
    sums = statistics.bootstrap_sums(columns(values), np.random.default_rng(0), 4_000)
    assert sums[:, 0].tolist() == [60.0] * 4_000
    reference = stats.bootstrap((values,), np.mean, n_resamples=4_000, rng=np.random.default_rng(1)).standard_error
    assert mean(sums).std() == pytest.approx(reference, rel=0.06)  # each is known to 1/sqrt(2 * 4000) = 1.1 %


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    data = columns(np.arange(7.0))
    whole = statistics.bootstrap_sums(data, np.random.default_rng(3), 50)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", 20)
    assert np.array_equal(whole, statistics.bootstrap_sums(data, np.random.default_rng(3), 50))


def test_intervals_cover_clustered_accuracy() -> None:
    """95 % intervals over clusters of three alike rows hold the truth about 95 times in 100."""
    rng, held, naive_held, runs = np.random.default_rng(0), 0, 0, 300
    for _ in range(runs):
        share = rng.beta(2, 2, size=50)  # of each cluster; the mean is 0.5
        right = rng.random((50, 3)) < share[:, None]
        for rows, is_cluster in ((right.sum(axis=1), True), (right.ravel(), False)):
            weight = 3.0 if is_cluster else 1.0
            data = np.stack([np.full(len(rows), weight), rows], axis=1).astype(float)
            draws = mean(statistics.bootstrap_sums(data, rng, 400))
            low, high = statistics.bca_interval(
                float(mean(data.sum(axis=0))), draws, mean(statistics.jackknife_sums(data))
            )
            held += is_cluster and low <= 0.5 <= high
            naive_held += (not is_cluster) and low <= 0.5 <= high
    assert 0.90 <= held / runs <= 0.99  # 0.95 with a standard error of 0.013
    assert naive_held < held  # rows taken as independent would promise too much


def test_permutation_p_equals_scipy_s_exact_test() -> None:
    cases = 0
    for seed in range(4):
        a, b = np.random.default_rng(seed).integers(2, size=(2, 11)).astype(float)
        exact = stats.permutation_test(
            (a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", n_resamples=np.inf
        ).pvalue
        mine = statistics.permutation_p(columns(a), columns(b), mean, np.random.default_rng(0))
        assert mine == pytest.approx(exact, abs=0.02)  # 10,000 draws: standard error at most 0.005
        cases += 1
    assert cases == 4


def test_permutation_p_of_macro_f1_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    gold, a = rng.integers(3, size=(2, 8))
    b = np.where(rng.random(8) < 0.7, gold, a)

    def sums(guess: np.ndarray) -> np.ndarray:
        hot = [np.eye(3)[gold] * np.eye(3)[guess], np.eye(3)[gold], np.eye(3)[guess]]
        return np.concatenate([np.zeros((8, metrics.HEAD)), *hot], axis=1)

    f1 = metrics.macro_f1(np.ones(3, dtype=bool))
    observed = abs(f1(sums(a).sum(axis=0)) - f1(sums(b).sum(axis=0)))
    gaps = []
    for mask in range(2**8):
        swap = np.array([mask >> i & 1 for i in range(8)], dtype=bool)
        one, two = sums(np.where(swap, b, a)).sum(axis=0), sums(np.where(swap, a, b)).sum(axis=0)
        gaps.append(abs(f1(one) - f1(two)))
    exact = np.mean(np.array(gaps) >= observed - 1e-12)
    mine = statistics.permutation_p(sums(a), sums(b), f1, np.random.default_rng(1))
    assert mine == pytest.approx(exact, abs=0.02)


def test_equal_systems_give_p_1_and_a_clear_gap_the_least_p() -> None:
    a = columns(np.ones(40))
    assert statistics.permutation_p(a, a, mean, np.random.default_rng(0)) == 1.0
    b = columns(np.zeros(40))
    assert statistics.permutation_p(a, b, mean, np.random.default_rng(0)) == pytest.approx(1 / 10_001)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_monotone_and_never_below_p(p: list[float]) -> None:
    corrected = statistics.holm(p)
    assert all(p_i <= c <= 1 for p_i, c in zip(p, corrected, strict=True))
    ordered = [corrected[i] for i in np.argsort(p, kind="stable")]
    assert ordered == sorted(ordered)
    assert corrected[int(np.argmin(p))] == pytest.approx(min(1.0, min(p) * len(p)))


def test_holm_by_hand() -> None:
    # Holm (1979): 0.01 x 4, 0.02 x 3, max(0.06, 0.03 x 2), max(0.06, 0.04)
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_unanimous_interval_equals_scipy_s_exact_binomial() -> None:
    for n in (1, 5, 52):
        reference = stats.binomtest(n, n).proportion_ci(method="exact")
        assert statistics.unanimous_interval(1.0, n) == pytest.approx((reference.low, reference.high))
    assert statistics.unanimous_interval(0.0, 5) == pytest.approx((0.0, 1 - statistics.unanimous_interval(1.0, 5)[0]))


def test_unclustered_rows_are_clusters_of_their_own() -> None:
    numbers, count = statistics.cluster_numbers([7, -1, 7, -1])
    assert (numbers.tolist(), count) == ([0, 1, 0, 2], 3)
    assert statistics.cluster_sums(np.ones((4, 1)), numbers, 3).tolist() == [[2.0], [1.0], [1.0]]


def test_bootstrap_of_ten_fields_over_500_rows_is_quick() -> None:
    data = np.random.default_rng(0).integers(2, size=(500, 10 * 27)).astype(float)
    began = time.perf_counter()
    statistics.bootstrap_sums(data, np.random.default_rng(0))
    assert time.perf_counter() - began < 2.0
