"""The recipe's own specialist once more, with another seed, on the same splits: how much of a result is luck."""

from __future__ import annotations

from afina.data.prepare import Prepared
from afina.distilling.lessons import Lesson
from afina.distilling.student import Budget, Student, train_student
from afina.runs import Run

FOLDER = "seeds"


def train_seed(opened: Run, prepared: Prepared, seed: int) -> Student:
    """Train exactly as the recipe says, or continue, or only read what is there; in seeds/<seed> of the run folder."""
    splits = prepared.splits
    whole = Lesson("finetuned", opened.task, splits["train"], splits["validation"], "the table's answers")
    return train_student(opened, prepared, whole, seed, Budget(all_updates=False), opened.folder / FOLDER / str(seed))
