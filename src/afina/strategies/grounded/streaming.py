"""An answer's text while the engine writes it.

Comes in: a Writer's tokens, each time one is taken. Goes out: the text of the field `answer` as far as it is whole
characters. The engine knows nothing of it: it is given a Writer that tells.
"""

from __future__ import annotations

import json
import re

from afina.engine.codec import Codec
from afina.engine.grammar import Walk
from afina.engine.spelling import AnswerFormat
from afina.engine.writer import Writer
from afina.strategies.grounded.answer import OnText

OPENING = '"answer":"'
# An escape that is not whole yet; or the first half of a character above U+FFFF.
HALF = re.compile(r"(\\(u[0-9a-fA-F]{0,3})?|\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?)$")


class TellingWriter(Writer):
    """Tells the answer's text as it grows, after each token that was chosen."""

    def __init__(
        self,
        codec: Codec,
        walk: Walk,
        max_text_tokens: int,
        answer_format: AnswerFormat,
        on_text: OnText,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        self._on_text = on_text
        super().__init__(codec, walk, max_text_tokens, answer_format, no_repeat_ngram_size=no_repeat_ngram_size)

    def take(self, token: int) -> bool:
        written = super().take(token)
        self._on_text(text_so_far(self.codec.decode(self.tokens)).strip())
        return written


def text_so_far(written: str) -> str:
    """The answer's text in the beginning of a JSON answer; "" before it begins."""
    # Quotes inside a source are escaped, so that these characters stand nowhere else.
    _, found, rest = written.partition(OPENING)
    if not found:
        return ""
    end = re.search(r'(?<!\\)(?:\\\\)*"', rest)
    text = rest[: end.end() - 1] if end else HALF.sub("", rest.rstrip("\ufffd"))
    try:
        return json.loads(f'"{text}"')
    except ValueError:
        return ""
