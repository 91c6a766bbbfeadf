"""What asking a teacher will cost, before it is asked: requests × tokens × price, model by model.

Comes in: the recipe's strategies, the rows, opened models. Goes out: an `Estimate`, and lines for whoever has to agree.
Nothing is asked. What is answered already is not known here, so an estimate is of everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from afina.core.config import Recipe
from afina.core.predictor import Example, Inputs, Predictor
from afina.core.strategy_config import (
    CascadeConfig,
    ModelConfig,
    NegotiateConfig,
    PromptConfig,
    VoteConfig,
)
from afina.core.task import Task
from afina.providers import wording
from afina.providers.prices import FREE, Price, dollars
from afina.providers.tokens import PER_CONVERSATION, PER_MESSAGE, counter
from afina.strategies.prompting import Prompting

SAMPLE = 200  # rows whose prompts are counted; the others are taken to be like them
REASONING_TOKENS = 150  # of one answer that reasons; a turn of a debate has as many
MARGIN = 1.3  # on prompt tokens, where the most is meant


@dataclass(frozen=True)
class Use:
    """How often a strategy asks a model for one part of one row: at least, probably, at most."""

    strategy: str
    model: str
    fewest: float
    likely: float
    most: float


@dataclass(frozen=True)
class Estimate:
    """requests: probably. likely_usd, most_usd: None where no price of a model is known. fewest_requests: of one row,
    where their number does not vary; else None. unpriced: models without a price."""

    requests: int
    prompt_tokens: int
    exact: bool
    likely_usd: float | None
    most_usd: float | None
    fewest_requests: int | None
    unpriced: tuple[str, ...]
    sources: tuple[str, ...]

    def lines(self, teacher: str, num_rows: int, cap_usd: float | None, spent_usd: float) -> list[str]:
        line = f"{teacher}: {num_rows:,} rows, about {self.requests:,} requests"
        line += f", {'' if self.exact else 'about '}{self.prompt_tokens:,} tokens to read"
        if self.likely_usd is None or self.most_usd is None:
            return [f"{line}; no price of {', '.join(self.unpriced)} is known (models.NAME.prices can name one)"]
        lines = [f"{line}: about {dollars(self.likely_usd)}, at most {dollars(self.most_usd)}", *self.sources]
        if spent_usd:
            lines.append(f"{dollars(spent_usd)} of answers is kept already; what is among them is not paid again")
        if cap_usd is not None and spent_usd + self.likely_usd > cap_usd:
            lines.append(
                f"that may reach --max-cost-usd {cap_usd:g} before the last row; what is answered by then is kept"
            )
        return lines


def uses(recipe: Recipe, name: str, fewest: float = 1, likely: float = 1, most: float = 1) -> Iterator[Use]:
    """Every model that a strategy asks, itself or through others."""
    config = recipe.strategies.get(name)
    match config:
        case PromptConfig():
            yield Use(name, config.model, fewest, likely, most)
        case VoteConfig():
            voters = config.of if isinstance(config.of, list) else [config.of]
            times = 1 if isinstance(config.of, list) else config.n
            for voter in voters:
                yield from uses(recipe, voter, fewest * times, likely * times, most * times)
        case NegotiateConfig():
            turns = min(2, config.rounds)
            for model in (config.generator, config.discriminator):
                yield Use(name, model, fewest, likely * turns, most * config.rounds)
        case CascadeConfig():
            share = 0.5 if config.max_share is None else config.max_share
            yield from uses(recipe, config.first, fewest, likely, most)
            yield from uses(recipe, config.then, 0, likely * share, most)
        case None:
            return


def estimate(
    recipe: Recipe,
    task: Task,
    teacher: str,
    rows: Sequence[Inputs],
    train: Sequence[Example],
    prices: Mapping[str, Price | None],
    strategy: Callable[[str], Predictor],
) -> Estimate:
    """What asking the teacher about these rows costs.

    prices: of the models at providers, by their names in the recipe; None where none is known. train: for how long an
    answer is. strategy: makes the predictor of a strategy that asks only itself.
    """
    count, exact = counter()
    found = [use for use in uses(recipe, teacher) if use.model in prices]
    requests = prompt_tokens = 0
    likely_usd = most_usd = 0.0
    for use in found:
        read, written = tokens_of(recipe, task, use, rows, train, count, strategy)
        number = len(rows) * len(task.parts)
        requests += round(use.likely * number)
        prompt_tokens += round(use.likely * number * read)
        price, config = prices[use.model], recipe.models[use.model]
        if price is None:
            continue
        likely_usd += usd_of(price, use.likely * number, read, written, batch=config.batch)
        most_usd += usd_of(price, use.most * number, read * MARGIN, config.max_tokens, batch=False)
    unpriced = tuple(sorted({use.model for use in found if prices[use.model] is None}))
    varies = any(use.fewest != use.most for use in found)
    known = [price for name in {use.model for use in found} if (price := prices[name]) is not None]
    return Estimate(
        requests=requests,
        prompt_tokens=prompt_tokens,
        exact=exact,
        likely_usd=None if unpriced else likely_usd,
        most_usd=None if unpriced else most_usd,
        fewest_requests=None if varies else round(sum(use.fewest for use in found) * len(task.parts)),
        unpriced=unpriced,
        sources=tuple(sorted({f"prices: {price.source}, {price.as_of}" for price in known if price is not FREE})),
    )


def usd_of(price: Price, requests: float, read: float, written: float, *, batch: bool) -> float:
    return price.answers_usd(round(requests * read), round(requests * written), batch=batch) or 0.0


def tokens_of(
    recipe: Recipe,
    task: Task,
    use: Use,
    rows: Sequence[Inputs],
    train: Sequence[Example],
    count: Callable[[str], int],
    strategy: Callable[[str], Predictor],
) -> tuple[float, float]:
    """Of one request: tokens to read, and tokens that are probably written."""
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    config = recipe.strategies[use.strategy]
    reasons = isinstance(config, NegotiateConfig) or config.strategy == "cot"
    asked = strategy(use.strategy) if isinstance(config, PromptConfig) else None
    if isinstance(asked, Prompting):
        talks = [[m["content"] for m in talk] for row in asked.messages(sample) for talk in row]
    else:
        talks = [_question(task, recipe.models[use.model], row, at) for row in sample for at in range(len(task.parts))]
    read = sum(PER_CONVERSATION + sum(PER_MESSAGE + 1 + count(text) for text in talk) for talk in talks)
    schema = max(count(json.dumps(wording.response_format(task, part), ensure_ascii=False)) for part in task.parts)
    labels = [count(text) for e in train[:SAMPLE] for p in task.parts if (text := wording.answer_text(task, p, e))]
    written = sum(labels) / len(labels) if labels else 64.0
    debate = REASONING_TOKENS * use.likely if isinstance(config, NegotiateConfig) else 0.0
    return read / max(1, len(talks)) + schema + debate, written + (REASONING_TOKENS if reasons else 0)


def _question(task: Task, model: ModelConfig, row: Inputs, at: int) -> list[str]:
    part = task.parts[at]
    described = [json.dumps(part.schema, ensure_ascii=False)] if model.describe else []
    return [message["content"] for message in wording.question(task, part, row)] + described
