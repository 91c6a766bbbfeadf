"""In which languages a catalogue is: statistics over a fixed sample, and a quick guess between English and Portuguese.

Comes in: texts. Goes out: counts of languages as py3langid tells them (Lui, Baldwin, 2012), or a guess from the
frequent little words of two languages, which says None rather than something wrong.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from afina.catalogue.libraries import library
from afina.core.storage import explain_write_errors

LOOKED_AT = 400  # characters of a text; more change little
ENGLISH = re.compile(
    r"\b(?:about|an|and|are|be|by|can|for|from|is|it|of|on|tell|that|the|this|what|with|you|your)\b", re.IGNORECASE
)
PORTUGUESE = re.compile(
    r"\b(?:ao|com|da|das|descreva|do|dos|é|em|mais|na|não|no|o|os|para|por|qual|que|seu|sua|um|uma)\b", re.IGNORECASE
)


def count_languages(texts: Sequence[str]) -> dict[str, int]:
    """Language code -> texts, most frequent first. Texts without letters are 'none'."""
    classify = library("py3langid").classify
    with explain_write_errors(Path(tempfile.gettempdir())):  # where the library unpacks its model
        classify("")
    found = Counter(
        classify(text[:LOOKED_AT])[0] if any(map(str.isalpha, text[:LOOKED_AT])) else "none" for text in texts
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def guess_language(text: str) -> Literal["en", "pt"] | None:
    """None where the little words do not tell."""
    english, portuguese = (len(words.findall(text[:LOOKED_AT])) for words in (ENGLISH, PORTUGUESE))
    if english == portuguese:
        return None
    return "en" if english > portuguese else "pt"
