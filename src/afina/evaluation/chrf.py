"""chrF: character n-grams that two texts share (Popović 2015), as sacrebleu counts them.

Comes in: gold texts and answers. Goes out: each row's counts, and the corpus chrF of any sum of them. The corpus chrF
is a function of summed counts, so its interval resamples exactly what is reported, as sacrebleu's own bootstrap does.

Shapes: N rows, 18 columns: answer's, gold's and common n-grams of each order from 1 to 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afina.core.errors import MachineError

ORDERS = 6  # characters; no words, so chrF and not chrF++
BETA = 2  # recall weighs twice as much as precision
NUM_COLUMNS = 3 * ORDERS


def require_chrf() -> None:
    """Raise MachineError unless free text can be judged on this machine: to be asked before a long training."""
    _sacrebleu()


def _sacrebleu() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MachineError(
            "free text is judged by chrF, and sacrebleu is not installed. Install it: pip install 'afina[assistant]'"
        ) from error
    return CHRF


def signature() -> str:
    """What others need to compute the same, in sacrebleu's form."""
    metric = _sacrebleu()()
    metric.num_refs = 1
    return str(metric.get_signature())


def counter(golds: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """`counts` of these gold texts, which are cut into n-grams once for all systems. Raises MachineError."""
    metric = _sacrebleu()(ORDERS, 0, BETA, references=[list(golds)])

    def count(answers: Sequence[str]) -> np.ndarray:
        assert len(golds) == len(answers), f"{len(golds)} gold texts but {len(answers)} answers"
        if not golds:
            return np.zeros((0, NUM_COLUMNS))
        # Its counts have no public name; `corpus_score` is a function of them, and a test holds the two together.
        return np.array(metric._extract_corpus_statistics(list(answers), None), dtype=np.float64)

    return count


def counts(golds: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(N, 18): per row and order, the n-grams of the answer, of the gold text, and common ones. Raises MachineError."""
    return counter(golds)(answers)


def chrf(sums: np.ndarray) -> np.ndarray:
    """Corpus chrF in [0, 100] of summed counts: (..., 18) -> (...).

    Precision and recall are means over the orders that both sides have, as in sacrebleu's default.
    """
    said, gold, common = (sums[..., start::3] for start in range(3))
    usable = (said > 0) & (gold > 0)
    orders = np.maximum(usable.sum(axis=-1), 1)
    precision = np.where(usable, common / np.maximum(said, 1), 0.0).sum(axis=-1) / orders
    recall = np.where(usable, common / np.maximum(gold, 1), 0.0).sum(axis=-1) / orders
    below = BETA**2 * precision + recall
    return np.where(below > 0, 100 * (1 + BETA**2) * precision * recall / np.where(below > 0, below, 1), 0.0)


def corpus_chrf(golds: Sequence[str], answers: Sequence[str]) -> float:
    """chrF of answers to their gold texts, in [0, 100]. Raises MachineError."""
    return float(chrf(counts(golds, answers).sum(axis=0)))
