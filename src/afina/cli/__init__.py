"""The command line: one thin command per verb. No logic, and no torch before a verb needs it.

Exit codes: 0 done, 2 the user's input, 1 our bug, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from afina import __version__
from afina.core.errors import AfinaError

app = typer.Typer(
    name="afina",
    help="From a labelled table to a small language model that you keep, with proof of how good it is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="Settings that replace the recipe's, as train.lora_r=32", metavar="[KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Overwrite a run of another recipe in the same folder.")]


def _example(text: str) -> str:
    return f"Example: {text}"


@app.command(epilog=_example("afina init noticias.csv --output recipe.yaml"))
def init(
    data: Annotated[Path, typer.Argument(help="A labelled table: CSV, TSV, JSONL, JSON or Parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Propose a recipe from a table."""
    from afina.core.errors import RecipeError
    from afina.core.storage import write_text
    from afina.data.propose import propose_recipe

    if output.exists() and not yes:
        raise RecipeError(f"{output}: exists already. Choose another --output, or pass --yes to overwrite it.")
    write_text(output, propose_recipe(data, written_to=output.parent))
    print(f"Wrote {output}. Read it, correct it, then: afina plan {output}")


@app.command(epilog=_example("afina schema > recipe.schema.json"))
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from afina.core.config import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=1))


@app.command(epilog=_example("afina plan recipe.yaml train.lora_r=32"))
def plan(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run will need before anything runs: parameters, memory, steps, time."""
    from afina import pipeline

    made = pipeline.plan(pipeline.read(recipe, overrides))
    print(json.dumps(made.to_json(), indent=1) if as_json else "\n".join(made.lines()))


@app.command(epilog=_example("afina prepare recipe.yaml data.path=table.csv"))
def prepare(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Read, check, de-duplicate and split the table."""
    from afina import pipeline
    from afina.data.prepare import summary_lines

    prepared = pipeline.prepare(pipeline.open_run(recipe, overrides, overwrite=yes))
    print(json.dumps(prepared.report, indent=1) if as_json else "\n".join(summary_lines(prepared.report)))


@app.command(epilog=_example("afina train recipe.yaml"))
def train(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False) -> None:
    """Fine-tune; a killed training continues from its last checkpoint."""
    from afina import pipeline

    run = pipeline.open_run(recipe, overrides, overwrite=yes)
    pipeline.prepare(run)
    print(f"Specialist: {pipeline.train(run)}")


@app.command(epilog=_example("afina evaluate recipe.yaml"))
def evaluate(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Compare the specialist and the baselines on the untouched test rows."""
    from afina import pipeline

    run = pipeline.open_run(recipe, overrides, overwrite=yes)
    _print_result(pipeline.evaluate(run), as_json)


@app.command(epilog=_example("afina run recipe.yaml data.path=table.csv output_dir=runs/first"))
def run(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """The whole job: prepare, plan, train, evaluate, report. Killed, the same command continues."""
    from afina import pipeline

    opened = pipeline.open_run(recipe, overrides, overwrite=yes)
    _print_result(pipeline.run(opened), as_json)
    print(f"Report: {opened.folder / 'report.html'}", file=sys.stderr if as_json else sys.stdout)


@app.command(epilog=_example("afina predict runs/noticias --input new.csv --output answers.jsonl"))
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder or a specialist folder.")],
    source: Annotated[Path, typer.Option("--input", "-i", help="Rows to answer: CSV, TSV, JSONL, JSON or Parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV, JSONL or Parquet; one row out per row in.")],
    id_column: Annotated[Optional[str], typer.Option(help="Column with each row's own id.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Rows answered together.")] = None,  # noqa: UP045
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite an existing output.")] = False,
) -> None:
    """Answer every row of a table; killed, the same command continues."""
    from afina.answering import predict_file

    count, failed = predict_file(run, source, output, id_column=id_column, batch_size=batch_size, overwrite=yes)
    print(f"{count} rows answered, {failed} with an error (column 'error' says why): {output}")


@app.command(epilog=_example("afina report runs/noticias --language pt"))
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    language: Annotated[str, typer.Option(help="en or pt.")] = "en",
) -> None:
    """Write the report of a finished run again."""
    from afina import pipeline

    print(f"Report: {pipeline.write_reports(run, language)}")


@app.command(epilog=_example("afina demo --output-dir runs/demo"))
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    yes: Yes = False,
) -> None:
    """The whole job with the embedded model on the embedded news items; no network."""
    from afina import pipeline
    from afina.core.config import load_recipe

    recipe = load_recipe(pipeline.DEMO_RECIPE, [f"output_dir={output_dir}"])
    opened = pipeline.open_recipe(recipe, overwrite=yes)
    _print_result(pipeline.run(opened), as_json=False)
    print(f"Report: {opened.folder / 'report.html'}")


@app.command(epilog=_example("afina doctor"))
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine can do: processor, memory, GPU, bf16, libraries."""
    from afina.training.machine import machine

    found = machine()
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(found.lines()))


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
        return
    from rich.console import Console

    from afina.cli.table import result_table

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(result_table(result))
    console.print(result["verdict"], soft_wrap=True, markup=False)


def _version(value: bool) -> None:
    if value:
        print(f"afina {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a labelled table to a small language model that you keep, with proof of how good it is."""


def main() -> None:
    """Entry point. Turns errors into exit codes."""
    # A tokenizer's own threads fork badly, and its warning about it says nothing to a user.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except AfinaError as error:
        print(f"afina: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("afina: interrupted. The same command continues where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        traceback.print_exc()
        print(f"afina: this is a bug of ours, not of your input: {error!r}. Please report it.", file=sys.stderr)
        raise SystemExit(1) from None
