"""The fitted temperature: found where it is known, never harmful."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from afina.evaluation.calibration import fit_temperature


def nll(logits: list[np.ndarray], chosen: list[int], temperature: float) -> float:
    return float(np.mean([-log_softmax(z / temperature)[k] for z, k in zip(logits, chosen, strict=True)]))


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_recovers_a_known_temperature(truth: float) -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(scale=3, size=int(rng.integers(2, 9))) for _ in range(2_000)]
    chosen = [int(rng.choice(len(z), p=softmax(z / truth))) for z in logits]
    found = fit_temperature(logits, chosen)
    assert found == pytest.approx(truth, rel=0.15)  # the estimate's own error at 2,000 decisions is near 4 %
    grid = np.geomspace(0.05, 20, 12)
    assert nll(logits, chosen, found) <= min(nll(logits, chosen, t) for t in grid) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 40))
def test_never_worse_than_no_temperature(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = [rng.normal(scale=rng.uniform(0.01, 30), size=int(rng.integers(1, 6))) for _ in range(size)]
    chosen = [int(rng.integers(len(z))) for z in logits]
    found = fit_temperature(logits, chosen)
    assert 0.05 <= found <= 20
    assert nll(logits, chosen, found) <= nll(logits, chosen, 1.0) + 1e-12


def test_too_few_real_decisions_change_nothing() -> None:
    assert fit_temperature([], []) == 1.0
    nine = [np.array([5.0, 0.0])] * 9
    assert fit_temperature(nine, [1] * 9) == 1.0
    assert fit_temperature([*nine, *[np.array([1.0])] * 50], [1] * 9 + [0] * 50) == 1.0  # forced tokens are none
    assert fit_temperature([*nine, np.array([5.0, 0.0])], [1] * 10) == pytest.approx(20, rel=0.01)


def test_masked_logits_are_allowed() -> None:
    logits = [np.array([1.0, -np.inf, 0.0])] * 20
    assert np.isfinite(fit_temperature(logits, [0, 2] * 10))
