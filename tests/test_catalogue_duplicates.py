"""Duplicates in a catalogue, against the plainest code that finds the same: every row compared with every other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.catalogue import duplicates_prefix, duplicates_runs, duplicates_words
from afina.catalogue.duplicates import Duplicates, find_duplicates
from afina.catalogue.duplicates_prefix import LEADERS, NEIGHBOURS, TWO_SKETCHES
from afina.core.predictor import Example
from afina.core.task import Task
from afina.data import dedupe

Rows = list[tuple[str, str]]  # title, content
_ENGLISH = (
    "brass kettle lamp river quiet harbour wooden puzzle engine garden violin copper lantern winter orchard anchor"
)
_PORTUGUESE = "livro história menina chuva sertão música ação coração viagem estrela praça açúcar"
WORDS = f"{_ENGLISH} basket candle drawer feather hammer island jacket kitchen {_PORTUGUESE}".split()


def write_parts(folder: Path, rows: Rows, sizes: Sequence[int]) -> list[Path]:
    """Parquet files of the given numbers of rows, as the catalogue's cleaning writes them."""
    assert sum(sizes) == len(rows)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    begin = 0
    for number, size in enumerate(sizes):
        some = rows[begin : begin + size]
        columns = {
            "line": range(begin, begin + size),
            "uid": [f"{begin + n:010d}" for n in range(size)],
            "title": [title for title, _ in some],
            "content": [content for _, content in some],
        }
        schema = {"line": polars.Int64, "uid": polars.String, "title": polars.String, "content": polars.String}
        paths.append(folder / f"part-{number:05d}.parquet")
        polars.DataFrame(columns, schema=schema).write_parquet(paths[-1])
        begin += size
    return paths


def marks(found: Duplicates) -> dict[str, list[int]]:
    """What was found about all rows."""
    parts = [found.part(number) for number in range(len(found.part_rows))]
    names = ("cluster", "exact", "near", "boilerplate")
    return {name: [int(v) for part in parts for v in getattr(part, name)] for name in names}


def shingles(content: str) -> set[tuple[str, ...]]:
    words = dedupe.normalise_text(content).split()
    return {tuple(words[n : n + 3]) for n in range(len(words) - 2)}


