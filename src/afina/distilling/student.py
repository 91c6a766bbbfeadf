"""One student: a lesson becomes a run folder with a specialist inside. A killed training is continued by the same call.

Comes in: a lesson, a seed, the recipe's run. Goes out: `Student`. The student's validation and test rows are those of
the run; of its training rows it has a copy, so that its folder tells by itself what it has learned.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina import __version__, pipeline
from afina.core.config import NOT_DECIDING, Recipe
from afina.core.errors import RunError
from afina.core.predictor import Example
from afina.core.storage import digest, ensure_folder, read_json, write_json, write_jsonl, write_text
from afina.data.prepare import Prepared, load_prepared
from afina.distilling.lessons import Lesson
from afina.runs import Run
from afina.training import local

NOTE = "student.json"
STUDENT_VERSION = 1


@dataclass(frozen=True)
class Student:
    """A trained student. folder: its run folder; `Specialist.load` takes it.

    num_rows: rows that it was trained on. train_seconds: of its training alone. trained_tokens: read in all updates,
    prompts included.
    """

    kind: str
    seed: int
    folder: Path
    num_rows: int
    train_seconds: float
    trained_tokens: int


@dataclass(frozen=True)
class Budget:
    """Updates of the weights, and examples in each. None: as the recipe's settings make of the student's own rows.

    all_updates: no early stopping, so that students of as many rows have as many updates.
    """

    steps: int | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    all_updates: bool = True

    @property
    def decides(self) -> list[int | bool | None]:
        """Without the size of micro-batches, which another machine chooses otherwise."""
        size, times = self.per_device_train_batch_size, self.gradient_accumulation_steps
        return [self.steps, size * times if size is not None and times is not None else None, self.all_updates]

    def settings(self) -> dict[str, Any]:
        """Of the recipe's group train."""
        found: dict[str, Any] = {"early_stopping_patience": None} if self.all_updates else {}
        if self.steps is not None:
            found |= {
                "max_steps": self.steps,
                "per_device_train_batch_size": self.per_device_train_batch_size,
                "gradient_accumulation_steps": self.gradient_accumulation_steps,
            }
        return found


def student_key(opened: Run, lesson: Lesson, seed: int, budget: Budget) -> str:
    """Of all that decides the student's weights."""
    recipe = opened.recipe
    train = recipe.train.model_dump(mode="json", exclude=set(NOT_DECIDING))
    answer = [recipe.answer.answer_format, recipe.answer.max_text_tokens]
    return digest([STUDENT_VERSION, __version__, lesson.described(), train, answer, seed, budget.decides])


def train_student(opened: Run, prepared: Prepared, lesson: Lesson, seed: int, budget: Budget, folder: Path) -> Student:
    """Train, or continue, or only read what is there. prepared: the splits of the recipe's run."""
    key = student_key(opened, lesson, seed, budget)
    note: dict[str, Any] = _read_note(folder)
    if note.get("key") == key and note.get("finished") and (folder / "specialist").is_dir():
        return _student(folder, note)
    if note.get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        said = {"kind": lesson.kind, "seed": seed, "source": lesson.source, "settings": budget.settings()}
        note = {"version": STUDENT_VERSION, "key": key, **said, "finished": False}
        ensure_folder(folder)
        write_json(folder / NOTE, note)
    recipe = _recipe(opened.recipe, lesson, seed, folder, note["settings"])
    run = Run(recipe, lesson.task, folder)
    _write_splits(opened, run, prepared, lesson)
    pipeline.train(run, lesson.encode_train, lesson.encode_validation)
    result = read_json(run.training / local.RESULT)
    note |= {
        "num_rows": len(lesson.rows),
        "steps": result["steps"],
        "epochs": result["epochs"],
        "best_step": result["best_step"],
        "best_validation_loss": result["best_validation_loss"],
        "train_seconds": result["train_seconds"],
        "trained_tokens": result["trained_tokens"],
        "examples_per_update": result["settings"]["per_device_train_batch_size"]
        * result["settings"]["gradient_accumulation_steps"],
        "finished": True,
    }
    write_json(folder / NOTE, note)
    return _student(folder, note)


def _student(folder: Path, note: dict[str, Any]) -> Student:
    return Student(note["kind"], note["seed"], folder, note["num_rows"], note["train_seconds"], note["trained_tokens"])


def _read_note(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(read_json(folder / NOTE))
    return {}


def student_note(student: Student) -> dict[str, Any]:
    """What the report says of a student beside what `Student` holds."""
    note = _read_note(student.folder)
    names = ("source", "steps", "epochs", "examples_per_update", "best_step", "best_validation_loss")
    return {name: note.get(name) for name in names}


def _recipe(recipe: Recipe, lesson: Lesson, seed: int, folder: Path, settings: dict[str, Any]) -> Recipe:
    """The recipe of one student: its task, its rows, its seed, its folder."""
    rows = {"path": folder / "data" / "train.jsonl", "validation_path": folder / "data" / "validation.jsonl"}
    return recipe.model_copy(
        update={
            "task": recipe.task.model_copy(update={"reasoning": lesson.task.reasoning}),
            "data": recipe.data.model_copy(update=rows),
            "train": recipe.train.model_copy(update=settings),
            "seed": seed,
            "output_dir": folder,
        }
    )


def _write_splits(opened: Run, run: Run, prepared: Prepared, lesson: Lesson) -> None:
    """The student's splits, as prepared data of its own run. The test rows are copied unread: whoever adapts to
    unlabelled texts must leave out those that hold them."""
    if run.is_done("prepare", run.data_key):
        with contextlib.suppress(RunError):  # damaged since: written again
            load_prepared(run.data)
            return
    ensure_folder(run.data)
    (run.data / "report.json").unlink(missing_ok=True)
    splits = {"train": lesson.rows, "validation": lesson.validation}
    for name, examples in splits.items():
        write_jsonl(run.data / f"{name}.jsonl", map(_row, examples))
    write_text(run.data / "test.jsonl", (opened.data / "test.jsonl").read_text(encoding="utf-8"))
    counts = {name: len(examples) for name, examples in splits.items()} | {"test": len(prepared.splits["test"])}
    write_json(run.data / "report.json", {**prepared.report, "splits": counts, "student": lesson.source})
    run.mark_done("prepare", run.data_key)


def _row(example: Example) -> dict[str, Any]:
    return {**vars(example), "inputs": dict(example.inputs), "reasoning": dict(example.reasoning)}
