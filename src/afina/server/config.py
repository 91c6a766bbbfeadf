"""The server's settings: one strict YAML file, environment variables, options of the command line; the later wins.

Comes in: a path, an environment, options. Goes out: a frozen `ServerConfig`. The names that OpenAI's clients know are
aliases of base models here, because litellm, DSPy and LlamaIndex refuse any other. Reads no environment at import, and
no secrets at all: keys are the matter of `keys.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator

from afina.core.config_base import Config
from afina.core.errors import RecipeError
from afina.core.recipe_file import _expected, _place, _StrictLoader, _yaml_problem
from afina.core.train_config import TrainConfig

NANO = "afina/nano"
SNAPSHOTS = (
    "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano-2025-04-14", "gpt-3.5-turbo-0125", "gpt-3.5-turbo-1106",
)  # fmt: skip
COMPLETION_SNAPSHOTS = ("davinci-002", "babbage-002")
SHORT_NAMES = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
}
# Settings of the recipe's `train` that a job decides itself.
JOB_DECIDES = {"base_model", "num_train_epochs", "max_steps", "learning_rate", "report_to", "adapt", "loss_on"}
DEFAULT_DATA_DIR = Path("~/.afina")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MEGABYTE = 1024 * 1024


class Alias(Config):
    """A base model under a name that clients know."""

    base_model: str = Field(min_length=1, description="afina/nano, a local folder, or a Hugging Face model id.")
    train: dict[str, Any] = Field(default={}, description="Settings of the recipe's `train` for its jobs, as lora_r.")
    context: int | None = Field(
        default=None, ge=16, description="Tokens of prompt and answer; the model's own if null."
    )
    style: Literal["chat", "completion", "auto"] = "auto"

    @field_validator("train")
    @classmethod
    def _known_settings(cls, train: dict[str, Any]) -> dict[str, Any]:
        allowed = set(TrainConfig.model_fields) - JOB_DECIDES
        for key in train:
            if key not in allowed:
                near = difflib.get_close_matches(key, sorted(allowed), n=1, cutoff=0.6)
                hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(sorted(allowed))}."
                raise ValueError(f"unknown key {key}. {hint}")
        TrainConfig.model_validate(train)
        return train


class ServerConfig(Config):
    """Everything about one server but its keys."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0: a free one.")
    data_dir: Path = DEFAULT_DATA_DIR
    database_url: SecretStr | None = Field(default=None, description="PostgreSQL instead of a SQLite file.")
    organisation: str = Field(default="afina", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="In ft: names.")
    base_model: str = Field(default=NANO, min_length=1, description="What OpenAI's names stand for.")
    aliases: dict[str, Alias] = Field(default={}, description="Names besides those, or instead of them.")
    runs: list[Path] = Field(default=[], description="Run folders that the page shows and asks.")

    jobs_at_once: int = Field(default=1, ge=1)
    max_rows: int = Field(default=32, ge=1, le=1024, description="Answers of one model written together.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The most of one answer, whatever is asked for; null: what the context leaves."
    )
    max_waiting: int = Field(default=256, ge=1, description="Requests that wait for their turn; more are refused.")
    memory_budget_bytes: int | None = Field(
        default=None, ge=MEGABYTE, description="Of loaded models' weights; half of this machine's memory if null."
    )
    request_timeout_s: float = Field(default=600.0, gt=0, description="Of one answer.")
    body_timeout_s: float = Field(default=60.0, gt=0, description="Without a byte from a client that sends a body.")
    shutdown_timeout_s: float = Field(default=10.0, gt=0, description="For the answers under way when asked to stop.")
    max_body_bytes: int = Field(default=10 * MEGABYTE, ge=1024, description="Of a JSON body.")
    max_file_bytes: int = Field(default=512 * MEGABYTE, ge=1024)
    max_batch_file_bytes: int = Field(default=200 * MEGABYTE, ge=1024)
    requests_per_minute: int | None = Field(default=None, ge=1, description="Of one key; null: no limit.")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Of one key; null: no limit.")

    @field_validator("aliases", mode="before")
    @classmethod
    def _plain_names(cls, raw: Any) -> Any:
        """`gpt-4o: some/model` is short for `gpt-4o: {base_model: some/model}`."""
        if not isinstance(raw, dict):
            return raw
        return {name: {"base_model": value} if isinstance(value, str) else value for name, value in raw.items()}

    @field_validator("aliases")
    @classmethod
    def _usable_names(cls, aliases: dict[str, Alias]) -> dict[str, Alias]:
        for name in aliases:
            if not name or name.startswith("ft:") or not name.isprintable() or len(name) > 200:
                raise ValueError(
                    f"{name!r} cannot be a model's name: it is empty, unprintable, long, or begins with ft:"
                )
        return aliases

    @cached_property
    def models(self) -> dict[str, Alias]:
        """Every base model by its full name, the configured ones first."""
        made = {name: Alias(base_model=self.base_model) for name in SNAPSHOTS}
        made |= {name: Alias(base_model=self.base_model, style="completion") for name in COMPLETION_SNAPSHOTS}
        made[NANO] = Alias(base_model=NANO)
        return {**self.aliases, **{name: alias for name, alias in made.items() if name not in self.aliases}}

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Short name -> full name, as gpt-4o -> gpt-4o-2024-08-06, unless the short one is an alias itself."""
        return {short: full for short, full in SHORT_NAMES.items() if short not in self.aliases}

    def full_name(self, name: str) -> str | None:
        """The base model's name that an answer carries; None for a name that is no base model."""
        full = self.short_names.get(name, name)
        return full if full in self.models else None

    def alias(self, name: str) -> Alias | None:
        """The base model behind a name, short or full; None for a name that is no base model."""
        full = self.full_name(name)
        return None if full is None else self.models[full]

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK or self.host.startswith("127.")

    def url_of_database(self, sqlite_file: Path) -> str:
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{sqlite_file}"


