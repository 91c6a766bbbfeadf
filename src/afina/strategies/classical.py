"""Baselines without a language model: the majority answer, and TF-IDF with linear models.

Comes in: a task and labelled examples. Goes out: predictors whose answers are always values of the task's
schema, for any input, an empty one included. They see what the specialist sees, no more: rows of train to
learn from, rows of validation to choose settings with, never the test.

A *question* is one part of the task, pooled with the parts that are equal to it: three sentences of a news
item make three training rows of one classifier. A task without parts is one question.

The file is long because it is one idea for six kinds of field; read `_Classical`, then `fit_leaf`.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GroupKFold

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs, Prediction
from afina.core.schema import Field, Schema
from afina.core.task import Part, Task

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # C of logistic regression, 1 / alpha of ridge
CLASS_WEIGHTS = (None, "balanced")
THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # of a multi-label field
MIN_VALIDATION_ROWS = 50  # below, folds of train choose better than so few rows
NUM_FOLDS = 5
MAX_SELECTION_ROWS = 20_000  # of train, for choosing settings; the final fit uses all
MAX_FEATURES = 200_000  # per vectoriser
WORDS: dict[str, Any] = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 5)}


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


# -- questions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Equal parts of a task. `schema` and `fields` are of one part's answer, reasoning left out."""

    parts: tuple[Part, ...]
    schema: Schema

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return tuple(schemas.fields(self.schema))

    def rows(self, examples: Sequence[Example]) -> Rows:
        """The labelled rows: one per example and part."""
        texts, values, clusters = [], [], []
        for index, example in enumerate(examples):
            for part in self.parts:
                value = example.output if not part.key else (example.output or {}).get(part.key)
                if value is not None:
                    texts.append(shown_texts(part, example.inputs))
                    values.append(value)
                    clusters.append(example.cluster if example.cluster >= 0 else -1 - index)
        return Rows(texts, values, np.array(clusters, dtype=np.int64))


@dataclass(frozen=True)
class Rows:
    """texts: per row, one text per shown input. values: the part's gold answers. clusters: for folds."""

    texts: list[tuple[str, ...]]
    values: list[Any]
    clusters: np.ndarray


def questions(task: Task) -> list[Question]:
    """The task's parts, equal ones together, in the order of the answer."""
    found: dict[str, list[Part]] = {}
    for part in task.parts:
        found.setdefault(part.signature, []).append(part)
    return [
        Question(tuple(p), task.output["properties"][p[0].key] if p[0].key else task.output) for p in found.values()
    ]


def shown_texts(part: Part, inputs: Inputs) -> tuple[str, ...]:
    return tuple(text for _, text in part.shown(inputs))


