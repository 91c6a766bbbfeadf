"""What a model cited -> sources that stand in the catalogue, or the reason why one does not.

Comes in: the labels that our engine wrote, or the free JSON of a model elsewhere. Goes out: `Source`s whose quote is
`content[start:end]`, looked at again here. A citation that can not be found is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afina.retrieval.passage import Passage
from afina.strategies.grounded.answer import Source
from afina.strategies.grounded.passages import MIN_QUOTE_CHARS
from afina.strategies.grounded.prompt import Asked
from afina.strategies.grounded.question import one_line

MAX_CITED_CHARS = 4_000  # of one quote of a model elsewhere; nobody cites more
MAX_CITED = 50


@dataclass(frozen=True)
class Refused:
    """A citation that is not shown. reason: as one sentence."""

    uid: str
    quote: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """The citations of one answer. sources: in its order, each once. refused: the others."""

    sources: tuple[Source, ...]
    refused: tuple[Refused, ...] = ()


def sources_of(asked: Asked, labels: Sequence[str], scores: Sequence[float]) -> tuple[Source, ...]:
    """The sources behind labels that our engine wrote. scores: a probability for each."""
    found: list[Source] = []
    for label, score in zip(labels, scores, strict=True):
        quote = asked.quote(label)
        passage = asked.shown.passages[quote.passage]
        text = passage.content[quote.start : quote.end]
        assert one_line(text) == quote.text, "a label stands for its place in the content"
        found.append(Source(passage.uid, passage.title, text, quote.start, quote.end, score))
    return tuple(found)


def check_sources(cited: Iterable[Any], passages: Sequence[Passage]) -> Checked:
    """Which citations of a model that no grammar held are real.

    cited: objects with `uid` and `quote`, as the model wrote them; anything else is refused with its reason.
    passages: what the model was shown. A quote has to stand in its passage word for word; only white space may differ.
    """
    known = {passage.uid: passage for passage in passages}
    sources: list[Source] = []
    refused: list[Refused] = []
    for number, one in enumerate(cited):
        if number == MAX_CITED:
            refused.append(Refused("", "", f"More than {MAX_CITED} sources; the others were not looked at."))
            break
        found = _check(one, known)
        if isinstance(found, Refused):
            refused.append(found)
        elif found not in sources:
            sources.append(found)
    return Checked(tuple(sources), tuple(refused))


def _check(one: Any, known: Mapping[str, Passage]) -> Source | Refused:
    uid, quote = (one.get("uid"), one.get("quote")) if isinstance(one, Mapping) else (None, None)
    if not isinstance(uid, str) or not isinstance(quote, str):
        return Refused("", "", f"A source has to have a uid and a quote, both text; found {str(one)[:80]!r}.")
    passage = known.get(uid.strip())
    if passage is None:
        return Refused(uid, quote, f"No passage with the uid {uid[:40]!r} was shown.")
    place = find_quote(passage.content, quote)
    if place is None:
        return Refused(uid, quote, "The quote does not stand in that passage.")
    return Source(passage.uid, passage.title, passage.content[place[0] : place[1]], *place)


def find_quote(content: str, quote: str) -> tuple[int, int] | None:
    """Where a quote stands in a content: [start, end), white space alone apart. Whole words only."""
    words = quote.split()
    text = " ".join(words)
    if not MIN_QUOTE_CHARS <= len(text) <= MAX_CITED_CHARS or not any(letter.isalnum() for letter in text):
        return None
    first = r"(?<!\w)" if text[0].isalnum() else ""
    last = r"(?!\w)" if text[-1].isalnum() else ""
    found = re.search(first + r"\s+".join(map(re.escape, words)) + last, content)
    return found.span() if found else None
