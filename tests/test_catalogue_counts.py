"""The catalogue's report against what the file's composer knows, and against a count that shares no code with it."""

from __future__ import annotations

import gzip
import html
import itertools
import json
import re
import statistics
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import catalogue_file  # noqa: E402

from afina.catalogue.prepare import prepare_catalogue  # noqa: E402
from afina.core.catalogue_config import CatalogueConfig  # noqa: E402

ROWS, SEED = 5000, 3
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
THRESHOLD = 0.8


@dataclass(frozen=True)
class Made:
    """A generated file, what its composer counted, its lines as Python reads them, and what the preparation reports."""

    truth: dict[str, Any]
    lines: list[dict[str, Any]]
    report: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("catalogue")
    path = folder / "trn.json.gz"
    truth = catalogue_file.write_catalogue(path, ROWS, SEED)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    prepare_catalogue(CatalogueConfig(path=path), folder / "prepared", seed=0, shares=SHARES)
    report = json.loads((folder / "prepared" / "report.json").read_text(encoding="utf-8"))
    return Made(truth, lines, report, folder / "prepared")


# -- the generator's own counts ----------------------------------------------------------------------


def test_the_steps_are_those_that_the_composer_made(made: Made) -> None:
    truth, steps = made.truth, made.report["steps"]
    assert made.report["rows"]["read"] == truth["rows"] == ROWS
    assert made.report["rows"]["cleaned"] == truth["both"]
    assert steps["entities_unescaped"] == truth["entities"] > 400
    assert steps["html_stripped"] == truth["html"] > 50
    assert steps["characters_repaired"] == truth["mojibake"] > 10
    assert steps["remarks_removed"] == truth["remark"] + truth["only_remark"] > 600
    assert steps["sentences_separated"] == truth["glued"] > 300
    assert steps["white_space_normalised"] >= truth["spaces"] > 50
    assert steps["not_utf8_repaired"] == 0


def test_what_was_rejected_is_what_the_composer_left_out(made: Made) -> None:
    truth, rejected = made.truth, made.report["rejected"]
    assert rejected["no title"] == truth["empty_title"] > 200
    assert rejected["no content"] == truth["empty_content"] - truth["empty_both"] + truth["only_remark"] > 1500
    assert rejected["content equals title"] == truth["equals_title"] > 10
    assert rejected["exact duplicate"] == truth["exact_copy"] > 5
    # Short contents can be equal by chance, so there may be more than were planted.
    assert truth["blurb"] - truth["blurbs"] <= rejected["boilerplate"] <= truth["blurb"] + truth["short"]
    assert sum(rejected.values()) == made.report["rows"]["rejected"]


def test_the_kinds_of_rows_account_for_all_of_them(made: Made) -> None:
    truth = made.truth
    copies = truth["copied_title"] + truth["blurb"] + truth["exact_copy"] + truth["near_copy"]
    assert truth["fresh"] + copies + truth["equals_title"] + truth["only_remark"] + truth["short"] == truth["both"]
    assert truth["both"] + truth["empty_title"] + truth["empty_content"] - truth["empty_both"] == ROWS


# -- an independent count ----------------------------------------------------------------------------


