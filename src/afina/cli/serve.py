"""`afina serve` and `afina keys`: the API on this machine, and who may ask it. No logic."""

from __future__ import annotations

import datetime
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from afina.core.errors import MachineError, RunError

if TYPE_CHECKING:
    from afina.server.config import ServerConfig
    from afina.server.keys import Keys

NEEDED = ("fastapi", "uvicorn", "sqlalchemy", "python_multipart", "prometheus_client")

keys = typer.Typer(
    name="keys",
    help="Make, list and revoke API keys.",
    epilog="Example: afina keys create notebook",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataDir = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation
    typer.Option("--data-dir", help="Database, files and models; ~/.afina unless told otherwise.", metavar="DIR"),
]
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", help="Settings (YAML): aliases, limits, jobs_at_once, ...", metavar="FILE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def serve(
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="Run folders to ask and to look at on the page.", metavar="RUN", show_default=False),
    ] = None,
    host: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="127.0.0.1 unless told otherwise; 0.0.0.0 for every network of this machine."),
    ] = None,
    port: Annotated[Optional[int], typer.Option(help="8000 unless told otherwise; 0 for a free one.")] = None,  # noqa: UP045
    data_dir: DataDir = None,
    config: ConfigFile = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="One line each on standard error.")] = False,
) -> None:
    """OpenAI's fine-tuning API on this machine, and a page.

    Prints its address, a key at the first start, the page's link, and four lines of Python to try.
    AFINA_API_KEY presets the key, AFINA_DATABASE_URL names a PostgreSQL.
    """
    # Before torch is loaded: idle threads of a product sleep instead of spinning on a core that answers are sent from.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings = _settings(config, host=host, port=port, data_dir=data_dir, runs=runs or None)
    from afina.server.run import serve as run

    run(settings, preset_key=os.environ.get("AFINA_API_KEY"), log_requests=log_requests)


@keys.command("create", epilog="Example: afina keys create notebook")
def create(
    name: Annotated[str, typer.Argument(help="What it is for.", metavar="NAME")] = "key",
    data_dir: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once."""
    found = _keys(data_dir, config)
    key_id, plain = found.create(name)
    print(
        json.dumps({"id": key_id, "name": name, "key": plain})
        if as_json
        else f"{plain}\n(id {key_id}; shown this once)"
    )


@keys.command("list", epilog="Example: afina keys list --json")
def list_keys(data_dir: DataDir = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List all keys, the revoked ones too."""
    rows = _keys(data_dir, config).list()
    if as_json:
        print(json.dumps([vars(row) for row in rows], ensure_ascii=False))
        return
    for row in rows:
        state = "in force" if row.revoked_at is None else f"revoked {_date(row.revoked_at)}"
        print(f"{row.id}  {row.shown}  {_date(row.created_at)}  {state}  {row.name}")


@keys.command("revoke", epilog="Example: afina keys revoke key_0123456789abcdef")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `afina keys list` shows, or the key.", metavar="ID")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Close the door to a key."""
    row = _keys(data_dir, config).revoke(key_id)
    print(f"Revoked: {row.id}  {row.shown}  {row.name}")


def _settings(config: Path | None, **options: object) -> ServerConfig:
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise MachineError(
            f"The server's libraries are not installed ({', '.join(absent)}). Install them: pip install 'afina[serve]'"
        )
    from afina.server.config import load_config

    return load_config(config, os.environ, **options)


def _keys(data_dir: Path | None, config: Path | None) -> Keys:
    settings = _settings(config, data_dir=data_dir)
    from afina.server.keys import Keys
    from afina.server.places import Places
    from afina.server.store import Store

    places = Places(settings.data_dir)
    if settings.database_url is None and not places.database.is_file():
        raise RunError(
            f"{places.root}: no server has worked here yet. Start one with `afina serve`, or check --data-dir."
        )
    return Keys(Store(settings.url_of_database(places.database)))


def _date(unix: int) -> str:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%d %H:%M")
