"""What each kind of student learns: its task, its rows, and how they become training tokens.

Comes in: what the teacher taught. Goes out: a `Lesson`. Pure: no files, no models.

    gold       the table's labels
    labels     the teacher's labels
    reasoning  the teacher's reasoning, then its labels, in one answer
    two-task   the teacher's labels; its reasoning is a second task of the same model, asked for by another prompt,
               whose loss is added (Hsieh et al., Distilling Step-by-Step, arXiv:2305.02301); it answers with labels
    mixed      the table's labels and the teacher's, both where both exist
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina.core.predictor import Example
from afina.core.task import Task
from afina.distilling.checks import TABLE
from afina.distilling.taught import Taught
from afina.engine.encoded import Encoded
from afina.engine.renderer import Renderer
from afina.pipeline import Encode, encode

TEACHER_ID = "{} (teacher)"  # of a row's second example, where gold and the teacher's answer are both learned


@dataclass(frozen=True)
class Lesson:
    """task: what the student answers. rows: what it learns, in order; with reasoning only where it is learned.

    rationale: (first line of the second task's prompt, weight of its loss), for a student of two tasks. labels_judge:
    the best weights are chosen by the labels' loss alone. source: in words, for the report.
    """

    kind: str
    task: Task
    rows: list[Example]
    validation: list[Example]
    source: str
    rationale: tuple[str, float] | None = None
    labels_judge: bool = False

    @property
    def encode_train(self) -> Encode:
        return encode if self.rationale is None else with_rationales(*self.rationale)

    @property
    def encode_validation(self) -> Encode:
        return labels_alone if self.labels_judge else encode

    def described(self) -> list[Any]:
        """All that decides what is learned, for a key; not the kind's name, so that equal lessons are seen to be."""
        rows = [[e.id, dict(e.inputs), e.output, dict(e.reasoning)] for e in (*self.rows, *self.validation)]
        return [self.task.to_json(), len(self.rows), rows, self.rationale, self.labels_judge]


def lesson(kind: str, taught: Taught, task: Task, rationale_weight: float) -> Lesson:
    """What a student of this kind learns. task: the recipe's."""
    labels_only = replace(task, reasoning=None)
    answered = [*taught.answered, *taught.extra]
    whose = "the table's" if taught.teacher == TABLE else "the teacher's"
    if kind == "gold":
        return Lesson(kind, labels_only, _plain(taught.gold), _plain(taught.validation), "the table's labels")
    if kind == "labels":
        return Lesson(kind, labels_only, _plain(answered), _plain(taught.validation), f"{whose} labels")
    if kind == "mixed":
        second = [replace(e, id=TEACHER_ID.format(e.id)) for e in taught.answered]
        both = _plain([*taught.gold, *second, *taught.extra])
        return Lesson(kind, labels_only, both, _plain(taught.validation), "the table's labels and the teacher's")
    assert taught.reasoning is not None, "required before anything is trained"
    if kind == "reasoning":
        spoken = replace(task, reasoning=taught.reasoning)
        source = f"{whose} reasoning, then its labels"
        return Lesson(kind, spoken, answered, taught.validation, source, labels_judge=True)
    assert kind == "two-task", f"{kind} is no student"
    second_task = (prefix_of(taught.reasoning), rationale_weight)
    source = f"{whose} labels; its reasoning as a second task, weight {rationale_weight:g}"
    return Lesson(kind, labels_only, answered, _plain(taught.validation), source, second_task)


def prefix_of(reasoning: str) -> str:
    """What begins the prompt that asks for the reasoning: its name in brackets, as the paper's "[rationale]"."""
    return f"[{reasoning}]"


def _plain(examples: Sequence[Example]) -> list[Example]:
    return [replace(example, reasoning={}) for example in examples]


# -- rows as training tokens -----------------------------------------------------------------------


def with_rationales(prefix: str, weight: float) -> Encode:
    """Labels as always, each with the rationale of its part as a second text of the same update."""

    def encode_both(renderer: Renderer, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        found: list[Encoded] = []
        for example in examples:
            for part in renderer.task.parts:
                one = renderer.encode(part, example, max_length)
                if one is not None:
                    second = renderer.encode_rationale(part, example, prefix, max_length)
                    found.append(replace(one, second=second, second_weight=weight))
        return found

    return encode_both


def labels_alone(renderer: Renderer, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Answers with reasoning, of which the labels alone count: the best weights are those that choose best, not those
    that imitate the wording. Parts without reasoning are left out."""
    reasoning = renderer.task.reasoning
    assert reasoning is not None, "of a task that is answered with reasoning"
    asked = [(part, example) for example in examples for part in renderer.task.parts if example.rationale(part.key)]
    found = [renderer.encode(part, example, max_length) for part, example in asked]
    return [one.after(reasoning) for one in found if one is not None]
