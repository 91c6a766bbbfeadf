"""What a recipe's group `distill` asks and cannot have, told before anything is asked or trained.

Comes in: a recipe and its task. Goes out: an error with one line, or nothing. Reads no data.
"""

from __future__ import annotations

from afina.core.config import Recipe
from afina.core.errors import RecipeError
from afina.core.strategy_config import NegotiateConfig, PromptConfig, inner_of
from afina.core.task import Task

TABLE = "table"  # the teacher that is the table itself
LEARN_REASONING = ("reasoning", "two-task")
REASONING = "reasoning"  # what it is called where nobody says


def needs_reasoning(recipe: Recipe) -> bool:
    return bool(set(LEARN_REASONING) & set(recipe.distill.students))


def check(recipe: Recipe, task: Task) -> None:
    """Raises RecipeError for what the group `distill` asks and cannot have, before anything is asked or trained."""
    config, students = recipe.distill, recipe.distill.students
    if recipe.train.provider is not None or recipe.train.rounds is not None:
        name = "train.provider" if recipe.train.provider is not None else "train.rounds"
        raise RecipeError(f"{name}: students are trained on this machine, on one table. Remove it to distil.")
    if config.teacher == TABLE:
        for name in ("rows", "min_agreement", "keep_wrong"):
            if getattr(config, name):
                raise RecipeError(
                    f"distill.{name} has no effect, for the teacher is the table itself. Remove it, or name a strategy "
                    "as distill.teacher."
                )
        if "mixed" in students:
            raise RecipeError(
                "distill.students: mixed joins the table's labels with a teacher's, but the teacher is the table. "
                "Remove mixed, or name a strategy as distill.teacher."
            )
    if config.rationale_weight != type(config).model_fields["rationale_weight"].default and "two-task" not in students:
        raise RecipeError("distill.rationale_weight is of the student two-task, which is not trained. Remove it.")
    if not needs_reasoning(recipe):
        return
    asked = " and ".join(kind for kind in students if kind in LEARN_REASONING)
    if config.teacher == TABLE and task.reasoning is None:
        raise RecipeError(
            f"distill.students: reasoning is learned by {asked}, but no column of the table is named for it. Set "
            "task.reasoning to the column's name, name a strategy as distill.teacher, or leave these students out."
        )
    if config.teacher != TABLE and not _may_reason(recipe, task, config.teacher):
        raise RecipeError(
            f"distill.teacher: {config.teacher} gives no reasoning, but it is learned by {asked}. Name a "
            "strategy that reasons (strategy: cot), or leave these students out."
        )
    name = reasoning_name(recipe, task)
    parts = [task.output] if task.part_inputs is None else list(task.output["properties"].values())
    if "reasoning" in students and any(part.get("type") != "object" for part in parts):
        raise RecipeError(
            "distill.students: reasoning is written before named fields, but an answer here is a single value. "
            "Give the answer a field's name in task.output, or leave this student out; two-task can be trained."
        )
    if any(name in part.get("properties", {}) for part in parts):
        raise RecipeError(
            f"distill: the reasoning is called {name!r}, as a field of the answer is. Set task.reasoning."
        )


def reasoning_name(recipe: Recipe, task: Task) -> str:
    """What the students call the reasoning: as the task does, else as the teacher does."""
    config = recipe.strategies.get(recipe.distill.teacher)
    said = config.reasoning_field if isinstance(config, PromptConfig) else REASONING
    return task.reasoning or said


def _may_reason(recipe: Recipe, task: Task, name: str) -> bool:
    """Whether a strategy can give reasoning at all, so that no other one is paid for nothing."""
    config = recipe.strategies.get(name)
    if config is None:
        return name == "finetuned" and task.reasoning is not None
    if isinstance(config, PromptConfig):
        return config.strategy == "cot"
    return isinstance(config, NegotiateConfig) or any(_may_reason(recipe, task, one) for one in inner_of(config))
