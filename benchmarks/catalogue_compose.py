"""Words -> products: a title, and a content of the length that is asked for. The same ones for the same seed.

A product's own words (its brand, its material) are the same in its title and its sentences; all else is drawn anew. It
knows nothing of dirt, of files, or of how many products there will be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import catalogue_words as words
import numpy as np

OWN = frozenset({"tool", "toy", "kitchen", "wear", "brand", "genre", "objeto", "tema", "material"})
SERIES = ("Series", "Classics", "Collection")
WITH_SUBTITLE = 60  # percent
AN = tuple(f"A {vowel}" for vowel in "aeiou")
SLOT = re.compile(r"\{(\w+)\}")
LONGEST_TITLE, LONG_TITLES = 1999, 1 / 5000

Template = tuple[str, list[tuple[str, list[str]]]]  # a text with %s, and (slot, its words) for each
Templates = list[Template]


def sentence(text: str, english: bool) -> str:
    """A capital to begin with, and "an" before vowels."""
    if english:
        for vowel in "aeiou":
            text = text.replace(f" a {vowel}", f" an {vowel}").replace(f" A {vowel}", f" An {vowel}")
        if text.startswith(AN):
            text = f"An{text[1:]}"
    return text if text[0].isupper() else text[0].upper() + text[1:]


class Composer:
    """Products out of words: the same ones for the same seed. All randomness is one stream of numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.draw = self._numbers().__next__
        self.pools = self._pools()
        kinds = {**words.KINDS, "portuguese": words.PORTUGUESE}
        self.told = [number for number, name in enumerate(kinds) if name == "book"]
        self.kinds: list[tuple[Templates, Templates]] = []
        for number, (_, titles, sentences) in enumerate(kinds.values()):
            general = [] if number in self.told or number == len(words.KINDS) else words.GENERAL
            self.kinds.append((self._templates(titles), self._templates([*sentences, *general])))
        shares = np.array([share for share, _, _ in kinds.values()])
        self.kind_of = np.repeat(np.arange(len(shares)), np.round(shares / shares.sum() * 1000).astype(int)).tolist()
        self.blurbs, self.short = self._templates(words.BLURBS), self._templates(words.SHORT)
        self.subtitles, self.suffixes = self._templates(words.SUBTITLES), self._templates(words.SUFFIXES)

    def _numbers(self) -> Iterator[int]:
        while True:
            yield from self.rng.integers(0, 1 << 40, 1 << 16).tolist()

    def _pools(self) -> dict[str, list[str]]:
        found = words.word_lists()

        def joined(name: str) -> list[str]:
            return [a + b for a in found[f"{name} begin"] for b in found[f"{name} end"]]

        return found | {
            "name": [f"{first} {last}" for first in found["first"] for last in joined("last")],
            "place": joined("place")
            + [f"{a} {b}" for a in ("Port", "Saint", "New", "Upper", "Santa") for b in joined("last")],
            "brand": joined("brand"),
            "year": [str(year) for year in range(1850, 2015)],
            "small": [str(n) for n in range(2, 25)],
            "number": [str(n) for n in range(25, 990)],
        }

    def _templates(self, texts: Sequence[str]) -> Templates:
        return [
            (SLOT.sub("%s", text.replace("%", "%%")), [(slot, self.pools[slot]) for slot in SLOT.findall(text)])
            for text in texts
        ]

    def written(self, template: Template, own: dict[str, str]) -> str:
        """The template's slots filled; own: words of this product, which its title and its text have in common."""
        draw = self.draw
        text, slots = template
        found: list[str] = []
        for slot, pool in slots:
            if slot in OWN:
                word = own.get(slot)
                if word is None:
                    own[slot] = word = pool[draw() % len(pool)]
            else:
                word = pool[draw() % len(pool)]
            found.append(word)
        return text % tuple(found)

    def any(self, templates: Templates, own: dict[str, str]) -> str:
        return self.written(templates[self.draw() % len(templates)], own)

    def title(self, kind: int, own: dict[str, str]) -> str:
        draw = self.draw
        text = self.any(self.kinds[kind][0], own)
        if draw() % 100 < WITH_SUBTITLE and kind < len(words.KINDS):
            text += self.any(self.subtitles if kind in self.told else self.suffixes, own)
        if draw() % 100 < 20:
            text += f" ({own.get('brand') or self.pools['brand'][draw() % 100]} {SERIES[draw() % len(SERIES)]})"
        if not draw() % 4:
            text = text.replace(" and ", " & ")
        if not draw() % round(1 / LONG_TITLES):
            length = draw() % LONGEST_TITLE
            while len(text) < length:
                text += ", " + self.any(self.kinds[kind][0], {})
        return sentence(text[:LONGEST_TITLE], kind < len(words.KINDS))

    def content(self, kind: int, length: float, own: dict[str, str]) -> str:
        """Sentences of about `length` characters; a kind's sentences come in turn, so that few repeat each other."""
        english = kind < len(words.KINDS)
        if length < 45:
            return sentence(self.any(self.short, own), english)
        templates = self.kinds[kind][1]
        at, step = self.draw() % len(templates), 1 + self.draw() % 2 * (len(templates) - 2)
        sentences: list[str] = []
        size = 0
        while size < length - 50 or not sentences:
            one = self.written(templates[at % len(templates)], own)
            sentences.append(one if one[0].isupper() else one[0].upper() + one[1:])
            size += len(one) + 1
            at += step
        text = " ".join(sentences)
        if not self.draw() % 4:
            text = text.replace(" and ", " & ")
        return sentence(text, english)

    def edited(self, content: str) -> str:
        """A content like it: one word of about thirty is another."""
        found = content.split(" ")
        for _ in range(1 + len(found) // 60):
            found[self.draw() % len(found)] = self.pools["thing"][self.draw() % 60]
        return " ".join(found)
