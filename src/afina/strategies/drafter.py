"""Guesses of a specialist's answers, learned from its own answers.

Comes in: a specialist's answers to rows of its training data. Goes out: for each question, the answer that a
small linear model over hashed words and pieces of words expects, field after field, each knowing the fields
before. It imitates the specialist, not the gold labels: a guess that shares its mistakes is accepted. The
engine checks every guess, so this decides speed and nothing else.

Files: `drafter.json` (what may be answered) and `drafter.safetensors` (weights); no pickle.

F features, K candidates.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from afina.core import schema as schemas
from afina.core.errors import ModelError
from afina.core.predictor import Example, Inputs
from afina.core.schema import Schema
from afina.core.storage import canonical_json, read_json, write_json
from afina.core.task import Part, Task
from afina.strategies.local import LocalPredictor

FILE, WEIGHTS = "drafter.json", "drafter.safetensors"
VERSION = 1
NUM_TEXT_FEATURES = 2**13
NUM_BEFORE_FEATURES = 2**8  # what the fields before say
MAX_CANDIDATES = 32  # of a field without a list of labels: its most frequent answers
MAX_ROWS = 500
MAX_VIEWS = 8  # inputs, above which they are looked at together only
STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0)
ABSENT = {"absent": True}  # stands for an optional field that is left out, where a value would stand

Features = tuple[np.ndarray, np.ndarray]  # places in a vector of F, and the values there
Weights = tuple[np.ndarray, np.ndarray]  # matrix_FK, bias_K


@dataclass(frozen=True)
class Unit:
    """A piece of the answer that is guessed as one: a label, a list, an optional field with all it holds.

    path: dotted keys through required objects. candidates: its values; or [ABSENT] and [value] pairs, see `wrap`.
    """

    path: str
    candidates: tuple[Any, ...]


@dataclass(frozen=True)
class Scorer:
    """What decides one unit. view: the input whose text it looks at, or None for all of them.

    matrix_FK, bias_K: a softmax over the unit's candidates.
    """

    view: int | None
    matrix_FK: np.ndarray
    bias_K: np.ndarray

    def scores(self, features: Features) -> np.ndarray:
        places, values = features
        return self.bias_K + values @ self.matrix_FK[places]


@dataclass
class PartDrafter:
    """Guesses for parts of one signature: a scorer per unit."""

    units: tuple[Unit, ...]
    scorers: list[Scorer]

    def guess(self, texts: Sequence[str]) -> FieldGuess:
        return FieldGuess(self, texts)


class FieldGuess:
    """One row's guess, unit by unit."""

    def __init__(self, drafter: PartDrafter, texts: Sequence[str]) -> None:
        self._drafter = drafter
        views = {scorer.view: viewed(texts, scorer.view) for scorer in drafter.scorers}
        self._own = [scorer.scores(views[scorer.view]) for scorer in drafter.scorers]  # before what other units say
        self._picked: list[int] = []
        self.value: Any = None
        self._fill(0)

    def confidence(self, path: str) -> float:
        at = self._unit(path)
        if at is None:
            return 0.0
        scores_K = self._scores(at, self._picked[:at])
        return float(np.exp(scores_K[self._picked[at]] - scores_K.max()) / np.exp(scores_K - scores_K.max()).sum())

    def revise(self, path: str, agrees: Callable[[Any], bool]) -> Any | None:
        """The likeliest other value of the field at `path`, the fields after it guessed anew."""
        at = self._unit(path)
        if at is None:
            return None
        before = self._picked[:at]
        for candidate in np.argsort(-self._scores(at, before), kind="stable").tolist():
            self._picked = [*before, candidate]
            self._fill(at + 1)
            if agrees(self.value):
                return self.value
        return None

    def _unit(self, path: str) -> int | None:
        return next((n for n, unit in enumerate(self._drafter.units) if covers(unit.path, path)), None)

    def _fill(self, first: int) -> None:
        for at in range(first, len(self._drafter.units)):
            self._picked.append(int(np.argmax(self._scores(at, self._picked))))
        units = self._drafter.units
        chosen = [unit.candidates[n] for unit, n in zip(units, self._picked, strict=True)]
        self.value = assemble(units, chosen)

    def _scores(self, at: int, before: Sequence[int]) -> np.ndarray:
        scores_K, matrix_FK = self._own[at], self._drafter.scorers[at].matrix_FK
        for n, candidate in enumerate(before):
            scores_K = scores_K + matrix_FK[before_feature(n, candidate)]
        return scores_K


