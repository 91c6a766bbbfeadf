"""Gold answers and predictions -> codes -> sums -> accuracy, F1, error, calibration.

Comes in: the gold outputs of labelled examples and a system's predictions of them, in the same order. Goes
out: numbers. It knows nothing of how an answer was made, of clusters or of tests of significance.

Rules that hold everywhere:
- A failed prediction (`error` set), or a value that is not among the labels, is wrong. It is never skipped.
- Macro-F1 is scikit-learn's f1_score(labels=..., average="macro", zero_division=0) over the labels that occur
  in the gold of train or test. The set is the same for every system and resample, so that two systems' figures
  are means over the same labels; labels that nobody has ever seen would only add zeros.
- An absent optional field and null are one label of their own (None), scored like any other.

Shapes: N rows (examples x pooled fields), L labels, C clusters. Columns of `Coded.columns`, and so of every
sum: rows, right, absolute error, then true positives, gold and predicted counts of each label (K = 3 + 3L).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from afina.core import schema as schemas
from afina.core.predictor import Prediction
from afina.core.schema import Field
from afina.core.task import Task

Kind = Literal["label", "labels", "number", "open"]
NUM_BINS = 15  # equal-width, as in Naeini et al. 2015 and Guo et al. 2017
WRONG = -1  # code of a failed prediction, or of a value that is no label
HEAD = 3  # columns before the labels'


@dataclass(frozen=True)
class Unit:
    """What is scored as one: a field, or fields pooled because they are one question.

    name: key in the report. labels: of a "label" or "labels" unit, in schema order; None for an absent value.
    """

    name: str
    fields: tuple[Field, ...]
    kind: Kind
    labels: tuple[Any, ...] = ()

    @property
    def is_number(self) -> bool:
        return self.fields[0].schema.get("type") in ("integer", "number")


def units(task: Task) -> tuple[list[Unit], list[Unit]]:
    """(fields, groups): each field by itself, and the task's groups, in the order of the answer.

    A group of one field has that field's name, so the two lists may share units. Two groups of one name
    (equal last names in unequal parts) are told apart by their first field.
    """
    singles = [_unit(field.path or "answer", (field,)) for field in task.fields]
    names = Counter(group.name for group in task.groups)
    groups = []
    for group in task.groups:
        alone = len(group.fields) == 1
        name = group.fields[0].path or "answer" if alone else group.name
        clash = not alone and (names[group.name] > 1 or any(name == single.name for single in singles))
        groups.append(_unit(f"{name} ({group.fields[0].path}…)" if clash else name, group.fields))
    return singles, groups


def _unit(name: str, fields: tuple[Field, ...]) -> Unit:
    field = fields[0]
    if field.labels is not None:
        return Unit(name, fields, "labels" if field.multi else "label", field.labels)
    return Unit(name, fields, "number" if field.schema.get("type") in ("integer", "number") else "open")


# -- codes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coded:
    """One unit's gold and predicted values as numbers. Rows go example by example, field by field.

    labels: L labels; None last, where a gold value is absent.
    gold, predicted (N, L) of bool: which labels hold (one for a "label" unit; none where the value is no label).
    right (N,): the value is exactly the gold one. failed (N,): there is no answer.
    error (N,): absolute error of a number, else 0. example (N,): position of the example.
    confidence (N,): NaN where the system gave none.
    probabilities (N, L): a row of NaN where the system scored no labels.
    """

    unit: Unit
    labels: tuple[Any, ...]
    gold: np.ndarray
    predicted: np.ndarray
    right: np.ndarray
    failed: np.ndarray
    error: np.ndarray
    example: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray

    def columns(self) -> np.ndarray:
        """(N, K): what is summed over clusters; see the module's docstring."""
        head = np.stack([np.ones(len(self.right)), self.right, self.error], axis=1)
        hits = self.gold & self.predicted
        return np.concatenate([head, hits, self.gold, self.predicted], axis=1, dtype=np.float64)

    def gold_codes(self) -> np.ndarray:
        return _codes(self.gold)

    def predicted_codes(self) -> np.ndarray:
        return _codes(self.predicted)


def _codes(hot_NL: np.ndarray) -> np.ndarray:
    return np.where(hot_NL.any(axis=1), hot_NL.argmax(axis=1) if hot_NL.shape[1] else 0, WRONG)


