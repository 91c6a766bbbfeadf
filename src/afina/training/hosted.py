"""Training at a provider: examples in, a hosted model's name out, and a ledger that makes a killed run whole again.

Comes in: labelled examples, a connection, what the job may cost. Goes out: `HostedResult`, and in the folder the files
that were sent, `hosted.json` (the ledger), `step_metrics.csv`. Each paid step is noted before and after it; a run that
finds no note asks the provider for a job with its name before it creates one. It never asks the user: `agree` does.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.progress import Progress
from afina.core.storage import digest, file_digest, read_json, write_json, write_jsonl, write_text
from afina.core.task import Task
from afina.core.train_config import TrainConfig
from afina.data.training_file import MIN_EXAMPLES, Checked, check, job_error, read
from afina.providers import jobs
from afina.providers.budget import Budget, BudgetError
from afina.providers.client import Connection, Provider, ProviderError
from afina.providers.names import is_fine_tune
from afina.providers.prices import FREE, Price, dollars, load_prices
from afina.providers.tokens import TokenCount, count_examples
from afina.providers.wording import training_lines

LEDGER, METRICS = "hosted.json", "step_metrics.csv"
TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"
LEDGER_VERSION = 1
MOST_SHOWN = 20  # bad lines in one message
LARGEST_SEED = 2**31 - 1
Agree = Callable[[Sequence[str], float | None], None]
"""Told what is about to be paid for and its price (None: not known); raises BudgetError if the user does not agree."""
AUTO_FEWEST, AUTO_MOST, AUTO_EPOCHS = 100, 25_000, 3  # the provider's rule for n_epochs: auto


@dataclass(frozen=True)
class HostedFiles:
    """What is sent. validation: None where there is no such example. name: of the content, by its hash."""

    training: Path
    validation: Path | None
    num_examples: int
    count: TokenCount

    @property
    def hashes(self) -> list[str]:
        return [file_digest(path) for path in (self.training, self.validation) if path is not None]


@dataclass(frozen=True)
class Quote:
    """What a job will cost. cost_usd: None where no price is known. epochs_are_known: n_epochs is no `auto`."""

    tokens: TokenCount
    num_epochs: int
    epochs_are_known: bool
    price: Price | None
    cost_usd: float | None

    def lines(self, model: str) -> list[str]:
        """What the user agrees to."""
        epochs = f"{self.num_epochs} epoch{'s' * (self.num_epochs != 1)}"
        epochs += "" if self.epochs_are_known else " (auto: the provider decides; this is its published rule)"
        first = f"{model}: {self.tokens.words} × {epochs}"
        if self.price is FREE:
            return [f"{first}; a server on this machine, nothing to pay"]
        if self.price is None or self.cost_usd is None:
            return [f"{first}; no price of this model is known (train.prices can name one)"]
        rate = f"${self.price.training:g} per million tokens ({self.price.source}, {self.price.as_of})"
        return [f"{first} = {'' if self.tokens.exact else 'about '}{dollars(self.cost_usd)}", f"price: {rate}"]


@dataclass(frozen=True)
class HostedResult:
    """model: the fine-tune's full name. trained_tokens: as billed. history: a row per step of the provider's CSV."""

    model: str
    job_id: str
    trained_tokens: int | None
    cost_usd: float | None
    train_seconds: float
    history: list[dict[str, float]]


# -- 1. files -------------------------------------------------------------------------------------


def write_files(
    task: Task, train_set: Sequence[Example], validation_set: Sequence[Example], folder: Path
) -> HostedFiles:
    """Write and check what is to be sent. Raises DataError with every bad line, a line each."""
    training, validation = folder / TRAINING, folder / VALIDATION
    write_jsonl(training, training_lines(task, train_set))
    checked = check_file(training)
    lines = training_lines(task, validation_set)
    if lines:
        write_jsonl(validation, lines)
        check_file(validation, "validation_file")
    count = count_examples(read(training))
    return HostedFiles(training, validation if lines else None, checked.num_examples, count)


def check_file(path: Path, param: str = "training_file") -> Checked:
    """Hold a file against the API's rules before it is sent. Raises DataError naming the bad lines."""
    checked = check(path)
    if checked.problems:
        shown = [f"{path}:{problem.line}: {problem.message}" for problem in checked.problems[:MOST_SHOWN]]
        more = checked.num_bad_lines - len(shown)
        shown += [f"and {more} more"] if more > 0 else []
        raise DataError("\n".join([*shown, "Nothing was sent. Correct these lines."]))
    if (error := job_error(checked, param)) is not None:
        raise DataError(f"{path}: {error['message']}. Nothing was sent; add examples (at least {MIN_EXAMPLES}).")
    return checked


