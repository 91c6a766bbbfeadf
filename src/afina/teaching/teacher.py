"""A name of the recipe's strategies, or a built-in, becomes a teacher that can be asked.

Comes in: a recipe, a teacher's name, where the labels will be. Goes out: the predictor, its prices, the recipe's test
rows. The run folder is read where it is; written are only paid answers, and what the run's own specialist needs.
"""

from __future__ import annotations

import difflib
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from afina import pipeline
from afina.core.config import BUILT_IN, Recipe
from afina.core.errors import RecipeError
from afina.core.predictor import Example, Predictor
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.examples import read_examples
from afina.data.prepare import Prepared, load_prepared
from afina.pipeline import say
from afina.providers.prices import Price
from afina.runs import Run, open_recipe, require_files
from afina.strategies.build import Builder, built_in_under, models_under
from afina.strategies.endpoint import Endpoint

BuiltIn = Callable[[Run, str], Predictor | None]
"""An opened run and a name -> a predictor that this module cannot make; None for the others."""
PrepareData = Callable[[Run], Prepared]


@dataclass(frozen=True)
class School:
    """An opened recipe, before anybody is asked.

    builder: makes predictors. prices: of the models at providers that the teacher asks, None where none is known.
    key: of all that decides the teacher's answers.
    """

    recipe: Recipe
    task: Task
    teacher: str
    splits: dict[str, list[Example]]
    builder: Builder
    prices: dict[str, Price | None]
    answers: Path
    key: str


def require_teacher(recipe: Recipe, name: str) -> None:
    """Raises RecipeError for a name that is neither a strategy of the recipe nor built in."""
    known = (*recipe.strategies, *BUILT_IN)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else " Add it to the recipe's strategies, or name another."
        raise RecipeError(f"--teacher is {name!r}, which is no strategy of the recipe: {', '.join(known)}.{hint}")


def with_batches(recipe: Recipe, teacher: str) -> Recipe:
    """The recipe with the teacher's models asked by batch endpoints. Raises RecipeError if it asks none elsewhere."""
    paid = [name for name in sorted(models_under(recipe, teacher)) if name != "base" and recipe.models[name].provider]
    if not paid:
        raise RecipeError(f"--batch has no effect: the teacher {teacher} asks no model at a provider. Leave it out.")
    models = {**recipe.models, **{name: recipe.models[name].model_copy(update={"batch": True}) for name in paid}}
    return recipe.model_copy(update={"models": models})


@contextmanager
def open_school(
    recipe: Recipe,
    teacher: str,
    output: Path,
    cap_usd: float | None,
    *,
    prepare: PrepareData | None = None,
    built_in: BuiltIn | None = None,
) -> Generator[School]:
    """Read the recipe's rows and open the models that the teacher asks; nothing is asked yet.

    prepare, built_in: of a recipe whose base model is at a provider. Paid answers are kept in the recipe's run folder,
    where `distill` and `compare` keep theirs: the same question is paid once, whoever asks it.
    Raises AfinaError: data, a model, a key.
    """
    task = load_task(recipe.task)
    prepare = prepare or (lambda run: pipeline.prepare(run, quiet=True))
    with tempfile.TemporaryDirectory() as folder:
        opened = _open(recipe, task, teacher, Path(folder))
        prepared = _prepared(opened, output, prepare)
        answers = recipe.run_dir / pipeline.ANSWERS
        builder = open_teachers(opened, prepared, answers, cap_usd, built_in)
        prices: dict[str, Price | None] = {}
        for name in sorted(models_under(recipe, teacher)):
            model = builder.model(name) if name != "base" and recipe.models[name].provider else None
            if isinstance(model, Endpoint):
                prices[name] = model.asker.price
        key = opened.train_key if opened.recipe.data.path.is_file() else ""
        key = f"{recipe.hash} {key} {teacher}"
        yield School(recipe, task, teacher, prepared.splits, builder, prices, answers, key)


def open_teachers(
    opened: Run, prepared: Prepared, answers: Path, cap_usd: float | None, built_in: BuiltIn | None
) -> Builder:
    """What makes predictors of the recipe's names, all paid answers in one file and under one cap."""

    def known(name: str) -> Predictor:
        found = (built_in(opened, name) if built_in else None) or pipeline.make_built_in(opened, prepared, name)
        return found.predictor if isinstance(found, pipeline.WithProgress) else found  # one progress bar is enough

    return Builder(
        opened.recipe,
        opened.task,
        {name: prepared.splits[name] for name in ("train", "validation")},
        built_in=known,
        base=lambda: pipeline.base_chat(opened, prepared),
        answers=answers,
        cap_usd=cap_usd,
        tell=say,
    )


def num_answers(answers: Path) -> int:
    """How many paid answers the file holds."""
    if not answers.exists():
        return 0
    with sqlite3.connect(answers, timeout=60) as database:
        return int(database.execute("SELECT COUNT(*) FROM answers").fetchone()[0])


# -- rows --------------------------------------------------------------------------------------------


def _open(recipe: Recipe, task: Task, teacher: str, scratch: Path) -> Run:
    """The recipe's own run where its specialist answers; else one that leaves nothing behind."""
    if "finetuned" in built_in_under(recipe, teacher) or recipe.train.provider is not None:
        return open_recipe(recipe)
    return Run(recipe, task, scratch)


def _prepared(opened: Run, output: Path, prepare: PrepareData) -> Prepared:
    """The recipe's splits; without the table that is yet to be made by labelling, its test alone."""
    recipe = opened.recipe
    if recipe.data.path.resolve() == output.resolve():
        test = recipe.data.test_path
        rows = read_examples(recipe.data, opened.task, test, id_prefix="test:").examples if test else []
        if not test:
            say("the recipe's table is the one to be made: there are no test rows to keep apart from")
        return Prepared({"train": [], "validation": [], "test": rows}, {})
    require_files(recipe)
    finished = Run(recipe, opened.task, recipe.run_dir)
    if finished.is_done("prepare", finished.data_key):
        return load_prepared(finished.data)
    return prepare(opened)
