"""The last day of hosted models and of hosted fine-tuning: dated data with a source.

Comes in: a model's name, and what the provider itself says of it. Goes out: dates. What "today" is, the caller says.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from afina.providers.names import base_of


@dataclass(frozen=True)
class LastDay:
    """The day on which a model is shut down. source: who says so."""

    date: datetime.date
    source: str

    def days_left(self, today: datetime.date) -> int:
        """Whole days until then; 0 or less: it is gone."""
        return (self.date - today).days


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(resources.files("afina.providers").joinpath("winddown.yaml").read_text(encoding="utf-8"))


def source() -> str:
    table = _table()
    return f"{table['source']} (read {table['as_of']})"


def last_day(model: str, shutdown_date: str | None = None) -> LastDay | None:
    """Of a base model or a fine-tune of it; None where no date is known.

    shutdown_date: what the provider's own list says, as YYYY-MM-DD; it wins.
    """
    if shutdown_date:
        try:
            return LastDay(datetime.date.fromisoformat(shutdown_date), "the provider's list of models")
        except ValueError:
            pass  # no date we can read: the table knows better
    base, known = base_of(model), _table()["models"]
    date = known.get(base)
    if date is None:
        # gpt-3.5-turbo stands for gpt-3.5-turbo-0125; gpt-4 for gpt-4-0613, but not for gpt-4o or gpt-4.1.
        date = next(
            (day for name, day in known.items() if base.startswith(f"{name}-") and base[len(name) + 1].isdigit()), None
        )
    return LastDay(date, source()) if date is not None else None


def jobs_end(today: datetime.date) -> str:
    """One sentence: how long jobs can be created, seen from `today`."""
    last = max(_table()["jobs"], key=lambda row: row["date"])
    left = (last["date"] - today).days
    if left <= 0:
        return f"OpenAI takes no new fine-tuning jobs since {last['date']}."
    return f"OpenAI takes new fine-tuning jobs until {last['date']} ({left} days left), from active customers only."
