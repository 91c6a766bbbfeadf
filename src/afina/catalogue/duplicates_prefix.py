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

from dataclasses import dataclass

import numpy as np

from afina.catalogue.duplicates_runs import joined, repeated
from afina.catalogue.duplicates_words import Shingles, mix, sorted_sets

TABLE_BITS = 22  # of the table of how often shingles stand in a sample
HASH_BITS, CLASS_BITS = 44, 4  # of a shingle where a text's are put in order
CROWD = 33  # texts that share a shingle and are still compared all with all
NEIGHBOURS, LEADERS = 8, 8  # with which a text is compared in a larger crowd, of those with the same sketch
SKETCHES = 4  # numbers for each text; two texts have the same one with the probability of their similarity
ROW_COLUMNS = 2 + SKETCHES  # of `Rows`
TWO_SKETCHES = np.array([(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)])
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
    """What is kept of each row's set, all uint32. sizes_N: how many shingles. ends_N: where in the common order its
    prefix ends, as far as 32 bits tell. sketches_NK: MinHash values, SKETCHES of them.
    """

    sizes_N: np.ndarray
    ends_N: np.ndarray
    sketches_NK: np.ndarray

    @classmethod
    def unpack(cls, table: np.ndarray) -> Rows:
        return cls(table[:, 0].copy(), table[:, 1].copy(), table[:, 2:].copy())

    def pack(self) -> np.ndarray:
        """One table of all columns."""
        return np.column_stack((self.sizes_N, self.ends_N, self.sketches_NK))

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
    return Prefixes(rows_S[chosen], hashes_P, Rows(sizes_R.astype(np.uint32), ends_R, _sketches(shingles, num_rows)))


def _sketches(shingles: Shingles, num_rows: int) -> np.ndarray:
    """The smallest and the largest hash of each row, by two hash functions (Broder: On the resemblance, 1997)."""
    sketches_RK = np.zeros((num_rows, SKETCHES), dtype=np.uint32)
    counts_R = np.bincount(shingles.rows_S, minlength=num_rows)
    filled = counts_R > 0
    begins = (np.cumsum(counts_R) - counts_R)[filled]
    if len(begins):
        for column, hashes_S in ((0, shingles.hashes_S), (2, shingles.hashes_S * np.uint64(0x9E3779B97F4A7C15))):
            for place, extreme in enumerate((np.minimum, np.maximum), column):
                sketches_RK[filled, place] = extreme.reduceat(hashes_S, begins) >> np.uint64(32)
    return sketches_RK


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

    pairs: as often as they share one, without what they share in crowds. in_crowds: once each. crowded: rows, once for
    each shingle that they share with so many that these are not compared all with all.
    """

    pairs: np.ndarray
    in_crowds: np.ndarray
    crowded: np.ndarray


def sharing_of(postings_P: np.ndarray, layout: Layout, rows: Rows, threshold: float) -> Sharing:
    """Pairs from all postings of some shingles.

    In a crowd, only texts with two equal sketches are compared: similar ones with a probability of at least the
    threshold's square for each shingle that they share, others hardly ever; and each text with the one before it. Where
    many have the sketches too, each is compared with its neighbours in the file and with the first: 10,000 texts from
    one template would make 50 million pairs, for one family that these comparisons find as well.
    """
    postings_P = np.sort(postings_P)
    shingles_P, rows_P = postings_P >> np.uint64(layout.row_bits), layout.rows(postings_P)
    lengths = np.diff(_begins(shingles_P), append=len(shingles_P))
    crowded_P = np.repeat(lengths > CROWD, lengths)
    few = _pairs_in_groups(shingles_P[~crowded_P], rows_P[~crowded_P], rows, threshold)
    # A shingle's crowd is cut into those who share the sketches that the shingle's number chooses.
    crowd, crowded = shingles_P[crowded_P], rows_P[crowded_P]
    chosen = TWO_SKETCHES[(crowd % np.uint64(len(TWO_SKETCHES))).astype(np.int64)]
    first, second = (rows.sketches_NK[crowded, chosen[:, n]].astype(np.uint64) for n in (0, 1))
    groups = mix(mix(first << np.uint64(32) | second) ^ crowd)
    order = np.lexsort((crowded, groups))
    many = _pairs_in_groups(groups[order], crowded[order], rows, threshold)
    next_ones = np.flatnonzero(crowd[1:] == crowd[:-1])
    beside = _possible(crowded[next_ones + 1], crowded[next_ones], rows, threshold)
    return Sharing(np.sort(few), np.unique(np.concatenate((many, beside))), crowded.astype(np.uint32))


def _begins(values: np.ndarray) -> np.ndarray:
    """Where each group of equal, neighbouring values begins."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))[: len(values)]


def _possible(later: np.ndarray, earlier: np.ndarray, rows: Rows, threshold: float) -> np.ndarray:
    """The pairs for which smaller size / larger size allows the threshold."""
    sizes_a, sizes_b = rows.sizes_N[later], rows.sizes_N[earlier]
    possible = np.minimum(sizes_a, sizes_b) >= threshold * np.maximum(sizes_a, sizes_b) - ALMOST
    return pack_pairs(later[possible], earlier[possible])


def _pairs_in_groups(groups_P: np.ndarray, rows_P: np.ndarray, rows: Rows, threshold: float) -> np.ndarray:
    """Pairs within groups, which are sorted, rows ascending in each; in large ones not all with all."""
    begins = _begins(groups_P)
    lengths = np.diff(begins, append=len(groups_P))
    large_P = np.repeat(lengths > CROWD, lengths)
    found: list[np.ndarray] = []
    at = np.arange(len(groups_P))
    for distance in range(1, CROWD):
        at = at[at + distance < len(groups_P)]
        at = at[groups_P[at] == groups_P[at + distance]]
        if distance == NEIGHBOURS + 1:
            at = at[~large_P[at]]
        if not len(at):
            break
        found.append(_possible(rows_P[at + distance], rows_P[at], rows, threshold))
    large = lengths > CROWD
    for leader in range(LEADERS):
        starts = begins[large] + leader + NEIGHBOURS + 1
        counts = np.maximum(lengths[large] - leader - NEIGHBOURS - 1, 0)
        leaders = np.repeat(begins[large] + leader, counts)
        found.append(_possible(rows_P[repeated(starts, counts)], rows_P[leaders], rows, threshold))
    return joined(found)


def enough_shared(
    pairs: np.ndarray, in_crowds: np.ndarray, crowds_N: np.ndarray, rows: Rows, threshold: float
) -> np.ndarray:
    """The distinct pairs that share as many of their rarest shingles as similar texts must; sorted.

    pairs: sorted, as often as they share one. in_crowds: other pairs, once or more. crowds_N: of how many crowds each
    row is a part. What two rows share there was not counted: such pairs must have one of the sketches in common.
    """
    one = np.uint64(1)
    all_pairs = np.sort(np.concatenate((pairs << one, in_crowds << one | one)))
    found = all_pairs >> one
    begins = _begins(found)
    found = found[begins]
    shared = np.add.reduceat((all_pairs & one) ^ one, begins).astype(np.int64) if len(begins) else np.zeros(0, np.int64)
    later, earlier = unpack_pairs(found)
    needed = rows.must_share(later, earlier, threshold)
    enough = shared >= needed
    doubtful = np.flatnonzero(~enough & (shared + np.minimum(crowds_N[later], crowds_N[earlier]) >= needed))
    same = rows.sketches_NK[later[doubtful]] == rows.sketches_NK[earlier[doubtful]]
    enough[doubtful] = same.any(axis=1)
    return found[enough]
