"""A product's text as an answer may show it: whole, and cut to a length.

Comes in: a product that the index holds. Goes out: its text, cut where a sentence ends. It knows nothing of searching.
"""

from __future__ import annotations

from dataclasses import dataclass

from afina.retrieval.sentences import sentences


@dataclass(frozen=True)
class Passage:
    """One product of the catalogue. uid: as the file wrote it, leading zeros included."""

    uid: str
    title: str
    content: str


@dataclass(frozen=True)
class Hit:
    """A passage that was found. score: higher is better; comparable within one search alone."""

    passage: Passage
    score: float


def passage_text(product: Passage, max_chars: int) -> str:
    """The first whole sentences of the product's content, `max_chars` characters of them at most.

    It is always a beginning of the content, so that places in one are places in the other. A first sentence that is
    longer is cut after a word; a first word that is longer is cut in itself.
    """
    text = product.content
    if len(text) <= max_chars:
        return text.rstrip()
    end = 0
    for span in sentences(text[: max_chars + 1]):  # one more: a full stop at the border needs what follows it
        if span.end > max_chars:
            break
        end = span.end
    if end:
        return text[:end]
    head = text[: max_chars + 1]
    words_end = max((i for i, letter in enumerate(head) if letter.isspace()), default=0)
    return (text[:words_end] if head[:words_end].strip() else text[:max_chars]).rstrip()
