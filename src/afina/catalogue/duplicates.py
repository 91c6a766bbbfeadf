"""Which rows of a catalogue repeat each other: exactly, nearly, or with one blurb under many titles.

Comes in: Parquet files of cleaned rows, in file order. Goes out: for each row its cluster and what it repeats, one file
at a time. Memory does not grow with the texts: they are read twice, and all between lies in sorted files of numbers
(about 500 bytes on the disk and 50 in memory for each row). Stopped at any moment, the same call goes on with the files
that are there. It decides nothing about which rows are kept, and knows nothing of splits.

Rows are in one cluster that have
- one content: each would be the other's answer, word for word;
- contents whose word 3-grams have a Jaccard similarity of at least the threshold;
- one title, whatever their contents: the title is the question, and a question that stood in training is not an unseen
  one. About 3 % of LF-AmazonTitles' rows share a title; dropping them is not this module's to decide.
All after `data.dedupe.normalise_text`, and with what follows from it: clusters are connected components.

`duplicates_words` makes the numbers, `duplicates_prefix` finds pairs, `duplicates_verify` judges them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from afina.catalogue import duplicates_runs as runs
from afina.catalogue.duplicates_prefix import (
    ROW_COLUMNS,
    Layout,
    Rarity,
    Rows,
    enough_shared,
    prefixes,
    sharing_of,
    unpack_pairs,
)
from afina.catalogue.duplicates_verify import Sets, chunks, shingle_sets, similarities
from afina.catalogue.duplicates_words import batches, hash_words, shingles_of
from afina.core.storage import digest, explain_write_errors, read_json, write_json

VERSION = 1  # of the files in between
SAMPLE_ROWS = 30_000  # from which the frequency of shingles is estimated
ROWS_AT_ONCE, POSTINGS_AT_ONCE, PAIRS_AT_ONCE = 1 << 18, 1 << 19, 1 << 18
MAX_THREADS = 4
EXACT, NEAR, BOILERPLATE = 1, 2, 4  # bits of a row's flags
ALL_HASHES = 1 << 64

Tell = Callable[[str, int, int], None]


def _quiet(stage: str, done: int, total: int) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class PartDuplicates:
    """The rows of one file, in its order.

    cluster: int64, the number of the first row of the row's cluster, counted over all files from 0.
    exact: title and content stood before, in one row. boilerplate: the content stood before, first under another title.
    near: a similar content stood before this content did; never for rows that only repeat a content exactly.
    """

    cluster: np.ndarray
    exact: np.ndarray
    near: np.ndarray
    boilerplate: np.ndarray


@dataclass(frozen=True)
class Duplicates:
    """What was found, and where it is kept.

    clusters: how many. largest: rows of the largest. exact, near, boilerplate: rows that have the mark.
    pairs: compared in full. crowded_rows: share a rare shingle with so many that they were not compared with all; a
    similar pair of such rows is missed once in a few hundred times at the threshold, and hardly ever well above it.
    """

    folder: Path
    part_rows: tuple[int, ...]
    clusters: int
    largest: int
    exact: int
    near: int
    boilerplate: int
    pairs: int
    crowded_rows: int

    def part(self, number: int) -> PartDuplicates:
        """Of the file with this number, from 0."""
        begin = sum(self.part_rows[:number])
        rows = slice(begin, begin + self.part_rows[number])
        flags = np.array(runs.peek(self.folder / "flags.npy")[rows])
        cluster = np.array(runs.peek(self.folder / "clusters.npy")[rows])
        return PartDuplicates(cluster, flags & EXACT != 0, near=flags & NEAR != 0, boilerplate=flags & BOILERPLATE != 0)


def find_duplicates(
    parts: Sequence[Path],
    threshold: float,
    scratch: Path,
    *,
    seed: int,
    near: bool = True,
    progress: Tell = _quiet,
) -> Duplicates:
    """Mark and cluster the rows of all parts. No pair is called similar that is not; none is missed, but in crowds.

    parts: Parquet files with the text columns title and content, without nulls; each is read into memory whole.
    threshold: Jaccard similarity of word 3-grams, in (0, 1]. Texts of fewer than three words are only compared exactly.
    scratch: searches for other parts or settings that lie in this folder are removed.
    seed: of the hashes, so that nobody can prepare texts whose hashes collide. near: False leaves near duplicates out.
    progress: told (what is done, how far, of how much).
    """
    assert 0 < threshold <= 1, "the recipe allows no other"
    part_rows = tuple(_num_rows(path) for path in parts)
    assert sum(part_rows) < 1 << 31, "two rows fill 63 bits"
    identity = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in parts]
    folder = scratch / f"search-{digest([VERSION, identity, threshold, seed, near])}"
    done = folder / "found.json"
    with explain_write_errors(scratch, "The same command continues where it stopped."):
        if not done.exists():
            for other in scratch.glob("search-*"):
                if other != folder:
                    shutil.rmtree(other)
            found = _Search(parts, part_rows, threshold, folder, seed, near, progress).run()
            write_json(done, asdict(found) | {"folder": None, "part_rows": None})
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Duplicates(**(read_json(done) | {"folder": folder, "part_rows": part_rows}))


def _num_rows(path: Path) -> int:
    return int(polars.scan_parquet(path).select(polars.len()).collect().item())


@dataclass(frozen=True)
class _Search:
    """One search, in the order in which its steps are made. N: rows of all parts."""

    parts: Sequence[Path]
    part_rows: tuple[int, ...]
    threshold: float
    folder: Path
    seed: int
    near: bool
    tell: Tell

    @property
    def num_rows(self) -> int:
        return sum(self.part_rows)

    def first_row(self, part: int) -> int:
        return sum(self.part_rows[:part])

    def file(self, kind: str, number: int) -> Path:
        return self.folder / "work" / f"{kind}-{number:05d}.npy"

    def files(self, kind: str, count: int | None = None) -> list[Path]:
        return [self.file(kind, number) for number in range(len(self.parts) if count is None else count)]

    def run(self) -> Duplicates:
        if not self.num_rows:
            nothing = np.zeros(0, dtype=np.int64)
            return self._found(nothing, nothing, _no_pairs(), 0, 0)
        # 1. Keys of titles and contents, and the rarest shingles of each content.
        classes_T = self._classes() if self.near else None
        self._each("read", range(len(self.parts)), "titles", lambda part: self._read(part, classes_T))
        # 2. The first row that has each row's title, and its content.
        titles_N, contents_N = self._firsts("titles"), self._firsts("contents")
        # 3. Similar contents, each content once.
        similar, compared, crowded = self._similar(contents_N) if self.near else (_no_pairs(), 0, 0)
        return self._found(titles_N, contents_N, similar, compared, crowded)

    def _each(self, stage: str, numbers: Iterable[int], kind: str, make: Callable[[int], None]) -> None:
        """Make what is not there yet, on all cores. A file of `kind` is written last and says that it is there."""
        numbers = list(numbers)
        missing = [number for number in numbers if not self.file(kind, number).exists()]
        done = len(numbers) - len(missing)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Threads: nearly all of the time is spent inside numpy and polars, which let others run meanwhile.
        pool = ThreadPoolExecutor(min(MAX_THREADS, cores))
        try:
            for _ in pool.map(make, missing):
                done += 1
                self.tell(stage, done, len(numbers))
        finally:
            pool.shutdown(cancel_futures=True)

    # -- reading -----------------------------------------------------------------------------------

    def _classes(self) -> np.ndarray:
        """How rare shingles are, from whole parts at even distances."""
        path = self.file("classes", 0)
        if not path.exists():
            rarity = Rarity()
            wanted = max(1, -(-len(self.parts) * SAMPLE_ROWS // max(1, self.num_rows)))
            for part in range(0, len(self.parts), max(1, len(self.parts) // wanted)):
                contents = polars.read_parquet(self.parts[part], columns=["content"])["content"].to_list()
                for _, some in batches(contents):
                    rarity.count(shingles_of(hash_words(some, self.seed)).hashes_S)
            runs.save(path, rarity.classes())
        return runs.load(path)

    def _read(self, part: int, classes_T: np.ndarray | None) -> None:
        base, layout = self.first_row(part), Layout(self.num_rows)
        keys: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        postings: list[np.ndarray] = []
        table = polars.read_parquet(self.parts[part], columns=["title", "content"])
        for begin, some in batches(table["content"].to_list()):
            words = hash_words(some, self.seed)
            keys.append(words.keys_R)
            if classes_T is not None:
                found = prefixes(shingles_of(words), classes_T, len(some), self.threshold)
                rows.append(found.rows.pack())
                postings.append(layout.pack(found.hashes_P, base + begin + found.rows_P))
        if classes_T is not None:
            runs.save(self.file("rows", part), np.concatenate([np.zeros((0, ROW_COLUMNS), dtype=np.uint32), *rows]))
            runs.save(self.file("postings", part), np.sort(runs.joined(postings)))
        runs.save(self.file("contents", part), _keyed(runs.joined(keys), base))
        titles = [hash_words(some, self.seed).keys_R for _, some in batches(table["title"].to_list())]
        runs.save(self.file("titles", part), _keyed(runs.joined(titles), base))

    def _firsts(self, kind: str) -> np.ndarray:
        """int64 for each row: the first that has the same key."""
        first_N = np.empty(self.num_rows, dtype=np.int64)
        for low, high in runs.ranges(self.files(kind), ALL_HASHES, ROWS_AT_ONCE):
            keys, rows = runs.between(self.files(kind), low, high).T
            order = np.argsort(keys, kind="stable")  # the parts come in order, so rows of one key do too
            keys, rows = keys[order], rows[order].astype(np.int64)
            new = np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)]
            first_N[rows] = rows[new][np.cumsum(new) - 1]
        return first_N

    # -- similar contents --------------------------------------------------------------------------

    def _similar(self, contents_N: np.ndarray) -> tuple[np.ndarray, int, int]:
        """(pairs of similar contents, how many were compared, rows in crowds)."""
        rows = Rows.unpack(np.concatenate([runs.load(path) for path in self.files("rows")]))
        # 1. Pairs that share a shingle.
        layout, postings = Layout(self.num_rows), self.files("postings")
        pieces = runs.ranges(postings, layout.top, POSTINGS_AT_ONCE)

        def share(piece: int) -> None:
            found = runs.between(postings, *pieces[piece])
            of = layout.rows(found)
            found = found[contents_N[of] == of]  # each content once, however many rows have it
            sharing = sharing_of(found, layout, rows, self.threshold)
            runs.save(self.file("crowded", piece), sharing.crowded)
            runs.save(self.file("in_crowds", piece), sharing.in_crowds)
            runs.save(self.file("sharing", piece), sharing.pairs)

        self._each("pair", range(len(pieces)), "sharing", share)
        # 2. Those that share enough.
        crowds_N = np.zeros(self.num_rows, dtype=np.int32)
        for path in self.files("crowded", len(pieces)):
            np.add.at(crowds_N, runs.load(path), 1)
        sharing, in_crowds = self.files("sharing", len(pieces)), self.files("in_crowds", len(pieces))
        spans = runs.ranges([*sharing, *in_crowds], self.num_rows << 32, PAIRS_AT_ONCE)
        wanted_N = np.zeros(self.num_rows, dtype=np.bool_)
        for number, (low, high) in enumerate(spans):
            some, others = (runs.between(files, low, high) for files in (sharing, in_crowds))
            pairs = enough_shared(some, others, crowds_N, rows, self.threshold)
            wanted_N[np.concatenate(unpack_pairs(pairs))] = True
            runs.save(self.file("candidates", number), pairs)
        # 3. Their texts are read once more, and judged.
        self._each("read again", range(len(self.parts)), "members", lambda part: self._read_sets(part, wanted_N))
        sets = Sets(list(zip(self.files("members"), self.files("sets"), strict=True)))
        self._each("compare", range(len(spans)), "similar", lambda number: self._compare(number, sets))
        compared = runs.total(self.files("candidates", len(spans)))
        similar = np.concatenate([runs.load(path) for path in self.files("similar", len(spans))])
        return similar, compared, int((crowds_N > 0).sum())

    def _read_sets(self, part: int, wanted_N: np.ndarray) -> None:
        base = self.first_row(part)
        rows = np.flatnonzero(wanted_N[base : base + self.part_rows[part]])
        members, hashes = np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.uint64)
        if len(rows):
            texts = polars.read_parquet(self.parts[part], columns=["content"])["content"].gather(rows).to_list()
            hashes, counts = shingle_sets(texts, self.seed)
            members = np.column_stack((base + rows, counts))
        runs.save(self.file("sets", part), hashes)
        runs.save(self.file("members", part), members)

    def _compare(self, number: int, sets: Sets) -> None:
        pairs = runs.load(self.file("candidates", number))
        similar = [some[similarities(some, sets) >= self.threshold] for some in chunks(pairs, sets)]
        runs.save(self.file("similar", number), runs.joined(similar))

    # -- what follows ------------------------------------------------------------------------------

    def _found(
        self, titles_N: np.ndarray, contents_N: np.ndarray, similar: np.ndarray, compared: int, crowded: int
    ) -> Duplicates:
        rows_N = np.arange(self.num_rows)
        later, earlier = unpack_pairs(similar)
        flags_N = np.zeros(self.num_rows, dtype=np.uint8)
        near_N = np.zeros(self.num_rows, dtype=np.bool_)
        near_N[later] = True
        flags_N[near_N[contents_N]] |= NEAR
        flags_N[titles_N != titles_N[contents_N]] |= BOILERPLATE
        flags_N[_repeats(titles_N, contents_N)] |= EXACT
        clusters_N = _components(
            np.concatenate((later, rows_N[titles_N < rows_N], rows_N[contents_N < rows_N])),
            np.concatenate((earlier, titles_N[titles_N < rows_N], contents_N[contents_N < rows_N])),
            self.num_rows,
        )
        runs.save(self.folder / "clusters.npy", clusters_N)
        runs.save(self.folder / "flags.npy", flags_N)
        sizes = np.bincount(clusters_N, minlength=1)
        exact, near, boilerplate = (int((flags_N & bit != 0).sum()) for bit in (EXACT, NEAR, BOILERPLATE))
        return Duplicates(
            self.folder,
            self.part_rows,
            clusters=int((sizes > 0).sum()),
            largest=int(sizes.max()),
            exact=exact,
            near=near,
            boilerplate=boilerplate,
            pairs=compared,
            crowded_rows=crowded,
        )


def _no_pairs() -> np.ndarray:
    return np.zeros(0, dtype=np.uint64)


def _keyed(keys: np.ndarray, base: int) -> np.ndarray:
    """Keys and row numbers in two columns, sorted."""
    order = np.argsort(keys, kind="stable")
    return np.column_stack((keys[order], (base + order).astype(np.uint64)))


def _repeats(titles_N: np.ndarray, contents_N: np.ndarray) -> np.ndarray:
    """Rows whose title and content stood before, both in one row."""
    # A row can only repeat another if its content does, and few do.
    rows = np.flatnonzero(contents_N < np.arange(len(contents_N)))
    rows = np.union1d(rows, contents_N[rows])
    pairs = (contents_N[rows].astype(np.uint64) << np.uint64(32)) | titles_N[rows].astype(np.uint64)
    _, first = np.unique(pairs, return_index=True)
    again = np.ones(len(rows), dtype=np.bool_)
    again[first] = False
    return rows[again]


def _components(a: np.ndarray, b: np.ndarray, num_rows: int) -> np.ndarray:
    """For each row the first row that it is connected with, over pairs a, b; int64."""
    if not num_rows:
        return np.zeros(0, dtype=np.int64)
    edges = coo_array((np.ones(len(a), dtype=np.int8), (a.astype(np.int32), b.astype(np.int32))), (num_rows, num_rows))
    count, labels_N = connected_components(edges, directed=False)
    first = np.empty(count, dtype=np.int64)
    first[labels_N[::-1]] = np.arange(num_rows - 1, -1, -1)  # of several values for one place the last one stays
    return first[labels_N]