def key(value: Any) -> Any:
    """A hashable stand-in: equal for equal JSON values (1 and 1.0 are equal; 1 and true are not)."""
    if isinstance(value, Mapping):
        return ("{", *sorted((k, key(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return ("[", *(key(v) for v in value))
    return (isinstance(value, bool), value)


def encode(unit: Unit, golds: Sequence[Any], predictions: Sequence[Prediction]) -> Coded:
    """Gold outputs and predictions of the same examples, in the same order, as a Coded.

    golds: values of the task's output schema.
    """
    assert len(golds) == len(predictions), f"{len(golds)} gold answers but {len(predictions)} predictions"
    pairs = [
        (schemas.get(gold, field.path), None if p.error is not None else schemas.get(p.output, field.path))
        for gold, p in zip(golds, predictions, strict=True)
        for field in unit.fields
    ]
    answered = np.array([p.error is None for p in predictions for _ in unit.fields], dtype=bool)
    labels = unit.labels
    if labels and None not in labels and any(gold is None for gold, _ in pairs):
        labels = (*labels, None)
    gold_NL = _hot([gold for gold, _ in pairs], labels, unit.kind)
    predicted_NL = _hot([value for _, value in pairs], labels, unit.kind) & answered[:, None]
    right = [
        usable and _same(gold, value, unit.kind) for (gold, value), usable in zip(pairs, answered.tolist(), strict=True)
    ]
    belief = [(p, field.path) for p in predictions for field in unit.fields]
    return Coded(
        unit=unit,
        labels=labels,
        gold=gold_NL,
        predicted=predicted_NL,
        right=np.array(right, dtype=bool),
        failed=~answered,
        error=_errors(unit, pairs) if unit.is_number else np.zeros(len(pairs)),
        example=np.repeat(np.arange(len(golds)), len(unit.fields)),
        confidence=np.array([np.nan if p.error else p.confidence.get(path, np.nan) for p, path in belief]),
        probabilities=_probabilities(belief, labels),
    )


def _hot(values: Sequence[Any], labels: tuple[Any, ...], kind: Kind) -> np.ndarray:
    hot = np.zeros((len(values), len(labels)), dtype=bool)
    if not labels:
        return hot
    place = {key(label): i for i, label in enumerate(labels)}
    for row, value in enumerate(values):
        held = value if kind == "labels" and isinstance(value, list) else [value]
        for label in held:
            column = place.get(key(label))
            if column is not None:
                hot[row, column] = True
    return hot


def _same(gold: Any, value: Any, kind: Kind) -> bool:
    if kind == "labels" and isinstance(gold, list) and isinstance(value, list):
        return {key(v) for v in gold} == {key(v) for v in value}
    return key(gold) == key(value)


def _errors(unit: Unit, pairs: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """Absolute errors. No number where one was due costs the largest error possible: the distance to the far
    end of the schema's range, or of the gold values where the range is open. Gold absent: 0, or that cost."""
    golds = [g for g, _ in pairs if _is_number(g)]
    schema = unit.fields[0].schema
    low = schema.get("minimum", schema.get("exclusiveMinimum", min(golds, default=0)))
    high = schema.get("maximum", schema.get("exclusiveMaximum", max(golds, default=0)))

    def error(gold: Any, value: Any) -> float:
        if _is_number(gold):
            return abs(gold - value) if _is_number(value) else max(gold - low, high - gold)
        return float(high - low) if _is_number(value) else 0.0

    return np.array([error(g, v) for g, v in pairs], dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _probabilities(belief: Sequence[tuple[Prediction, str]], labels: tuple[Any, ...]) -> np.ndarray:
    table = np.full((len(belief), len(labels)), np.nan)
    for row, (prediction, path) in enumerate(belief):
        scored = prediction.probabilities.get(path)
        if prediction.error is not None:
            table[row] = 0.0  # nothing was believed, the gold label included
        elif scored is not None:
            table[row] = [scored.get(str(label), 0.0) for label in labels]
            if labels and labels[-1] is None and "None" not in scored:
                table[row, -1] = max(0.0, 1.0 - table[row, :-1].sum())
    return table


def pooled(runs: Sequence[Coded]) -> Coded:
    """The rows of several runs on the same test, one run after the other."""
    names = ("gold", "predicted", "right", "failed", "error", "example", "confidence", "probabilities")
    return replace(runs[0], **{name: np.concatenate([getattr(run, name) for run in runs]) for name in names})


# -- sums to metrics ------------------------------------------------------------------------------


def accuracy(sums: np.ndarray) -> np.ndarray:
    """Share of rows exactly right (of a multi-label field: the whole set): (..., K) -> (...)."""
    return sums[..., 1] / sums[..., 0]


def mean_absolute_error(sums: np.ndarray) -> np.ndarray:
    """(..., K) -> (...)."""
    return sums[..., 2] / sums[..., 0]


def mean_accuracy(starts: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of several units' accuracies, as a function of sums. starts: where each unit's columns begin."""
    at = np.array(starts)

    def metric(sums: np.ndarray) -> np.ndarray:
        return (sums[..., at + 1] / sums[..., at]).mean(axis=-1)

    return metric


def label_f1(sums: np.ndarray) -> np.ndarray:
    """F1 of every label, 0 where it is neither in gold nor predicted: (..., K) -> (..., L)."""
    hits, gold, predicted = np.split(sums[..., HEAD:], 3, axis=-1)
    return 2 * hits / np.maximum(gold + predicted, 1)


def macro_f1(scored_L: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The macro-F1 over the labels marked in `scored_L`, as a function of sums."""

    def metric(sums: np.ndarray) -> np.ndarray:
        return label_f1(sums)[..., scored_L].mean(axis=-1)

    return metric


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 over all labels' decisions together: (..., K) -> (...)."""
    hits, gold, predicted = (part.sum(axis=-1) for part in np.split(sums[..., HEAD:], 3, axis=-1))
    return 2 * hits / np.maximum(gold + predicted, 1)


def labels_in_gold(unit: Unit, labels: tuple[Any, ...], golds: Sequence[Any]) -> np.ndarray:
    """Which of `labels` occur in these gold outputs: (L,) of bool."""
    values = [schemas.get(gold, field.path) for gold in golds for field in unit.fields]
    return np.any(_hot(values, labels, unit.kind), axis=0)


def per_label(coded: Coded) -> list[dict[str, Any]]:
    """Precision, recall, F1, support (gold rows) and predicted rows of every label, 0 where undefined."""
    sums = coded.columns().sum(axis=0)
    hits, gold, predicted = np.split(sums[HEAD:], 3)
    scores = zip(coded.labels, hits, gold, predicted, label_f1(sums), strict=True)
    return [
        {
            "label": label,
            "precision": float(h / max(p, 1)),
            "recall": float(h / max(g, 1)),
            "f1": float(f1),
            "support": int(g),
            "predicted": int(p),
        }
        for label, h, g, p, f1 in scores
    ]


def confusion(coded: Coded) -> dict[str, Any]:
    """Counts, gold in rows and predicted in columns; `wrong`: per gold label, answers that were no label."""
    gold, predicted, size = coded.gold_codes(), coded.predicted_codes(), len(coded.labels)
    matrix = np.zeros((size, size + 1), dtype=int)  # the code WRONG, -1, lands in the last column
    known = gold != WRONG
    np.add.at(matrix, (gold[known], predicted[known]), 1)
    return {"labels": list(coded.labels), "matrix": matrix[:, :-1].tolist(), "wrong": matrix[:, -1].tolist()}


# -- calibration ------------------------------------------------------------------------------------


def reliability(confidence: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> list[dict[str, Any]]:
    """Equal-width bins (low, high] of the confidences: count, mean confidence and accuracy of each.

    Values are in [0, 1]; the first bin holds 0 too. Mean and accuracy are None in an empty bin.
    """
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = np.bincount(place, weights=confidence, minlength=num_bins)
    hits = np.bincount(place, weights=right, minlength=num_bins)
    return [
        {
            "low": i / num_bins,
            "high": (i + 1) / num_bins,
            "confidence": float(sums[i] / count) if count else None,
            "accuracy": float(hits[i] / count) if count else None,
            "count": int(count),
        }
        for i, count in enumerate(counts)
    ]


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> float | None:
    """Mean gap between confidence and accuracy over the bins, weighted by count (Naeini et al. 2015).

    None without rows. Rows without a confidence (failed answers among them) are the caller's to leave out:
    they state no belief that could be too high or too low; accuracy has already counted them wrong.
    """
    if not len(confidence):
        return None
    bins = [b for b in reliability(confidence, right, num_bins) if b["count"]]
    return float(sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(confidence))


def brier(coded: Coded) -> float | None:
    """Mean squared distance between the labels' probabilities and what held, in [0, 2] (Brier 1950).

    Summed over the labels of a single-label field; a mean over the labels of a multi-label one, in [0, 1].
    A failed prediction gave every label 0. None unless every row has probabilities.
    """
    if not coded.labels or np.isnan(coded.probabilities).any():
        return None
    squares = (coded.probabilities - coded.gold) ** 2
    return float((squares.mean(axis=1) if coded.unit.kind == "labels" else squares.sum(axis=1)).mean())