def similarity(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0


def by_hand(rows: Rows, threshold: float) -> dict[str, list[int]]:
    """Every row against every earlier one."""
    titles = [dedupe.normalise_text(title) for title, _ in rows]
    contents = [dedupe.normalise_text(content) for _, content in rows]
    sets = [shingles(content) for content in contents]
    first = [contents.index(content) for content in contents]
    components = dedupe.Components(len(rows))
    exact, near, boilerplate = ([0] * len(rows) for _ in range(3))
    for later in range(len(rows)):
        boilerplate[later] = int(titles[later] != titles[first[later]])
        for earlier in range(later):
            same = contents[later] == contents[earlier]
            similar = not same and similarity(sets[later], sets[earlier]) >= threshold
            exact[later] |= same and titles[later] == titles[earlier]
            near[later] |= similar and first[earlier] < first[later]
            if same or similar or titles[later] == titles[earlier]:
                components.join(later, earlier)
    # A content that stood before has the mark of where it first stood.
    near = [near[n] for n in first]
    return {
        "cluster": [components.find(n) for n in range(len(rows))],
        "exact": exact,
        "near": near,
        "boilerplate": boilerplate,
    }


def changed(rng: random.Random, content: str, edits: int) -> str:
    words = content.split()
    for _ in range(edits):
        at = rng.randrange(len(words) + 1)
        kind = rng.randrange(3)
        words[at : at + (kind > 0)] = [rng.choice(WORDS)] * (kind < 2)
    return " ".join(words)


def table(seed: int, count: int) -> Rows:
    """Rows of which about half repeat an earlier one: title, content, both, or the content with a few edits."""
    rng = random.Random(seed)
    rows: Rows = []
    for number in range(count):
        length = rng.choice([0, 1, 2, 3, 4, 8, 15, 40, 90])
        title = f"{rng.choice(WORDS)} {rng.choice(WORDS)} {rng.randrange(count)}"
        content = " ".join(rng.choices(WORDS, k=length)) or rng.choice(["?!", "...", "—", "№"])
        kind = rng.random()
        if number and kind < 0.6:
            before = rng.choice(rows)
            if kind < 0.1:
                title = before[0].upper()
            elif kind < 0.2:
                content = f"«{before[1].title()}»"
            elif kind < 0.25:
                title, content = before
            else:
                content = changed(rng, before[1], rng.choice([1, 1, 1, 2, 4]))
        rows.append((title, content))
    return rows


# -- against brute force -----------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 1.0])
def test_exactly_what_comparing_every_row_with_every_other_finds(tmp_path: Path, threshold: float) -> None:
    seen = dict.fromkeys(("exact", "near", "boilerplate"), 0)
    for seed in range(6):
        rows = table(seed, 160)
        parts = write_parts(tmp_path / f"{seed}", rows, [50, 0, 70, 40])
        found = find_duplicates(parts, threshold, tmp_path / f"scratch-{seed}", seed=seed)
        wanted = by_hand(rows, threshold)
        assert marks(found) == wanted
        assert found.crowded_rows == 0
        assert found.clusters == len(set(wanted["cluster"]))
        assert found.largest == max(map(wanted["cluster"].count, wanted["cluster"]))
        for kind in seen:
            assert getattr(found, kind) == sum(wanted[kind])
            seen[kind] += sum(wanted[kind])
    assert seen["exact"] >= 30
    assert seen["near"] >= (40 if threshold < 1 else 0)
    assert seen["boilerplate"] >= 60


def test_pairs_on_the_threshold_are_similar(tmp_path: Path) -> None:
    """A text and its beginning, one shingle more or less deciding; floating point must not: 0.56 * 25 > 14."""
    checked = 0
    for threshold, size in ((0.7, 10), (0.8, 5), (0.9, 10), (0.56, 25), (0.65, 20), (0.8, 35), (0.8, 50)):
        rows: Rows = []
        for family in range(40):
            whole = [f"word{family}x{n}" for n in range(size + 2)]  # `size` shingles
            shorter = whole[: round(threshold * size) + 2]  # all of them among the others
            contents = [" ".join(words) for words in (whole, shorter, shorter[:-1])]
            assert similarity(*map(shingles, contents[:2])) >= threshold > similarity(*map(shingles, contents[::2]))
            # The third is like the second, so only one of them stands beside the whole text.
            rows += [(f"{family} {n}", contents[n]) for n in (0, 1 + family % 2)]
        parts = write_parts(tmp_path / f"{size}-{threshold}", rows, [len(rows)])
        found = find_duplicates(parts, threshold, tmp_path / "s", seed=0)
        assert found.part(0).near.tolist() == [False, True, False, False] * 20
        checked += 1
    assert checked == 7


def test_how_the_rows_are_cut_into_files_does_not_matter(tmp_path: Path) -> None:
    rows = table(11, 300)
    found = [
        marks(find_duplicates(write_parts(tmp_path / str(n), rows, sizes), 0.8, tmp_path / f"s{n}", seed=seed))
        for n, (sizes, seed) in enumerate([([300], 1), ([100] * 3, 1), ([1] * 20 + [280], 2)])
    ]
    assert found[0] == found[1] == found[2]


def test_without_near_duplicates_only_equal_texts_count(tmp_path: Path) -> None:
    rows = table(3, 200)
    found = find_duplicates(write_parts(tmp_path / "p", rows, [200]), 0.8, tmp_path / "s", seed=0, near=False)
    wanted = by_hand(rows, 2.0)
    assert marks(found) == wanted
    assert sum(wanted["boilerplate"]) > 5


@pytest.mark.parametrize("sizes", [[], [0], [0, 1, 0]])
def test_few_rows(tmp_path: Path, sizes: list[int]) -> None:
    rows = [("a kettle", "boils water quickly")] * sum(sizes)
    found = find_duplicates(write_parts(tmp_path / "p", rows, sizes), 0.8, tmp_path / "s", seed=0)
    assert (found.clusters, found.largest, found.exact) == (sum(sizes), sum(sizes), 0)
    assert marks(found)["cluster"] == [0] * sum(sizes)


# -- crowds ------------------------------------------------------------------------------------------


def test_one_blurb_under_many_titles_is_one_content(tmp_path: Path) -> None:
    rows = [(f"title {n}", "The author lives by the sea with two dogs and writes every morning.") for n in range(5000)]
    found = find_duplicates(write_parts(tmp_path / "p", rows, [2500, 2500]), 0.8, tmp_path / "s", seed=0)
    assert (found.clusters, found.largest, found.boilerplate, found.exact) == (1, 5000, 4999, 0)
    assert found.pairs == 0


def test_a_template_with_thousands_of_rows_makes_no_square_of_pairs(tmp_path: Path) -> None:
    frame = " ".join(f"part{n}" for n in range(60))
    rows = [(f"title {n}", f"{frame} number{n}") for n in range(4000)]
    found = find_duplicates(write_parts(tmp_path / "p", rows, [1000] * 4), 0.8, tmp_path / "s", seed=0)
    assert (found.clusters, found.near) == (1, 3999)
    assert 0 < found.pairs <= 4000 * (1 + len(TWO_SKETCHES) * (NEIGHBOURS + LEADERS)), "all with all: 8 million"
    assert found.crowded_rows == 4000


def test_families_larger_than_a_crowd_are_found_well_above_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With crowds of three: every shingle of a family is then a crowd's, and sketches must do."""
    monkeypatch.setattr(duplicates_prefix, "CROWD", 3)
    rng = random.Random(2)
    rows: Rows = []
    for _ in range(40):
        original = " ".join(rng.choices([f"{a}{b}" for a in WORDS for b in "xyz"], k=80))
        rows += [(f"title {rng.random()}", changed(rng, original, 1)) for _ in range(12)]
    rng.shuffle(rows)
    found = find_duplicates(write_parts(tmp_path / "p", rows, [200, 280]), 0.8, tmp_path / "s", seed=0)
    wanted = by_hand(rows, 0.8)
    assert len(set(wanted["cluster"])) == 40
    assert found.crowded_rows > 400
    assert marks(found)["cluster"] == wanted["cluster"]
    similar = [a and b for a, b in zip(marks(found)["near"], wanted["near"], strict=True)]
    assert sum(similar) >= 0.99 * sum(wanted["near"]) > 400
    assert sum(marks(found)["near"]) == sum(similar), "what is marked is similar"


# -- normalised texts --------------------------------------------------------------------------------

SNIPPETS = ["a", "B", "é", "E\u0301", "ß", "ss", "ﬁ", " ", "\u00a0", "\n", "\0", "-", "—", "’", "\u200b", "$", "?", "…"]
SNIPPETS += ["supercalifragilistic", "x" * 33, "中文", "😀", "\ud800", "İ", "Σ", "ς", "½", "\u0085", "\ufeff", "1"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(SNIPPETS), max_size=6).map("".join), min_size=1, max_size=12), st.integers())
def test_keys_are_equal_exactly_when_normalised_texts_are(texts: list[str], seed: int) -> None:
    words = duplicates_words.hash_words(texts, seed)
    plain = [dedupe.normalise_text(text) for text in texts]
    for a in range(len(texts)):
        for b in range(a):
            assert (words.keys_R[a] == words.keys_R[b]) == (plain[a] == plain[b]), (texts[a], texts[b])


