"""One block of lines -> one part: a file of clean rows, one of rejected ones, and a summary.

Comes in: a block's bytes. Goes out: files in the scratch folder, each whole, the summary last. Runs in a process of its
own, many at a time; knows nothing of other parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.catalogue.judging import clean_table
from afina.catalogue.rows import Columns, read_rows
from afina.catalogue.scratch import parquet_bytes, put, put_summary, summary_of
from afina.core.catalogue_config import CatalogueConfig


@dataclass(frozen=True)
class Part:
    """The files of a part. number: from 0, over all files of the catalogue. source: which of them it is of."""

    scratch: Path
    number: int
    source: int

    @property
    def rows(self) -> Path:
        return self._file("parquet")

    @property
    def rejected(self) -> Path:
        return self._file("rejected.parquet")

    @property
    def summary(self) -> Path:
        return self._file("json")

    def _file(self, ending: str) -> Path:
        return self.scratch / f"part-{self.number:05d}.{ending}"

    def done(self) -> dict[str, Any] | None:
        """Its summary; None where it must be made."""
        return summary_of(self.summary, {"rows": self.rows, "rejected": self.rejected})


@dataclass(frozen=True)
class PartWork:
    """What making a part needs. prefix: of uids made of line numbers. cleaning: False only judges the rows."""

    part: Part
    data: bytes
    first_line: int
    columns: Columns
    prefix: str
    config: CatalogueConfig
    cleaning: bool


def make_part(work: PartWork) -> int:
    """Write the part. Gives its number. Raises MachineError if it cannot be written."""
    rows = read_rows(work.data, work.first_line, work.columns, work.prefix)
    done = clean_table(rows.table, work.config, work.cleaning)
    rejected = rows.rejected.vstack(done.rejected).sort("line")
    put(work.part.rows, parquet_bytes(done.table))
    put(work.part.rejected, parquet_bytes(rejected))
    summary = {
        "lines": rows.num_lines,
        "rows": done.table.height,
        "rejected": dict(rejected["kind"].value_counts(sort=False).iter_rows()),
        "cleaned": done.num_cleaned,
        "steps": {"not_utf8_repaired": rows.num_repaired, **done.steps},
        "equal": done.num_equal,
    }
    put_summary(work.part.summary, summary, {"rows": work.part.rows, "rejected": work.part.rejected})
    return work.part.number
