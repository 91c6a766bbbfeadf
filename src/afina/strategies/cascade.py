"""The cheap strategy answers where it is sure enough, a dear one answers the rest.

Comes in: two predictors and a threshold. Goes out: each row's answer from one of them. `choose_threshold` picks the
threshold on predictions of validation rows; the test is never seen here. How either comes to its answers is not known.

How sure a whole answer is: the product of its fields' confidences. If these are calibrated and the fields err
independently, that is the probability that all are right, which is what the cascade is judged by. The least of them
would forget that six fields at 0.8 err more often than one. Both are tried in tests/test_cascade.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Inputs, Prediction, Predictor
from afina.core.task import Task
from afina.evaluation import metrics
from afina.evaluation.statistics import LEVEL

UNSURE = -1.0  # of a failure, and of an answer that states no confidence: below every threshold
ASK_ALWAYS = 2.0  # a threshold above all confidences


@dataclass(frozen=True)
class Threshold:
    """From which confidence on the first answer stands, and what to expect of it.

    value: the first strategy's answer stands where `sureness` is at least this; 0 for all of its answers that state
    confidences, 2 for none of them. expected_share: of validation rows that the second was asked, in [0, 1].
    expected_accuracy: of the cascade's whole answers on them, with its 95 % Wilson interval; None where the second's
    answers are not known. The threshold was chosen on these rows, so a little less is to be expected on others.
    reached: the aim was met. num_rows: of validation. told: all this in one sentence.
    """

    value: float
    expected_share: float
    expected_accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    reached: bool
    num_rows: int
    told: str


def sureness(prediction: Prediction, task: Task) -> float:
    """The product of the scored fields' stated confidences, in [0, 1]; -1 for a failure, or where none is stated."""
    stated = [prediction.confidence[field.path] for field in task.fields if field.path in prediction.confidence]
    return math.prod(stated) if stated and prediction.error is None else UNSURE


