"""The hyperparameters of a job: what may be asked for, and the numbers that `auto` becomes.

Comes in: the object of a request's body, and later the number of examples. Goes out: what was asked, complete, each a
number or "auto"; then numbers only. Knows nothing of jobs and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afina.server.errors import ApiError, bad_request
from afina.server.fields import unknown, wrong_type

Method = Literal["supervised", "dpo"]
AUTO = "auto"

# Cookbook rule: between 100 and 25,000 examples are read altogether, at best in 3 epochs.
TARGET_EPOCHS = 3
MIN_TARGET_EXAMPLES, MAX_TARGET_EXAMPLES = 100, 25_000
MAX_AUTO_EPOCHS = 25
BATCH_SHARE = 0.002  # of the examples, OpenAI's documented rule of thumb
AUTO_MULTIPLIER = 1.0
AUTO_BETA = 0.1  # Rafailov et al., arXiv:2305.18290, and TRL's default
# Nobody asks for a hundredth of the base rate; many paste 2e-4 from a training script.
LEAST_MULTIPLIER = 0.01
MAX_MULTIPLIER = 1e6  # the API names no limit; beyond this no base rate makes sense


@dataclass(frozen=True)
class Range:
    """Of one hyperparameter. above: the least value is itself not allowed."""

    kind: Literal["integer", "decimal"]
    least: float
    most: float
    above: bool = False


EVERY_METHOD: dict[str, Range] = {
    "n_epochs": Range("integer", 1, 50),
    "batch_size": Range("integer", 1, 256),
    "learning_rate_multiplier": Range("decimal", 0.0, MAX_MULTIPLIER, above=True),
}
RANGES: dict[Method, dict[str, Range]] = {
    "supervised": EVERY_METHOD,
    "dpo": {"beta": Range("decimal", 0.0, 2.0, above=True), **EVERY_METHOD},
}


def parse(given: Mapping[str, Any], method: Method, where: str) -> dict[str, Any]:
    """All hyperparameters of the method, each a number in its range or "auto". where: for the error, as
    `method.dpo.hyperparameters`. Raises ApiError for an unknown name, a wrong type or a value out of range."""
    ranges = RANGES[method]
    for name in given:
        if name not in ranges:
            raise unknown(f"{where}.{name[:100]}")
    return {name: _value(given.get(name), range_, f"{where}.{name}") for name, range_ in ranges.items()}


def resolve(asked: Mapping[str, Any], num_examples: int) -> dict[str, Any]:
    """Numbers for everything that was asked as "auto". num_examples: lines of the training file, at least 1."""
    automatic: dict[str, Any] = {
        "n_epochs": auto_epochs(num_examples),
        "batch_size": auto_batch_size(num_examples),
        "learning_rate_multiplier": AUTO_MULTIPLIER,
        "beta": AUTO_BETA,
    }
    return {name: automatic[name] if value == AUTO else value for name, value in asked.items()}


def auto_epochs(num_examples: int) -> int:
    """3, more for fewer than 34 examples, fewer for more than 8,333."""
    if num_examples * TARGET_EPOCHS < MIN_TARGET_EXAMPLES:
        return min(MAX_AUTO_EPOCHS, MIN_TARGET_EXAMPLES // max(1, num_examples))
    if num_examples * TARGET_EPOCHS > MAX_TARGET_EXAMPLES:
        return max(1, MAX_TARGET_EXAMPLES // num_examples)
    return TARGET_EPOCHS


def auto_batch_size(num_examples: int) -> int:
    """About 0.2 % of the examples, 1 to 256."""
    return min(256, max(1, round(num_examples * BATCH_SHARE)))


# -- details ---------------------------------------------------------------------------------------


def _value(value: Any, allowed: Range, where: str) -> Any:
    if value is None or value == AUTO:
        return AUTO
    integer = allowed.kind == "integer"
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # NaN is no number
    if not number or (integer and isinstance(value, float) and math.isfinite(value) and not value.is_integer()):
        raise wrong_type(where, "an integer or 'auto'" if integer else "a decimal or 'auto'", value)
    if value > allowed.most:
        raise _out_of_range(where, allowed.kind, "above_max", f"<= {allowed.most:g}", value)
    if value < allowed.least or (allowed.above and value == allowed.least):
        limit = f"{'>' if allowed.above else '>='} {allowed.least:g}"
        raise _out_of_range(where, allowed.kind, "below_min", limit, value)
    if where.endswith("learning_rate_multiplier") and value < LEAST_MULTIPLIER:
        raise bad_request(
            f"Invalid '{where}': {value:g} looks like a learning rate, but this is a multiplier of the base model's "
            "own learning rate: 1 trains at that rate, 2 at twice that rate. Send 0.01 to 10, or 'auto'.",
            where,
            "decimal_below_min_value",
        )
    return int(value) if integer else value


def _out_of_range(where: str, kind: str, side: str, limit: str, value: float) -> ApiError:
    got = str(value) if abs(value) < 1e15 else "a huge number"
    words = f"{kind} {side.replace('_', ' ')}imum value"
    return bad_request(
        f"Invalid '{where}': {words}. Expected a value {limit}, but got {got} instead.", where, f"{kind}_{side}_value"
    )
