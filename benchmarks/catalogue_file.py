"""A file of products with the shape and the dirt of LF-AmazonTitles-1.3MM's `trn.json`, of any size.

    python benchmarks/catalogue_file.py OUT --rows 300000 [--seed 0]

OUT ends in .jsonl, .jsonl.gz or .zip (which holds LF-Amazon-1.3M/trn.json.gz and two small neighbours, as the
distributed one does). Beside it comes OUT.truth.json: how many rows have which dirt. The same seed writes the same
rows. Lengths, shares and kinds of dirt are the real file's; every word is ours (`catalogue_words.py`).

A row is composed clean, then dirtied; a copy of an earlier row is dirtied anew. So the truth is what the composer
knows, and not what some cleaner finds.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import string
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import catalogue_words as words
import numpy as np
from catalogue_compose import Composer

# Of the real file's 2,248,619 rows; a content and a title are missing together in 18,519.
NO_TITLE, NO_CONTENT, NEITHER = 126_834 / 2_248_619, 749_901 / 2_248_619, 18_519 / 2_248_619
CONTENT_MEDIAN, CONTENT_SPREAD, LONGEST_CONTENT = 430, 0.85, 197_622  # characters; spread of the logarithm
HUGE, HUGE_MEDIAN = 1 / 2000, 12_000  # contents that hold a whole chapter
NUM_LABELS, LABELS_MEDIAN = 1_305_265, 13  # of target_ind
# Shares of the rows that have both title and content.
KINDS = {
    "exact_copy": 0.006,
    "near_copy": 0.025,
    "copied_title": 0.028,
    "blurb": 0.05,
    "equals_title": 0.01,
    "only_remark": 0.005,
    "short": 0.05,
}  # all others are fresh
ENTITIES, REMARK, GLUED, HTML, SPACES, MOJIBAKE, INVISIBLE, UNICODE = 0.17, 0.24, 0.17, 0.03, 0.05, 0.006, 0.003, 0.15
TITLE_ENTITIES, TITLE_HTML = 0.022, 0.0005
REMEMBERED = 2000  # earlier rows that copies are made of
BLURB_AUTHORS = 1 / 150  # of the rows: so many different blurbs
CHUNK = 4096  # rows for which random numbers are drawn at once

APOSTROPHES = ("&#8217;", "&rsquo;", "&#x2019;", "&#x92;", "&#146;", "&amp;#8217;", "&amp;rsquo;", "&#39;")
DASHES = ("&#8212;", "&mdash;", "&#x2014;", "&#151;", "&#x97;", "&amp;mdash;")
QUOTES = ("&quot;", "&#34;", "&#x22;", "&amp;quot;")
AMPERSANDS = ("&amp;", "&#38;", "&amp;amp;", "&#x26;")
BLANKS = ("&#160;", "&nbsp;", "&#xA0;")
LETTERS = {"é": ("&eacute;", "&#233;", "&#xe9;"), "ã": ("&atilde;", "&#227;"), "ç": ("&ccedil;", "&amp;ccedil;")}
TAGS = (("<p>", "</p>"), ("<b>", "</b>"), ("<br />", ""), ('<div class="desc">', "</div>"), ("&lt;i&gt;", "&lt;/i&gt;"))
GLUE = re.compile(r"(?<=[a-z]{2}[.?!]) (?=[A-Z][a-z])")
escaped: Callable[[str], str] = json.encoder.encode_basestring_ascii  # the quickest way to a JSON text


class Dirt:
    """Clean texts -> texts as catalogues have them, and what was done. Nothing is done where a text gives no place."""

    def __init__(self, composer: Composer) -> None:
        self.draw = composer.draw

    def chosen(self, share: float) -> bool:
        return self.draw() % 1_000_000 < share * 1_000_000

    def one(self, options: Sequence[str]) -> str:
        return options[self.draw() % len(options)]

    def title(self, text: str) -> tuple[str, list[str]]:
        done: list[str] = []
        if "&" in text and self.chosen(TITLE_ENTITIES * 12):
            text, done = text.replace("&", self.one(AMPERSANDS)), ["entities"]
        elif "'" in text and self.chosen(TITLE_ENTITIES * 3):
            text, done = text.replace("'", self.one(APOSTROPHES)), ["entities"]
        if self.chosen(TITLE_HTML):
            text, done = f'<span class="a-size-medium">{text}</span>', [*done, "html"]
        return text, done

    def content(self, text: str) -> tuple[str, list[str]]:
        done: list[str] = []
        if self.chosen(GLUED):
            places = [match.start() for match in GLUE.finditer(text)]
            if places:
                at = places[self.draw() % len(places)]
                text = text[:at] + text[at + 1 :]
                done.append("glued")
        if self.chosen(ENTITIES):
            text, done = self._entities(text), [*done, "entities"]
        elif self.chosen(MOJIBAKE * 2) and "'" in text:
            text, done = text.replace("'", "\u00e2\u20ac\u2122"), [*done, "mojibake"]
        elif self.chosen(UNICODE):
            text = text.replace("'", "\u2019").replace("--", "\u2014")
        if self.chosen(HTML):
            text, done = self._html(text, done), [*done, "html"]
        if self.chosen(SPACES):
            blank = self.one(("  ", "\n", "\t", " \u00a0", "\r\n"))
            text, done = text.replace(" ", blank, 1 + self.draw() % 5), [*done, "spaces"]
        if self.chosen(INVISIBLE):
            at = text.find(" ", self.draw() % len(text)) + 1  # between words: within an entity it would be another text
            text, done = text[:at] + self.one("\u0007\u0000\u200b\u00ad\u007f") + text[at:], [*done, "invisible"]
        if self.chosen(REMARK):
            text, done = text + self.one(words.REMARKS), [*done, "remark"]
        return text, done

    def _entities(self, text: str) -> str:
        before = text
        text = text.replace("&", self.one(AMPERSANDS)).replace("'", self.one(APOSTROPHES))
        text = text.replace("--", self.one(DASHES))
        if self.draw() % 2:
            text = text.replace('"', self.one(QUOTES))
        for letter, options in LETTERS.items():
            if letter in text:
                text = text.replace(letter, self.one(options))
        return text if text != before or " " not in text else text.replace(" ", self.one(BLANKS), 1)

    def _html(self, text: str, done: list[str]) -> str:
        begin, end = TAGS[self.draw() % len(TAGS)]
        if begin.startswith("&"):
            done.append("entities")
        if " " in text and self.draw() % 2:
            text = text.replace(". ", ".<br>", 1)
        return begin + text + end


def uids() -> Iterator[str]:
    """Ten characters, ascending: ISBNs with leading zeros and their check digit, then codes that begin with B."""
    letters = string.digits + string.ascii_uppercase
    for number in itertools.count():
        if number % 20 < 14:
            digits = f"{number * 397 % 10**9:09d}"
            check = sum(int(digit) * place for place, digit in enumerate(digits, 1)) % 11
            yield digits + ("X" if check == 10 else str(check))
        else:
            code, rest = "", number * 613
            for _ in range(7):
                rest, at = divmod(rest, 36)
                code = letters[at] + code
            yield f"B00{code}"


class Catalogue:
    """Rows of the file, one after the other, and their count by kind."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.composer = Composer(seed)
        self.dirt = Dirt(self.composer)
        self.truth: Counter[str] = Counter()
        self.kept: list[tuple[str, str, int]] = []  # earlier clean rows: title, content, kind
        self.blurbs = [self.composer.any(self.composer.blurbs, {}) for _ in range(max(3, int(rows * BLURB_AUTHORS)))]

    def lines(self) -> Iterator[str]:
        """JSON Lines, a chunk of rows at a time."""
        uid = uids()
        for begin in range(0, self.rows, CHUNK):
            count = min(CHUNK, self.rows - begin)
            lengths, targets = self._lengths(count), self._targets(count)
            lines: list[str] = []
            for length, (labels, weights) in zip(lengths, targets, strict=True):
                title, content = self._row(length)
                lines.append(
                    f'{{"uid": "{next(uid)}", "title": {escaped(title)}, "content": {escaped(content)}, '
                    f'"target_ind": {labels}, "target_rel": {weights}}}\n'
                )
            yield "".join(lines)

    def _lengths(self, count: int) -> list[float]:
        rng = self.composer.rng
        lengths = CONTENT_MEDIAN * np.exp(CONTENT_SPREAD * rng.standard_normal(count))
        huge = rng.random(count) < HUGE
        lengths[huge] = HUGE_MEDIAN * np.exp(rng.standard_normal(int(huge.sum())))
        return np.minimum(lengths, LONGEST_CONTENT - 500).tolist()

    def _targets(self, count: int) -> list[tuple[str, str]]:
        rng = self.composer.rng
        sizes = np.minimum(1 + LABELS_MEDIAN * np.exp(rng.standard_normal(count)), 500).astype(int)
        steps = np.where(rng.random(sizes.sum()) < 0.8, 1, rng.integers(1, 1000, sizes.sum()))
        totals = np.cumsum(steps)
        ends = np.cumsum(sizes)
        begins = ends - sizes
        bases = rng.integers(0, NUM_LABELS - 200_000, count)
        labels = totals - np.repeat(totals[begins], sizes) + np.repeat(bases, sizes)
        flat = labels.tolist()
        return [
            (str(flat[a:b]), "[" + ", ".join(["1.0"] * (b - a)) + "]")
            for a, b in zip(begins.tolist(), ends.tolist(), strict=True)
        ]

    def _row(self, length: float) -> tuple[str, str]:
        """Title and content as they stand in the file."""
        composer, truth = self.composer, self.truth
        place = composer.draw() % 10**9 / 10**9
        kind = composer.kind_of[composer.draw() % len(composer.kind_of)]
        truth["rows"] += 1
        if place < NO_TITLE + NO_CONTENT - NEITHER:
            no_title, no_content = place < NO_TITLE, place >= NO_TITLE - NEITHER
            truth["empty_title"] += no_title
            truth["empty_content"] += no_content
            truth["empty_both"] += no_title and no_content
            own: dict[str, str] = {}
            title = "" if no_title else self.dirt.title(composer.title(kind, own))[0]
            return title, "" if no_content else self.dirt.content(composer.content(kind, length, own))[0]
        truth["both"] += 1
        title, content, what = self._clean_row(kind, length)
        truth[what] += 1
        if what == "only_remark":
            return title, self.dirt.one(words.REMARKS)
        if what == "fresh":
            if len(self.kept) < REMEMBERED:
                self.kept.append((title, content, kind))
            else:
                self.kept[composer.draw() % REMEMBERED] = (title, content, kind)
        if what == "equals_title":
            return title, title
        title, in_title = self.dirt.title(title)
        content, in_content = self.dirt.content(content)
        truth.update({*in_title, *in_content})
        return title, content

    def _clean_row(self, kind: int, length: float) -> tuple[str, str, str]:
        """(title, content, what kind of row it is)."""
        composer = self.composer
        place = composer.draw() % 10**9 / 10**9
        what = "fresh"
        for name, share in KINDS.items():
            place -= share
            if place < 0:
                what = name
                break
        before = self.kept[composer.draw() % len(self.kept)] if self.kept else None
        own: dict[str, str] = {}
        if before is not None:
            if what == "exact_copy":
                return before[0], before[1], what
            if what == "near_copy" and len(before[1]) > 300:
                return composer.title(before[2], own), composer.edited(before[1]), what
            if what == "copied_title":
                return before[0], composer.content(before[2], length, own), what
        title = composer.title(kind, own)
        if what == "blurb":
            return title, self.blurbs[composer.draw() % len(self.blurbs)], what
        if what == "short":
            return title, composer.content(kind, 0, own), what
        if what not in ("equals_title", "only_remark"):
            what = "fresh"
        return title, composer.content(kind, length, own), what


