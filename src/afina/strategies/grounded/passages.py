"""Products -> the passages of a prompt, and the labels with which a model may cite their sentences.

Comes in: products, and how long each may be. Goes out: `Shown`: one line for each passage and, for every sentence that
can be cited, a label and its place in the product's text. A product's text is data: whatever it says, it stays within
its own line, and what can be cited is decided here and by nobody's text. It knows nothing of questions or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afina.retrieval.passage import Passage, passage_text
from afina.retrieval.sentences import sentences
from afina.strategies.grounded.question import cut, one_line

MAX_TITLE_CHARS = 60  # as it is shown; a title of 2,000 characters would push the passages out
MAX_QUOTE_CHARS = 240  # of one label; the beginning of a longer sentence is cited
MIN_QUOTE_CHARS = 3


@dataclass(frozen=True)
class Quote:
    """A sentence that may be cited.

    passage: which of those shown, from 0. start, end: of the sentence in the product's content. text: it in one line.
    label: how the model cites it; no two of a prompt are equal.
    """

    passage: int
    start: int
    end: int
    text: str
    label: str


@dataclass(frozen=True)
class Shown:
    """What a prompt shows. passages: as they came. text: a line for each. quotes: in the order of the lines."""

    passages: tuple[Passage, ...]
    text: str
    quotes: tuple[Quote, ...]

    @property
    def labels(self) -> list[str]:
        return [quote.label for quote in self.quotes]


def show(passages: Sequence[Passage], passage_chars: int) -> Shown:
    """passage_chars: of one passage's content at most."""
    lines: list[str] = []
    quotes: list[Quote] = []
    known: set[str] = set()
    for number, passage in enumerate(passages):
        head = f"{cut(one_line(passage.title), MAX_TITLE_CHARS)} ({one_line(passage.uid)})"
        said: list[str] = []
        for start, end, text in citable(passage.content, passage_chars):
            label = f"{head}: {text}"
            said.append(text)
            if label not in known:
                known.add(label)
                quotes.append(Quote(number, start, end, text, label))
        lines.append(f"{head}: {' '.join(said)}")
    return Shown(tuple(passages), "\n".join(lines), tuple(quotes))


def citable(content: str, max_chars: int) -> list[tuple[int, int, str]]:
    """(start, end, in one line) of the sentences within the first `max_chars` characters of a content."""
    whole = passage_text(Passage("", "", content), max_chars)
    found: list[tuple[int, int, str]] = []
    for span in sentences(whole):
        end = span.start + len(cut(whole[span.start : span.end], MAX_QUOTE_CHARS))
        text = one_line(content[span.start : end])
        if len(text) >= MIN_QUOTE_CHARS and any(letter.isalnum() for letter in text):
            found.append((span.start, end, text))
    return found
