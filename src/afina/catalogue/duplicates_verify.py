"""Pairs of texts -> which of them are similar, by their whole sets of shingles.

Comes in: sets of shingles as 48-bit hashes, and pairs of rows. Goes out: the true Jaccard similarity of each pair.
Within one pair two different shingles have one hash once in a billion pairs, and never enough to change a verdict that
is not on the border. It knows nothing of how the pairs were found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from afina.catalogue import duplicates_runs as runs
from afina.catalogue.duplicates_prefix import unpack_pairs
from afina.catalogue.duplicates_words import batches, hash_words, shingles_of, sorted_sets

SET_BITS = 48
PAIRS_AT_ONCE = (1 << (64 - SET_BITS)) - 1  # a pair's number has the other bits
SHINGLES_AT_ONCE = 1 << 20


def shingle_sets(texts: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, counts): the sets of all texts one after the other, each sorted; how many each has."""
    hashes: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for _, some in batches(texts):
        shingles = shingles_of(hash_words(some, seed))
        rows, keys = sorted_sets(shingles, shingles.hashes_S >> np.uint64(64 - SET_BITS), SET_BITS)
        hashes.append(keys)
        counts.append(np.bincount(rows, minlength=len(some)))
    return np.concatenate(hashes), np.concatenate(counts)


class Sets:
    """The sets of some rows of all parts, in files.

    files: (members, hashes) of each part. members: rows and the sizes of their sets, in two columns; rows ascend over
    all parts.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]]) -> None:
        self._hashes = [hashes for _, hashes in files]
        members = [runs.load(path) for path, _ in files]
        self._parts = np.repeat(np.arange(len(files)), [len(one) for one in members])
        self._rows, self._sizes = np.concatenate(members).T.copy()
        self._begins = np.concatenate([np.cumsum(one[:, 1]) - one[:, 1] for one in members])

    def places(self, rows: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self._rows, rows)
        assert (self._rows[places] == rows).all(), "the set of each row of a pair was kept"
        return places

    def sizes(self, places: np.ndarray) -> np.ndarray:
        return self._sizes[places]

    def read(self, places: np.ndarray) -> np.ndarray:
        """The sets at ascending places, one after the other."""
        found: list[np.ndarray] = []
        parts = self._parts[places]
        for part in np.unique(parts):
            chosen = places[parts == part]
            found.append(runs.peek(self._hashes[part])[runs.repeated(self._begins[chosen], self._sizes[chosen])])
        return np.concatenate(found)


def chunks(pairs: np.ndarray, sets: Sets) -> Iterator[np.ndarray]:
    """The pairs in their order, as many at once as fit."""
    later, earlier = unpack_pairs(pairs)
    work = np.cumsum(sets.sizes(sets.places(later)) + sets.sizes(sets.places(earlier)))
    begin = 0
    while begin < len(pairs):
        done = int(work[begin - 1]) if begin else 0
        end = int(np.searchsorted(work, done + SHINGLES_AT_ONCE, side="right"))
        end = min(max(end, begin + 1), begin + PAIRS_AT_ONCE)
        yield pairs[begin:end]
        begin = end


def similarities(pairs: np.ndarray, sets: Sets) -> np.ndarray:
    """Jaccard similarity of each pair, in [0, 1]; at most PAIRS_AT_ONCE pairs."""
    # 1. The sets of all rows that occur, once each.
    later, earlier = (sets.places(rows) for rows in unpack_pairs(pairs))
    places, of = np.unique(np.concatenate((later, earlier)), return_inverse=True)
    hashes, sizes = sets.read(places), sets.sizes(places)
    begins = np.cumsum(sizes) - sizes
    # 2. Both sets of each pair side by side, sorted: what stands twice is shared.
    numbers = np.tile(np.arange(len(pairs), dtype=np.uint64), 2)
    both = np.repeat(numbers, sizes[of]) << np.uint64(SET_BITS)
    both |= hashes[runs.repeated(begins[of], sizes[of])]
    both.sort()
    twice = both[1:][both[1:] == both[:-1]]
    shared = np.bincount((twice >> np.uint64(SET_BITS)).astype(np.int64), minlength=len(pairs))
    union = sizes[of[: len(pairs)]] + sizes[of[len(pairs) :]] - shared
    return shared / np.maximum(union, 1)
