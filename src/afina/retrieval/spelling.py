"""A word that no product has -> the word of the catalogue that was probably meant.

Comes in: a word and the catalogue's words that begin like it, with how often each is found. Goes out: the nearest one,
or none. It knows nothing of questions or products.

One slip of the pen in a word of four letters or more, two in one of eight or more: a letter left out, put in, changed,
or two neighbours swapped (Damerau 1964, about four fifths of all misspellings are a single one of these). The first
letters are taken to be right, as most are.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = 2  # letters that are taken to be right
FEWEST_LETTERS, LETTERS_FOR_TWO = 4, 8


def slips_allowed(word: str) -> int:
    """How many slips a word of this length may hold. Words with digits are numbers of models: none."""
    if len(word) < FEWEST_LETTERS or any(letter.isdigit() for letter in word):
        return 0
    return 2 if len(word) >= LETTERS_FOR_TWO else 1


def nearest(word: str, candidates: Iterable[tuple[str, int]]) -> str | None:
    """The candidate with the fewest slips, then the commonest, then by alphabet; None if all are too far."""
    most = slips_allowed(word)
    best: tuple[int, int, str] | None = None
    letters = frozenset(word)
    for text, count in candidates:
        # Each slip changes the length by one at most, and brings one new letter at most.
        if abs(len(text) - len(word)) > most or len(letters.difference(text)) > most:
            continue
        slips = distance(word, text, most)
        if slips <= most and (best is None or (slips, -count, text) < best):
            best = (slips, -count, text)
    return best[2] if best and best[0] else None


def distance(a: str, b: str, most: int) -> int:
    """Slips between two words (optimal string alignment); most + 1 stands for any more than `most`."""
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > most and (not above or min(above) > most):
            return most + 1
        before, above = above, row
    return min(above[-1], most + 1)