# What the environment may say, besides AFINA_API_KEY (keys.py): one variable for every plain setting.
VARIABLES = {f"AFINA_{name.upper()}": name for name in ServerConfig.model_fields if name not in ("aliases", "runs")}


def load_config(file: Path | None, environment: Mapping[str, str], **options: Any) -> ServerConfig:
    """options: of the command line; None for one that was not given.

    Raises RecipeError for a file that cannot be read, an unknown key, a wrong value.
    """
    raw = {} if file is None else _read(file)
    sources = dict.fromkeys(raw, str(file))
    for variable, name in VARIABLES.items():
        if environment.get(variable):
            raw[name], sources[name] = environment[variable], variable
    for name, value in options.items():
        if value is not None:
            raw[name], sources[name] = value, f"--{name.replace('_', '-')}"
    try:
        return ServerConfig.model_validate(raw)
    except ValidationError as error:
        lines = dict.fromkeys(_line(problem, sources) for problem in error.errors())
        raise RecipeError("\n".join(lines)) from error


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise RecipeError(f"{file}: no such file, expected the server's settings (YAML). Check --config.")
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: is no UTF-8 text, expected the server's settings (YAML).") from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{_place(file, error)}: is no valid YAML: {_yaml_problem(error)}. Correct that line."
        ) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: found a list or a single value, expected settings as `port: 8000`.")
    return {str(key): value for key, value in _rebased(raw, file.parent).items()}


def _rebased(raw: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """Paths in the file are relative to it: the data folder, runs, and base models that begin with a dot."""

    def model(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value.startswith(("./", "../")) else value

    done = dict(raw)
    if isinstance(done.get("data_dir"), str) and not done["data_dir"].startswith("~"):
        done["data_dir"] = str(folder / done["data_dir"])
    if isinstance(done.get("runs"), list):
        done["runs"] = [path if str(path).startswith("~") else str(folder / str(path)) for path in done["runs"]]
    done["base_model"] = model(done.get("base_model"))
    if isinstance(done.get("aliases"), dict):
        done["aliases"] = {
            name: {**alias, "base_model": model(alias.get("base_model"))} if isinstance(alias, dict) else model(alias)
            for name, alias in done["aliases"].items()
        }
    return {key: value for key, value in done.items() if value is not None}


def _line(problem: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    place = [str(part) for part in problem["loc"]]
    where, key = sources.get(place[0], "the server's settings"), ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = Alias.model_fields if place[0] == "aliases" else ServerConfig.model_fields
        near = difflib.get_close_matches(place[-1], list(known), n=1, cutoff=0.6)
        return f"{where}: unknown key {key}. " + (f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.")
    if problem["type"] == "missing":
        return f"{where}: {key} is missing. Add it."
    if problem["type"] == "value_error":
        return f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}"
    found = "a hidden value" if "url" in place[-1] else repr(problem.get("input"))
    return f"{where}: {key}: found {found}, expected {_expected(problem)}. Correct it."
