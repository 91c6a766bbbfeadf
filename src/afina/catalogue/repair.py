"""Characters as their writer meant them: entities unescaped, mojibake undone, nothing else touched.

Comes in: a text. Goes out: the text, and what was done. It comes before anything that looks at punctuation: a cleaner
that strips punctuation first turns `&#8217;` into 8217. Typographic quotes stay as they are.

Entities may be escaped twice (`&amp;#8217;`), name C1 codes (`&#x92;` is Windows-1252's quote, as browsers read it),
or lack their semicolon. Mojibake is found and undone by ftfy (Speer, 2019, doi:10.5281/zenodo.2591652).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from afina.catalogue.libraries import library

MAX_ROUNDS = 6  # of unescaping; each undoes one escape, and whoever nests deeper wants to be seen
# Without a semicolon only what cannot be a query of an address (?a=1&lt=3) or a name (AT&T).
ENTITY = re.compile(
    r"&(?:#[0-9]{1,7}(?![0-9])|#[xX][0-9A-Fa-f]{1,6}(?![0-9A-Fa-f])|(?:amp|nbsp|quot|lt|gt)(?![\w=;])|\w{2,31};);?"
)
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")


def repair_characters(text: str) -> tuple[str, bool, bool]:
    """The text, whether entities were unescaped, and whether wrong characters were repaired."""
    unescaped = repaired = False
    for _ in range(MAX_ROUNDS):
        before = text
        if "&" in text:
            text = ENTITY.sub(_character, text)
            unescaped = unescaped or text != before
        if not text.isascii():
            sound = _undo_mojibake(text)
            repaired = repaired or sound != text
            text = sound
        if text == before or "&" not in text:
            break
    return text, unescaped, repaired


def _character(match: re.Match[str]) -> str:
    return _unescape(match.group())


@lru_cache(maxsize=4096)
def _unescape(entity: str) -> str:
    """What an entity stands for; itself where it stands for nothing."""
    closed = entity if entity.endswith(";") else f"{entity};"
    found: str = library("ftfy.fixes").unescape_html(closed)
    return entity if found == closed else found


def _undo_mojibake(text: str) -> str:
    if looks_garbled(text):
        text = library("ftfy").fix_encoding(text)
    return unicodedata.normalize("NFC", text)


def looks_garbled(text: str) -> bool:
    """ftfy's own judgement, asked first about the neighbourhoods of characters beyond ASCII.

    Each of its alternatives has such a character, and at most two others on a side of it; searching whole texts takes
    most of the time of a catalogue. A neighbourhood can only look worse than the text.
    """
    is_bad = library("ftfy.badness").is_bad
    near = [text[max(0, match.start() - 3) : match.end() + 3] for match in BEYOND_ASCII.finditer(text)]
    return is_bad("\n".join(near)) and is_bad(text)
