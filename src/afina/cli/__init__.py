"""The command line: one thin command per verb. No logic, and no torch before a verb needs it.

Results go to standard output, progress and notes to standard error.
Exit codes: 0 done, 2 the user's input, 1 our bug, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from afina import __version__
from afina.cli import assistant as catalogues
from afina.cli import distil, hosted, push, sweep, teacher
from afina.cli import serve as serving
from afina.core.errors import AfinaError, RecipeError

ABOUT = "From a labelled table to a small language model that you keep, with proof of how good it is."
INTERRUPTED = 130

app = typer.Typer(
    name="afina",
    help=ABOUT,
    epilog="Begin with: afina demo. With a table of yours: afina init table.csv, then afina run recipe.yaml.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TABLE = "CSV, TSV, JSONL, JSON or Parquet, plain or gzipped"
RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")]
RunPath = Annotated[Path, typer.Argument(help="A run folder (output_dir of a recipe).", metavar="RUN")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="Settings that replace the recipe's, as train.lora_r=32", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Replace the run of another recipe in the same folder; agree to a price.")
]


def _example(text: str) -> str:
    return f"Example: {text}"


@app.command(epilog=_example("afina init noticias.csv --output recipe.yaml"))
def init(
    data: Annotated[Path, typer.Argument(help=f"A labelled table: {TABLE}.", metavar="TABLE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Propose a recipe from a table."""
    from afina.core.storage import ensure_folder, write_text
    from afina.data.propose import propose_recipe

    if output.exists() and (output.is_dir() or not yes):
        raise RecipeError(f"{output}: exists already. Choose another --output, or pass --yes to overwrite a file.")
    proposed = propose_recipe(data, written_to=output.parent)
    ensure_folder(output.parent)
    write_text(output, proposed)
    print(f"Wrote {output}. Read it, correct it, then: afina plan {output}")


@app.command(epilog=_example("afina schema > recipe.schema.json"))
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from afina.core.recipe_file import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=1))


