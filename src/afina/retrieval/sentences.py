"""Where the sentences of a product's text begin and end, in English and Portuguese.

Comes in: any text, of any length. Goes out: spans, in order, that never overlap and leave only white space out. Pure
and deterministic: a model is shown these sentences and may cite them, so the same text must give the same spans for
ever. It knows nothing of products or models.

A sentence ends at `.`, `!`, `?` or an ellipsis, with the quotes and brackets that close there, before white space and
what may begin a sentence; at the end of a line; before a bullet. A full stop ends none after a title ("Dr."), before a
number ("No. 5"), after initials ("J. K. Rowling", "U.S. Army") unless a word follows that begins sentences, or before
a small letter. Catalogues glue sentences together ("for all ages.The pictures"): a whole word, a full stop and a
capital are taken apart. What it takes for a sentence may be two ("vitamin C. Rose hips"), or half of
one; it is never a part of a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Before what follows them; their full stop ends no sentence.
TITLES = _words(
    "mr mrs ms dr drs prof profa sr sra srs dra st sto sta gen col capt cap lt sgt rev hon gov sen rep pres mt ft "
    "vs e.g i.e eg ie cf viz al ex exmo exma av p.ex approx aprox incl excl ref refs tel"
)
# The same before a number only: "No. 5" is one thing, "No. Never." two.
BEFORE_NUMBERS = _words(
    "no nos nr nº num núm vol vols fig figs p pp pg pág págs pag art ch sec séc seç ed tam qtd item "
    "jan feb fev mar apr abr may jun jul aug ago sep sept set oct out nov dec dez"
)
# A word after which a full stop stands for the end, whatever stands before it.
STARTERS = _words(
    "a an the this that these those it its he she they we you i in on at for from with without when while if as and "
    "but or there here what who how why each every all no not by to our your his her their "
    "o os as um uma uns umas este esta estes estas esse essa isto isso aquele aquela ele ela eles elas nós você vocês "
    "eu em no na nos nas de do da dos das para por com sem quando se e mas ou há aqui que quem como cada todo toda "
    "todos todas não seu sua seus suas nosso nossa"
)
CLOSING = "\"'”’»)\\]}"
OPENING = "\"'“‘«(\\[{¿¡"
ENDS = re.compile(
    rf"(?P<mark>[.!?…]+)[{CLOSING}]*(?=\s|$)"  # followed by white space
    rf"|(?<=[^\W\d_]{{2}})(?P<glued>[.!?]+)[{CLOSING}]?(?=[^\W\d_a-zà-öø-ÿ][a-zà-öø-ÿ])"  # glued to a capitalised word
    r"|(?P<line>[\r\n\u0085\u2028\u2029])"
    r"|(?P<bullet>(?<=\s)[•▪●◦·]\s)"
)
BEGINS = re.compile(rf"\s*[{OPENING}\-–—*•]*\s*(?P<first>\w?)(?P<word>[\w'’]*)")
WORD_BEFORE = re.compile(r"[^\s(\[{\"“«]*$")
INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
DOMAINS = _words("com net org js io br co uk gov edu")
LOOK_BACK = 40  # characters; no abbreviation is longer


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text."""

    start: int
    end: int


def sentences(text: str) -> list[Span]:
    """The sentences of `text`: not empty, in order, trimmed of white space. Time linear in the text."""
    spans: list[Span] = []
    start = 0
    for found in ENDS.finditer(text):
        if found.lastgroup == "mark" and not _ends(text, start, found):
            continue
        if found.lastgroup == "glued" and not _glued(text, found):
            continue
        end = found.start() if found.lastgroup in ("line", "bullet") else found.end()
        start = _add(spans, text, start, end)
    _add(spans, text, start, len(text))
    return spans


def _add(spans: list[Span], text: str, start: int, end: int) -> int:
    """Keep [start, end) without the white space around it. Returns where the next sentence begins to be looked for."""
    piece = text[start:end]
    left = start + len(piece) - len(piece.lstrip())
    right = left + len(piece.strip())
    if right > left:
        spans.append(Span(left, right))
    return end


def _ends(text: str, start: int, found: re.Match[str]) -> bool:
    """Whether a mark before white space ends the sentence that began at `start`."""
    mark, at = found["mark"], found.start()
    after = BEGINS.match(text, found.end(), found.end() + LOOK_BACK)
    first, word = (after["first"], after["first"] + after["word"]) if after else ("", "")
    if first.islower():
        return False
    if mark != ".":
        return True
    before_match = WORD_BEFORE.search(text, max(start, at - LOOK_BACK), at)
    before = before_match.group().lower() if before_match else ""
    if not before:
        return True
    if before in TITLES:
        return False
    if first.isdigit() and before in BEFORE_NUMBERS:
        return False
    if before.isdigit() and not text[start : at - len(before)].strip():
        return False  # the number of a list's item
    if INITIALS.fullmatch(before) and first:
        return word.lower() in STARTERS
    return True


def _glued(text: str, found: re.Match[str]) -> bool:
    """Whether a full stop between two words, without white space, is the end of a sentence and not a name's dot."""
    word = re.compile(r"\w+").match(text, found.end())
    before = WORD_BEFORE.search(text, max(0, found.start() - LOOK_BACK), found.start())
    inside = before.group() if before else ""
    if found["glued"] == "." and (inside.lower() in TITLES or "." in inside or "@" in inside or "/" in inside):
        return False
    return not (word and word.group().lower() in DOMAINS)
