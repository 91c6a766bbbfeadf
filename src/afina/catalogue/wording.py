"""What reads badly in a catalogue's sound characters: white space, glued remarks, glued sentences.

Comes in: a text without entities and tags. Goes out: the text, one rule at a time. No word is changed.
"""

from __future__ import annotations

import re

# White space of any kind becomes one space; these become nothing: control characters, soft hyphens, zero-width spaces,
# marks of writing direction. Joiners stay: emoji and Persian need them.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

# "This text refers to thePaperbackedition.", "... to an out of print or unavailable edition of this title.", and the
# beginnings of such sentences where the source was cut.
REMARK_MARK = "This text refers"
REMARK = re.compile(
    r"This text refers to (?:an? ?|the ?)(?:"
    r"[A-Za-z0-9 ,&()/'’+-]{0,60}?[Ee]dition(?: ?edition)?(?![A-Za-z])(?: of this (?:title|book|item))?[.)]{0,2}"
    r"|[A-Za-z0-9 ,&()/'’+-]{0,60}(?:\.\.\.|…)\Z) ?"
)
BEFORE_REMARK = re.compile(r" ?(?:--|—|–|-)? ?\(?\Z")

# A sentence's end glued to the next one's beginning: "movies.The next". Two small letters before (not U.S.A., e.g.),
# a capital and a small letter behind, or the words A and I.
GLUED = re.compile(r"[.!?]+[)\]”’]?(?=“?(?P<next>[A-Z][a-z]+|[AI](?=[ ’'])))")
ENDS_WORD = re.compile(r"[a-z]{2}[)\]”’]?\Z")
MAYBE_GLUED = r"[a-z][)\]”’]?[.!?]+[)\]”’]?“?[A-Z]"  # finds at least what GLUED finds, without looking ahead
NO_SENTENCE = re.compile(
    r"(?:com|net|org|edu|gov|js|io|ai|tv|uk|br|de|html?|php|aspx?|pdf|exe|dll|py)\Z", re.IGNORECASE
)
NEAR = 80  # characters on each side in which the token ends; a longer one is no prose
NO_PROSE = re.compile(r"[/\\@#=_<>{}|]|www\.|https?:|^\W*\w+(?:\.\w+){2,}\W*$", re.IGNORECASE)


def normalise_space(text: str) -> str:
    """Words with one space between them, and nothing that cannot be seen."""
    if text.isprintable() and "  " not in text:  # the only white space that is printable is the space
        return text.strip(" ")
    return " ".join(INVISIBLE.sub("", text).split())


def strip_remarks(text: str) -> str:
    """The text without remarks on editions. Expects normal white space, and leaves it."""
    pieces: list[str] = []
    place = text.find(REMARK_MARK)
    if place < 0:
        return text
    begin = 0
    for match in REMARK.finditer(text, place):
        before = BEFORE_REMARK.search(text, max(begin, match.start() - 4), match.start())
        pieces.append(text[begin : before.start() if before else match.start()])
        begin = match.end()
    return " ".join([*pieces, text[begin:]]).strip(" ") if pieces else text


def separate_sentences(text: str) -> str:
    """A space between glued sentences, where it is safe: not in addresses, file names and names of classes."""
    pieces: list[str] = []
    place = 0
    for match in GLUED.finditer(text):
        if not ENDS_WORD.search(text[max(0, match.start() - 3) : match.start()]):
            continue
        before, behind = text[max(0, match.start() - NEAR) : match.start()], text[match.end() : match.end() + NEAR]
        token = before[before.rfind(" ") + 1 :] + match.group() + behind.partition(" ")[0]
        if len(token) < NEAR and not NO_SENTENCE.match(match["next"]) and not NO_PROSE.search(token):
            pieces.append(text[place : match.end()])
            place = match.end()
    return " ".join([*pieces, text[place:]]) if pieces else text
