"""`afina label`: a recipe, a teacher's name and a table in; labels, their account and what they cost out.

Comes in: a `Request`, and who agrees to a price. The teacher is asked under a cap; what was paid for is never asked
again. How rows are read, sorted out and filtered is said elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afina.core.config import Recipe
from afina.core.predictor import Predictor
from afina.core.recipe_file import load_recipe
from afina.core.storage import require_file
from afina.core.task_config import load_task
from afina.pipeline import say
from afina.providers.prices import FREE, dollars
from afina.strategies.hosted import HostedPredictor
from afina.teaching.answers import Meter
from afina.teaching.columns import name_columns
from afina.teaching.estimate import Estimate, estimate
from afina.teaching.filters import Triage, triage
from afina.teaching.labels import LabelReport, LabelSettings, label, refuse_output
from afina.teaching.source import read_source
from afina.teaching.teacher import (
    BuiltIn,
    PrepareData,
    School,
    num_answers,
    open_school,
    require_teacher,
    with_batches,
)

Agree = Callable[[Sequence[str], float | None], None]
"""Shown lines and an amount in US dollars (None: not known); raises BudgetError where it is not agreed to."""
ROWS_AT_ONCE = 32  # at least; with more requests under way at once, 8 times their number


@dataclass(frozen=True)
class Request:
    """What is to be labelled, by whom, and what it may cost. limit: only so many of the first rows."""

    source: Path
    teacher: str
    output: Path
    recipe: Path
    overrides: Sequence[str] = ()
    max_cost_usd: float | None = None
    min_agreement: float = 0.0
    keep_wrong: bool = False
    batch: bool = False
    limit: int | None = None
    overwrite: bool = False


def label_file(
    request: Request, agree: Agree, *, prepare: PrepareData | None = None, built_in: BuiltIn | None = None
) -> LabelReport:
    """Label the rows of a table. Killed, or stopped by its cap, the same call goes on.

    prepare, built_in: of a recipe whose base model is at a provider (`teaching.teacher`).
    Raises RecipeError, DataError, ProviderError, BudgetError, RunError.
    """
    # 1. Everything that can be refused without opening a model.
    require_file(request.source, "a table with rows to label")
    refuse_output(request.output, overwrite=request.overwrite, source=request.source)
    recipe = load_recipe(request.recipe, request.overrides)
    require_teacher(recipe, request.teacher)
    if request.batch:
        recipe = with_batches(recipe, request.teacher)
    if recipe.train.provider is not None and request.max_cost_usd is not None:
        capped = recipe.train.model_copy(update={"max_cost_usd": request.max_cost_usd})
        recipe = recipe.model_copy(update={"train": capped})
    task, data = load_task(recipe.task), recipe.data
    name_columns(task, request.output, data)
    source = read_source(request.source, task, data, need_gold=not request.keep_wrong, limit=request.limit)
    say(*source.notes)
    for kind, count in source.gold_problems.items():
        say(f"{request.source}: {count} rows have no gold answer ({kind})")
    # 2. The teacher, what is left to ask it, and what that costs.
    with open_school(
        recipe, request.teacher, request.output, request.max_cost_usd, prepare=prepare, built_in=built_in
    ) as school:
        test = school.splits["test"]
        sorted_out = triage(source.rows, task, test, data.near_duplicate_threshold)
        expected = _agree_to(school, sorted_out, request.max_cost_usd, agree)
        spent_usd = school.builder.spent_usd  # a cascade may ask validation rows while it is made
        teacher = school.builder.predictor(request.teacher)
        if isinstance(teacher, HostedPredictor):
            _agree_to_hosted(teacher, sorted_out, agree)
        # 3. Ask, filter, write.
        settings = LabelSettings(
            min_agreement=request.min_agreement,
            keep_wrong=request.keep_wrong,
            near_duplicate_threshold=data.near_duplicate_threshold,
            rows_at_once=_rows_at_once(recipe, school, len(sorted_out.questions)),
            overwrite=request.overwrite,
        )
        return label(
            task,
            teacher,
            source.rows,
            request.output,
            settings,
            test=test,
            data=data,
            teacher_key=school.key,
            fewest_requests=expected.fewest_requests if expected else None,
            meter=_meter(school, teacher, spent_usd),
            sorted_out=sorted_out,
        )


def _agree_to(school: School, sorted_out: Triage, cap_usd: float | None, agree: Agree) -> Estimate | None:
    """Say what is about to be paid, and have it agreed to; silent for models that cost nothing.

    A cap beside a model without a price was refused when the model was opened.
    """
    if not school.prices:
        return None
    found = estimate(
        school.recipe,
        school.task,
        school.teacher,
        sorted_out.questions,
        school.splits["train"],
        school.prices,
        school.builder.predictor,
    )
    if all(price is FREE for price in school.prices.values()):
        return found
    spent = school.builder.spent_usd
    agree(found.lines(school.teacher, len(sorted_out.questions), cap_usd, spent), found.likely_usd)
    return found


def _agree_to_hosted(teacher: HostedPredictor, sorted_out: Triage, agree: Agree) -> None:
    """The same for the recipe's own hosted model."""
    found = teacher.asker.estimate(teacher.bodies(sorted_out.questions))
    if found.num_new and teacher.asker.price is not FREE:
        cost = "at a price that is not known" if found.likely_usd is None else f"about {dollars(found.likely_usd)}"
        agree([f"{teacher.model}: {found.num_new:,} requests, {cost}"], found.likely_usd)


def _meter(school: School, teacher: Predictor, spent_usd: float) -> Meter:
    if isinstance(teacher, HostedPredictor):
        asker = teacher.asker
        return Meter(lambda: asker.budget.spent_usd, lambda: num_answers(asker.cache.path))
    return Meter(lambda: school.builder.spent_usd, lambda: num_answers(school.answers), spent_usd)


def _rows_at_once(recipe: Recipe, school: School, num_questions: int) -> int:
    """Few enough that little is lost when the process is killed, many enough that nobody waits."""
    asked = [recipe.models[name] for name in school.prices]
    if any(model.batch for model in asked):
        return max(1, num_questions)  # one batch; its answers are kept where paid answers are
    return max(ROWS_AT_ONCE, *(8 * model.concurrency for model in asked), 2 * recipe.answer.batch_size)