def plainly(text: str) -> str:
    """Clean enough to count by."""
    for _ in range(3):
        text = html.unescape(text)
    text = text.replace("\u00e2\u20ac\u2122", "'")
    text = re.sub(r"</?(p|b|i|br|div|span)(\s[^>]*)?/?>", " ", text)
    text = re.sub("[\x00-\x08\x7f\u00ad\u200b]", "", text)
    text = re.sub(r"(--)?This text refers to (the|an).*?edition( of this title)?\.$", "", " ".join(text.split()))
    return text.strip()


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def counted(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Rows of each kind, in the order in which a row is judged."""
    found: Counter[str] = Counter()
    titles_of: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for line in lines:
        title, content = words_of(plainly(line["title"])), words_of(plainly(line["content"]))
        if not title:
            found["no title"] += 1
        elif not content:
            found["no content"] += 1
        elif "".join(title) == "".join(content):
            found["content equals title"] += 1
        else:
            before = titles_of.setdefault(content, [])
            if title in before:
                found["exact duplicate"] += 1
            elif before and before[0] != title:
                found["boilerplate"] += 1
            else:
                found["kept"] += 1
            before.append(title)
    found["near"] = count_near(titles_of)
    return dict(found)


def count_near(titles_of: dict[tuple[str, ...], list[tuple[str, ...]]]) -> int:
    """Rows whose content is similar to one that stood before it, over an index of all shingles."""
    index: dict[tuple[str, ...], list[int]] = {}
    sizes: list[int] = []
    rows = 0
    for number, (words, titles) in enumerate(titles_of.items()):
        shingles = {words[n : n + 3] for n in range(len(words) - 2)}
        shared = Counter(itertools.chain.from_iterable(index.get(shingle, ()) for shingle in shingles))
        rows += len(titles) * any(
            both / (len(shingles) + sizes[other] - both) >= THRESHOLD for other, both in shared.items()
        )
        for shingle in shingles:
            index.setdefault(shingle, []).append(number)
        sizes.append(len(shingles))
    return rows


def test_an_independent_count_agrees(made: Made) -> None:
    wanted = counted(made.lines)
    assert {kind: made.report["rejected"][kind] for kind in made.report["rejected"]} == {
        kind: count for kind, count in wanted.items() if kind not in ("kept", "near")
    }
    assert made.report["rows"]["kept"] == wanted["kept"] > 2500
    assert made.report["found"]["near_duplicates"]["rows"] == wanted["near"] > 20


def test_the_shards_hold_the_kept_rows_and_no_dirt(made: Made) -> None:
    rows = [
        json.loads(line)
        for path in sorted((made.folder / "shards").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == made.report["rows"]["kept"]
    by_line = dict(enumerate(made.lines, 1))
    different = 0
    for row in rows:
        source = by_line[row["line"]]
        assert row["uid"] == source["uid"]
        assert words_of(row["title"]) == words_of(plainly(source["title"]))
        assert words_of(row["content"]) == words_of(plainly(source["content"]))
        different += row["content"] != source["content"]
        assert not re.search(r"&#?\w+;|</|This text refers|  |\n|[a-z]{2}\.[A-Z][a-z]", row["content"]), row["content"]
    assert different > 1000


# -- the generator -----------------------------------------------------------------------------------


def read_all(path: Path) -> bytes:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            assert sorted(name.rpartition("/")[2] for name in archive.namelist()) == [
                "lbl.json.gz",
                "trn.json.gz",
                "tst.json.gz",
            ]
            return gzip.decompress(archive.read("LF-Amazon-1.3M/trn.json.gz"))
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_the_same_seed_writes_the_same_rows_in_every_packing(tmp_path: Path) -> None:
    names = ("a.jsonl", "a.jsonl.gz", "a.zip")
    truths = [catalogue_file.write_catalogue(tmp_path / name, 300, 1) for name in names]
    assert truths[0] == truths[1] == truths[2]
    assert len({read_all(tmp_path / name) for name in names}) == 1
    first = (tmp_path / "a.zip").read_bytes()
    catalogue_file.write_catalogue(tmp_path / "a.zip", 300, 1)
    assert (tmp_path / "a.zip").read_bytes() == first
    catalogue_file.write_catalogue(tmp_path / "b.jsonl", 300, 2)
    assert read_all(tmp_path / "b.jsonl") != read_all(tmp_path / "a.jsonl")
    kept = json.loads((tmp_path / "a.zip.truth.json").read_text(encoding="utf-8"))
    assert kept == truths[2]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_file_has_the_shape_of_the_real_one(made: Made) -> None:
    """Tolerances: four standard errors of a share over 5,000 rows, and of a median of a skewed length."""
    lines = made.lines
    assert all(list(line) == ["uid", "title", "content", "target_ind", "target_rel"] for line in lines)
    assert sum(not line["title"] for line in lines) / ROWS == pytest.approx(0.0564, abs=0.013)
    assert sum(not line["content"] for line in lines) / ROWS == pytest.approx(0.3335, abs=0.027)
    assert statistics.median(len(line["title"]) for line in lines if line["title"]) == pytest.approx(54, abs=6)
    assert statistics.median(len(line["content"]) for line in lines if line["content"]) == pytest.approx(398, abs=50)
    assert max(len(line["content"]) for line in lines) > 5000
    shares = {kind: made.truth[kind] / made.truth["both"] for kind in ("entities", "remark", "glued")}
    assert shares["entities"] == pytest.approx(0.2, abs=0.04), "17 % of the contents, and some titles"
    assert shares["remark"] == pytest.approx(0.24, abs=0.03)
    assert shares["glued"] == pytest.approx(0.14, abs=0.03), "of 17 %, those that have two sentences"
    assert all(len(line["target_ind"]) == len(line["target_rel"]) > 0 for line in lines)
    assert all(line["target_ind"] == sorted(line["target_ind"]) for line in lines)
    uids = [line["uid"] for line in lines]
    assert len(set(uids)) == ROWS
    assert {len(uid) for uid in uids} == {10}
    assert sum(uid.startswith("0") for uid in uids) > 3000
    assert sum(uid.endswith("X") for uid in uids if not uid.startswith("B")) > 100
