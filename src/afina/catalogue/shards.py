"""Shards: kept rows in file order, twenty thousand to a file, as Parquet and as JSON Lines; which of them are meant.

Comes in: files of parts, and what was decided on their rows. Goes out: shards/shard-00000.parquet and .jsonl, whole or
absent, with their hashes. Made in several processes, each shard by itself.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from afina.catalogue.deciding import Decided
from afina.catalogue.scratch import parquet_bytes, put_summary, summary_of
from afina.core.errors import DataError
from afina.core.storage import atomic_file

COMPRESSION, LEVEL = "zstd", 1


def parse_shards(text: str, count: int) -> list[int]:
    """'0-4,7' -> [0, 1, 2, 3, 4, 7]; 'all' -> every one of `count`. Raises DataError for one that there is not."""
    if text == "all":
        return list(range(count))
    numbers: set[int] = set()
    for piece in text.split(","):
        first, _, last = piece.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise DataError(f"shards: found {text!r}, expected numbers of shards as 0, 0-4 or 0,7, or all.")
        low, high = int(first), int(last or first)
        if low > high:
            raise DataError(f"shards: found {piece!r}, expected the smaller number first: {high}-{low}.")
        if high >= count:
            have = f"{count} shards, 0 to {count - 1}" if count > 1 else "one shard, 0"
            missing = low if low >= count else high
            raise DataError(f"shards: found {text!r}, but the catalogue has {have}; there is no {missing}.")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


@dataclass(frozen=True)
class Piece:
    """Rows of one part that belong to a shard. rows: their places in its file. cluster, split: of each of them."""

    file: Path
    rows: np.ndarray
    cluster: np.ndarray
    split: np.ndarray


@dataclass(frozen=True)
class ShardWork:
    """What making a shard needs. sample: places within it of the rows whose texts are handed back."""

    number: int
    folder: Path
    scratch: Path
    splits: tuple[str, ...]
    pieces: tuple[Piece, ...]
    sample: np.ndarray

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"

    @property
    def files(self) -> dict[str, Path]:
        return {ending: self.folder / f"{self.name}.{ending}" for ending in ("parquet", "jsonl")}

    @property
    def summary(self) -> Path:
        return self.scratch / f"{self.name}.json"

    def done(self) -> dict[str, Any] | None:
        return summary_of(self.summary, self.files)


def shard_works(
    files: Sequence[Path], decided: Decided, shard_rows: int, folder: Path, scratch: Path, sample: np.ndarray
) -> Iterator[ShardWork]:
    """One for each shard, in order. sample: places among all kept rows, ascending."""
    heights = [polars.scan_parquet(file).select(polars.len()).collect().item() for file in files]
    begins = np.concatenate(([0], np.cumsum(heights)))
    kept = np.flatnonzero(decided.kept_N)
    for number, begin in enumerate(range(0, len(kept), shard_rows)):
        rows = kept[begin : begin + shard_rows]
        pieces: list[Piece] = []
        first, last = np.searchsorted(begins, [rows[0], rows[-1]], side="right")
        for part in range(first - 1, last):
            mine = rows[(rows >= begins[part]) & (rows < begins[part + 1])]
            if len(mine):
                pieces.append(Piece(files[part], mine - begins[part], decided.cluster_N[mine], decided.split_N[mine]))
        chosen = sample[(sample >= begin) & (sample < begin + shard_rows)] - begin
        yield ShardWork(number, folder, scratch, decided.splits, tuple(pieces), chosen)


def make_shard(work: ShardWork) -> int:
    """Write the shard's two files, then its summary. Gives its number. Raises MachineError; no half file is left."""
    table = polars.concat([_rows(piece, work.splits) for piece in work.pieces])
    buffer = io.BytesIO()
    table.write_ndjson(buffer)
    hashes: dict[str, str] = {}
    for ending, data in (("parquet", parquet_bytes(table, COMPRESSION, LEVEL)), ("jsonl", buffer.getbuffer())):
        with atomic_file(work.files[ending], "wb") as file:
            file.write(data)
        hashes[f"{ending}_sha256"] = hashlib.sha256(data).hexdigest()
    sample = table[work.sample]
    summary = {
        "name": work.name,
        "rows": table.height,
        **hashes,
        "splits": {split: int((table["split"] == split).sum()) for split in work.splits},
        "characters": {column: _lengths(table[column]) for column in ("title", "content")},
        "sample": list(sample.select("title", "content").iter_rows()),
    }
    put_summary(work.summary, summary, work.files)
    return work.number


def _rows(piece: Piece, splits: Sequence[str]) -> polars.DataFrame:
    table = polars.read_parquet(piece.file)[piece.rows]
    return table.select(
        "uid",
        "title",
        "content",
        "line",
        polars.Series("cluster", piece.cluster, dtype=polars.Int64),
        polars.Series("split", np.array(splits, dtype=object)[piece.split].tolist(), dtype=polars.String),
    )


def _lengths(column: polars.Series) -> list[list[int]]:
    """(characters, texts of that length), ascending."""
    values, counts = np.unique(column.str.len_chars().to_numpy(), return_counts=True)
    return [values.tolist(), counts.tolist()]
