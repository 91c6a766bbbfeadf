"""The main job where a provider trains: recipe -> data -> price -> job -> evaluation, in the usual run folder.

The stages and files are those of `pipeline`; there is no specialist folder, but `hosted.json`, which names the model.
Every answer of a hosted model is kept in `answers.sqlite`, so that nothing is asked, or paid, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afina import pipeline
from afina.core.config import Recipe, load_task
from afina.core.errors import RunError
from afina.core.predictor import Example
from afina.core.storage import read_json, write_json, write_jsonl
from afina.core.task import Task
from afina.data.prepare import Prepared
from afina.evaluation.runner import SystemRun, run_system
from afina.evaluation.runner import evaluate as evaluate_systems
from afina.pipeline import say
from afina.providers.asking import Asker
from afina.providers.budget import Budget
from afina.providers.cache import AnswerCache
from afina.providers.client import Connection, connect, find_provider
from afina.providers.prices import FREE, dollars
from afina.providers.tokens import counter
from afina.providers.wording import training_lines
from afina.runs import Run, environment
from afina.strategies.hosted import HostedPredictor
from afina.training import hosted
from afina.training.hosted import Agree, HostedResult, Quote
from afina.training.machine import machine

FILES = "hosted"  # folder of the files that are sent
ANSWERS = "answers.sqlite"


def connection_of(recipe: Recipe) -> Connection:
    """Raises ProviderError if the key or the SDK is missing."""
    assert recipe.train.provider is not None, "called for hosted recipes only"
    return connect(find_provider(recipe.train.provider, recipe.train.api_key_env))


# -- 1. data --------------------------------------------------------------------------------------


def prepare(opened: Run, *, quiet: bool = False) -> Prepared:
    """`pipeline.prepare`, with lengths counted as the provider counts them."""
    return pipeline.prepare(opened, quiet=quiet, lengths=lambda run: _token_lengths(run.task))


def _token_lengths(task: Task) -> Any:
    count, _ = counter()

    def longest(example: Example) -> int:
        lines = training_lines(task, [example])
        return max((sum(count(m["content"]) + 4 for m in line["messages"]) for line in lines), default=0)

    return longest


# -- 2. price -------------------------------------------------------------------------------------


def quote(recipe: Recipe, folder: Path) -> Quote:
    """What the recipe's job will cost; `folder` is written into. Nothing is sent."""
    opened = Run(recipe, load_task(recipe.task), folder)
    prepared = prepare(opened, quiet=True)
    files = hosted.write_files(opened.task, prepared.splits["train"], prepared.splits["validation"], folder / FILES)
    assert recipe.train.provider is not None, "called for hosted recipes only"
    return hosted.quote(files, recipe.train, find_provider(recipe.train.provider, recipe.train.api_key_env))


# -- 3. training ----------------------------------------------------------------------------------


def train(opened: Run, agree: Agree) -> HostedResult:
    """The hosted model. A killed call goes on with the job it began. Raises ProviderError, BudgetError."""
    if opened.is_done("train", opened.train_key) and (known := trained(opened)) is not None:
        return known
    connection = connection_of(opened.recipe)  # a missing key is told before the data are read
    prepared = prepare(opened)
    splits = prepared.splits
    files = hosted.write_files(opened.task, splits["train"], splits["validation"], opened.folder / FILES)
    result = hosted.train(connection, files, opened.recipe.train, opened.recipe.seed, opened.folder, agree, say)
    write_jsonl(opened.folder / "metrics.jsonl", result.history)
    opened.mark_done("train", opened.train_key)
    return result