def present(value: Any, path: str) -> bool:
    """Whether the value has something at the path; null counts, an absent optional field does not."""
    for name in path.split(".") if path else []:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def presence(schema: Schema, values: Sequence[Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Every optional property's path and the share of its parents that have it."""
    for name, inner in schema.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        if name not in schema["required"]:
            parents = [v for v in values if isinstance(schemas.get(v, path), Mapping)]
            yield place, sum(present(v, place) for v in parents) / max(1, len(parents))
        yield from presence(inner, values, place)


# -- predictors -------------------------------------------------------------------------------------


class _Classical:
    """Questions with one Leaf per field; composes their answers into valid outputs."""

    def __init__(self, task: Task, train: Sequence[Example], name: str) -> None:
        self.name, self.task, self.train_seconds = name, task, 0.0
        self._leaves: list[dict[str, Leaf]] = []
        self._questions = questions(task)
        self._presence: list[dict[str, float]] = []
        for question in self._questions:
            values = question.rows(train).values
            if not values:
                raise DataError(
                    f"{name}: none of the {len(train)} training examples has an answer for task {task.name!r}; "
                    "expected at least one. Label some rows, or lower data.test_size."
                )
            self._presence.append(dict(presence(question.schema, values)))

    def _features(self, index: int, texts: list[tuple[str, ...]]) -> Any:
        """What the leaves of question `index` read."""
        return None

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One valid answer per row. latency_s: the batch's wall time over its rows."""
        began = time.perf_counter()
        outputs: list[dict[str, Any]] = [{} for _ in inputs]
        beliefs: list[tuple[dict[str, float], dict[str, Mapping[str, float]]]] = [({}, {}) for _ in inputs]
        for index, question in enumerate(self._questions if inputs else []):
            for part in question.parts:
                features = self._features(index, [shown_texts(part, row) for row in inputs])
                answers = {p: leaf.answers(features, len(inputs)) for p, leaf in self._leaves[index].items()}
                for row in range(len(inputs)):
                    mine = {path: answers[path][row] for path in answers}
                    outputs[row][part.key] = _compose(question.schema, mine, self._presence[index])
                    self._believe(question, part, mine, self._presence[index], *beliefs[row])
        seconds = (time.perf_counter() - began) / max(1, len(inputs))
        return [
            Prediction(
                output=output if self.task.part_inputs else output[""],
                confidence=confidence,
                probabilities=probabilities,
                latency_s=seconds,
            )
            for output, (confidence, probabilities) in zip(outputs, beliefs, strict=True)
        ]

    @staticmethod
    def _believe(
        question: Question,
        part: Part,
        answers: Mapping[str, Answer],
        shares: Mapping[str, float],
        confidence: dict[str, float],
        probabilities: dict[str, Mapping[str, float]],
    ) -> None:
        for field in question.fields:
            path = ".".join(key for key in (part.key, field.path) if key)
            steps = [".".join(field.keys[: i + 1]) for i in range(len(field.keys))]
            share = float(np.prod([shares.get(step, 1.0) for step in steps]))
            answer = answers.get(field.path)
            if answer is None or any(shares.get(step, 1.0) <= 0.5 for step in steps):
                confidence[path] = 1.0 - share
                continue
            confidence[path] = share * answer.confidence
            if answer.probabilities is not None:
                probabilities[path] = {label: share * p for label, p in answer.probabilities.items()}


def _compose(schema: Schema, answers: Mapping[str, Answer], shares: Mapping[str, float], path: str = "") -> Any:
    """The leaves' answers as one value; an optional property is there if most training answers have it."""
    if schema.get("type") != "object":
        return answers[path].value
    places = {name: f"{path}.{name}" if path else name for name in schema["properties"]}
    return {
        name: _compose(inner, answers, shares, places[name])
        for name, inner in schema["properties"].items()
        if name in schema["required"] or shares[places[name]] > 0.5
    }


class Majority(_Classical):
    """Always the commonest answer of each field in train: what can be had without reading the input.

    Numbers: the median; the confidence is the answer's share of train. Raises DataError without labelled rows.
    """

    def __init__(self, task: Task, train: Sequence[Example]) -> None:
        began = time.perf_counter()
        super().__init__(task, train, "majority")
        for question in self._questions:
            values = question.rows(train).values
            leaves: dict[str, Leaf] = {}
            for field in question.fields:
                known = [schemas.get(v, field.path) for v in values if present(v, field.path)]
                if known:
                    leaves[field.path] = Constant(commonest(field, known))
            self._leaves.append(leaves)
        self.train_seconds = time.perf_counter() - began


class TfidfLogistic(_Classical):
    """TF-IDF of words and characters with linear models, settings chosen on validation.

    Labels: logistic regression. Several labels: one each, with one threshold. Numbers: ridge regression,
    kept within what train has seen. Other values: those of the most similar training text.
    `chosen`: the settings of each question's fields. Raises DataError without labelled rows.
    """

    def __init__(self, task: Task, train: Sequence[Example], validation: Sequence[Example], seed: int) -> None:
        began = time.perf_counter()
        super().__init__(task, train, "tfidf")
        self.chosen: dict[str, str] = {}
        self._vectorisers: list[Vectorisers] = []
        for question in self._questions:
            rows, held = question.rows(train), question.rows(validation)
            vectorisers = Vectorisers(rows.texts)
            self._vectorisers.append(vectorisers)
            table = Table(vectorisers.transform(rows.texts + held.texts), rows, held, seed)
            leaves: dict[str, Leaf] = {}
            for field in question.fields:
                data = table.of(field)
                if data is not None:
                    leaves[field.path], self.chosen[_name(question, field)] = fit_leaf(field, data)
            self._leaves.append(leaves)
        self.train_seconds = time.perf_counter() - began

    def _features(self, index: int, texts: list[tuple[str, ...]]) -> Any:
        return self._vectorisers[index].transform(texts)


def _name(question: Question, field: Field) -> str:
    return ".".join(key for key in (question.parts[0].key, field.path) if key) or "answer"


# -- features and rows --------------------------------------------------------------------------------


class Vectorisers:
    """Word 1-2-grams and within-word character 2-5-grams, for each shown input by itself."""

    def __init__(self, texts: Sequence[tuple[str, ...]]) -> None:
        self._fitted: list[tuple[int, TfidfVectorizer]] = []
        min_df = 1 if len(texts) < 2_000 else 2
        for column in range(len(texts[0])):
            for options in WORDS, CHARACTERS:
                vectoriser = TfidfVectorizer(**options, min_df=min_df, max_features=MAX_FEATURES, sublinear_tf=True)
                try:
                    vectoriser.fit([row[column] for row in texts])
                except ValueError:
                    continue  # scikit-learn's way to say that no text has a word: the input tells nothing
                self._fitted.append((column, vectoriser))

    def transform(self, texts: Sequence[tuple[str, ...]]) -> Any:
        """(N, F) sparse features; one column of zeros if no input has told anything."""
        blocks = [v.transform([row[column] for row in texts]) for column, v in self._fitted]
        return sparse.hstack(blocks, format="csr") if blocks else sparse.csr_matrix((len(texts), 1))


@dataclass(frozen=True)
class Table:
    """Features and gold values of a question: train first, then validation."""

    features: Any
    train: Rows
    validation: Rows
    seed: int

    def of(self, field: Field) -> FieldData | None:
        """The rows that have this field; None if train has none."""
        values = self.train.values + self.validation.values
        rows = np.array([i for i, v in enumerate(values) if present(v, field.path)], dtype=np.int64)
        num_train = int(np.sum(rows < len(self.train.values)))
        if not num_train:
            return None
        clusters = self.train.clusters[rows[:num_train]]
        return FieldData(
            features=self.features[rows],
            values=[schemas.get(values[i], field.path) for i in rows],
            num_train=num_train,
            splits=_splits(num_train, len(rows) - num_train, clusters, self.seed),
            seed=self.seed,
        )


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


def _splits(
    num_train: int, num_validation: int, clusters: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    train = np.arange(num_train)
    if num_train > MAX_SELECTION_ROWS:
        train = np.sort(rng.choice(num_train, MAX_SELECTION_ROWS, replace=False))
    if num_validation >= MIN_VALIDATION_ROWS:
        return [(train, num_train + np.arange(num_validation))]
    folds = min(NUM_FOLDS, len(np.unique(clusters[train])))
    if folds < 2:
        return []
    split = GroupKFold(folds, shuffle=True, random_state=seed).split(train, groups=clusters[train])
    return [(train[fit], train[held]) for fit, held in split]


# -- leaves -------------------------------------------------------------------------------------------


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
