"""A word that no product has -> the word of the catalogue that was probably meant.

Comes in: a word, and how to count the products that have another. Goes out: the commonest word that is one slip of the
pen away, or none. It knows nothing of questions or products.

A slip: a letter left out, put in or changed, or two neighbours swapped; four fifths of all misspellings are a single
one of these (Damerau 1964). Every word that is one slip away is looked up (Norvig, "How to write a spelling
corrector"): some hundreds, whatever the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase

FEWEST_LETTERS, MOST_LETTERS = 4, 24  # shorter words are one slip from too many others, longer ones are no words


def may_be_misspelt(word: str) -> bool:
    """Whether it is a word as they are kept: without accents. One with digits is the number of a model."""
    return FEWEST_LETTERS <= len(word) <= MOST_LETTERS and word.isascii() and word.isalpha()


def one_slip_away(word: str) -> set[str]:
    """All words of small letters that are one slip away."""
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    left_out = {a + b[1:] for a, b in cuts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    changed = {a + letter + b[1:] for a, b in cuts if b for letter in ascii_lowercase}
    put_in = {a + letter + b for a, b in cuts for letter in ascii_lowercase}
    return (left_out | swapped | changed | put_in) - {word}


def meant(word: str, count: Callable[[str], int]) -> str | None:
    """The commonest of the words one slip away, the first by alphabet of equally common ones; None if there is none."""
    if not may_be_misspelt(word):
        return None
    found = {other: count(other) for other in one_slip_away(word)}
    best = min(found, key=lambda other: (-found[other], other))
    return best if found[best] else None
