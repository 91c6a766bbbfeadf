"""What the students learn from: the table's answers and the teacher's, on the same rows.

Comes in: an opened run and its prepared splits. Goes out: `Taught`, with an account of every row that was left out. The
teacher's filters decide which training rows there are, for all students alike; the test rows are only looked at for
near-duplicates among further rows. What is done with the rows is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina import pipeline
from afina.core.config import Recipe
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.task import Task
from afina.data.prepare import Prepared
from afina.distilling.checks import TABLE, check, needs_reasoning, reasoning_name
from afina.distilling.teacher import ask_teacher
from afina.engine.renderer import Renderer
from afina.runs import Run
from afina.training.hosted import Agree

FEWEST_ROWS = 8  # a student of fewer shows nothing


@dataclass(frozen=True)
class Taught:
    """reasoning: its name; None where no student needs it.

    gold, answered: the same training rows in the same order, with the table's answers and with the teacher's. extra:
    rows that only the teacher has labelled. validation: the run's validation rows, gold, with reasoning where known.
    account: what was read, kept and left out, and how much reasoning was cut.
    """

    teacher: str
    reasoning: str | None
    gold: list[Example]
    answered: list[Example]
    extra: list[Example]
    validation: list[Example]
    account: dict[str, Any]


def teach(opened: Run, prepared: Prepared, agree: Agree) -> Taught:
    """Have the teacher answer, or read what it answered before. agree: is asked before paid models are.

    Raises RecipeError (settings without effect, a teacher that gives no reasoning), DataError (too few rows), and what
    the teacher raises: what was answered by then is kept.
    """
    recipe = opened.recipe
    check(recipe, opened.task)
    teacher, needed = recipe.distill.teacher, needs_reasoning(recipe)
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    account: dict[str, Any] = {"train_rows": len(train), "extra_rows": 0, "left_out": {}}
    if teacher == TABLE:
        answered, extra = list(train), list[Example]()
    else:
        asked = ask_teacher(opened, prepared, agree, account)
        answered, extra, validation = asked.train, asked.extra, asked.validation
    if needed:
        answered = _with_reasoning(answered, opened.task, account)
        extra = _with_reasoning(extra, opened.task, account)
        if not answered:
            raise DataError(_no_reasoning(recipe, account))
        reasoning = reasoning_name(recipe, opened.task)
        cut = _Cutter(pipeline.renderer_of(opened), recipe.answer.max_text_tokens)
        answered, extra, validation = (cut.all(rows) for rows in (answered, extra, validation))
        account["reasoning"] = {"texts": cut.num_texts, "cut": cut.num_cut, "max_text_tokens": cut.max_tokens}
    else:
        reasoning = None
    if len(answered) < FEWEST_ROWS:
        reasons = "; ".join(f"{count} {why}" for why, count in account["left_out"].items()) or "none was left out"
        raise DataError(
            f"distill: {len(answered)} of {len(train)} training rows are left ({reasons}), expected at least "
            f"{FEWEST_ROWS}. Add rows, or loosen the teacher's filters: distill.min_agreement, distill.keep_wrong."
        )
    kept = {example.id for example in answered}
    account |= {"kept_rows": len(answered), "kept_extra_rows": len(extra)}
    gold = [example for example in train if example.id in kept]
    return Taught(teacher, reasoning, gold, answered, extra, validation, account)


# -- reasoning -------------------------------------------------------------------------------------


def _with_reasoning(examples: Sequence[Example], task: Task, account: dict[str, Any]) -> list[Example]:
    """The rows that have reasoning for every part."""
    kept = [e for e in examples if all(e.rationale(part.key) for part in task.parts)]
    if len(kept) < len(examples):
        why = "without reasoning"
        account["left_out"][why] = account["left_out"].get(why, 0) + len(examples) - len(kept)
    return kept


def _no_reasoning(recipe: Recipe, account: dict[str, Any]) -> str:
    if recipe.distill.teacher == TABLE:
        return f"{recipe.data.path}: no training row has text in the column {recipe.task.reasoning!r} (task.reasoning)."
    reasons = "; ".join(f"{count} {why}" for why, count in account["left_out"].items())
    return (
        f"distill.teacher: {recipe.distill.teacher} gave no training row with reasoning ({reasons}). Name a strategy "
        "that reasons (strategy: cot), or leave the students reasoning and two-task out."
    )


class _Cutter:
    """Reasoning that is longer than what is written in answering is cut at a sentence's end, and counted."""

    def __init__(self, renderer: Renderer, max_tokens: int) -> None:
        self.max_tokens, self.num_texts, self.num_cut = max_tokens, 0, 0
        self._renderer = renderer

    def all(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(e, reasoning={key: self._one(text) for key, text in e.reasoning.items()}) for e in examples]

    def _one(self, text: str) -> str:
        short = self._renderer.shorten(text, self.max_tokens)
        self.num_texts += 1
        self.num_cut += short != text
        return short
