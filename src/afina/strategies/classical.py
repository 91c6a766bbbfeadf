"""Baselines without a language model: the majority answer, and TF-IDF with linear models.

Comes in: a task and labelled examples. Goes out: predictors whose answers are always values of the task's
schema, for any input, an empty one included. They see what the specialist sees, no more: rows of train to
learn from, rows of validation to choose settings with, never the test.

A *question* is one part of the task, pooled with the parts that are equal to it: three sentences of a news
item make three training rows of one classifier. A task without parts is one question.

How one field is learned stands in `leaves.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GroupKFold

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs, Prediction
from afina.core.schema import Field, Schema
from afina.core.task import Part, Task
from afina.strategies.leaves import Answer, Constant, FieldData, Leaf, commonest, fit_leaf

MIN_VALIDATION_ROWS = 50  # below, folds of train choose better than so few rows
NUM_FOLDS = 5
MAX_SELECTION_ROWS = 20_000  # of train, for choosing settings; the final fit uses all
MAX_FEATURES = 200_000  # per vectoriser
WORDS: dict[str, Any] = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 5)}


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