@app.command(epilog=_example("afina plan recipe.yaml train.lora_r=32"))
def plan(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run needs: parameters, memory, time.

    Reads the data and measures a few steps; nothing is written.
    """
    from afina import pipeline

    read = pipeline.read(recipe, overrides)
    if hosted.is_hosted(read):
        hosted.plan(read, as_json)
        return
    made = pipeline.plan(read)
    print(json.dumps(made.to_json(), indent=1) if as_json else "\n".join(made.lines()))


@app.command(epilog=_example("afina prepare recipe.yaml data.path=table.csv"))
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    shards: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a catalogue, those to learn from and export, as 0-4; short for catalogue.shards=0-4."),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Read, check, de-duplicate and split the table.

    A catalogue is cleaned and written as shards first; killed, the same command continues.
    """
    from afina import pipeline
    from afina.data.prepare import summary_lines

    read = pipeline.read(recipe, [*(overrides or ()), *([f"catalogue.shards={shards!r}"] if shards else [])])
    if catalogues.has_catalogue(read):
        catalogues.prepare(read, yes, as_json)
        return
    opened = pipeline.open_recipe(read, overwrite=yes)
    prepared = hosted.prepare(opened) if opened.recipe.train.provider else pipeline.prepare(opened, quiet=True)
    if as_json:
        print(json.dumps(prepared.report, ensure_ascii=False, indent=1))
        return
    print("\n".join(summary_lines(prepared.report)))
    print(f"Prepared: {opened.data}")


@app.command(epilog=_example("afina train recipe.yaml"))
def train(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False) -> None:
    """Fine-tune. Killed, the same command continues.

    It goes on from the last checkpoint, to the same weights. With train.provider a provider trains: the price is
    told and agreed to first, and a killed command finds its job again.
    """
    from afina import pipeline

    read = pipeline.read(recipe, overrides)
    if catalogues.has_catalogue(read):
        catalogues.train(read, yes)
        return
    if hosted.is_hosted(read):
        hosted.train(read, yes)
        return
    opened = pipeline.open_recipe(read, overwrite=yes)
    pipeline.prepare(opened)
    print(f"Specialist: {pipeline.train(opened)}")


@app.command(epilog=_example("afina evaluate recipe.yaml"))
def evaluate(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Compare all systems on the untouched test rows.

    Trains first where the recipe compares a specialist that is not there yet.
    """
    opened, agree = _open_to_compare(recipe, overrides, yes)
    _print_result(_job(opened).evaluate(opened, agree), as_json)
    print(f"Result: {opened.folder / 'report.json'}. As a page: afina report {opened.folder}", file=sys.stderr)


@app.command(epilog=_example("afina compare recipe.yaml comparison.priority=cost"))
def compare(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Every way to answer on the same unseen rows.

    One table, one page, a recommendation. Baselines, prompting, ensembles, teachers, students, cascades: the names in
    the recipe's compare. What is missing is trained; what was answered or paid for is not asked again.
    """
    opened, agree = _open_to_compare(recipe, overrides, yes)
    _print_compared(opened, _job(opened).compare(opened, agree), as_json)


def _job(opened: Any) -> Any:
    """Whose `compare` and `evaluate` carry this recipe out."""
    if catalogues.has_catalogue(opened.recipe):
        from afina import assistant

        return assistant
    from afina import comparing

    return comparing


def _open_to_compare(recipe: Path, overrides: list[str] | None, yes: bool) -> tuple[Any, Any]:
    """The opened run, and who agrees to a price."""
    from afina import pipeline

    read = pipeline.read(recipe, overrides)
    if read.train.rounds is not None or (read.catalogue is not None and read.catalogue.rounds is not None):
        raise RecipeError("rounds are trained and judged round by round. Give: afina train RECIPE.yaml")
    return pipeline.open_recipe(read, overwrite=yes), hosted.agreement_asker(yes)


@app.command(epilog=_example("afina run recipe.yaml data.path=table.csv output_dir=runs/first"))
def run(recipe: RecipePath, overrides: Overrides = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """The whole job: prepare, train, evaluate, report.

    Killed, the same command continues where it stopped; finished, it prints the result again.
    """
    opened, agree = _open_to_compare(recipe, overrides, yes)
    _print_compared(opened, _job(opened).compare(opened, agree), as_json)


@app.command(epilog=_example("afina predict runs/noticias --input new.csv --output answers.jsonl"))
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder or a specialist folder.", metavar="RUN")],
    source: Annotated[Path, typer.Option("--input", "-i", help=f"Rows to answer: {TABLE}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV, JSONL or Parquet; one row out per row in.")],
    id_column: Annotated[Optional[str], typer.Option(help="Column with each row's own id.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Rows answered together.")] = None,  # noqa: UP045
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite an existing output.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a table. Killed, the same command continues."""
    from afina.answering import predict_file

    count, failed = predict_file(run, source, output, id_column=id_column, batch_size=batch_size, overwrite=yes)
    if as_json:
        print(json.dumps({"rows": count, "errors": failed, "output": str(output)}))
        return
    errors = f", {failed} of them with an error (`error` says why)" if failed else ""
    print(f"{count} row{'s' * (count != 1)} answered{errors}: {output}")


@app.command(epilog=_example("afina report runs/noticias --language pt"))
def report(
    run: RunPath,
    language: Annotated[str, typer.Option(help="en or pt.")] = "en",
) -> None:
    """Write the report of an evaluated run again."""
    from afina import pipeline

    print(f"Report: {pipeline.write_reports(run, language)}")


@app.command(epilog=_example("afina demo --output-dir runs/demo"))
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """The whole job on the embedded news; no network."""
    from afina import pipeline
    from afina.core.recipe_file import load_recipe

    opened = pipeline.open_recipe(load_recipe(pipeline.DEMO_RECIPE, [f"output_dir={output_dir}"]), overwrite=yes)
    _print_compared(opened, pipeline.run(opened), as_json)


@app.command(epilog=_example("afina doctor"))
def doctor(
    provider: hosted.ProviderName = None,
    base_url: hosted.BaseUrl = None,
    api_key_env: hosted.KeyVariable = None,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine can do.

    With --provider or --base-url: which fine-tuned models you have there, the last day of each, and what to do next.
    """
    if provider is not None or base_url is not None:
        hosted.doctor(provider, base_url, api_key_env, as_json)
        return
    from afina.runs import versions
    from afina.training.machine import machine

    found, libraries = machine(), versions()
    if as_json:
        print(json.dumps({**found.to_json(), "versions": libraries}, indent=1))
        return
    print("\n".join(found.lines()))
    listed = ", ".join(f"{name} {version}" for name, version in libraries.items())
    print(textwrap.fill(listed, 100, initial_indent="libraries   ", subsequent_indent=" " * 12))


app.command("index", epilog=_example("afina index recipes/amazon.yaml catalogue.path=trn.json.gz"))(catalogues.index)
app.command("ask", epilog=_example('afina ask runs/amazon "What is Mog\'s Kittens about?"'))(catalogues.ask)
app.command("chat", epilog=_example("afina chat runs/amazon"))(catalogues.chat)
app.command("sweep", epilog=_example("afina sweep recipe.yaml sweep.trials=20"))(sweep.sweep)
app.command("push", epilog=_example("afina push runs/noticias ana/noticias --license mit"))(push.push)
app.command("label", epilog=_example("afina label rows.csv --teacher cot --output labels.jsonl"))(teacher.label)
app.command("distill", epilog=_example("afina distill recipe.yaml distill.teacher=cot"))(distil.distill)
app.command("serve", epilog=_example("afina serve --port 8000 --data-dir ~/.afina"))(serving.serve)
app.add_typer(serving.keys)
app.add_typer(hosted.jobs)
app.command(
    "rescue",
    epilog=_example(
        "afina rescue ft:gpt-4o-mini-2024-07-18:me::abc --inputs rows.csv --training-file old.jsonl "
        "--base-model afina/nano"
    ),
)(hosted.rescue)


def _print_compared(opened: Any, result: dict[str, Any], as_json: bool) -> None:
    _print_result(result, as_json)
    page, specialist = opened.folder / "report.html", opened.specialist
    print(f"Report:     {page}", file=sys.stderr if as_json else sys.stdout)
    if specialist.is_dir():
        print(f"Specialist: {specialist}", file=sys.stderr if as_json else sys.stdout)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
        return
    from afina.cli.table import result_lines

    print("\n".join(result_lines(result)))


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
    pass


_root.__doc__ = ABOUT


def main() -> None:
    """Entry point. Turns errors into exit codes."""
    # A tokenizer's own threads fork badly, and its warning about it says nothing to a user.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        raise SystemExit(_invoke())
    except AfinaError as error:
        print(f"afina: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(_interrupted()) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        traceback.print_exc()
        print(f"afina: this is a bug of ours, not of your input: {error!r}. Please report it.", file=sys.stderr)
        raise SystemExit(1) from None


def _invoke() -> int:
    """The verb's exit code. Usage errors are told here; typer alone would swallow Ctrl-C without a word."""
    try:
        code = app(prog_name="afina", standalone_mode=False)
    except typer.Abort:
        return _interrupted()
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):  # a usage error of typer's
            raise
        error.show()  # type: ignore[attr-defined]
        return error.exit_code  # type: ignore[attr-defined]
    return _interrupted() if code == INTERRUPTED else int(code or 0)


def _interrupted() -> int:
    print("\nafina: interrupted. The same command continues where it stopped.", file=sys.stderr)
    return INTERRUPTED
