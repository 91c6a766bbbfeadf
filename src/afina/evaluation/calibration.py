"""One temperature that makes the probabilities at an answer's free choices mean what they say.

Comes in: the logits of the allowed tokens at each decision of held-out answers, and which one the gold
answer takes. Goes out: the temperature to divide logits by (Guo et al. 2017, section 4.2). It knows
neither models nor fields; dividing by one number never changes which token is the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

MIN_DECISIONS = 10  # fewer say too little: one unlucky row would decide
LOG_RANGE = (float(np.log(0.05)), float(np.log(20.0)))


def fit_temperature(logits: Sequence[np.ndarray], chosen: Sequence[int]) -> float:
    """The temperature in [0.05, 20] with the least mean negative log-likelihood of the gold choices.

    logits: one 1-D array per decision, of any length: the allowed tokens' logits before any temperature.
    chosen: index of the gold token in each of them.
    Returns 1.0 for fewer than 10 real decisions (two allowed tokens or more), and wherever no temperature
    does better than 1.0. Deterministic.
    """
    assert len(logits) == len(chosen), f"{len(logits)} decisions but {len(chosen)} gold choices"
    real = [(np.asarray(z, dtype=np.float64), int(k)) for z, k in zip(logits, chosen, strict=True) if len(z) > 1]
    assert all(0 <= k < len(z) and np.isfinite(z[k]) for z, k in real), "a gold choice is not among the allowed tokens"
    if len(real) < MIN_DECISIONS:
        return 1.0
    flat = np.concatenate([z for z, _ in real])
    sizes = np.array([len(z) for z, _ in real])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    gold = starts + np.array([k for _, k in real])

    def loss(log_temperature: float) -> float:
        return _mean_nll(flat / np.exp(log_temperature), starts, sizes, gold)

    best = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-4})
    # The loss has one minimum in 1/T, but the search may stop just beside it; 1.0 must never be the better one.
    return float(np.exp(best.x)) if best.fun < loss(0.0) else 1.0


def _mean_nll(flat: np.ndarray, starts: np.ndarray, sizes: np.ndarray, gold: np.ndarray) -> float:
    peaks = np.maximum.reduceat(flat, starts)
    log_sums = np.log(np.add.reduceat(np.exp(flat - np.repeat(peaks, sizes)), starts)) + peaks
    return float(np.mean(log_sums - flat[gold]))
