"""Which rows are asked about, and which answers are kept: one reason for each row that is left out.

Comes in: rows, test rows, answers. Goes out: the questions without repetition; for each row its answer, or why it is
left out. Rows that would be left out whatever the answer are not asked about, so that nothing is paid for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afina.core import schema as schemas
from afina.core.predictor import Example, Inputs, Prediction
from afina.core.storage import canonical_json
from afina.core.task import Task
from afina.data.dedupe import character_shingles, example_texts, word_shingles
from afina.teaching.source import LabelRow

# In the order in which they are looked for; a row is counted under the first.
UNREADABLE, NEAR_TEST = "unreadable", "near_duplicate_of_test"
FAILED, WRONG, UNSURE, UNWRITABLE = "failed", "disagrees_with_gold", "low_agreement", "unwritable"
REASONS = (UNREADABLE, NEAR_TEST, FAILED, WRONG, UNSURE, UNWRITABLE)
# What the words of a failure say it is; the first that fits.
FAILURES = (
    ("cut off", r"cut off|finish_reason|too long"),
    ("refused by the provider", r"was refused \("),
    ("refused by the model", r"\brefused"),
    ("no JSON", r"no (valid )?JSON|different JSON objects|is empty"),
    ("not of the schema", r"schema|expected one of|lacks|expected a"),
    ("input too long", r"does not fit|context"),
)


@dataclass(frozen=True)
class LeftOut:
    """why: one of REASONS. reason: of this very row. kind: of a failure."""

    why: str
    reason: str
    kind: str | None = None


@dataclass
class Triage:
    """Before asking. left_out: row number -> why. questions: distinct inputs. question_of: row number -> question."""

    left_out: dict[int, LeftOut]
    questions: list[Inputs]
    question_of: dict[int, int]


def triage(rows: Sequence[LabelRow], task: Task, test: Sequence[Example], threshold: float) -> Triage:
    """Sort out what cannot or must not be labelled, and ask equal rows once.

    threshold: Jaccard similarity from which a row is a near-duplicate of a test row (data.near_duplicate_threshold).
    """
    found = Triage({}, [], {})
    near = near_test(rows, task, test, threshold)
    known: dict[str, int] = {}
    for number, row in enumerate(rows):
        problem = None if isinstance(row, Example) else row.problem
        if problem is not None:
            found.left_out[number] = LeftOut(UNREADABLE, problem)
        elif near[number] is not None:
            found.left_out[number] = LeftOut(NEAR_TEST, f"near-duplicate of the test row {near[number]!r}")
        else:
            question = known.setdefault(canonical_json(dict(row.inputs)), len(found.questions))
            if question == len(found.questions):
                found.questions.append(row.inputs)
            found.question_of[number] = question
    return found


def near_test(rows: Sequence[LabelRow], task: Task, test: Sequence[Example], threshold: float) -> list[str | None]:
    """For each row the id of a test row with which it shares a text, or one at least `threshold` alike; else None.

    Texts are compared as in preparing data, by the true Jaccard similarity with every test text: nothing is estimated.
    """
    whole: dict[str, str] = {}
    for example in test:
        for text in example_texts(example, task):
            whole.setdefault(text, example.id)
    indexes = [_Index(whole, cut) for cut in (word_shingles, character_shingles)]
    found: list[str | None] = []
    for row in rows:
        texts = example_texts(Example(row.id, row.inputs), task) if whole else []
        hits = (
            whole.get(text) or next((hit for i in indexes if (hit := i.alike(text, threshold))), None) for text in texts
        )
        found.append(next((hit for hit in hits if hit is not None), None))
    return found


class _Index:
    """Which test texts share a shingle with a text, and how alike they are."""

    def __init__(self, texts: Mapping[str, str], cut: Any) -> None:
        self._cut = cut
        self._owners: dict[int, list[int]] = {}
        self._ids, self._sizes = list(texts.values()), list[int]()
        for number, text in enumerate(texts):
            shingles = cut(text)
            self._sizes.append(len(shingles))
            for shingle in shingles:
                self._owners.setdefault(shingle, []).append(number)

    def alike(self, text: str, threshold: float) -> str | None:
        """The id of the first test text that is at least so alike."""
        shingles = self._cut(text)
        shared = Counter(owner for shingle in shingles for owner in self._owners.get(shingle, ()))
        alike = [n for n, both in shared.items() if both / (len(shingles) + self._sizes[n] - both) >= threshold]
        return self._ids[min(alike)] if alike else None


# -- after asking ------------------------------------------------------------------------------------


def failure(task: Task, answer: Prediction) -> LeftOut | None:
    """Why an answer cannot be used; None for a valid one."""
    problem = answer.error
    if problem is None:
        problem = schemas.problems(answer.output, task.output)
        if problem is not None:
            problem = f"the answer does not fit the schema: {problem}"
    if problem is None:
        return None
    kind = next((name for name, words in FAILURES if re.search(words, problem, re.IGNORECASE)), "other")
    return LeftOut(FAILED, problem, kind)


def disagreement(task: Task, answer: Prediction, gold: Any) -> LeftOut | None:
    """Which label is not the gold one; None where all are. Open values (texts, numbers) are not compared."""
    for field in task.fields:
        if field.labels is None:
            continue
        said, right = schemas.get(answer.output, field.path), schemas.get(gold, field.path)
        if _plain(said) != _plain(right):
            place = f"{field.path} is " if field.path else ""
            return LeftOut(WRONG, f"{place}{said!r}, the table says {right!r}")
    return None


def _plain(value: Any) -> Any:
    """True is no 1, and the order of several labels says nothing."""
    if isinstance(value, list):
        return sorted(map(repr, value))
    return isinstance(value, bool), value


def agreement(task: Task, answer: Prediction) -> float | None:
    """The lowest confidence of a field: for a vote, the smallest majority. None where the teacher states none."""
    stated = [answer.confidence[field.path] for field in task.fields if field.path in answer.confidence]
    return min(stated) if stated else None


def unsure(value: float | None, least: float) -> LeftOut | None:
    if value is None or value >= least:
        return None
    return LeftOut(UNSURE, f"agreement {value:.4f} is below {least:g}")
