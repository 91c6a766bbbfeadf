"""All students of a recipe, each kind with every seed, on the same rows under the same budget.

Comes in: an opened run. Goes out: `Student`s, and students/report.json. A killed call continues where it was; a
finished student is not trained again, and one that would learn what another has learned is that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from afina import pipeline
from afina.core.progress import seconds
from afina.core.storage import write_json
from afina.data.prepare import Prepared
from afina.distilling.checks import TABLE
from afina.distilling.lessons import Lesson, lesson
from afina.distilling.student import Budget, Student, student_key, student_note, train_student
from afina.distilling.taught import Taught, teach
from afina.distilling.teacher import nobody_agrees
from afina.runs import Run
from afina.training.hosted import Agree

FOLDER, REPORT = "students", "report.json"
REPORT_VERSION = 1


def distill(opened: Run, agree: Agree = nobody_agrees) -> list[Student]:
    """Every student of `distill.students` with every seed of `distill.seeds`, seed by seed.

    agree: is told what paid models will be asked, and raises if they must not be; not called where none is asked.
    Raises RecipeError and DataError before anything is trained, MachineError where a training does not fit, and what
    the teacher raises.
    """
    recipe = opened.recipe
    prepared = pipeline.prepare(opened)
    taught = teach(opened, prepared, agree)
    pipeline.say(*_taught_lines(taught))
    lessons = [lesson(kind, taught, opened.task, recipe.distill.rationale_weight) for kind in recipe.distill.students]
    budgets = _budgets(opened, prepared, taught, lessons)
    cut = {made.kind: _num_cut(opened, made) for made in lessons if taught.teacher != TABLE}
    for kind, count in cut.items():
        if count:
            pipeline.say(f"  student {kind}: {count} inputs are cut to fit train.max_length")
    found: list[Student] = []
    known: dict[str, Student] = {}
    total = len(lessons) * len(recipe.distill.seeds)
    for seed in recipe.distill.seeds:
        for made, budget in zip(lessons, budgets, strict=True):
            key = student_key(opened, made, seed, budget)
            if key in known:
                pipeline.say(f"student {made.kind}, seed {seed}: learns what {known[key].kind} has learned")
                found.append(replace(known[key], kind=made.kind))
                continue
            pipeline.say(f"student {made.kind}, seed {seed} ({len(found) + 1} of {total})")
            folder = opened.folder / FOLDER / f"{made.kind}-{seed}"
            known[key] = train_student(opened, prepared, made, seed, budget, folder)
            found.append(known[key])
    write_json(opened.folder / FOLDER / REPORT, _report(opened, taught, lessons, found, cut))
    return found


def _num_cut(opened: Run, made: Lesson) -> int:
    """Texts whose inputs give way to a teacher's long answer. Of the table's own rows data.on_too_long has decided."""
    renderer = pipeline.renderer_of(replace(opened, task=made.task))
    encoded = made.encode_train(renderer, made.rows, opened.recipe.train.max_length)
    texts = [text for one in encoded for text in (one, one.second) if text is not None]
    return sum(text.truncated > 0 for text in texts)


def _budgets(opened: Run, prepared: Prepared, taught: Taught, lessons: Sequence[Lesson]) -> list[Budget]:
    """Updates, and examples in each, are those of the teacher's rows: a student of as many rows has them by itself, in
    the same order for the same seed; one of more or fewer rows is given as many updates."""
    reference = lesson("labels", taught, opened.task, opened.recipe.distill.rationale_weight)
    if all(len(made.rows) == len(reference.rows) for made in lessons):
        return [Budget()] * len(lessons)
    labels_only = replace(opened, task=reference.task)
    splits = {**prepared.splits, "train": reference.rows}
    settings, _ = pipeline.settings_of(labels_only, replace(prepared, splits=splits))
    same = Budget(settings.total_steps, settings.per_device_train_batch_size, settings.gradient_accumulation_steps)
    return [Budget() if len(made.rows) == len(reference.rows) else same for made in lessons]


def _report(
    opened: Run, taught: Taught, lessons: Sequence[Lesson], students: Sequence[Student], cut: Mapping[str, int]
) -> dict[str, Any]:
    sources = {made.kind: made.source for made in lessons}
    return {
        "version": REPORT_VERSION,
        "recipe_hash": opened.recipe.hash,
        "task": opened.task.name,
        "teacher": taught.teacher,
        "reasoning": taught.reasoning,
        "rows": taught.account,
        "inputs_cut": dict(cut),
        "students": [
            {
                "kind": one.kind,
                "seed": one.seed,
                "folder": str(one.folder.relative_to(opened.folder)),
                "num_rows": one.num_rows,
                "train_seconds": one.train_seconds,
                "trained_tokens": one.trained_tokens,
                **student_note(one),
                "source": sources[one.kind],
            }
            for one in students
        ],
    }


# -- for the screen --------------------------------------------------------------------------------


def _taught_lines(taught: Taught) -> list[str]:
    account = taught.account
    rows = f"{account['kept_rows']} of {account['train_rows']} training rows"
    if account["extra_rows"]:
        rows += f", {account['kept_extra_rows']} of {account['extra_rows']} further rows"
    lines = [f"teacher {taught.teacher}: {rows}; the same for all students"]
    lines += [f"  left out: {count} {why.replace('_', ' ')}" for why, count in account["left_out"].items()]
    reasoning = account.get("reasoning")
    if reasoning and reasoning["cut"]:
        lines.append(
            f"  reasoning: {reasoning['cut']} of {reasoning['texts']} texts are longer than answer.max_text_tokens "
            f"{reasoning['max_text_tokens']}, and are learned up to the end of a sentence"
        )
    if taught.teacher != TABLE and [e.output for e in taught.gold] == [e.output for e in taught.answered]:
        lines.append("  every kept answer has the table's labels (distill.keep_wrong: false)")
    return lines


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A table of the students, and what to do next."""
    head = ["student", "seed", "rows", "updates", "tokens", "time", "folder"]
    rows = [
        [
            one["kind"],
            str(one["seed"]),
            str(one["num_rows"]),
            str(one["steps"]),
            f"{one['trained_tokens']:,}",
            seconds(one["train_seconds"]),
            one["folder"],
        ]
        for one in report["students"]
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    table = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    title = f"{report['task']}: {len(rows)} students of {report['teacher']}"
    names = ", ".join(f"student-{kind}" for kind in dict.fromkeys(one["kind"] for one in report["students"]))
    return [title, "", *table, "", f"To measure them on the test rows: afina compare, with compare: [{names}]"]