class AnswerDrafter:
    """Guesses for every part of a task. See the module's docstring."""

    def __init__(self, parts: Mapping[str, PartDrafter]) -> None:
        self.parts = dict(parts)

    def draft(self, part: Part, inputs: Inputs) -> FieldGuess | None:
        found = self.parts.get(part.signature)
        return None if found is None else found.guess([text for _, text in part.shown(inputs)])

    def save(self, folder: Path) -> None:
        tensors: dict[str, np.ndarray] = {}
        described: dict[str, Any] = {}
        for signature, drafter in self.parts.items():
            described[signature] = [
                {"path": unit.path, "candidates": list(unit.candidates), "view": scorer.view}
                for unit, scorer in zip(drafter.units, drafter.scorers, strict=True)
            ]
            for n, scorer in enumerate(drafter.scorers):
                tensors[f"{signature}.{n}.weight"] = np.ascontiguousarray(scorer.matrix_FK)
                tensors[f"{signature}.{n}.bias"] = scorer.bias_K
        save_file(tensors, folder / WEIGHTS)
        write_json(folder / FILE, {"version": VERSION, "parts": described})

    @classmethod
    def load(cls, folder: Path) -> AnswerDrafter | None:
        """None if the folder has none: answers then come without guesses. Raises ModelError for a damaged one."""
        if not (folder / FILE).exists():
            return None
        try:
            raw = read_json(folder / FILE)
            if raw["version"] != VERSION:
                return None
            tensors = load_file(folder / WEIGHTS)
            parts = {
                signature: PartDrafter(
                    tuple(Unit(one["path"], tuple(one["candidates"])) for one in units),
                    [
                        Scorer(one["view"], tensors[f"{signature}.{n}.weight"], tensors[f"{signature}.{n}.bias"])
                        for n, one in enumerate(units)
                    ],
                )
                for signature, units in raw["parts"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder / FILE}: is damaged ({error}). Remove it and {WEIGHTS}, and answers come without guesses; "
                "or train again."
            ) from error
        return cls(parts)


# -- features -----------------------------------------------------------------------------------


def text_features(texts: Sequence[str]) -> Features:
    """Hashed words, pairs of words and 3 to 5 bytes in a row: (places, values), values of length 1 as a vector."""
    text = " ".join(texts).lower()
    words = text.split()
    found = [zlib.crc32(word.encode()) for word in words]
    found += [zlib.crc32(f"{a} {b}".encode()) for a, b in pairwise(words)]
    raw = np.frombuffer(f" {text} ".encode(), dtype=np.uint8).astype(np.uint64)
    pieces = [np.array(found, dtype=np.uint64)]
    rolling = raw
    for size in range(2, 6):
        rolling = rolling[:-1] * np.uint64(0x9E3779B1) + raw[size - 1 :] if len(raw) >= size else raw[:0]
        if size >= 3:
            pieces.append(rolling ^ (rolling >> np.uint64(15)))
    counts = np.bincount((np.concatenate(pieces) % np.uint64(NUM_TEXT_FEATURES)).astype(np.int64))
    places = np.flatnonzero(counts)
    values = np.log1p(counts[places]).astype(np.float32)
    return places, values / max(float(np.linalg.norm(values)), 1e-6)


def viewed(texts: Sequence[str], view: int | None) -> Features:
    """The features of one text, or of all."""
    return text_features(texts if view is None else texts[view : view + 1])


def before_feature(unit: int, candidate: int) -> int:
    """The feature that says what an earlier unit holds."""
    return NUM_TEXT_FEATURES + (unit * 37 + candidate) % NUM_BEFORE_FEATURES


# -- pieces of an answer ------------------------------------------------------------------------


def unit_paths(schema: Schema, path: str = "") -> list[str]:
    """Paths of the units of a schema, in the order of the answer."""
    if schema.get("type") != "object" or schemas.labels_of(schema) is not None:
        return [path]
    found: list[str] = []
    for name, inner in schema["properties"].items():
        full = f"{path}.{name}" if path else name
        found += unit_paths(inner, full) if name in schema["required"] else [full]
    return found


def covers(unit: str, path: str) -> bool:
    """Whether a decision at `path` is about the unit, or about what it holds."""
    return not unit or path == unit or path.startswith(unit + ".")


def piece(value: Any, path: str) -> Any:
    """What an answer holds at a unit's path: [value], or ABSENT."""
    for key in path.split(".") if path else []:
        if key not in value:
            return ABSENT
        value = value[key]
    return [value]


def assemble(units: Sequence[Unit], pieces: Sequence[Any]) -> Any:
    """The answer that holds these pieces."""
    whole: Any = {}
    for unit, one in zip(units, pieces, strict=True):
        if one == ABSENT:
            continue
        if not unit.path:
            return one[0]
        schemas.assign(whole, unit.path, one[0])
    return whole


# -- learning -----------------------------------------------------------------------------------


def build_drafter(
    task: Task, predictor: LocalPredictor, examples: Sequence[Example], max_rows: int = MAX_ROWS
) -> AnswerDrafter:
    """Let a specialist answer up to `max_rows` rows, and learn to guess its answers.

    predictor: of the specialist. examples: rows it was trained or validated on, gold labels unused; never test rows.
    """
    rows = [example.inputs for example in examples[:max_rows]]
    answers = predictor.part_answers(rows, label="answers to guess from" if len(rows) > 1 else None)
    seen: dict[str, list[tuple[list[str], Any]]] = {}
    parts: dict[str, Part] = {}
    for part, inputs, value in answers:
        parts.setdefault(part.signature, part)
        seen.setdefault(part.signature, []).append(([text for _, text in part.shown(inputs)], value))
    return AnswerDrafter({} if task.free_text else {s: _learn(parts[s].schema, found) for s, found in seen.items()})