# -- 2. price -------------------------------------------------------------------------------------


def auto_epochs(num_examples: int) -> int:
    """What `n_epochs: auto` becomes, by OpenAI's published rule."""
    if num_examples * AUTO_EPOCHS < AUTO_FEWEST:
        return min(25, AUTO_FEWEST // max(1, num_examples))
    if num_examples * AUTO_EPOCHS > AUTO_MOST:
        return max(1, AUTO_MOST // num_examples)
    return AUTO_EPOCHS


def find_price(provider: Provider, model: str, own: Path | None, *, asked_only: bool = False) -> Price | None:
    """Of a model at a provider: the user's own price, else OpenAI's for OpenAI; a server on this machine is free.

    asked_only: the model is asked and not trained, which costs less where it is no fine-tune.
    """
    fine_tuned = not asked_only or is_fine_tune(model)
    found = load_prices(own, packaged=provider.name == "openai", fine_tuned=fine_tuned).find(model)
    return FREE if found is None and provider.is_local else found


def quote(files: HostedFiles, train: TrainConfig, provider: Provider) -> Quote:
    asked = train.hyperparameters.n_epochs
    epochs = auto_epochs(files.num_examples) if isinstance(asked, str) else asked
    price = find_price(provider, train.base_model, train.prices)
    cost = price.training_usd(files.count.tokens, epochs) if price is not None else None
    return Quote(files.count, epochs, not isinstance(asked, str), price, cost)


def require_within(found: Quote, train: TrainConfig) -> None:
    """Raises BudgetError for a job that may cost more than max_cost_usd, or whose cost cannot be told."""
    if train.max_cost_usd is None or found.price is FREE:
        return
    if found.cost_usd is None:
        raise BudgetError(
            f"train.max_cost_usd is {train.max_cost_usd:g}, but no price of {train.base_model} is known, so the cap "
            "cannot be kept. Name the price in train.prices, or remove the cap."
        )
    Budget(train.max_cost_usd).reserve(found.cost_usd, f"training {train.base_model}")


# -- 3. the job -----------------------------------------------------------------------------------


def train(
    connection: Connection,
    files: HostedFiles,
    train: TrainConfig,
    seed: int,
    folder: Path,
    agree: Agree,
    say: Callable[[str], None],
) -> HostedResult:
    """Send, create, follow, fetch. The same call on the same folder goes on where a killed one stopped.

    agree: is called before anything is paid; not for a job that exists. Raises ProviderError, BudgetError.
    """
    found = quote(files, train, connection.provider)
    seed %= LARGEST_SEED + 1
    run = run_key(connection.provider, files, train, seed)
    ledger = _Ledger(folder / LEDGER, run, connection.provider, train.base_model, found)
    job = _known_job(connection, ledger)
    if job is None:
        require_within(found, train)
        agree(found.lines(train.base_model), found.cost_usd)
        job = _new_job(connection, ledger, files, train, seed, say)
    say(f"job {job['id']} at {connection.provider.name}; stopped, the same command finds it again")
    job = _follow(connection, job, say)
    ledger.note("ended", job=job)
    if job["status"] != "succeeded":
        raise ProviderError(_why(connection.provider, job))
    text = jobs.step_metrics(connection, job)
    if text is not None:
        write_text(folder / METRICS, text)
    trained = job.get("trained_tokens")
    cost = found.price.training_usd(int(trained), 1) if found.price is not None and trained is not None else None
    ledger.note("finished", cost_usd=cost, fine_tuned_model=job["fine_tuned_model"])
    return HostedResult(
        model=str(job["fine_tuned_model"]),
        job_id=str(job["id"]),
        trained_tokens=trained,
        cost_usd=cost,
        train_seconds=max(0.0, float((job.get("finished_at") or 0) - (job.get("created_at") or 0))),
        history=read_metrics(text or ""),
    )


def run_key(provider: Provider, files: HostedFiles, train: TrainConfig, seed: int) -> str:
    """Of all that decides the job; in its metadata, so that it is found again."""
    wanted = train.hyperparameters.model_dump(mode="json")
    return digest([provider.base_url, train.base_model, files.hashes, train.suffix, wanted, seed])


def _known_job(connection: Connection, ledger: _Ledger) -> dict[str, Any] | None:
    """The job of this run as the ledger has it, unless it failed: then a new one may be wanted."""
    known = ledger.job_id
    if known is None:
        return None
    try:
        job = jobs.get_job(connection, known)
    except ProviderError as error:
        if error.status == 404:
            return None
        raise
    return None if job["status"] in ("failed", "cancelled") else job


def _new_job(
    connection: Connection,
    ledger: _Ledger,
    files: HostedFiles,
    train: TrainConfig,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    # 1. Files: named by their content, so that what is there already is not sent again.
    say(f"sending {files.num_examples} examples to {connection.provider.name}")
    ids = [
        jobs.upload(connection, path, f"afina-{file_digest(path)}.jsonl")
        for path in (files.training, files.validation)
        if path is not None
    ]
    ledger.note("sent", training_file=ids[0], validation_file=ids[1] if len(ids) > 1 else None)
    # 2. A job of this run may exist: created by a part that was killed before it could note it.
    job = jobs.find_job(connection, ledger.run, ids[0], seed)
    if job is None:
        ledger.note("creating")
        job = jobs.create_job(
            connection,
            model=train.base_model,
            training_file=ids[0],
            validation_file=ids[1] if len(ids) > 1 else None,
            suffix=train.suffix,
            seed=seed,
            hyperparameters=train.hyperparameters.model_dump(mode="json"),
            run=ledger.run,
        )
    ledger.note("created", job=job)
    return job


def _follow(connection: Connection, job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Follow to the end, with a bar over the steps and a line for each other event."""
    bar = Progress("training", 0, "steps")

    def tell(event: Mapping[str, Any]) -> None:
        data = event.get("data") or {}
        if event.get("type") == "metrics" and data.get("step") is not None:
            bar.total = int(data.get("total_steps") or bar.total)
            loss = data.get("train_loss")
            bar.advance(max(0, int(data["step"]) - bar.done), f"loss {loss:.3f}" if isinstance(loss, float) else "")
        else:
            bar.close()
            say(f"  {event.get('message')}")

    try:
        return jobs.follow(connection, str(job["id"]), tell, pause_s=1.0 if connection.provider.is_local else 10.0)
    finally:
        bar.close()


def _why(provider: Provider, job: Mapping[str, Any]) -> str:
    if job["status"] == "cancelled":
        return f"{provider.name}: the job {job['id']} was cancelled. The same command begins a new one."
    error = job.get("error") or {}
    reason = " ".join(str(error.get("message") or "no reason given").split())
    return f"{provider.name}: the job {job['id']} failed: {reason} ({error.get('code')}). Nothing was trained."


def read_metrics(text: str) -> list[dict[str, float]]:
    """Rows of a step_metrics.csv; what is empty or no number is left out."""
    found: list[dict[str, float]] = []
    for row in csv.DictReader(io.StringIO(text)):
        values: dict[str, float] = {}
        for name, value in row.items():
            with suppress(TypeError, ValueError):
                values[str(name)] = float(value)
        if values:
            found.append(values)
    return found


class _Ledger:
    """hosted.json: which files and job belong to this run, what they cost, and every step with its time.

    A ledger of another run (other data, other settings) is put aside: its job is not ours.
    """

    def __init__(self, path: Path, run: str, provider: Provider, model: str, found: Quote) -> None:
        self.path, self.run = path, run
        known: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):
            known = read_json(path)
        if known.get("run") != run:
            earlier: list[Any] = known.pop("earlier", [])
            known = {"version": LEDGER_VERSION, "run": run, "earlier": [*earlier, known] if known else earlier}
        self.content: dict[str, Any] = known | {
            "provider": provider.name,
            "base_url": provider.base_url,
            "base_model": model,
            "tokens": found.tokens.tokens,
            "tokens_are_exact": found.tokens.exact,
            "num_epochs": found.num_epochs,
            "quoted_usd": found.cost_usd,
        }

    @property
    def job_id(self) -> str | None:
        job = self.content.get("job")
        return str(job["id"]) if isinstance(job, dict) and job.get("id") else None

    def note(self, step: str, **values: Any) -> None:
        """Write down that `step` was reached, with what is known since; on the disk before this returns."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.content |= values
        self.content["steps"] = [*self.content.get("steps", []), {"at": now, "step": step}]
        write_json(self.path, self.content)
