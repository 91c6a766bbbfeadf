"""Lines of JSON -> a table of rows, with every line that is no row named.

Comes in: the bytes of whole lines. Goes out: `Rows`: line, uid, title and content as text, and rejections. Other keys
are not read, whatever they hold. polars reads a block at once; a block that it refuses, and rows whose values could
have been something else than text, are read line by line, which is the definition.

A line that is not UTF-8 is read as far as it is, its other bytes as Windows-1252, and counted. Numbers become the
digits that stand there; of a key that stands twice the first counts. A missing or null value is the empty text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import polars

from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError
from afina.data.table import name_some, shorten

LOOKED_AT = 100  # lines from which the columns are told
REASON_CHARACTERS = 200
FIELDS = ("uid", "title", "content")
REJECTED = {"line": polars.Int64, "uid": polars.String, "kind": polars.String, "reason": polars.String}
ROWS = {"line": polars.Int64, **dict.fromkeys(FIELDS, polars.String)}
ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
HALF = re.compile("[\ud800-\udfff]")  # of a character, escaped; two that belong together were joined by the reader
# What a list, an object, a number or a truth value looks like once polars has made text of it; and what it makes of
# half a character, a NUL.
OTHER_TYPES = r"^[\[{]|^(?:true|false|-?[0-9.]+(?:[eE][+-]?[0-9]+)?)$|\x00"
OTHER_UIDS = r"[^0-9A-Za-z_-]|^(?:true|false)$"  # digits are what stood there, in quotes or not


@dataclass(frozen=True)
class Columns:
    """Keys of the source. uid: None where it has none, and rows are called by their lines."""

    uid: str | None
    title: str
    content: str


@dataclass
class Rows:
    """table: columns line, uid, title, content, no nulls. rejected: line, uid, kind, reason.

    num_lines: all that are not blank. num_repaired: lines that were not UTF-8.
    """

    table: polars.DataFrame
    rejected: polars.DataFrame
    num_lines: int
    num_repaired: int = 0


def find_columns(head: bytes, config: CatalogueConfig, shown: str) -> tuple[Columns, list[str]]:
    """The keys to read, from a file's first lines, and notes. Raises DataError that names the columns found."""
    found: dict[str, None] = {}
    first_problem = ""
    for number, raw in enumerate(head.split(b"\n", LOOKED_AT)[:LOOKED_AT], 1):
        if raw.strip():
            try:
                found |= dict.fromkeys(_object(_decode(raw)[0]))
            except _UnusableError as error:
                first_problem = first_problem or f"{shown}:{number}: {error.reason}"
    if not found:
        hint = "Name a file of JSON Lines, plain, gzipped or zipped"
        if re.match(rb"\s*(?:\[|\{\s*$)", head, re.MULTILINE):
            hint = "It looks like one JSON document over several lines: write one object on each line"
        raise DataError(f"{first_problem or shown}; expected one JSON object on each line. {hint}.")
    missing = [
        f"catalogue.{key}: {name}"
        for key, name in (("title", config.title), ("content", config.content))
        if name not in found
    ]
    if config.uid not in found and config.uid != "uid":
        missing.append(f"catalogue.uid: {config.uid}")
    if missing:
        raise DataError(
            f"{shown}: no column {', '.join(missing)}; found {name_some(list(found), 12)}. "
            "Name the columns that hold the product's title and its description."
        )
    if config.uid in found:
        return Columns(config.uid, config.title, config.content), []
    note = f"{shown}: has no column {config.uid!r}, so products are called by their lines, as line-1"
    return Columns(None, config.title, config.content), [note]


def read_rows(data: bytes, first_line: int, columns: Columns, prefix: str = "") -> Rows:
    """The rows of a block of whole lines. first_line: its number. prefix: of uids that are made of line numbers."""
    rows = _read_fast(data, first_line, columns)
    if rows is None:
        rows = _read_slowly(data, first_line, columns)
    if columns.uid is None:
        named = polars.format(f"{prefix}line-{{}}", "line").alias("uid")
        rows.table = rows.table.with_columns(named)
        rows.rejected = rows.rejected.with_columns(named)
    return rows


# -- a block at once -------------------------------------------------------------------------------


