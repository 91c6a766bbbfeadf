"""Commands about providers: `jobs`, `rescue`, `train` with a provider or rounds, `doctor --provider`. No logic."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from afina.core.errors import RecipeError

if TYPE_CHECKING:
    from afina.core.config import Recipe
    from afina.data.prepare import Prepared
    from afina.providers.client import Connection, Provider
    from afina.runs import Run
    from afina.training.hosted import Agree

jobs = typer.Typer(
    name="jobs",
    help="Fine-tuning jobs at OpenAI, Azure, or another provider.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ProviderName = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation
    typer.Option("--provider", help="openai or azure; openai unless told otherwise.", metavar="NAME"),
]
BaseUrl = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--base-url", help="A server that speaks the API, as http://127.0.0.1:8000/v1.", metavar="URL"),
]
KeyVariable = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--api-key-env",
        help="Environment variable with the key: OPENAI_API_KEY, AZURE_OPENAI_API_KEY, or AFINA_API_KEY for a URL.",
        metavar="VARIABLE",
    ),
]
JobId = Annotated[str, typer.Argument(help="A job's id, as ftjob-...", metavar="JOB")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


# -- jobs -----------------------------------------------------------------------------------------


@jobs.command("list", epilog="Example: afina jobs list --base-url http://127.0.0.1:8000/v1")
def list_jobs(
    provider: ProviderName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs."""
    from afina.providers import jobs as api

    found = api.list_jobs(_connection(provider, base_url, api_key_env), limit)
    if as_json:
        _print_json(found)
        return
    rows = [["job", "status", "created", "base", "fine-tuned model"]]
    rows += [
        [
            _plain(job["id"]),
            _plain(job["status"]),
            _time(job["created_at"]),
            _plain(job["model"]),
            _plain(job.get("fine_tuned_model")),
        ]
        for job in found
    ]
    print("\n".join(_aligned(rows)) if found else "No jobs.")


@jobs.command("show", epilog="Example: afina jobs show ftjob-abc123 --json")
def show(
    job: JobId,
    provider: ProviderName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = None,
    as_json: AsJson = False,
) -> None:
    """One job: its state, settings, error, result."""
    from afina.providers import jobs as api

    _print_job(api.get_job(_connection(provider, base_url, api_key_env), job), as_json)


@jobs.command("events", epilog="Example: afina jobs events ftjob-abc123")
def events(
    job: JobId,
    provider: ProviderName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only so many of the newest.")] = None,  # noqa: UP045
    as_json: AsJson = False,
) -> None:
    """What happened in a job, the oldest first."""
    from afina.providers import jobs as api

    found = api.new_events(_connection(provider, base_url, api_key_env), job, limit=limit)
    if as_json:
        _print_json(found)
        return
    for event in found:
        level = "" if event.get("level") == "info" else f"{event.get('level')}: "
        print(f"{_time(event['created_at'])}  {level}{_plain(event['message'])}")


def _change(verb: str, text: str) -> None:
    """Register cancel, pause or resume."""

    def change(
        job: JobId,
        provider: ProviderName = None,
        base_url: BaseUrl = None,
        api_key_env: KeyVariable = None,
        as_json: AsJson = False,
    ) -> None:
        from afina.providers import jobs as api

        _print_job(api.change_job(_connection(provider, base_url, api_key_env), job, verb), as_json)

    change.__doc__ = text
    jobs.command(verb, epilog=f"Example: afina jobs {verb} ftjob-abc123")(change)


_change("cancel", "Stop a job for good.")
_change("pause", "Stop a job for a while; its last checkpoint is kept.")
_change("resume", "Go on with a paused job.")


