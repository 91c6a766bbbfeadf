"""One field of a question by classical means: a linear model on TF-IDF features, chosen on held rows.

Comes in: `FieldData`, one field's rows with the splits to choose settings by. Goes out: a `Leaf`, which answers
the field for any features, and a line that says what was chosen. One kind of leaf for each kind of field:
labels, sets of labels, numbers, free text. Knows nothing of tasks or predictions.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score

from afina.core import schema as schemas
from afina.core.schema import Field

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # C of logistic regression, 1 / alpha of ridge
CLASS_WEIGHTS = (None, "balanced")
THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # of a multi-label field


@dataclass(frozen=True)
class Answer:
    """One leaf's value, its probability, and all labels' probabilities where it has labels."""

    value: Any
    confidence: float
    probabilities: Mapping[str, float] | None = None


class Leaf(Protocol):
    """Answers one field of a question."""

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        """One answer per row of the features."""
        ...


@dataclass(frozen=True)
class FieldData:
    """One field's rows. splits: (rows to fit on, rows to judge by), to choose settings; may be empty."""

    features: Any
    values: list[Any]
    num_train: int
    splits: list[tuple[np.ndarray, np.ndarray]]
    seed: int

    @property
    def judged(self) -> np.ndarray:
        return np.concatenate([held for _, held in self.splits])


@dataclass(frozen=True)
class Constant:
    """The same answer always."""

    answer: Answer

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        return [self.answer] * num_rows


