"""A strategy of the recipe as the teacher: asked once for every row, its answers kept beside the students.

Comes in: an opened run and its splits. Goes out: the rows with the teacher's answers, and an account of those that its
filters left out. Who learns from them is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina import pipeline
from afina.core.config import Recipe
from afina.core.predictor import Example, Inputs, Prediction, Predictor
from afina.core.storage import digest, require_file
from afina.core.task import Task
from afina.data.prepare import Prepared
from afina.providers.budget import BudgetError
from afina.runs import Run
from afina.strategies.build import Builder, built_in_under
from afina.teaching import LabelSettings, label
from afina.teaching.answers import Meter
from afina.teaching.bill import bill_lines, bills, paid_models, spent_usd
from afina.teaching.source import LabelRow, read_source
from afina.training.hosted import Agree

LABELS = "labels"  # folder of the teacher's answers


@dataclass(frozen=True)
class Answered:
    """train: the training rows that were kept, with the teacher's answers. extra: rows of distill.rows, with them.
    validation: the run's rows and answers; the teacher's reasoning where it leads to them."""

    train: list[Example]
    extra: list[Example]
    validation: list[Example]


def nobody_agrees(lines: Sequence[str], cost_usd: float | None) -> None:
    """Where nobody can be asked, nothing is paid."""
    raise BudgetError(f"{' '.join(lines)}. Pass agree=, which is told this and raises where it must not be.")


def ask_teacher(opened: Run, prepared: Prepared, agree: Agree, account: dict[str, Any]) -> Answered:
    """The strategy distill.teacher answers; what it has answered before is read. Counts into `account`."""
    recipe, name = opened.recipe, opened.recipe.distill.teacher
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    further = _further_rows(recipe, opened.task, train, account)
    wanted = list(validation) if "reasoning" in recipe.distill.students else []
    builder = pipeline.strategy_builder(opened, prepared)
    asked_about = [row.inputs for row in (*train, *further, *wanted)]
    lines, likely = _price(opened, prepared, asked_about, builder)
    teacher = _Agreed(builder.predictor(name), lines, likely, agree)
    asked = _Asked(opened, teacher, Meter(lambda: builder.spent_usd), account)
    taught = {e.id: e for e in asked.label("train", train)}
    answered = [_answered(e, taught[e.id]) for e in train if e.id in taught]
    extra: list[Example] = []
    if further:
        guarded = [*validation, *prepared.splits["test"]]
        extra = [replace(e, id=f"rows:{e.id}") for e in asked.label("rows", further, guarded)]
    # The validation rows keep the table's answers; the teacher says what leads to them, where it finds them.
    reasons = {e.id: dict(e.reasoning) for e in asked.label("validation", wanted)} if wanted else {}
    return Answered(answered, extra, [replace(e, reasoning=reasons.get(e.id, {})) for e in validation])


def _answered(example: Example, taught: Example) -> Example:
    return replace(example, output=taught.output, reasoning=dict(taught.reasoning))


def _further_rows(recipe: Recipe, task: Task, train: Sequence[Example], account: dict[str, Any]) -> list[LabelRow]:
    """The rows of distill.rows; those that are training rows already are not asked about again."""
    path = recipe.distill.rows
    if path is None:
        return []
    require_file(path, "a table")
    rows = read_source(path, task, recipe.data, use_gold=False).rows
    known = {tuple(sorted(example.inputs.items())) for example in train}
    new = [row for row in rows if tuple(sorted(row.inputs.items())) not in known]
    account["extra_rows"] = len(rows)
    if len(new) < len(rows):
        account["left_out"]["rows of distill.rows that are training rows"] = len(rows) - len(new)
    return new


def _price(
    opened: Run, prepared: Prepared, asked_about: Sequence[Inputs], builder: Builder
) -> tuple[list[str], float | None]:
    """What is told before models elsewhere are asked, and about what they cost.

    Empty where all are on this machine, or comparison.max_cost_usd limits them: each answer is then reserved for
    before it is asked.
    """
    recipe, name = opened.recipe, opened.recipe.distill.teacher
    if not paid_models(recipe, [name]) or recipe.comparison.max_cost_usd is not None:
        return [], None
    validation = [example.inputs for example in prepared.splits["validation"]]
    train = prepared.splits["train"]
    found = bills(recipe, opened.task, [(name, asked_about)], validation, train, builder.predictor)
    lines, likely = bill_lines(found, None, spent_usd(opened))
    return [f"{name} labels {len(asked_about)} rows:", *lines], likely


class _Agreed:
    """A teacher who is asked only when the price is agreed to; told once, before the first question."""

    def __init__(self, teacher: Predictor, lines: Sequence[str], likely_usd: float | None, agree: Agree) -> None:
        self.name = teacher.name
        self._teacher, self._lines, self._likely_usd, self._agree = teacher, lines, likely_usd, agree

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        if self._lines:
            self._agree(self._lines, self._likely_usd)
            self._lines = []
        return self._teacher.predict(inputs)


class _Asked:
    """The teacher and where its answers are kept. account: counts what its filters leave out."""

    def __init__(self, opened: Run, teacher: Predictor, meter: Meter, account: dict[str, Any]) -> None:
        self.opened, self.teacher, self.meter, self.account = opened, teacher, meter, account

    def label(self, name: str, rows: Sequence[LabelRow], guarded: Sequence[Example] = ()) -> list[Example]:
        """The rows that the filters keep. guarded: rows that none of them may be a near-duplicate of."""
        opened, config = self.opened, self.opened.recipe.distill
        settings = LabelSettings(
            min_agreement=config.min_agreement,
            keep_wrong=config.keep_wrong and name != "validation",
            near_duplicate_threshold=opened.recipe.data.near_duplicate_threshold,
            overwrite=True,
            reuse=True,
        )
        found = label(
            opened.task,
            self.teacher,
            rows,
            opened.folder / "students" / LABELS / f"{name}.jsonl",
            settings,
            test=guarded,
            data=opened.recipe.data,
            teacher_key=_teacher_key(opened),
            meter=self.meter,
        )
        counted = {key: found.counts[key] for key in ("rows", "left_out", "gold", "cost_usd")}
        self.account.setdefault("teacher", {})[name] = counted
        if name != "validation":
            for why, count in found.counts["left_out"].items():
                if count:
                    self.account["left_out"][why] = self.account["left_out"].get(why, 0) + count
        return found.examples


def _teacher_key(opened: Run) -> str:
    """Of all that decides the teacher's answers."""
    recipe = opened.recipe
    resolved = recipe.resolved()
    learned = opened.train_key if "finetuned" in built_in_under(recipe, recipe.distill.teacher) else opened.data_key
    return digest([recipe.distill.teacher, resolved["strategies"], resolved["models"], resolved["answer"], learned])
