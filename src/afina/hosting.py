"""The main job where a provider trains: recipe -> data -> price -> job -> evaluation, in the usual run folder.

The stages and files are those of `pipeline`; there is no specialist folder, but `hosted.json`, which names the model.
Every answer of a hosted model is kept in `answers.sqlite`, so that nothing is asked, or paid, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afina import pipeline
from afina.core.config import Recipe
from afina.core.predictor import Example
from afina.core.storage import read_json, write_jsonl
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.prepare import Prepared
from afina.evaluation.runner import SystemRun, run_system
from afina.pipeline import ANSWERS, say
from afina.providers.asking import Asker
from afina.providers.budget import Budget
from afina.providers.cache import AnswerCache
from afina.providers.client import Connection, connect, find_provider
from afina.providers.prices import FREE, dollars
from afina.providers.tokens import counter
from afina.providers.wording import training_lines
from afina.runs import Run
from afina.strategies.hosted import HostedPredictor
from afina.training import hosted
from afina.training.hosted import Agree, HostedResult, Quote

FILES = "hosted"  # folder of the files that are sent


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
    price = hosted.find_price(connection.provider, model, recipe.train.prices, asked_only=True)
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
    prepare(opened)
    return pipeline.evaluate(opened, lambda run, prepared: partial(_answers_of, run, prepared, agree))


def _answers_of(opened: Run, prepared: Prepared, agree: Agree, name: str) -> SystemRun:
    builder = pipeline.strategy_builder(opened, prepared, lambda asked: make_hosted(opened, agree, asked))
    predictor = builder.predictor(name)
    if not isinstance(predictor, HostedPredictor):
        return pipeline.answers_of(opened, prepared, builder, name)
    test = prepared.splits["test"]
    agree_to_ask(predictor, test, agree)
    known = trained(opened) if name == "finetuned" else None
    seconds = known.train_seconds if known is not None else 0.0
    found = run_system(predictor, test, name, opened.recipe.train.base_model, seconds, num_timed=0)
    return replace(found, peak_memory_bytes=None)  # it is the provider's memory that counts


def make_hosted(opened: Run, agree: Agree, name: str) -> HostedPredictor | None:
    """The hosted model, before its training or after; None for what is no model of the provider's."""
    recipe = opened.recipe
    if name == "finetuned":
        result = train(opened, agree)
        return predictor(
            recipe, opened.task, "specialist", result.model, opened.folder / ANSWERS, result.cost_usd or 0.0
        )
    if name == "zero-shot":
        return predictor(recipe, opened.task, name, recipe.train.base_model, opened.folder / ANSWERS)
    return None