def _print_job(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(job)
        return
    error = job.get("error") or {}
    method = job.get("method") or {}
    settings = (method.get(method.get("type"), {}) or {}).get("hyperparameters") or job.get("hyperparameters") or {}
    rows: list[tuple[str, Any]] = [
        ("job", job["id"]),
        ("status", job["status"]),
        ("base", job["model"]),
        ("model", job.get("fine_tuned_model")),
        ("created", _time(job.get("created_at"))),
        ("finished", _time(job.get("finished_at"))),
        ("training file", job.get("training_file")),
        ("validation file", job.get("validation_file")),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("seed", job.get("seed")),
        ("trained tokens", job.get("trained_tokens")),
        ("error", error.get("message")),
    ]
    print("\n".join(_aligned([[name, _plain(value)] for name, value in rows if value not in (None, "")])))


# -- rescue ---------------------------------------------------------------------------------------


def rescue(
    model: Annotated[
        str, typer.Argument(help="The hosted model, as ft:gpt-4o-mini-2024-07-18:me::abc.", metavar="MODEL")
    ],
    inputs: Annotated[Path, typer.Option("--inputs", "-i", help="Rows to ask it: CSV, TSV, JSONL, JSON or Parquet.")],
    base_model: Annotated[str, typer.Option(help="What learns its answers: afina/nano, a folder, or a hub id.")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings of the student's recipe, as train.lora_r=32", metavar="KEY=VALUE"),
    ] = None,
    training_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The JSONL it was trained on: says how to ask, and its answers are learned too."),
    ] = None,
    instruction: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Its system message instead; '' for none."),
    ] = None,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The recipe it was trained by instead: says task and words."),
    ] = None,
    input_column: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Column of --inputs that it is asked with; several times for several."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of answers, recipe and run.")] = Path(
        "rescued"
    ),
    provider: ProviderName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = None,
    max_cost_usd: Annotated[Optional[float], typer.Option(min=0, help="Asking stops before it costs more.")] = None,  # noqa: UP045
    prices: Annotated[Optional[Path], typer.Option(help="Prices that replace the dated ones (YAML).")] = None,  # noqa: UP045
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 512,
    batch: Annotated[bool, typer.Option(help="Half the price where there is a batch endpoint; may take hours.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to the price; replace another run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save a hosted fine-tune: ask it, learn its answers.

    Asks it the rows, trains a model of yours on the answers, and says how well that agrees on rows it never saw.
    Killed, the same command continues and pays nothing twice.
    """
    from afina.labelling import Request
    from afina.rescue import agreement_lines
    from afina.rescue import rescue as run

    request = Request(
        model=model,
        provider=_provider(provider, base_url, api_key_env),
        inputs=inputs,
        base_model=base_model,
        output=output,
        recipe=recipe,
        training_file=training_file,
        instruction=instruction,
        input_columns=input_column or [],
        max_cost_usd=max_cost_usd,
        prices=prices,
        max_tokens=max_tokens,
        batch=batch,
        overrides=overrides or [],
    )
    agreement = run(request, agreement_asker(yes), overwrite=yes)
    if as_json:
        _print_json(agreement)
        return
    print("\n".join(agreement_lines(agreement)))
    print(f"Report:     {output / 'run' / 'report.html'}")
    print(f"Specialist: {output / 'run' / 'specialist'}")


# -- train, evaluate, run and plan of a hosted recipe -----------------------------------------------


def is_hosted(recipe: Recipe) -> bool:
    """Whether these commands carry a recipe out, and not those of the local pipeline."""
    return recipe.train.provider is not None or recipe.train.rounds is not None


def train(recipe: Recipe, yes: bool) -> None:
    from afina.runs import open_recipe

    agree = agreement_asker(yes)
    if recipe.train.rounds is not None:
        from afina.rounds import train_rounds

        print_rounds(train_rounds(recipe, agree, overwrite=yes), recipe.run_dir)
        return
    from afina import hosting

    result = hosting.train(open_recipe(recipe, overwrite=yes), agree)
    print(f"Model: {result.model}")


def print_rounds(result: dict[str, Any], folder: Path) -> None:
    """What every round's model has forgotten. folder: where rounds.json stands."""
    from afina.rounds import forgetting_lines

    print("\n".join(forgetting_lines(result)))
    print(f"Models: {', '.join(one['model'] for one in result['rounds'])}")
    print(f"Table:  {folder / 'forgetting.csv'}")


def prepare(opened: Run) -> Prepared:
    from afina import hosting

    return hosting.prepare(opened, quiet=True)


def plan(recipe: Recipe, as_json: bool) -> None:
    """Print what a hosted job costs. Nothing is sent, nothing stays."""
    import tempfile

    from afina import hosting

    if recipe.train.provider is None:
        raise RecipeError("train.rounds: plan one round at a time, with data.path=ROUND train.rounds=null")
    with tempfile.TemporaryDirectory() as folder:
        found = hosting.quote(recipe, Path(folder))
    if as_json:
        _print_json(
            {
                "tokens": found.tokens.tokens,
                "exact": found.tokens.exact,
                "epochs": found.num_epochs,
                "cost_usd": found.cost_usd,
            }
        )
        return
    print("\n".join(found.lines(recipe.train.base_model)))


def agreement_asker(yes: bool) -> Agree:
    """Shows what is about to be paid, and asks on a terminal; elsewhere only --yes agrees."""
    from afina.providers.budget import BudgetError

    def agree(lines: Sequence[str], cost_usd: float | None) -> None:
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        if yes or cost_usd == 0:
            return
        if not sys.stdin.isatty():
            raise BudgetError("this costs money, or what it costs is not known. Pass --yes to agree.")
        if not typer.confirm("Go on?", err=True):
            raise BudgetError("not agreed to; nothing was sent or paid.")

    return agree


# -- doctor --provider ------------------------------------------------------------------------------


def doctor(provider: str | None, base_url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """The caller's fine-tuned models, the last day of each, and what to do next."""
    from afina.providers import jobs as api
    from afina.providers import winddown
    from afina.providers.names import is_fine_tune

    connection = _connection(provider, base_url, api_key_env)
    today = datetime.datetime.now(datetime.UTC).date()
    ours = connection.provider.name in ("openai", "azure")
    found = []
    for model in api.list_models(connection):
        if not is_fine_tune(str(model["id"])):
            continue
        # The dated table is OpenAI's: the same names elsewhere live as long as their server.
        last = winddown.last_day(str(model["id"]) if ours else "", model.get("shutdown_date"))
        found.append(
            {
                "model": model["id"],
                "created": model.get("created"),
                "last_day": last.date.isoformat() if last else None,
                "days_left": last.days_left(today) if last else None,
                "source": last.source if last else None,
            }
        )
    found.sort(key=lambda row: (row["days_left"] is None, row["days_left"] or 0))
    note = winddown.jobs_end(today) if connection.provider.name == "openai" else None
    if as_json:
        _print_json({"provider": connection.provider.name, "models": found, "note": note})
        return
    if note:
        print(f"{note} Source: {winddown.source()}\n")
    if not found:
        print(f"{connection.provider.name}: no fine-tuned models.")
        return
    rows = [["fine-tuned model", "created", "last day", "days left"]]
    rows += [
        [_plain(row["model"]), _time(row["created"])[:10], row["last_day"] or "not known", _left(row["days_left"])]
        for row in found
    ]
    print("\n".join(_aligned(rows)))
    if threatened := next((row for row in found if row["days_left"] is not None and row["days_left"] > 0), None):
        options = "--inputs ROWS.csv --training-file FILE.jsonl --base-model MODEL"
        print(f"\nNext: afina rescue {_plain(threatened['model'])} {options}")


def _left(days: int | None) -> str:
    if days is None:
        return "-"
    return str(days) if days > 0 else "gone"


# -- details ---------------------------------------------------------------------------------------


def _provider(name: str | None, base_url: str | None, api_key_env: str | None) -> Provider:
    from afina.providers.client import find_provider

    if name is not None and base_url is not None:
        raise RecipeError("--provider and --base-url name two providers. Keep one of them.")
    return find_provider(base_url or name or "openai", api_key_env)


def _connection(name: str | None, base_url: str | None, api_key_env: str | None) -> Connection:
    from afina.providers.client import connect

    return connect(_provider(name, base_url, api_key_env))


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _plain(value: Any) -> str:
    """What a provider says, without characters that a terminal would obey."""
    text = "-" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def _time(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