def test_the_words_are_those_of_the_normalised_text() -> None:
    rng = random.Random(5)
    texts = ["".join(rng.choices(SNIPPETS, k=40)).replace("\0", "") + " end" for _ in range(200)]
    words = duplicates_words.hash_words(texts, 0)
    wanted = [dedupe.normalise_text(text).split() for text in texts]
    assert words.counts_R.tolist() == list(map(len, wanted))
    known: dict[str, int] = {}
    for word, key in zip((w for some in wanted for w in some), words.hashes_W.tolist(), strict=True):
        assert known.setdefault(word, key) == key
    assert len(set(known.values())) == len(known) > 500


def test_batches_keep_every_row_and_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_words, "BATCH_CHARS", 100)
    texts = ["a" * n for n in (30, 80, 500, 0, 0, 99, 1, 1)]
    made = list(duplicates_words.batches(texts))
    assert [text for _, some in made for text in some] == texts
    assert [begin for begin, _ in made] == [0, 1, 2, 3, 7]


# -- stopped and continued ---------------------------------------------------------------------------


def test_stopped_anywhere_the_same_call_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(7, 200)
    parts = write_parts(tmp_path / "p", rows, [80, 120])
    wanted = marks(find_duplicates(parts, 0.8, tmp_path / "whole", seed=0))
    save: Callable[[Path, np.ndarray], None] = duplicates_runs.save
    left = 0

    def stopping(path: Path, array: np.ndarray) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(duplicates_runs, "save", stopping)
    stops = 0
    for stops in range(100):  # after none, one, two ... files; each time continuing what is there
        left = stops
        scratch = tmp_path / f"from-{stops % 3}"
        try:
            found = find_duplicates(parts, 0.8, scratch, seed=0)
        except KeyboardInterrupt:
            continue
        assert marks(found) == wanted
        if stops % 3 == 2 and left > 0 and scratch.exists():
            break
    assert stops >= 10