def _learn(schema: Schema, seen: Sequence[tuple[list[str], Any]]) -> PartDrafter:
    units, chosen = _units(schema, [value for _, value in seen])
    num_texts = len(seen[0][0])
    views: list[int | None] = [None, *(range(num_texts) if 1 < num_texts <= MAX_VIEWS else ())]
    features = {view: [viewed(texts, view) for texts, _ in seen] for view in views}
    scorers: list[Scorer] = []
    for at, unit in enumerate(units):
        before = [[chosen[n][row] for n in range(at)] for row in range(len(seen))]
        rows = {view: [_with_before(f, b) for f, b in zip(features[view], before, strict=True)] for view in views}
        scorers.append(_choose(rows, chosen[at], len(unit.candidates)))
    return PartDrafter(units, scorers)


def _choose(rows: Mapping[int | None, Sequence[Features]], chosen: Sequence[int], num_candidates: int) -> Scorer:
    """The view and strength whose probabilities are best on held-out answers: how far to guess goes by them."""
    held_out = [n for n, candidate in enumerate(chosen) if n % 4 == 3 and candidate >= 0]
    kept = [n for n in range(len(chosen)) if n % 4 != 3]

    def loss(view: int | None, strength: float) -> float:
        found = rows[view]
        scorer = Scorer(view, *_fit([found[n] for n in kept], [chosen[n] for n in kept], num_candidates, strength))
        scores = [(scorer.scores(found[n]), chosen[n]) for n in held_out]
        return sum(float(np.logaddexp.reduce(s) - s[c]) for s, c in scores)

    view = min(rows, key=lambda view: loss(view, 1.0))
    strength = min(STRENGTHS, key=lambda strength: loss(view, strength))
    return Scorer(view, *_fit(rows[view], chosen, num_candidates, strength))


def _units(schema: Schema, values: Sequence[Any]) -> tuple[tuple[Unit, ...], list[list[int]]]:
    """The units with their candidates, and which candidate each answer holds (-1: none of them)."""
    units: list[Unit] = []
    chosen: list[list[int]] = []
    for path in unit_paths(schema):
        pieces = [piece(value, path) for value in values]
        counts = Counter(canonical_json(one) for one in pieces)
        names = [name for name, _ in counts.most_common(MAX_CANDIDATES)]
        labels = _labels(schema, path)
        names += [name for label in labels if (name := canonical_json([label])) not in names]
        units.append(Unit(path, tuple(json.loads(name) for name in names)))
        index = {name: n for n, name in enumerate(names)}
        chosen.append([index.get(canonical_json(one), -1) for one in pieces])
    return tuple(units), chosen


def _labels(schema: Schema, path: str) -> tuple[Any, ...]:
    for key in path.split(".") if path else []:
        schema = schema["properties"][key]
    return schemas.labels_of(schema) or ()


def _with_before(features: Features, before: Sequence[int]) -> Features:
    extra = np.array([before_feature(n, c) for n, c in enumerate(before) if c >= 0], dtype=np.int64)
    places, values = features
    return np.append(places, extra), np.append(values, np.ones(len(extra), dtype=np.float32))


def _fit(rows: Sequence[Features], chosen: Sequence[int], num_candidates: int, strength: float) -> Weights:
    """(matrix_FK, bias_K) of a softmax over the candidates; where there is little to learn, of their frequency.

    strength: inverse of the regularisation; 0 for frequencies alone.
    """
    size = NUM_TEXT_FEATURES + NUM_BEFORE_FEATURES
    matrix_FK = np.zeros((size, num_candidates), dtype=np.float32)
    counts_K = np.bincount([c for c in chosen if c >= 0], minlength=num_candidates)
    bias_K = np.log((counts_K + 0.5) / (counts_K.sum() + 0.5 * num_candidates)).astype(np.float32)
    known = [n for n, candidate in enumerate(chosen) if candidate >= 0]
    classes = sorted({chosen[n] for n in known})
    if len(classes) < 2 or strength == 0:
        return matrix_FK, bias_K
    indptr = np.cumsum([0, *(len(rows[n][0]) for n in known)])
    data = np.concatenate([rows[n][1] for n in known])
    indices = np.concatenate([rows[n][0] for n in known]).astype(np.int64)
    table = csr_matrix((data, indices, indptr), shape=(len(known), size))
    model = LogisticRegression(C=strength, max_iter=200).fit(table, [chosen[n] for n in known])
    coefficients, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(classes) == 2:  # scikit-learn keeps one of two mirrored rows
        coefficients, intercept = np.vstack([-coefficients, coefficients]) / 2, np.append(-intercept, intercept) / 2
    # A candidate that was never seen is tried last.
    bias_K[:] = float(intercept.min()) - 10
    matrix_FK[:, classes], bias_K[classes] = coefficients.T, intercept
    return matrix_FK, bias_K
