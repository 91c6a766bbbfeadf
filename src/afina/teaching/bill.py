"""What a comparison will cost, model by model, before any is asked: from the least to the most.

Comes in: a recipe, who is asked about which rows, prices. Goes out: a `ModelBill` for each paid model, and lines for
whoever has to agree. Nothing is asked. What is answered already is not known here, so a bill is of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from afina import pipeline
from afina.core.config import Recipe
from afina.core.predictor import Example, Inputs, Predictor
from afina.core.strategy_config import CascadeConfig, ModelConfig
from afina.core.task import Task
from afina.data.prepare import Prepared
from afina.providers.cache import AnswerCache
from afina.providers.endpoints import find_chat_price, find_endpoint
from afina.providers.prices import FREE, Price, dollars
from afina.providers.tokens import counter
from afina.runs import Run
from afina.strategies.build import models_under
from afina.teaching.estimate import MARGIN, tokens_of, usd_of, uses
from afina.teaching.source import read_source
from afina.training.hosted import Agree

Asked = Sequence[tuple[str, Sequence[Inputs]]]
"""Names of `compare`, a teacher's too, with the rows that each is asked about."""


@dataclass(frozen=True)
class ModelBill:
    """Of one model of the recipe. Dollars are None where no price is known, which is not the price 0.

    least_usd: every answer of one token, and none asked that might not be. most_usd: every
    answer as long as it may be. exact: whether tokens were counted by the model's own tokenizer.
    """

    model: str
    served_by: str
    requests: int
    prompt_tokens: int
    exact: bool
    least_usd: float | None
    likely_usd: float | None
    most_usd: float | None
    source: str = ""

    @property
    def line(self) -> str:
        tokens = f"{'' if self.exact else 'about '}{self.prompt_tokens:,} tokens to read"
        asked = f"{self.model} ({self.served_by}): about {self.requests:,} requests, {tokens}"
        if self.likely_usd is None or self.least_usd is None or self.most_usd is None:
            return f"{asked}; no price is known (models.{self.model}.prices can name one)"
        return f"{asked}: {dollars(self.least_usd)} to {dollars(self.most_usd)}, about {dollars(self.likely_usd)}"


def price_of(config: ModelConfig) -> Price | None:
    """Of a model at a provider; None where none is known. A server on this machine is FREE unless priced."""
    return find_chat_price(find_endpoint(str(config.provider), config.api_key_env), config)


