"""What hosted training and answers cost: dated data with a source, which the user can replace.

Comes in: the packaged table, a file of the user's. Goes out: `Price` of a model, in US dollars. A model without an
entry has no price, which is not the price 0: the caller has to say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from afina.core.errors import RecipeError
from afina.providers.names import base_of

MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Of one model, US dollars per million tokens; None where the provider names no price.

    training: per token of the training file and epoch; validation tokens are free.
    source, as_of: where and when it was read.
    """

    model: str
    source: str
    as_of: str
    training: float | None = None
    input: float | None = None
    cached_input: float | None = None
    output: float | None = None
    batch_input: float | None = None
    batch_cached_input: float | None = None
    batch_output: float | None = None

    def training_usd(self, num_tokens: int, num_epochs: int) -> float | None:
        return None if self.training is None else self.training * num_tokens * num_epochs / MILLION

    def answers_usd(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, *, batch: bool = False
    ) -> float | None:
        """cached_tokens: those of prompt_tokens that the provider had already read. None without a price."""
        whole, cached, output = self.input, self.cached_input, self.output
        if batch and self.batch_input is not None and self.batch_output is not None:
            whole, cached, output = self.batch_input, self.batch_cached_input, self.batch_output
        if whole is None or output is None:
            return None
        cached = whole if cached is None else cached
        read = (prompt_tokens - cached_tokens) * whole + cached_tokens * cached
        return (read + completion_tokens * output) / MILLION


AMOUNTS = tuple(field.name for field in fields(Price))[3:]
FREE = Price("", "this machine", "", **dict.fromkeys(AMOUNTS, 0.0))  # a server on this machine sends no bill


@dataclass(frozen=True)
class PriceTable:
    """Model -> price; `find` takes any name of a model."""

    prices: Mapping[str, Price]

    def find(self, model: str) -> Price | None:
        """The price of a base model, an alias of it, or a fine-tune made from it."""
        return self.prices.get(model) or self.prices.get(base_of(model))


def load_prices(own: Path | None = None, *, packaged: bool = True, fine_tuned: bool = True) -> PriceTable:
    """The packaged prices, those of the file `own` instead where it has them. Raises RecipeError.

    packaged: False for a provider other than OpenAI, whose prices they are. fine_tuned: of fine-tunes and their
    training; False for models as OpenAI serves them to all, which cost less.
    """
    prices: dict[str, Price] = {}
    if packaged:
        name = "prices.yaml" if fine_tuned else "chat_prices.yaml"
        text = resources.files("afina.providers").joinpath(name).read_text(encoding="utf-8")
        prices = _read(text, name)
    if own is not None:
        try:
            text = own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{own}: cannot be read ({error}), expected a YAML file with prices.") from error
        prices |= _read(text, str(own))
    return PriceTable(prices)


def _read(text: str, where: str) -> dict[str, Price]:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: is no valid YAML: {' '.join(str(error).split())}. Correct it.") from error
    models = raw.get("models") if isinstance(raw, dict) else None
    if not isinstance(models, dict) or not models:
        raise RecipeError(
            f"{where}: expected `models:` with a price each, as {{gpt-4o-mini-2024-07-18: {{input: 0.3}}}}."
        )
    unknown = sorted(set(raw) - {"as_of", "source", "models"})
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]}. Known here: as_of, source, models.")
    source, as_of = str(raw.get("source", where)), str(raw.get("as_of", "no date"))
    return {str(name): _price(str(name), entry, source, as_of, where) for name, entry in models.items()}


def _price(name: str, entry: Any, source: str, as_of: str, where: str) -> Price:
    if not isinstance(entry, dict):
        raise RecipeError(f"{where}: models.{name} is {entry!r}, expected amounts as {{training: 3.0, input: 0.3}}.")
    for key, value in entry.items():
        if key not in AMOUNTS:
            raise RecipeError(f"{where}: unknown key models.{name}.{key}. Known here: {', '.join(AMOUNTS)}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise RecipeError(
                f"{where}: models.{name}.{key} is {value!r}, expected US dollars per million tokens, 0 or more."
            )
    return replace(Price(name, source, as_of), **{key: float(value) for key, value in entry.items()})


def dollars(amount: float) -> str:
    """An amount a person reads; never rounded down to nothing."""
    if amount == 0:
        return "$0"
    if amount < 0.01:
        return "less than $0.01"
    return f"${amount:,.2f}"
