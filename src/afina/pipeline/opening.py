"""A recipe file -> an opened run folder; and how the user is told what happens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from afina.core.config import Recipe
from afina.core.recipe_file import load_recipe
from afina.runs import Run, open_recipe

DEMO_RECIPE = Path(__file__).parent.parent / "assets" / "noticias" / "recipe.yaml"
ANSWERS = "answers.sqlite"  # answers of models elsewhere; paid once


def read(path: Path, overrides: Sequence[str] | None = None) -> Recipe:
    return load_recipe(path, overrides or ())


def open_run(path: Path, overrides: Sequence[str] | None = None, *, overwrite: bool = False) -> Run:
    """Open the run folder of a recipe file. Raises RecipeError, RunError, MachineError."""
    return open_recipe(read(path, overrides), overwrite=overwrite)


def say(*lines: str) -> None:
    """Tell the user what happens, on standard error: standard output belongs to results."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)