def trained(opened: Run) -> HostedResult | None:
    """The finished training of this run, from its ledger."""
    try:
        ledger = read_json(opened.folder / hosted.LEDGER)
        job = ledger["job"]
        return HostedResult(
            model=ledger["fine_tuned_model"],
            job_id=job["id"],
            trained_tokens=job.get("trained_tokens"),
            cost_usd=ledger.get("cost_usd"),
            train_seconds=float((job.get("finished_at") or 0) - (job.get("created_at") or 0)),
            history=[],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -- 4. evaluation --------------------------------------------------------------------------------


def predictor(
    recipe: Recipe, task: Task, name: str, model: str, answers: Path, spent_usd: float = 0.0
) -> HostedPredictor:
    """A hosted model of this recipe's provider. spent_usd: of max_cost_usd, on other things than answers."""
    connection = connection_of(recipe)
    cache = AnswerCache(answers)
    price = hosted.find_price(connection.provider, model, recipe.train.prices)
    budget = Budget(recipe.train.max_cost_usd, spent_usd + cache.spent_usd)
    # Few rows: a batch, which may take hours, saves cents.
    asker = Asker(connection, cache, price, budget, batch=False, tell=say)
    return HostedPredictor(name, model, task, asker, max_tokens=recipe.answer.max_text_tokens * 4)


def agree_to_ask(found: HostedPredictor, examples: Sequence[Example], agree: Agree) -> None:
    """Tell what asking these rows will cost before they are asked; silent where all is known already."""
    estimate = found.asker.estimate(found.bodies([example.inputs for example in examples]))
    if not estimate.num_new or found.asker.price is FREE:
        return
    cost = "at a price that is not known" if estimate.likely_usd is None else f"about {dollars(estimate.likely_usd)}"
    agree([f"asking {found.model}: {estimate.num_new} requests, {cost}"], estimate.likely_usd)


def evaluate(opened: Run, agree: Agree) -> dict[str, Any]:
    """Every system of `compare` on the test rows; what report.json holds. See `pipeline.evaluate`."""
    path = opened.folder / "report.json"
    if opened.is_done("evaluate", opened.evaluate_key) and path.exists():
        return read_json(path)
    prepared = prepare(opened)
    test = prepared.splits["test"]
    systems = [_system(opened, strategy, prepared, agree) for strategy in opened.recipe.compare]
    result = evaluate_systems(opened.task, test, prepared.splits["train"], systems, opened.recipe.seed)
    result = {"version": result.pop("version"), "recipe_hash": opened.recipe.hash, **result}
    for system in systems:
        rows = [pipeline._prediction_row(e, p) for e, p in zip(test, system.predictions, strict=True)]
        write_jsonl(opened.folder / "predictions" / f"{system.name}.jsonl", rows)
    shown = next((s for s in systems if s.strategy == "finetuned"), systems[-1])
    answered = zip(test, shown.predictions, strict=True)
    write_json(opened.folder / "examples.json", [pipeline._shown(opened.task, e, p) for e, p in answered])
    write_json(opened.folder / "environment.json", environment(opened, machine(opened.recipe.run_dir).to_json()))
    write_json(path, result)
    opened.mark_done("evaluate", opened.evaluate_key)
    return result


def _system(opened: Run, strategy: str, prepared: Prepared, agree: Agree) -> SystemRun:
    if strategy in ("majority", "tfidf"):
        return pipeline._system(opened, strategy, prepared)
    recipe, test = opened.recipe, prepared.splits["test"]
    model, seconds, spent = recipe.train.base_model, 0.0, 0.0
    name = "specialist" if strategy == "finetuned" else strategy
    if strategy == "finetuned":
        result = train(opened, agree)
        model, seconds, spent = result.model, result.train_seconds, result.cost_usd or 0.0
    asked = predictor(recipe, opened.task, name, model, opened.folder / ANSWERS, spent)
    agree_to_ask(asked, test, agree)
    found = run_system(asked, test, strategy, recipe.train.base_model, seconds, num_timed=0)
    return replace(found, peak_memory_bytes=None)  # it is the provider's memory that counts


def run(opened: Run, agree: Agree) -> dict[str, Any]:
    """Prepare, train, evaluate, report. Returns what report.json holds."""
    if opened.recipe.train.rounds:
        raise RunError("train.rounds is trained round by round. Give: afina train RECIPE.yaml")
    prepare(opened)
    if "finetuned" in opened.recipe.compare:
        train(opened, agree)
    result = evaluate(opened, agree)
    pipeline.write_reports(opened.folder)
    return result
