"""A file on disk -> Table, whatever its format; predictions -> a file.

Comes in: a path, and what the recipe says of its format. Goes out: rows, rejections and notes. Knows
nothing of tasks. A file that cannot be read at all is one DataError; a row that cannot is a rejection.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from afina.core.errors import DataError
from afina.core.storage import atomic_file, canonical_json, require_file
from afina.data.delimited import read_delimited
from afina.data.encodings import FORMATS, decode, unpack
from afina.data.records import as_alpaca, as_chat, is_alpaca, is_chat, read_json, read_json_lines
from afina.data.table import Rejection, Row, Table

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "lines",
}  # fmt: skip
LOST_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def read_table(
    path: Path, *, format: str = "auto", delimiter: str | None = None, header: Sequence[str] | None = None
) -> Table:
    """Read a table. format: as in the recipe's data.format; auto goes by name and content.

    header: column names of a CSV or TSV whose first line is already data.
    Raises DataError for a file that is missing, empty, binary, damaged, or has no rows.
    """
    path = Path(path)
    require_file(path, "a table as " + FORMATS)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    sha256 = hashlib.sha256(raw).hexdigest()
    data = unpack(raw, path)
    if data.startswith(b"PAR1") or format == "parquet":
        table = _read_parquet(data, path)
    else:
        table = _read_text(data, path, format, delimiter, header)
    if header is not None and table.format not in ("csv", "tsv", "lines"):
        raise DataError(f"{path}: data.header names columns, but {table.format} already does. Remove data.header.")
    table.sha256 = sha256
    lost = sum(1 for row in table.rows if any(LOST_CHARACTER in str(value) for value in row.values.values()))
    if lost:
        table.notes.append(f"{lost} rows hold {LOST_CHARACTER!r}: characters lost before the file came here")
    return table


def _read_text(data: bytes, path: Path, format: str, delimiter: str | None, header: Sequence[str] | None) -> Table:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".parquet", ".pq") and format == "auto":
        raise DataError(f"{path}: is named Parquet, but does not begin with PAR1. Export the table again.")
    decoded = decode(data, path)
    if not decoded.text.strip():
        raise DataError(f"{path}: holds only white space, expected a table. Export the table again.")
    kind = SUFFIXES.get(suffix, "lines") if format == "auto" else format
    if format == "auto" and kind == "lines" and decoded.text.lstrip()[:1] in ("{", "["):
        kind = "json"
    if kind in ("alpaca", "chat"):
        kind = "jsonl" if suffix in (".jsonl", ".ndjson") else "json"
    if kind == "json":
        table = read_json(decoded.text, path)
    elif kind == "jsonl":
        table = read_json_lines(decoded.text, path)
    else:
        table = read_delimited(decoded.text, path, delimiter=delimiter, header=header, kind=kind)
    if table.format in ("json", "jsonl"):
        if format == "chat" or (format == "auto" and is_chat(table)):
            table = as_chat(table, path)
        elif format == "alpaca" or (format == "auto" and is_alpaca(table)):
            table = as_alpaca(table, path)
    table.encoding = decoded.encoding
    table.notes = [*decoded.notes, *table.notes]
    return table


def _read_parquet(data: bytes, path: Path) -> Table:
    try:
        frame = polars.read_parquet(io.BytesIO(data))
    except Exception as error:  # polars raises several unrelated classes for damaged files
        raise DataError(f"{path}: is no readable Parquet file ({error}). Export the table again.") from error
    if not frame.height:
        raise DataError(f"{path}: found the columns {frame.columns} and no rows. Export the table again.")
    rows = [Row(number, values) for number, values in enumerate(frame.iter_rows(named=True), 1)]
    table = Table(frame.columns, rows, format="parquet", encoding="UTF-8")
    return as_chat(table, path) if is_chat(table) else table


def in_order(table: Table) -> list[Row | Rejection]:
    """Rows and rejections, as they stand in the file."""
    return sorted([*table.rows, *table.rejections], key=lambda entry: entry.line)


PREDICTION_COLUMNS = ("id", "output", "confidence", "error")
PREDICTION_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


def prediction_format(path: Path) -> str:
    """csv, jsonl or parquet, by the suffix. Raises DataError naming the three."""
    try:
        return PREDICTION_FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: predictions are written as .csv, .jsonl or .parquet. Rename the output.") from None


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write id, output, confidence, error, a line each, in order; whole or not at all.

    JSON Lines keep output and confidence as JSON values; CSV and Parquet hold them as JSON text, "" (null in
    Parquet) where there is none.
    """
    path, kind = Path(path), prediction_format(path)
    if kind == "jsonl":
        with atomic_file(path) as file:
            for row in rows:
                kept = {name: row.get(name) for name in PREDICTION_COLUMNS}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
        return
    flat = [
        {
            "id": str(row["id"]),
            "output": None if row.get("output") is None else _text(row["output"]),
            "confidence": canonical_json(row["confidence"]) if row.get("confidence") else None,
            "error": row.get("error"),
        }
        for row in rows
    ]
    if kind == "parquet":
        schema: dict[str, Any] = dict.fromkeys(PREDICTION_COLUMNS, polars.String)
        with atomic_file(path, "wb") as file:
            polars.DataFrame(flat, schema=schema).write_parquet(file)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    writer.writerows([row[name] for name in PREDICTION_COLUMNS] for row in flat)
    with atomic_file(path, "wb") as file:
        file.write(text.getvalue().encode("utf-8"))


def _text(output: Any) -> str:
    """JSON with the answer's own order of keys."""
    return json.dumps(output, ensure_ascii=False, separators=(",", ":"))
