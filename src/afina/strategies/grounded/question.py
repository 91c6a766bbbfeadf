"""A question as a user types it -> a question that can be searched for and shown; questions of our own from templates.

Comes in: any text. Goes out: one clean line of bounded length, its language, and what was done to it. It knows nothing
of indexes or models.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from afina.core.catalogue_config import TITLE
from afina.core.errors import DataError

Language = Literal["en", "pt"]
MAX_QUESTION_CHARS = 1000
REFUSALS: dict[Language, str] = {"en": "Not in the catalogue.", "pt": "Não está no catálogo."}
WORD = re.compile(r"[^\W\d_]+")
# Words that questions are made of; what a title is made of says nothing of the language in which it is asked for.
PORTUGUESE = frozenset(
    WORD.findall(
        """
        o os um uma que qual quais quem como quando onde quanto é são está tem do da dos das de no na em por para
        com sem sobre se trata descreva explique fale conte diga me você livro produto isto isso esse essa não sim e
        ou mais existe serve preciso quero gostaria obrigado
        """
    )
)
ENGLISH = frozenset(
    WORD.findall(
        """
        the an what which who how when where why is are was were does do did has have can could of in on for with
        without about tell describe explain me you your book product this that it not yes and or more any need want
        would like please give
        """
    )
)


@dataclass(frozen=True)
class Question:
    """text: one line, at most `MAX_QUESTION_CHARS` characters. note: what was left out of it; None for nothing."""

    text: str
    language: Language
    note: str | None = None

    @property
    def refusal(self) -> str:
        return REFUSALS[self.language]


def one_line(text: str) -> str:
    """A text without line ends, control, invisible and private-use characters; runs of white space become one space.

    What is shown to a model inside a line of the prompt must not be able to begin a line of its own.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    kept = [_visible(letter) for letter in text]
    return " ".join("".join(kept).split())


def _visible(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind in ("Cc", "Zl", "Zp"):
        return " "
    return "" if kind in ("Cf", "Cs", "Co", "Cn") else letter


def read_question(raw: str) -> Question:
    """Raises DataError for a question without a letter or digit."""
    # The end of a text of megabytes can not matter, and looking at each of its letters takes time.
    text = one_line(raw[: 4 * MAX_QUESTION_CHARS])
    if not any(letter.isalnum() for letter in text):
        found = "nothing" if not text else repr(text[:40])
        raise DataError(
            f"the question: found {found}, expected words to look for. Name the product, as in: What is Mog's Kittens "
            "about?"
        )
    note = None
    if len(text) > MAX_QUESTION_CHARS or len(raw) > 4 * MAX_QUESTION_CHARS:
        text = cut(text, MAX_QUESTION_CHARS)
        note = f"The question has {len(raw):,} characters; its first {len(text):,} were read."
    return Question(text, language_of(text), note)


def cut(text: str, max_chars: int) -> str:
    """The beginning of a line, to the end of a word where there is one."""
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1]
    end = head.rfind(" ")
    return head[:end].rstrip() if end > max_chars // 2 else text[:max_chars].rstrip()


def language_of(text: str) -> Language:
    """Portuguese where more of a question's own words are Portuguese, or as many and the first one is; else English."""
    words = [word.lower() for word in WORD.findall(text)]
    found = [word in PORTUGUESE for word in words if (word in PORTUGUESE) != (word in ENGLISH)]
    return "pt" if sum(found) > len(found) / 2 or (found and sum(found) == len(found) / 2 and found[0]) else "en"


def question_about(title: str, templates: Sequence[str], seed: int | str = 0) -> str:
    """A question about a title: the same for the same title and seed, whichever row it stands in."""
    return random.Random(f"{seed} {title}").choice(list(templates)).replace(TITLE, one_line(title))