def commonest(field: Field, values: Sequence[Any]) -> Answer:
    """The median of numbers (the lower of two, so that it was seen), else the commonest value."""
    texts = [schemas.dumps(schemas.canonical(v, field.schema)) for v in values]
    counts = Counter(texts)
    if field.labels is None and field.schema.get("type") in ("integer", "number"):
        value = sorted(values)[(len(values) - 1) // 2]
        return Answer(value, sum(v == value for v in values) / len(values))
    text = max(counts, key=lambda t: counts[t])
    probabilities = None
    if field.labels is not None:
        held = values if field.multi else [[v] for v in values]
        probabilities = {str(label): sum(_has(v, label) for v in held) / len(values) for label in field.labels}
    return Answer(values[texts.index(text)], counts[text] / len(values), probabilities)


def _has(values: Sequence[Any], label: Any) -> bool:
    return any(v == label and isinstance(v, bool) == isinstance(label, bool) for v in values)


def fit_leaf(field: Field, data: FieldData) -> tuple[Leaf, str]:
    """Fit a field on its training rows with settings chosen on the splits; also says what was chosen."""
    if field.multi:
        return _fit_label_set(field, data)
    if field.labels is not None:
        return _fit_label(field, data)
    if field.schema.get("type") in ("integer", "number"):
        return _fit_number(field, data)
    return _fit_nearest(field, data)


def _logistic(features: Any, codes: np.ndarray, strength: float, weight: str | None, seed: int) -> Any:
    model = LogisticRegression(C=strength, class_weight=weight, max_iter=300, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps of lbfgs: the loss no longer moves
        warnings.filterwarnings("ignore", "The number of unique classes")  # few rows, and that is known
        return model.fit(features, codes)


def _class_probabilities(
    features: Any, codes: np.ndarray, wanted: Any, num_labels: int, strength: float, weight: str | None, seed: int
) -> np.ndarray:
    """Fit on (features, codes), score `wanted`: (N, L); 0 for labels that were not there to learn."""
    table = np.zeros((wanted.shape[0], num_labels))
    classes = np.unique(codes)
    if len(classes) == 1:
        table[:, classes[0]] = 1.0
        return table
    table[:, classes] = _logistic(features, codes, strength, weight, seed).predict_proba(wanted)
    return table


def _macro_f1(gold: np.ndarray, guess: np.ndarray) -> float:
    return float(f1_score(gold, guess, average="macro", zero_division=0))  # pyright: ignore[reportArgumentType]


def _codes(field: Field, values: Sequence[Any]) -> np.ndarray:
    labels = field.labels or ()
    return np.array([next(i for i, label in enumerate(labels) if _has([v], label)) for v in values], dtype=np.int64)


@dataclass(frozen=True)
class LabelLeaf:
    """The likeliest label. classes: the codes that the model has seen."""

    labels: tuple[Any, ...]
    classes: np.ndarray
    model: Any

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        table = np.zeros((num_rows, len(self.labels)))
        table[:, self.classes] = self.model.predict_proba(features)
        best = table.argmax(axis=1)
        return [
            Answer(self.labels[b], float(row[b]), {str(k): float(p) for k, p in zip(self.labels, row, strict=True)})
            for b, row in zip(best, table, strict=True)
        ]


def _fit_label(field: Field, data: FieldData) -> tuple[Leaf, str]:
    labels = field.labels or ()
    codes = _codes(field, data.values)
    train = codes[: data.num_train]
    if len(np.unique(train)) == 1:
        return Constant(commonest(field, data.values[: data.num_train])), "one label in train"

    def score(setting: tuple[float, str | None]) -> float:
        guesses = [
            _class_probabilities(data.features[f], codes[f], data.features[h], len(labels), *setting, data.seed)
            for f, h in data.splits
        ]
        guess, gold = np.concatenate(guesses).argmax(axis=1), codes[data.judged]
        return (_macro_f1(gold, guess) + accuracy_score(gold, guess)) / 2

    grid = [(c, w) for w in CLASS_WEIGHTS for c in STRENGTHS]
    strength, weight = max(grid, key=score) if data.splits else (STRENGTHS[2], None)
    model = _logistic(data.features[: data.num_train], train, strength, weight, data.seed)
    return LabelLeaf(labels, model.classes_, model), f"C={strength}, class_weight={weight}"


@dataclass(frozen=True)
class LabelSetLeaf:
    """Every label above the threshold, kept within minItems and maxItems. models: None where a label is constant."""

    field: Field
    models: list[Any]
    shares: np.ndarray
    threshold: float

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        table = np.tile(self.shares, (num_rows, 1))
        for column, model in enumerate(self.models):
            if model is not None:
                table[:, column] = model.predict_proba(features)[:, 1]
        return [self._answer(row) for row in table]

    def _answer(self, row: np.ndarray) -> Answer:
        labels, schema = self.field.labels or (), self.field.schema
        order = np.argsort(-row, kind="stable")
        count = int(np.sum(row >= self.threshold))
        count = min(max(count, min(schema.get("minItems", 0), len(labels))), schema.get("maxItems", len(labels)))
        taken = np.isin(np.arange(len(labels)), order[:count])
        value = [label for label, kept in zip(labels, taken, strict=True) if kept]
        value += [labels[order[0]]] * (schema.get("minItems", 0) - len(value))  # only where items may repeat
        probabilities = {str(label): float(p) for label, p in zip(labels, row, strict=True)}
        return Answer(value, float(np.prod(np.where(taken, row, 1 - row))), probabilities)


def _fit_label_set(field: Field, data: FieldData) -> tuple[Leaf, str]:
    labels = field.labels or ()
    gold_NL = np.array([[_has(v, label) for label in labels] for v in data.values], dtype=np.int64)
    train = slice(0, data.num_train)
    shares = gold_NL[train].mean(axis=0)
    best, strength, weight, threshold = -1.0, STRENGTHS[2], "balanced", 0.5
    seen = shares > 0
    for setting in [(c, w) for w in CLASS_WEIGHTS for c in STRENGTHS] if data.splits and seen.any() else []:
        guesses = [
            np.stack(
                [
                    _class_probabilities(data.features[f], gold_NL[f, i], data.features[h], 2, *setting, data.seed)[
                        :, 1
                    ]
                    for i in range(len(labels))
                ],
                axis=1,
            )
            for f, h in data.splits
        ]
        guess_NL, held_NL = np.concatenate(guesses)[:, seen], gold_NL[data.judged][:, seen]
        for cut in THRESHOLDS:
            score = _macro_f1(held_NL, guess_NL >= cut)
            if score > best:
                best, (strength, weight), threshold = score, setting, float(cut)
    models = [
        None if share in (0.0, 1.0) else _logistic(data.features[train], gold_NL[train, i], strength, weight, data.seed)
        for i, share in enumerate(shares)
    ]
    return (
        LabelSetLeaf(field, models, shares, threshold),
        f"C={strength}, class_weight={weight}, threshold={threshold:.2f}",
    )


@dataclass(frozen=True)
class NumberLeaf:
    """Ridge regression, kept within the numbers of train, which the schema allows."""

    model: Any
    low: float
    high: float
    whole: bool
    hit_rate: float

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        return [Answer(v, self.hit_rate) for v in self.values(features)]

    def values(self, features: Any) -> list[Any]:
        raw = np.clip(self.model.predict(features), self.low, self.high)
        return [round(v) if self.whole else float(v) for v in raw]


def _fit_number(field: Field, data: FieldData) -> tuple[Leaf, str]:
    gold = np.array(data.values, dtype=np.float64)
    train = np.arange(data.num_train)
    whole = field.schema["type"] == "integer"

    def fit(rows: np.ndarray, strength: float, hit_rate: float = 0.0) -> NumberLeaf:
        model = Ridge(alpha=1 / strength, random_state=data.seed).fit(data.features[rows], gold[rows])
        return NumberLeaf(model, float(gold[train].min()), float(gold[train].max()), whole, hit_rate)

    def guess(strength: float) -> np.ndarray:
        return np.concatenate([fit(f, strength).values(data.features[h]) for f, h in data.splits])

    if not data.splits:
        return fit(train, 1.0), "alpha=1"
    guesses = {strength: guess(strength) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda s: float(np.abs(guesses[s] - gold[data.judged]).mean()))
    return fit(train, best, float(np.mean(guesses[best] == gold[data.judged]))), f"alpha={1 / best:.3g}"


@dataclass(frozen=True)
class NearestLeaf:
    """The value of the most similar training text; the commonest value for a text without known words."""

    features: Any
    values: list[Any]
    fallback: Answer
    hit_rate: float

    def answers(self, features: Any, num_rows: int) -> list[Answer]:
        found = []
        for start in range(0, num_rows, 1_000):  # a block, so that similarities fit into memory
            similar = (features[start : start + 1_000] @ self.features.T).toarray()
            for row, best in zip(similar, similar.argmax(axis=1), strict=True):
                found.append(Answer(self.values[best], self.hit_rate) if row[best] > 0 else self.fallback)
        return found


def _fit_nearest(field: Field, data: FieldData) -> tuple[Leaf, str]:
    usable = [i for i in range(data.num_train) if schemas.problems(data.values[i], field.schema) is None]
    assert usable, f"no training value of {field.path!r} is of its schema"
    fallback = commonest(field, [data.values[i] for i in usable])

    def leaf(rows: Sequence[int], hit_rate: float = 0.0) -> NearestLeaf:
        return NearestLeaf(data.features[list(rows)], [data.values[i] for i in rows], fallback, hit_rate)

    hits = [
        answer.value == data.values[row]
        for fit, held in data.splits
        for row, answer in zip(held, leaf([int(i) for i in fit]).answers(data.features[held], len(held)), strict=True)
    ]
    return leaf(usable, float(np.mean(hits)) if hits else 0.0), "nearest training text"
