"""What two texts share, by words: longest common subsequence, verbatim spans, n-grams, repetition.

Comes in: texts. Goes out: counts and shares. It knows neither systems nor which text is right.

Words are lower-case runs of letters and digits of any alphabet. Google's rouge-score keeps a to z alone, which makes
"não" two words; on texts of these letters the two are equal. There is no stemming, in any language: rouge-score's is
English.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

GRAM = 8  # words that in a row are seldom the same by chance
LOOP_GRAM = 4  # words; as seq-rep-4 in Welleck et al. 2020, arXiv:1908.04319
WORD = re.compile(r"[^\W_]+")

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of a text, composed (NFC) and in lower case."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def grams(found: Sequence[str], size: int = GRAM) -> Iterator[Gram]:
    """Every run of `size` words, in order; none of a shorter text."""
    return zip(*(found[start:] for start in range(size)), strict=False)


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Words of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a row of the table is one integer, so
    two contents of 30,000 words take seconds, where the table itself would take 900 million cells.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(one) - row.bit_count()


def rouge_l(gold: Sequence[str], said: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004), in [0, 1]; 0 where either text has no word."""
    common = common_subsequence(gold, said)
    return 2 * common / (len(gold) + len(said)) if common else 0.0


def longest_span(said: Sequence[str], shown: Iterable[Sequence[str]]) -> int:
    """Words of the longest run of `said` that stands verbatim in one of the texts `shown`."""
    number = {word: n for n, word in enumerate(dict.fromkeys(said))}
    best = 0
    for text in shown:
        text_T = np.array([number.get(word, -1) for word in text], dtype=np.int64)
        run_T = np.zeros(len(text) + 1, dtype=np.int64)  # length of the common run that ends at each word of the text
        for word in said:
            run_T[1:] = np.where(text_T == number[word], run_T[:-1] + 1, 0)
            best = max(best, int(run_T.max()))
    return best


def repetition(said: Sequence[str]) -> float | None:
    """Share of an answer's 4-grams that it had said before, in [0, 1); None for less than four words."""
    found = list(grams(said, LOOP_GRAM))
    return 1 - len(set(found)) / len(found) if found else None


def distinct(answers: Iterable[Sequence[str]], size: int) -> float | None:
    """Different n-grams of all answers by their number (Li et al. 2016, arXiv:1510.03055), in (0, 1]; None without any.

    It falls as answers grow in number and length: compare systems on the same rows only.
    """
    found = [gram for said in answers for gram in grams(said, size)]
    return len(set(found)) / len(found) if found else None


def standing_in(wanted: set[Gram], texts: Iterable[str]) -> set[Gram]:
    """Which of the 8-grams `wanted` stand in one of the texts.

    What is looked for is hashed, not the texts: a catalogue of any length is read once and held by nobody.
    """
    found: set[Gram] = set()
    for text in texts:
        found |= wanted.intersection(grams(words(text)))
    return found
