"""Which rows stay, and on which side of the split: by cluster, decided by a hash and not by order or chance.

Comes in: the clusters and marks of all rows, and their uids. Goes out: kept or not, the split of each row, and the rows
that were dropped. A cluster goes where the hash of the seed and its first row's uid falls among the shares: the split
of a product does not change when others are added. Shapes: N all rows, P rows of one part, S splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars

from afina.catalogue.rows import REJECTED
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError

if TYPE_CHECKING:  # scipy takes longer to load than a shard to write
    from afina.catalogue.duplicates import Duplicates, PartDuplicates

FNV_BASIS, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
MASK = (1 << 64) - 1
REPEATS = ("exact duplicate", "boilerplate", "near duplicate")


@dataclass
class Decided:
    """cluster_N: int64, number of the cluster's first row. kept_N: bool. split_N: uint8, place in `splits`.

    dropped: number of a part -> its dropped rows, as `rows.REJECTED`.
    """

    splits: tuple[str, ...]
    cluster_N: np.ndarray
    kept_N: np.ndarray
    split_N: np.ndarray
    dropped: dict[int, polars.DataFrame]


def decide(
    files: Sequence[Path], found: Duplicates | None, config: CatalogueConfig, seed: int, shares: Mapping[str, float]
) -> Decided:
    """found: None where duplicates were not looked for, and each row is a cluster.

    Raises DataError when no rows are left, or too few clusters for every split to have one.
    """
    draws: list[np.ndarray] = []
    clusters: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    dropped: dict[int, polars.DataFrame] = {}
    base = 0
    for number, file in enumerate(files):
        table = polars.read_parquet(file, columns=["line", "uid"])
        draws.append(draw_uids(table["uid"], seed))
        marks = found.part(number) if found is not None else None
        clusters.append(marks.cluster if marks is not None else np.arange(base, base + table.height))
        kind_P = _kinds(marks, config) if marks is not None else np.zeros(table.height, dtype=np.uint8)
        kept.append(kind_P == 0)
        if kind_P.any():
            dropped[number] = _dropped(table, kind_P)
        base += table.height
    cluster_N = np.concatenate(clusters) if clusters else np.zeros(0, dtype=np.int64)
    kept_N = np.concatenate(kept) if kept else np.zeros(0, dtype=np.bool_)
    split_N = _split(cluster_N, kept_N, np.concatenate(draws) if draws else np.zeros(0, np.uint64), shares, config)
    return Decided(tuple(shares), cluster_N, kept_N, split_N, dropped)


def _kinds(marks: PartDuplicates, config: CatalogueConfig) -> np.ndarray:
    """uint8 for each row: 0 where it stays, else the place of its kind in REPEATS, from 1."""
    kinds_P = np.zeros(len(marks.cluster), dtype=np.uint8)
    wishes = (config.exact_duplicates, config.boilerplate, config.near_duplicates)
    for place, (wish, marked) in enumerate(zip(wishes, (marks.exact, marks.boilerplate, marks.near), strict=True), 1):
        if wish == "drop":
            kinds_P[marked & (kinds_P == 0)] = place
    return kinds_P


def _dropped(table: polars.DataFrame, kind_P: np.ndarray) -> polars.DataFrame:
    reasons = (
        "title and content stand in an earlier row",
        "the content stands in an earlier row under another title",
        "the content is nearly that of an earlier row",
    )
    rows = np.flatnonzero(kind_P)
    places = kind_P[rows] - 1
    return (
        table[rows]
        .with_columns(
            kind=polars.Series([REPEATS[place] for place in places]),
            reason=polars.Series([reasons[place] for place in places]),
        )
        .select(list(REJECTED))
    )


# -- the split -------------------------------------------------------------------------------------


def draw_uids(uids: polars.Series, seed: int) -> np.ndarray:
    """uint64 for each uid, evenly spread: FNV-1a over its UTF-8 bytes, begun with the seed, then mixed (MurmurHash3).

    Not polars' own hash: a split must not change with a version of a library.
    """
    sizes = uids.str.len_bytes().to_numpy()
    width = int(sizes.max()) if len(sizes) else 0
    letters = np.frombuffer(
        b"".join(uid.encode().ljust(width, b"\0") for uid in uids.to_list()), dtype=np.uint8
    ).reshape(len(sizes), width)
    hashes = np.full(len(sizes), (FNV_BASIS ^ (seed * FNV_PRIME)) & MASK, dtype=np.uint64)
    for place in range(width):
        longer = sizes > place
        hashes[longer] = (hashes[longer] ^ letters[longer, place]) * np.uint64(FNV_PRIME)
    for factor in MIX:
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(33))


def _split(
    cluster_N: np.ndarray, kept_N: np.ndarray, draw_N: np.ndarray, shares: Mapping[str, float], config: CatalogueConfig
) -> np.ndarray:
    """uint8 for each row: its split. Every split gets a cluster, the smallest draws of the largest split if need be."""
    present = np.unique(cluster_N[kept_N])
    if not len(present):
        raise DataError(f"{config.path}: no rows are left; see what was rejected. Check the columns and the limits.")
    if len(present) < len(shares):
        rows, clusters = int(kept_N.sum()), len(present)
        raise DataError(
            f"{config.path}: found {rows} usable row{'s' * (rows != 1)} in {clusters} "
            f"cluster{'s' * (clusters != 1)} of duplicates, expected at least {len(shares)}, one each for "
            f"{', '.join(shares)}. Add rows."
        )
    bounds_S = np.cumsum([share * 2.0**64 for share in shares.values()])[:-1]
    places = np.searchsorted(bounds_S, draw_N[present].astype(np.float64), side="right").astype(np.uint8)
    for place in range(len(shares)):
        if not (places == place).any():
            largest = np.bincount(places, minlength=len(shares)).argmax()
            candidates = np.flatnonzero(places == largest)
            places[candidates[draw_N[present[candidates]].argmin()]] = place
    split_N = np.zeros(len(cluster_N), dtype=np.uint8)
    wanted = np.minimum(np.searchsorted(present, cluster_N), len(present) - 1)
    split_N[:] = places[wanted]
    return split_N