class Cascade:
    """`first` answers where it is as sure as `threshold` says; `then` is asked the other rows, and no more than these.

    Where `then` fails, the answer of `first` stands. usage and latency_s: the sum of whoever was asked. trace: an entry
    for each that was asked: {"strategy", "answered": its answer stands, "output" or "error", "trace"}, and of `first`
    {"sureness" (None where not stated), "threshold"}. All else is that of the answer that stands.
    """

    def __init__(self, name: str, task: Task, first: Predictor, then: Predictor, threshold: Threshold) -> None:
        self.name, self.task, self.first, self.then, self.threshold = name, task, first, then, threshold

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One prediction per row, in order. Raises RecipeError where no answer of `first` states a confidence."""
        tries = self.first.predict(inputs)
        assert len(tries) == len(inputs), f"{self.first.name} gave {len(tries)} predictions for {len(inputs)} rows"
        sure = [sureness(one, self.task) for one in tries]
        # A cascade states the confidences of its own first one, though not of each row.
        if not isinstance(self.first, Cascade):
            _require_confidence(tries, sure, self.first.name)
        asked = [row for row, value in enumerate(sure) if value < self.threshold.value]
        others = self.then.predict([inputs[row] for row in asked]) if asked else []
        assert len(others) == len(asked), f"{self.then.name} gave {len(others)} predictions for {len(asked)} rows"
        second = dict(zip(asked, others, strict=True))
        return [self._answer(one, sure[row], second.get(row)) for row, one in enumerate(tries)]

    def _answer(self, one: Prediction, sure: float, other: Prediction | None) -> Prediction:
        stands = other if other is not None and other.error is None else one
        known = {"sureness": None if sure == UNSURE else sure, "threshold": self.threshold.value}
        trace = [{**_entry(self.first.name, one, answered=stands is one and one.error is None), **known}]
        if other is None:
            return replace(one, trace=trace)
        trace.append(_entry(self.then.name, other, answered=stands is other))
        both = replace(stands, usage=one.usage + other.usage, latency_s=one.latency_s + other.latency_s, trace=trace)
        if both.error is None:
            return both
        return replace(both, error=f"{self.first.name}: {one.error}; {self.then.name}: {other.error}")


def _entry(name: str, prediction: Prediction, *, answered: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"strategy": name, "answered": answered}
    entry |= {"output": prediction.output} if prediction.error is None else {"error": prediction.error}
    return entry | ({"trace": list(prediction.trace)} if prediction.trace else {})


def _require_confidence(predictions: Sequence[Prediction], sure: Sequence[float], name: str) -> None:
    answered = [value for one, value in zip(predictions, sure, strict=True) if one.error is None]
    if answered and max(answered) == UNSURE:
        raise RecipeError(
            f"{name}: states no confidence in its answers, so a cascade cannot tell which of them to keep. "
            "Put finetuned, tfidf, a model on this machine, or a vote first."
        )


# -- the threshold --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """One way to divide the validation rows. right: whole answers of the cascade; None where not known."""

    value: float
    num_sent: int
    right: int | None


def choose_threshold(
    first_predictions: Sequence[Prediction],
    then_predictions: Sequence[Prediction] | None,
    golds: Sequence[Any],
    task: Task,
    *,
    accuracy: float | None = None,
    max_share: float | None = None,
    first_name: str = "the first strategy of the cascade",
) -> Threshold:
    """The threshold for one of two aims, from predictions of the same validation rows, in the same order.

    accuracy: the smallest share sent to the second with which the whole answers reach it; where no threshold does, the
    most accurate one, then the smallest share. max_share: the largest share sent that is not above it. Rows that
    `first` failed are sent whatever the threshold, and rows of equal sureness go together. then_predictions: None only
    with max_share. Raises DataError (no validation row), RecipeError (no confidence).
    """
    assert (accuracy is None) != (max_share is None), "a threshold is chosen for one of accuracy and max_share"
    assert accuracy is None or then_predictions is not None, "an accuracy needs the second's predictions"
    assert len(first_predictions) == len(golds), f"{len(first_predictions)} predictions but {len(golds)} gold answers"
    if not golds:
        raise DataError(
            "the cascade's threshold is chosen on validation, and there found no labelled row. Label some, or raise "
            "data.validation_size."
        )
    sure = [sureness(one, task) for one in first_predictions]
    _require_confidence(first_predictions, sure, first_name)
    cuts = _cuts(sure, first_predictions, then_predictions, golds, task)
    count = len(golds)
    if accuracy is not None:
        chosen = next((cut for cut in cuts if (cut.right or 0) / count >= accuracy), None)
        reached = chosen is not None
        chosen = chosen or max(cuts, key=lambda cut: (cut.right or 0, -cut.num_sent))
        aim = f"an accuracy of {_percent(accuracy)}"
    else:
        allowed = max_share or 0.0
        fitting = [cut for cut in cuts if cut.num_sent / count <= allowed]
        reached, chosen = bool(fitting), (fitting or cuts[:1])[-1]
        aim = f"at most {_percent(allowed)} of the rows asked of the second"
    return _told(chosen, count, aim, reached)


def _cuts(
    sure: Sequence[float],
    first: Sequence[Prediction],
    then: Sequence[Prediction] | None,
    golds: Sequence[Any],
    task: Task,
) -> list[_Cut]:
    """Every way to divide the rows by a threshold, the fewest sent first."""
    right_first = exactly_right(task, golds, first)
    right_then = None
    if then is not None:
        failed = np.array([one.error is not None for one in then])
        # As in the cascade, where the second fails, the first one's answer stands.
        right_then = np.where(failed, right_first, exactly_right(task, golds, then))
    values = np.array(sure)
    kept = sorted({value for value in sure if value != UNSURE})
    cuts: list[_Cut] = []
    # The threshold that keeps all is 0 and not the least value seen: another row may be less sure than these.
    for threshold in [0.0, *kept[1:], ASK_ALWAYS]:
        sent = values < threshold
        right = None if right_then is None else int(np.where(sent, right_then, right_first).sum())
        cuts.append(_Cut(threshold, int(sent.sum()), right))
    return cuts


def exactly_right(task: Task, golds: Sequence[Any], predictions: Sequence[Prediction]) -> np.ndarray:
    """Whether every scored field is right: (N,) of bool. A failure is wrong."""
    right = np.ones(len(golds), dtype=bool)
    for unit in metrics.units(task)[0]:
        right &= metrics.encode(unit, golds, predictions).right
    return right


def _told(cut: _Cut, count: int, aim: str, reached: bool) -> Threshold:
    share = cut.num_sent / count
    told = f"{aim} was wanted{'' if reached else ' but is not reached by any threshold; the best one'}: "
    if cut.value == ASK_ALWAYS:
        told += "the second is asked all rows"
    elif cut.value == 0:
        told += "the second is asked only where the first gives no answer"
    else:
        told += f"the second is asked where the first is less than {cut.value:.3g} sure of its whole answer"
    told += f", which are {cut.num_sent} of {count} validation rows ({_percent(share)})"
    if cut.right is None:
        return Threshold(cut.value, share, None, None, reached, count, f"{told}.")
    found = binomtest(cut.right, count).proportion_ci(LEVEL, method="wilson")
    interval = float(found.low), float(found.high)
    right = cut.right / count
    told += f"; {_percent(right)} of all answers are right there (95 % interval {_percent(interval[0])} to "
    told += f"{_percent(interval[1])})."
    return Threshold(cut.value, share, right, interval, reached, count, told)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
