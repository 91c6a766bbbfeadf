"""Products that stand in the catalogue twice, under one uid: the first stays.

Comes in: the files of parts, in order. Goes out: files without the repeated rows, and those rows. Two rows of one uid
are no duplicates: their texts may differ, but a source can only cite one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars

from afina.catalogue.rows import REJECTED
from afina.catalogue.scratch import parquet_bytes, put

DUPLICATE_UID = "duplicate uid"


@dataclass(frozen=True)
class Unique:
    """files: of all parts, in order; those that held no repeated row are the ones that came in.

    rejected: number of a part -> its rows that repeat a uid.
    """

    files: list[Path]
    rejected: dict[int, polars.DataFrame]


def drop_repeated_uids(files: Sequence[Path]) -> Unique:
    """Only the hashes of the uids are in memory (8 bytes a row); texts decide where hashes are equal."""
    columns = [polars.read_parquet(file, columns=["uid"])["uid"].hash(0).to_numpy() for file in files]
    hashes, counts = np.unique(np.concatenate(columns), return_counts=True) if columns else ([], [])
    suspects = np.asarray(hashes)[np.asarray(counts) > 1] if len(counts) else np.zeros(0, np.uint64)
    unique = Unique(list(files), {})
    if not len(suspects):
        return unique
    seen: dict[str, int] = {}  # uid -> the line of its first row
    for number, (file, column) in enumerate(zip(files, columns, strict=True)):
        if not np.isin(column, suspects).any():
            continue
        table = polars.read_parquet(file)
        kept = np.ones(table.height, dtype=np.bool_)
        repeated: list[tuple[int, str, str, str]] = []
        for row in np.flatnonzero(np.isin(column, suspects)).tolist():
            uid, line = table["uid"][row], table["line"][row]
            if uid in seen:
                kept[row] = False
                repeated.append((line, uid, DUPLICATE_UID, f"line {seen[uid]} has the same uid and is kept"))
            seen.setdefault(uid, line)
        if repeated:
            unique.rejected[number] = polars.DataFrame(repeated, schema=REJECTED, orient="row")
            unique.files[number] = file.with_suffix(".unique.parquet")
            put(unique.files[number], parquet_bytes(table.filter(kept)))
    return unique