@contextmanager
def opened(path: Path, name: str) -> Generator[IO[bytes]]:
    """The stream that the rows go to; name decides the packing."""
    try:
        from isal import igzip as fast  # the same format, several times as fast
    except ImportError:
        fast = gzip

    def packed(raw: Any) -> Any:
        return fast.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0)

    if name.endswith(".zip"):
        small = gzip.compress(b'{"uid": "0000000000", "title": "A label"}\n', mtime=0)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("LF-Amazon-1.3M/lbl.json.gz"), small)
            with (
                archive.open(zipfile.ZipInfo("LF-Amazon-1.3M/trn.json.gz"), "w", force_zip64=True) as member,
                packed(member) as file,
            ):
                yield file
            archive.writestr(zipfile.ZipInfo("LF-Amazon-1.3M/tst.json.gz"), small)
    elif name.endswith(".gz"):
        with path.open("wb") as raw, packed(raw) as file:
            yield file
    else:
        with path.open("wb") as file:
            yield file


def truth_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.truth.json")


def write_catalogue(path: Path, rows: int, seed: int = 0) -> dict[str, Any]:
    """Write the file and its truth; return the truth.

    rows, empty_title, empty_content, both: of the whole file. Of the rows with both: what kind of row each is (these
    sum to `both`), and how many have which dirt. A row counts for all the dirt it has.
    blurbs: different ones that rows may share.
    """
    catalogue = Catalogue(rows, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    try:
        with opened(staging, path.name) as file:
            for lines in catalogue.lines():
                file.write(lines.encode("ascii"))
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    truth = {"seed": seed, "blurbs": len(catalogue.blurbs), **dict(sorted(catalogue.truth.items()))}
    truth_path(path).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.perf_counter()
    write_catalogue(asked.out, asked.rows, asked.seed)
    took = time.perf_counter() - began
    print(f"{asked.out}: {asked.rows} rows, {asked.out.stat().st_size / 1e6:.0f} MB, {took:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
