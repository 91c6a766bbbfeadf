"""`afina label`: a teacher's answers to a table's rows. No logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from afina.training.hosted import Agree


def label(
    source: Annotated[
        Path, typer.Argument(help="Rows to label: CSV, TSV, JSONL, JSON or Parquet, plain or gzipped.", metavar="TABLE")
    ],
    teacher: Annotated[
        str, typer.Option("--teacher", "-t", help="A name of the recipe's strategies, or finetuned, zero-shot, tfidf.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL; its account is written beside it.")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this annotation
        typer.Argument(help="Settings that replace the recipe's, as models.big.concurrency=16", metavar="KEY=VALUE"),
    ] = None,
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="The recipe, a YAML file.")] = Path("recipe.yaml"),
    max_cost_usd: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Asking stops before it costs more."),
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out rows of which the teacher is less sure.")
    ] = 0.0,
    keep_wrong: Annotated[
        bool, typer.Option("--keep-wrong", help="Keep answers that differ from the table's own labels.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="By the provider's batch endpoint: half the price, hours.")
    ] = False,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only so many of the first rows.")] = None,  # noqa: UP045
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to the price; overwrite an existing output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Have a teacher label a table, under a budget.

    Leaves out what is invalid, differs from the table's own labels, or is too near to a test row; every row is counted.
    Killed, the same command continues and pays nothing twice.
    """
    from afina.cli.hosted import agreement_asker
    from afina.core.recipe_file import load_recipe
    from afina.teaching.job import Request, label_file
    from afina.teaching.report import report_lines

    request = Request(
        source=source,
        teacher=teacher,
        output=output,
        recipe=recipe,
        overrides=overrides or [],
        max_cost_usd=max_cost_usd,
        min_agreement=min_agreement,
        keep_wrong=keep_wrong,
        batch=batch,
        limit=limit,
        overwrite=yes,
    )
    agree = agreement_asker(yes)
    elsewhere = _elsewhere(agree) if load_recipe(recipe, overrides or []).train.provider else {}
    report = label_file(request, agree, **elsewhere)
    if as_json:
        print(json.dumps(report.counts, ensure_ascii=False, indent=1))
        return
    print("\n".join(report_lines(report.counts)))
    print(f"Labels: {output}")
    print(f"Next:   afina run {recipe} {' '.join(map(_quoted, report.counts['read_with']))}", file=sys.stderr)


def _elsewhere(agree: Agree) -> dict[str, Any]:
    """What a recipe needs whose base model is at a provider."""
    from functools import partial

    from afina import hosting

    return {
        "prepare": partial(hosting.prepare, quiet=True),
        "built_in": lambda opened, name: hosting.make_hosted(opened, agree, name),
    }


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
