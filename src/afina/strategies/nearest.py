"""The honest classical baseline of free text: the output of the most similar training row.

Comes in: a free-text task, train and validation rows. Goes out: a predictor that says of a new row what was said of its
nearest neighbour in train. It writes nothing of its own, so it shows what a model must beat by writing.

Rows are near where their inputs share word 1-2-grams and within-word character n-grams (TF-IDF, cosine); which of these
count is chosen on validation by the corpus chrF of the answers that follow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs, Prediction
from afina.core.task import Task
from afina.evaluation.chrf import corpus_chrf
from afina.strategies.classical import CHARACTERS, MAX_FEATURES, WORDS, shown_texts

MAX_ROWS = 100_000  # of train; about 1 GB of features. More are drawn from by the seed
MAX_VALIDATION_ROWS = 500
BLOCK_ROWS = 64  # questions compared at once: 64 x 100,000 similarities are 51 MB
# name -> weights of words and of characters
SETTINGS = {"words": (1.0, 0.0), "characters": (0.0, 1.0), "words and characters": (1.0, 1.0)}


@dataclass(frozen=True)
class _Features:
    """Vectorisers of each shown input; words and characters apart, so that they can be weighed."""

    fitted: list[tuple[int, int, TfidfVectorizer]]

    @classmethod
    def fit(cls, texts: Sequence[tuple[str, ...]]) -> _Features:
        min_df = 1 if len(texts) < 2_000 else 2
        fitted: list[tuple[int, int, TfidfVectorizer]] = []
        for column in range(len(texts[0])):
            for kind, options in enumerate((WORDS, CHARACTERS)):
                settings: dict[str, Any] = {**options, "min_df": min_df, "dtype": np.float32}
                vectoriser = TfidfVectorizer(**settings, max_features=MAX_FEATURES, sublinear_tf=True)
                try:
                    vectoriser.fit([row[column] for row in texts])
                except ValueError:
                    continue  # no text has a word: this input tells nothing
                fitted.append((column, kind, vectoriser))
        return cls(fitted)

    def of(self, texts: Sequence[tuple[str, ...]]) -> list[Any]:
        """One matrix (N, F) for words, one for characters; all zero where nothing was fitted."""
        blocks: list[list[Any]] = [[], []]
        for column, kind, vectoriser in self.fitted:
            blocks[kind].append(vectoriser.transform([row[column] for row in texts]))
        return [sparse.hstack(b, format="csr") if b else sparse.csr_matrix((len(texts), 1)) for b in blocks]


class Nearest:
    """Says what stands beside the nearest training row.

    chosen: the name of the settings. notes: what the user should know. A prediction's one source is the id of the row
    that it repeats. A row that shares nothing with train gets the first training row's answer.
    Raises DataError without labelled training rows, MachineError where chrF cannot be computed.
    """

    def __init__(self, task: Task, train: Sequence[Example], validation: Sequence[Example], seed: int = 0) -> None:
        assert task.free_text, f"{task.name}: nearest repeats a text, but the answer has fields"
        began = time.perf_counter()
        self.name, self.task = "nearest", task
        rows = [example for example in train if example.output is not None]
        if not rows:
            raise DataError(
                f"nearest: none of the {len(train)} training examples has an answer for task {task.name!r}; "
                "expected at least one. Label some rows, or lower data.test_size."
            )
        self.notes: list[str] = []
        if len(rows) > MAX_ROWS:
            self.notes.append(f"nearest: of {len(rows):,} training rows, {MAX_ROWS:,} drawn by the seed are compared")
            drawn = np.random.default_rng(seed).permutation(len(rows))[:MAX_ROWS]
            rows = [rows[at] for at in np.sort(drawn)]
        self._rows = rows
        self._features = _Features.fit([self._texts(row.inputs) for row in rows])
        self._known = self._features.of([self._texts(row.inputs) for row in rows])
        self.chosen = self._choose([e for e in validation if e.output is not None][:MAX_VALIDATION_ROWS])
        self.train_seconds = time.perf_counter() - began

    def _texts(self, inputs: Inputs) -> tuple[str, ...]:
        return shown_texts(self.task.parts[0], inputs)

    def _choose(self, held: Sequence[Example]) -> str:
        """The settings whose answers to these rows have the best chrF; all that there is without rows."""
        if not held:
            return "words and characters"
        golds = [str(example.output) for example in held]
        found = self._features.of([self._texts(example.inputs) for example in held])
        scores: dict[str, float] = {}
        for name in SETTINGS:
            places = self._nearest(found, name)
            scores[name] = corpus_chrf(golds, [str(self._rows[at].output) for at in places])
        return max(scores, key=lambda name: scores[name])

    def _nearest(self, found: Sequence[Any], setting: str) -> list[int]:
        """Of each row its nearest training row; the first of equally near ones."""
        places: list[int] = []
        for start in range(0, found[0].shape[0], BLOCK_ROWS):
            near: Any = 0.0
            for features, known, weight in zip(found, self._known, SETTINGS[setting], strict=True):
                if weight:
                    near = near + weight * (features[start : start + BLOCK_ROWS] @ known.T).toarray()
            places += near.argmax(axis=1).tolist()
        return places

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One answer per row. latency_s: the batch's wall time over its rows."""
        began = time.perf_counter()
        if not inputs:
            return []
        places = self._nearest(self._features.of([self._texts(row) for row in inputs]), self.chosen)
        seconds = (time.perf_counter() - began) / len(inputs)
        rows = [self._rows[at] for at in places]
        return [Prediction(output=str(row.output), sources=(row.id,), latency_s=seconds) for row in rows]
