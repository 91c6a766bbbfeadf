"""Whether answers cite the right passages, quote them truly, and say "not in the catalogue" when they should.

Comes in: for each question what was right and what was answered, as plain data. Goes out: shares with intervals. It
knows nothing of indexes, models or how a quote was checked.

Intervals are Wilson's (1927), over questions: of each question one answer is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import binomtest

LEVEL = 0.95


@dataclass(frozen=True)
class Cited:
    """One question and its answer.

    gold: uids of the passages that answer it; empty where the product is not in the catalogue. cited: uids in the
    answer's order, one for each source. refused: it said "not in the catalogue". verbatim: for each source, whether its
    quote stands in its passage. failed: there is no answer; such a one cites nothing and refuses nothing.
    """

    gold: frozenset[str]
    cited: Sequence[str] = ()
    refused: bool = False
    verbatim: Sequence[bool] = ()
    failed: bool = False

    @property
    def absent(self) -> bool:
        return not self.gold


@dataclass(frozen=True)
class Share:
    """hits of total, and a 95 % interval; value and ci are None where there is nothing to judge."""

    hits: int
    total: int
    value: float | None = field(init=False)
    ci: tuple[float, float] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.hits / self.total if self.total else None)
        object.__setattr__(self, "ci", wilson(self.hits, self.total) if self.total else None)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ci": None if self.ci is None else list(self.ci)}


@dataclass(frozen=True)
class CitationScores:
    """precision: of all sources, those that are right; sources of one answer are not independent, so its interval is
    a little too narrow. first_right: of the questions about products that are there, those whose first source is
    right. recall: of those questions, those with a right source anywhere. verbatim: of all sources, those whose quote
    stands in its passage. refusal_precision: of the refusals, those of absent products. refusal_recall: of the
    questions about absent products, those that were refused. answered: of the questions about products that are there,
    those that got an answer.
    """

    precision: Share
    first_right: Share
    recall: Share
    verbatim: Share
    refusal_precision: Share
    refusal_recall: Share
    answered: Share
    num_failed: int

    def to_json(self) -> dict[str, Any]:
        return {k: v.to_json() if isinstance(v, Share) else v for k, v in vars(self).items()}


def citation_scores(rows: Sequence[Cited]) -> CitationScores:
    """All questions together, those about absent products among them."""
    sources = [(row, uid) for row in rows for uid in row.cited]
    quotes = [stands for row in rows for stands in row.verbatim]
    present, absent = [r for r in rows if not r.absent], [r for r in rows if r.absent]
    refused = [row for row in rows if row.refused]
    return CitationScores(
        precision=Share(sum(uid in row.gold for row, uid in sources), len(sources)),
        first_right=Share(sum(bool(r.cited) and r.cited[0] in r.gold for r in present), len(present)),
        recall=Share(sum(any(uid in r.gold for uid in r.cited) for r in present), len(present)),
        verbatim=Share(sum(quotes), len(quotes)),
        refusal_precision=Share(sum(row.absent for row in refused), len(refused)),
        refusal_recall=Share(sum(row.refused for row in absent), len(absent)),
        answered=Share(sum(not r.refused and not r.failed for r in present), len(present)),
        num_failed=sum(row.failed for row in rows),
    )


def wilson(hits: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share; total is at least 1."""
    found = binomtest(hits, total).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
