"""What reading a file gives: rows, rejected rows with reasons, and notes for the reader.

These are plain records. They know nothing of tasks, labels or splits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RAW_CHARACTERS = 500


@dataclass(frozen=True)
class Row:
    """One record. line: its first line, from 1 (record number in JSON documents and Parquet)."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used.

    kind: what rejections are counted by, as "wrong number of cells". reason: of this very row.
    raw: the row's text, at most 500 characters. source: the file's name, where there are several.
    """

    line: int
    kind: str
    reason: str
    raw: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"line": self.line, "kind": self.kind, "reason": self.reason, "raw": self.raw, "source": self.source}


@dataclass
class Table:
    """A file as rows. `columns` are in file order; a row of a JSON file may lack some of them.

    format: csv, tsv, lines, jsonl, json, parquet, alpaca or chat. sha256: of the file's bytes, hexadecimal.
    """

    columns: list[str]
    rows: list[Row]
    rejections: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: str = ""
    encoding: str = ""
    sha256: str = ""

    @property
    def num_read(self) -> int:
        return len(self.rows) + len(self.rejections)


def shorten(value: Any, at_most: int = RAW_CHARACTERS) -> str:
    """One line of text for a message or for rejected.jsonl; broken Unicode is made printable."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= at_most else text[: at_most - 1] + "…"


def count_kinds(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Rejection kind -> rows, most frequent first."""
    return dict(Counter(rejection.kind for rejection in rejections).most_common())


def name_some(names: Sequence[Any], at_most: int = 5) -> str:
    """'1, 2, 3, 4, 5 and 12 more'."""
    shown = ", ".join(str(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
