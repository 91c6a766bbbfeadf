"""The verb `distill`. No logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer


def distill(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this annotation
        typer.Argument(help="Settings that replace the recipe's, as distill.teacher=cot", metavar="KEY=VALUE"),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Replace the run of another recipe in the same folder; agree to a price."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Train students on a teacher's answers.

    Each kind of student with each seed, on the same rows under the same budget. Killed, the same command continues.
    """
    from afina import distilling, pipeline
    from afina.cli.hosted import agreement_asker
    from afina.core.storage import read_json

    opened = pipeline.open_run(recipe, overrides, overwrite=yes)
    distilling.distill(opened, agreement_asker(yes))
    path = opened.folder / distilling.FOLDER / distilling.REPORT
    report = read_json(path)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return
    print("\n".join(distilling.report_lines(report)))
    print(f"Result: {path}", file=sys.stderr)