def paid_models(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Models that cost something, or may, and that these systems ask, themselves or through others."""
    asked = set[str]().union(*(models_under(recipe, name) for name in names)) - {"base"}
    elsewhere = [name for name in sorted(asked) if recipe.models[name].provider is not None]
    return [name for name in elsewhere if price_of(recipe.models[name]) is not FREE]


def bills(
    recipe: Recipe,
    task: Task,
    asked: Asked,
    validation: Sequence[Inputs],
    train: Sequence[Example],
    strategy: Callable[[str], Predictor],
) -> list[ModelBill]:
    """One for each paid model, by name.

    validation: rows on which a cascade chooses its threshold. train: for how long an answer is. strategy: makes the
    predictor of a strategy that asks only itself. Raises what opening a model raises (no key).
    """
    count, exact = counter()
    paid = paid_models(recipe, [name for name, _ in asked])
    prices = {name: price_of(recipe.models[name]) for name in paid}
    sums = {name: [0.0] * 5 for name in paid}  # requests, tokens, least, likely, most
    for name, rows in _with_thresholds(recipe, asked, validation):
        for use in uses(recipe, name):
            if use.model not in sums or not rows:
                continue
            read, written = tokens_of(recipe, task, use, rows, train, count, strategy)
            price, config, number = prices[use.model], recipe.models[use.model], len(rows) * len(task.parts)
            added = [use.likely * number, use.likely * number * read, 0.0, 0.0, 0.0]
            if price is not None:
                added[2] = usd_of(price, use.fewest * number, read / MARGIN, 1, batch=config.batch)
                added[3] = usd_of(price, use.likely * number, read, written, batch=config.batch)
                added[4] = usd_of(price, use.most * number, read * MARGIN, config.max_tokens, batch=False)
            sums[use.model] = [a + b for a, b in zip(sums[use.model], added, strict=True)]
    return [_bill(recipe, name, sums[name], prices[name], exact=exact) for name in paid]


def _with_thresholds(recipe: Recipe, asked: Asked, validation: Sequence[Inputs]) -> list[tuple[str, Sequence[Inputs]]]:
    """And the validation rows that a cascade asks its first about, and for an accuracy its second."""
    found = list(asked)
    for name, _ in asked:
        config = recipe.strategies.get(name)
        if isinstance(config, CascadeConfig):
            found.append((config.first, validation))
            found += [(config.then, validation)] if config.accuracy is not None else []
    return found


def _bill(recipe: Recipe, name: str, sums: Sequence[float], price: Price | None, *, exact: bool) -> ModelBill:
    requests, tokens, least, likely, most = sums
    config = recipe.models[name]
    source = "" if price is None else f"prices: {price.source}, {price.as_of}"
    dollars_of = (least, likely, most) if price is not None else (None, None, None)
    return ModelBill(
        name, f"{config.model} at {config.provider}", round(requests), round(tokens), exact, *dollars_of, source
    )


def bill_lines(found: Sequence[ModelBill], cap_usd: float | None, spent_usd: float) -> tuple[list[str], float | None]:
    """What is shown, and about what all of it costs; None where a price is not known.

    cap_usd: comparison.max_cost_usd. spent_usd: on answers that are kept already.
    """
    known = [bill.likely_usd for bill in found if bill.likely_usd is not None]
    likely = sum(known) if len(known) == len(found) else None
    lines = [bill.line for bill in found] + sorted({bill.source for bill in found if bill.source})
    if len(found) > 1 and likely is not None:
        least, most = (sum(getattr(b, name) or 0.0 for b in found) for name in ("least_usd", "most_usd"))
        lines.append(f"together: {dollars(least)} to {dollars(most)}, about {dollars(likely)}")
    if spent_usd:
        lines.append(f"{dollars(spent_usd)} of answers is kept already; what is among them is not paid again")
    if cap_usd is None:
        lines.append("comparison.max_cost_usd sets no limit to what it costs")
    elif likely is not None and spent_usd + likely > cap_usd:
        lines.append(f"that may reach comparison.max_cost_usd {cap_usd:g} before the end; what is answered is kept")
    return lines, likely


def agree_to_bill(opened: Run, prepared: Prepared, agree: Agree, *, teaches: bool = False) -> None:
    """Show what the systems of `compare` will cost, before any is asked; ask where comparison.max_cost_usd is not set.

    teaches: students learn from distill.teacher, who is asked too. Silent where all models are on this machine. Raises
    what `agree` raises, and what opening a model raises (no key; a limit beside a model without a price).
    """
    recipe = opened.recipe
    names = [*recipe.compare, *([recipe.distill.teacher] if teaches else [])]
    if not paid_models(recipe, names):
        return
    splits = {name: [example.inputs for example in rows] for name, rows in prepared.splits.items()}
    asked: list[tuple[str, Sequence[Inputs]]] = [(name, splits["test"]) for name in recipe.compare]
    if teaches:
        asked.append((recipe.distill.teacher, _taught_rows(opened, splits)))
    builder = pipeline.strategy_builder(opened, prepared)
    train = prepared.splits["train"]
    found = bills(recipe, opened.task, asked, splits["validation"], train, builder.predictor)
    cap = recipe.comparison.max_cost_usd
    lines, likely = bill_lines(found, cap, spent_usd(opened))
    if cap is not None:
        pipeline.say(*lines)  # each answer is reserved for before it is asked
    else:
        agree(lines, likely)


def spent_usd(opened: Run) -> float:
    """What the answers cost that the run folder keeps."""
    path = opened.folder / pipeline.ANSWERS
    return AnswerCache(path).spent_usd if path.exists() else 0.0


def _taught_rows(opened: Run, splits: Mapping[str, Sequence[Inputs]]) -> list[Inputs]:
    """What distill.teacher is asked about."""
    config, found = opened.recipe.distill, list(splits["train"])
    if "reasoning" in config.students:
        found += splits["validation"]
    if config.rows is not None and config.rows.is_file():
        found += [row.inputs for row in read_source(config.rows, opened.task, opened.recipe.data, use_gold=False).rows]
    return found