def test_killed_and_called_again(tmp_path: Path) -> None:
    rows = table(9, 2000)
    parts = write_parts(tmp_path / "p", rows, [500] * 4)
    wanted = marks(find_duplicates(parts, 0.8, tmp_path / "whole", seed=0))
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from afina.catalogue import duplicates_runs\nfrom afina.catalogue.duplicates import find_duplicates\n"
        "save, left = duplicates_runs.save, int(sys.argv[2])\n"
        "def killing(path, array):\n    global left\n    left -= 1\n    save(path, array)\n"
        "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "duplicates_runs.save = killing\n"
        "find_duplicates([Path(p) for p in sys.argv[3:]], 0.8, Path(sys.argv[1]), seed=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for after in (3, 9):
        argv = [sys.executable, "-c", code, str(tmp_path / "killed"), str(after), *map(str, parts)]
        assert subprocess.run(argv, env=environment, check=False).returncode == -signal.SIGKILL
    assert marks(find_duplicates(parts, 0.8, tmp_path / "killed", seed=0)) == wanted


def test_a_finished_search_is_read_and_another_replaces_it(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "p", table(1, 60), [60])
    told: list[str] = []
    first = find_duplicates(parts, 0.8, tmp_path / "s", seed=0, progress=lambda stage, *_: told.append(stage))
    assert set(told) == {"read", "pair", "read again", "compare"}
    told.clear()
    again = find_duplicates(parts, 0.8, tmp_path / "s", seed=0, progress=lambda stage, *_: told.append(stage))
    assert (again, told) == (first, [])
    assert sorted(p.name for p in first.folder.iterdir()) == ["clusters.npy", "flags.npy", "found.json"]
    (tmp_path / "s" / "notes.txt").write_text("of someone else")
    other = find_duplicates(parts, 0.5, tmp_path / "s", seed=0)
    assert other.folder != first.folder
    assert sorted((tmp_path / "s").iterdir()) == sorted([other.folder, tmp_path / "s" / "notes.txt"])


# -- beside the small tables' search -----------------------------------------------------------------


@pytest.mark.shared
def test_agrees_with_the_search_for_small_tables(tmp_path: Path, shared_data: Path) -> None:
    """Of real rows. That search takes probable pairs and compares short texts by characters; long ones must agree."""
    lines = (shared_data / "products" / "lf_amazon_head_500.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(f"title {n}", json.loads(line)["content"]) for n, line in enumerate(lines)]
    rows = [row for row in rows if len(dedupe.normalise_text(row[1]).split()) >= dedupe.SHORT_BELOW]
    assert len(rows) > 350
    rng = random.Random(0)
    rows += [(f"copy {n}", changed(rng, content, 1)) for n, (_, content) in enumerate(rows[:100])]
    task = Task("x", "", {"content": "content"}, {"type": "string"}, free_text=True)
    examples = [Example(str(n), {"content": content}, "", line=n) for n, (_, content) in enumerate(rows)]
    wanted = dedupe.find_duplicates(examples, task, 0.8)
    found = find_duplicates(write_parts(tmp_path / "p", rows, [len(rows)]), 0.8, tmp_path / "s", seed=0)
    numbers = {root: n for n, root in enumerate(dict.fromkeys(marks(found)["cluster"]))}
    assert [numbers[root] for root in marks(found)["cluster"]] == wanted.clusters
    assert found.near > 50
