"""The verb `sweep`. No logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer


def sweep(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this annotation
        typer.Argument(help="Settings that replace the recipe's, as sweep.trials=40", metavar="KEY=VALUE"),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Replace the run of another recipe in the same folder, and another sweep."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Search the best settings of train.

    Trainings with other settings, judged on validation rows; those that lag behind are ended early. Killed, the same
    command continues; with more sweep.trials it goes on. The best recipe is written out.
    """
    from afina import pipeline, sweeping

    opened = pipeline.open_run(recipe, overrides, overwrite=yes)
    encode = pipeline.encode
    if opened.recipe.catalogue is not None:
        from afina.assistant.training import encoder_of

        encode = encoder_of(opened)
    found = sweeping.sweep(opened, overwrite=yes, encode_train=encode, encode_validation=encode)
    if as_json:
        print(json.dumps(found.report, ensure_ascii=False, indent=1))
    else:
        print("\n".join(sweeping.result_lines(found.report)))
    print(f"Best recipe: {found.best}\nPage:        {found.page}", file=sys.stderr)