def _read_fast(data: bytes, first_line: int, columns: Columns) -> Rows | None:
    """None where the lines must be read one by one."""
    names = {columns.title: "title", columns.content: "content"} | ({columns.uid: "uid"} if columns.uid else {})
    try:
        table = polars.read_ndjson(data, schema=dict.fromkeys(names, polars.String)).rename(names)
    except (polars.exceptions.PolarsError, ValueError, OSError):
        return None
    lines = polars.int_range(first_line, first_line + table.height, dtype=polars.Int64, eager=True)
    if table.height != data.count(b"\n") + (not data.endswith(b"\n")):
        numbers = [number for number, raw in enumerate(data.split(b"\n")) if raw.strip()]
        if len(numbers) != table.height:
            return None
        lines = polars.Series(numbers, dtype=polars.Int64) + first_line
    if columns.uid is None:
        table = table.with_columns(uid=polars.lit("", polars.String))
    table = table.with_columns(line=lines).select(list(ROWS)).with_columns(polars.col(FIELDS).fill_null(""))
    doubtful = table.select(
        polars.col("uid").str.contains(OTHER_UIDS)
        | polars.col("title").str.contains(OTHER_TYPES)
        | polars.col("content").str.contains(OTHER_TYPES)
    ).to_series()
    rows = Rows(table, polars.DataFrame(schema=REJECTED), table.height)
    if doubtful.any():
        again = table.filter(doubtful)["line"].to_list()
        ends = np.append(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), len(data)).tolist()
        begins = [0, *(end + 1 for end in ends)]
        raw = [(line, data[begins[line - first_line] : ends[line - first_line]]) for line in again]
        _put(rows, _read_lines(raw, columns), doubtful)
    return rows


def _put(rows: Rows, read: Rows, places: polars.Series) -> None:
    """Put what was read line by line in the place of what polars made of those lines."""
    rows.table = polars.concat([rows.table.filter(~places), read.table]).sort("line")
    rows.rejected = read.rejected
    rows.num_repaired = read.num_repaired


# -- line by line ----------------------------------------------------------------------------------


class _UnusableError(Exception):
    """kind: what such lines are counted by. reason: of this one."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason


def _read_slowly(data: bytes, first_line: int, columns: Columns) -> Rows:
    lines = enumerate(data.split(b"\n"), first_line)
    return _read_lines([(line, raw) for line, raw in lines if raw.strip()], columns)


def _read_lines(lines: list[tuple[int, bytes]], columns: Columns) -> Rows:
    kept: list[tuple[int, str, str, str]] = []
    rejected: list[tuple[int, str, str, str]] = []
    num_repaired = 0
    for line, raw in lines:
        text, repaired = _decode(raw)
        num_repaired += repaired
        uid = ""
        try:
            value = _object(text)
            uid = _text(value, columns.uid) if columns.uid is not None else ""
            kept.append((line, uid, _text(value, columns.title), _text(value, columns.content)))
        except _UnusableError as error:
            rejected.append((line, uid, error.kind, shorten(error.reason, REASON_CHARACTERS)))
    table = polars.DataFrame(kept, schema=ROWS, orient="row")
    return Rows(table, polars.DataFrame(rejected, schema=REJECTED, orient="row"), len(lines), num_repaired)


def _decode(raw: bytes) -> tuple[str, bool]:
    """The text of a line, and whether it was not UTF-8."""
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "surrogateescape")
        return ESCAPED_BYTES.sub(_as_windows_1252, text), True


def _as_windows_1252(match: re.Match[str]) -> str:
    return match.group().encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _object(text: str) -> dict[str, Any]:
    try:
        # Control characters within strings are no JSON, but readable: cleaning takes them out, and counts it.
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _UnusableError("invalid JSON", f"is no valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _UnusableError("invalid JSON", f"is no usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise _UnusableError("no object", f"found {_kind(value)}, expected an object with named values")
    return value


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _UnusableError("no text", f"{shorten(key, 40)} is {_kind(found)}, expected text")
    return found if found.isascii() else HALF.sub("\ufffd", found)


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", bool: "true or false", str: "a text", type(None): "null"}
    return kinds.get(type(value), "a number")


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else value | dict(reversed(pairs))


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(
    strict=False, parse_int=str, parse_float=str, parse_constant=_no_constant, object_pairs_hook=_first_wins
)
