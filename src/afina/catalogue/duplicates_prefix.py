"""Which pairs of texts may be similar? Those that share some of their rarest shingles.

Comes in: shingles of texts, a threshold. Goes out: *postings* (shingle, text), and from sorted postings the pairs that
could reach the threshold. Unlike MinHash, the prefix filter misses none: of two sets with Jaccard similarity t, each
must have some of the shared elements among its first n - ceil(t n) + 1, in any order that both are sorted by. Rare
ones first makes few pairs. And the prefixes must share more than one element, unless the sizes differ as far as they
may: the one that ends first leaves only so many to be shared behind it.

Chaudhuri, Ganti, Kaushik: A primitive operator for similarity joins in data cleaning, ICDE 2006 (prefixes). Bayardo,
Ma, Srikant: Scaling up all pairs similarity search, WWW 2007 (rare first, sizes). Xiao, Wang, Lin, Yu: Efficient
similarity joins for near duplicate detection, WWW 2008 (what is left behind the prefix). Shapes: S shingles, R rows of
a batch, P postings, N all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afina.catalogue.duplicates_runs import joined, repeated
from afina.catalogue.duplicates_words import Shingles, sorted_sets

TABLE_BITS = 22  # of the table of how often shingles stand in a sample
HASH_BITS, CLASS_BITS = 44, 4  # of a shingle where a text's are put in order
CROWD = 33  # texts that share a shingle and are still compared all with all
NEIGHBOURS, LEADERS = 8, 8  # with which a text is compared in a larger crowd
AT_ONCE = 1 << 15  # pairs whose crowds are compared
ALMOST = 1e-9  # 0.56 * 25 is a little more than 14


class Rarity:
    """How often shingles stand in a sample. Any table gives an order that misses nothing; a true one makes it fast."""

    def __init__(self) -> None:
        self._counts_T = np.zeros(1 << TABLE_BITS, dtype=np.uint32)

    def count(self, hashes_S: np.ndarray) -> None:
        np.add.at(self._counts_T, (hashes_S & np.uint64((1 << TABLE_BITS) - 1)).astype(np.int64), np.uint32(1))

    def classes(self) -> np.ndarray:
        """uint8 for each place of the table: 0 for the rarest shingles, then one more for each doubling, to 15."""
        classes_T = np.zeros(1 << TABLE_BITS, dtype=np.uint8)
        for doublings in range((1 << CLASS_BITS) - 1):
            classes_T += self._counts_T > (1 << doublings)
        return classes_T


def prefix_lengths(sizes: np.ndarray, threshold: float) -> np.ndarray:
    """How many of a set's elements, in the common order, find every set that is similar to it."""
    return np.minimum(sizes, sizes - _ceil(threshold * sizes) + 1)


def _ceil(values: np.ndarray) -> np.ndarray:
    return np.ceil(values - ALMOST).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """What is kept of each row's set. sizes_N: uint32, how many shingles. ends_N: uint32, where in the common order its
    prefix ends, as far as 32 bits tell.
    """

    sizes_N: np.ndarray
    ends_N: np.ndarray

    def must_share(self, a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
        """How many shingles the prefixes of similar rows have in common, at least; for each pair of rows a, b."""
        sizes_a, sizes_b = (self.sizes_N[rows].astype(np.int64) for rows in (a, b))
        left_a, left_b = (sizes - prefix_lengths(sizes, threshold) for sizes in (sizes_a, sizes_b))
        # All that the row whose prefix ends first shares stands in both prefixes, or among what it has left.
        left = np.where(self.ends_N[a] < self.ends_N[b], left_a, left_b)
        left = np.where(self.ends_N[a] == self.ends_N[b], np.maximum(left_a, left_b), left)
        return _ceil(threshold / (1 + threshold) * (sizes_a + sizes_b)) - left


@dataclass(frozen=True)
class Prefixes:
    """The rarest shingles of each row of a batch. rows_P, hashes_P: which row, and HASH_BITS of the shingle."""

    rows_P: np.ndarray
    hashes_P: np.ndarray
    rows: Rows


def prefixes(shingles: Shingles, classes_T: np.ndarray, num_rows: int, threshold: float) -> Prefixes:
    places = (shingles.hashes_S & np.uint64((1 << TABLE_BITS) - 1)).astype(np.int64)
    keys_S = classes_T[places].astype(np.uint64) << np.uint64(HASH_BITS)
    keys_S |= shingles.hashes_S >> np.uint64(64 - HASH_BITS)
    rows_S, keys_S = sorted_sets(shingles, keys_S, CLASS_BITS + HASH_BITS)
    sizes_R = np.bincount(rows_S, minlength=num_rows)
    begins_R, lengths_R = np.cumsum(sizes_R) - sizes_R, prefix_lengths(sizes_R, threshold)
    chosen = repeated(begins_R, lengths_R)
    filled = lengths_R > 0
    ends_R = np.zeros(num_rows, dtype=np.uint32)
    ends_R[filled] = keys_S[(begins_R + lengths_R - 1)[filled]] >> np.uint64(CLASS_BITS + HASH_BITS - 32)
    hashes_P = keys_S[chosen] & np.uint64((1 << HASH_BITS) - 1)
    return Prefixes(rows_S[chosen], hashes_P, Rows(sizes_R.astype(np.uint32), ends_R))


@dataclass(frozen=True)
class Layout:
    """A posting in 64 bits: the shingle above, the row's number below."""

    num_rows: int

    @property
    def row_bits(self) -> int:
        return max(1, (self.num_rows - 1).bit_length())

    @property
    def top(self) -> int:
        """All postings are below it."""
        return 1 << (self.row_bits + min(HASH_BITS, 64 - self.row_bits))

    def pack(self, hashes_P: np.ndarray, rows_P: np.ndarray) -> np.ndarray:
        kept = hashes_P >> np.uint64(HASH_BITS - min(HASH_BITS, 64 - self.row_bits))
        return (kept << np.uint64(self.row_bits)) | rows_P.astype(np.uint64)

    def rows(self, postings_P: np.ndarray) -> np.ndarray:
        return (postings_P & np.uint64((1 << self.row_bits) - 1)).astype(np.int64)


def pack_pairs(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return (later.astype(np.uint64) << np.uint64(32)) | earlier.astype(np.uint64)


def unpack_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(later rows, earlier rows), int64."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


@dataclass(frozen=True)
class Sharing:
    """Rows of like size that share a shingle, as sorted pairs.

    pairs: as often as they share one, without what they share in crowds. in_crowds: once each. crowds: sorted, (row,
    crowd) packed, for each row that shares a shingle with so many that they are not compared all with all.
    """

    pairs: np.ndarray
    in_crowds: np.ndarray
    crowds: np.ndarray


def sharing_of(postings_P: np.ndarray, layout: Layout, rows: Rows, threshold: float) -> Sharing:
    """Pairs from all postings of some shingles.

    In a crowd a text is compared with its neighbours in the file and with the first that have the shingle: 10,000 texts
    from one template would make 50 million pairs, for one family that these comparisons find as well.
    """
    postings_P = np.sort(postings_P)
    shingles_P, rows_P = postings_P >> np.uint64(layout.row_bits), layout.rows(postings_P)
    begins = np.flatnonzero(np.concatenate(([True], shingles_P[1:] != shingles_P[:-1])))[: len(postings_P)]
    lengths = np.diff(begins, append=len(postings_P))
    crowded_P = np.repeat(lengths > CROWD, lengths)

    def alike(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """The pairs of those at these places for which smaller size / larger size allows the threshold."""
        a, b = rows_P[later], rows_P[earlier]
        sizes_a, sizes_b = rows.sizes_N[a], rows.sizes_N[b]
        possible = np.minimum(sizes_a, sizes_b) >= threshold * np.maximum(sizes_a, sizes_b) - ALMOST
        return pack_pairs(a[possible], b[possible])

    # 1. Few with a shingle: all with all. Many: each with its neighbours.
    few: list[np.ndarray] = []
    many: list[np.ndarray] = []
    at = np.arange(len(postings_P))
    for distance in range(1, CROWD):
        at = at[at + distance < len(postings_P)]
        at = at[shingles_P[at] == shingles_P[at + distance]]
        if distance == NEIGHBOURS + 1:
            at = at[~crowded_P[at]]
        if not len(at):
            break
        crowded = crowded_P[at]
        few.append(alike(at[~crowded] + distance, at[~crowded]))
        many.append(alike(at[crowded] + distance, at[crowded]))
    # 2. Many: each with the first ones too.
    large = lengths > CROWD
    for leader in range(LEADERS):
        starts = begins[large] + leader + NEIGHBOURS + 1
        counts = np.maximum(lengths[large] - leader - NEIGHBOURS - 1, 0)
        many.append(alike(repeated(starts, counts), np.repeat(begins[large] + leader, counts)))
    crowds = pack_pairs(rows_P[crowded_P], shingles_P[crowded_P] & np.uint64(0xFFFFFFFF))
    return Sharing(np.sort(joined(few)), np.unique(joined(many)), np.sort(crowds))


def enough_shared(
    pairs: np.ndarray, in_crowds: np.ndarray, crowds: np.ndarray, rows: Rows, threshold: float
) -> np.ndarray:
    """The distinct pairs that share as many of their rarest shingles as similar texts must; sorted.

    pairs: sorted, as often as they share one. in_crowds: other pairs, once or more. crowds: sorted, of all rows.
    """
    one = np.uint64(1)
    all_pairs = np.sort(np.concatenate((pairs << one, in_crowds << one | one)))
    found = all_pairs >> one
    begins = np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1])))[: len(found)]
    found = found[begins]
    shared = np.add.reduceat((all_pairs & one) ^ one, begins).astype(np.int64) if len(begins) else np.zeros(0, np.int64)
    later, earlier = unpack_pairs(found)
    needed = rows.must_share(later, earlier, threshold)
    # In crowds they may share more; those that are in few cannot share enough.
    crowds_a, crowds_b = (_spans(some, crowds) for some in (later, earlier))
    possible = shared + np.minimum(crowds_a[1], crowds_b[1]) >= needed
    missing = np.flatnonzero(possible & (shared < needed))
    for begin in range(0, len(missing), AT_ONCE):
        some = missing[begin : begin + AT_ONCE]
        spans = [(begins[some], counts[some]) for begins, counts in (crowds_a, crowds_b)]
        shared[some] += _in_common(spans, crowds)
    return found[shared >= needed]


def _spans(rows: np.ndarray, crowds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the crowds of each row begin, and how many they are."""
    begins = np.searchsorted(crowds, rows.astype(np.uint64) << np.uint64(32))
    return begins, np.searchsorted(crowds, (rows.astype(np.uint64) + np.uint64(1)) << np.uint64(32)) - begins


def _in_common(spans: Sequence[tuple[np.ndarray, np.ndarray]], crowds: np.ndarray) -> np.ndarray:
    """Of how many crowds both rows of each pair are a part. spans: of the pairs' later rows, of their earlier ones."""
    numbers: list[np.ndarray] = []
    for begins, counts in spans:
        pairs = np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(32)
        numbers.append(pairs | crowds[repeated(begins, counts)] & np.uint64(0xFFFFFFFF))
    both = np.sort(np.concatenate(numbers))
    twice = both[1:][both[1:] == both[:-1]] >> np.uint64(32)
    return np.bincount(twice.astype(np.int64), minlength=len(spans[0][0]))
