"""CSV and TSV text -> Table, telling every row that is not one.

Comes in: text. Goes out: rows with the line they begin on, and rejections. Python's csv module reads
in its strict mode: a reader that repairs in silence hides lost rows. A quote that is opened and never
closed costs its own line only: reading begins again on the next one.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afina.core.errors import DataError
from afina.data.encodings import SURROGATE
from afina.data.table import Rejection, Row, Table, name_some, shorten

DELIMITERS = ",;\t|"
NAMES = {"\t": "tab", "": "none: each line is one cell"}
SNIFFED_LINES = 400
# A record of more lines is taken for an unclosed quote, so that a stray quote costs no pass over the file.
LINES_OF_A_RECORD = 10_000
MIN_AGREEING = 0.5  # share of lines that must have the first line's number of cells for a delimiter to count


@dataclass(frozen=True)
class Record:
    """cells: empty for a blank line; None where the quotes cannot be read, and `problem` says why.

    stray: quotes were read as text.
    """

    line: int
    cells: list[str] | None
    raw: str
    problem: str = ""
    stray: bool = False


def read_delimited(text: str, path: Path, *, delimiter: str | None, header: Sequence[str] | None, kind: str) -> Table:
    """kind: csv, tsv, or lines (each line is one cell unless a delimiter is found).

    Raises DataError for a header without rows and for a column name that stands twice.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses cells above 131,072 characters
    lines = list(io.StringIO(text, newline=""))
    notes: list[str] = []
    if delimiter is None:
        delimiter = "\t" if kind == "tsv" else find_delimiter(lines, header, certain=kind == "lines")
        usual = {"csv": ",", "tsv": "\t"}.get(kind)
        if delimiter != usual:
            notes.append(f"delimiter: {NAMES.get(delimiter, repr(delimiter))}")
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) > 1:
        raise DataError(f"data.delimiter is {delimiter!r}, expected one character, as ';' or '\\t'.")
    stream = records(lines, delimiter)
    if header is None:
        first = next((record for record in stream if record.cells != []), None)
        if first is None or first.cells is None:
            raise DataError(f"{path}:1: found {first.problem if first else 'only blank lines'}, expected column names.")
        names, line = [name.strip() for name in first.cells], first.line
    else:
        names, line = list(header), 0
    _refuse_repeated(names, path, line)
    cells, rejections = _same_width(stream, len(names), notes)
    if not cells and not rejections:
        raise DataError(f"{path}: found column names ({name_some(names)}) and no rows. Export the table again.")
    columns, rows = _name_columns(cells, names, notes)
    return Table(columns, rows, rejections, notes, "lines" if not delimiter else "tsv" if delimiter == "\t" else "csv")


def records(lines: Sequence[str], delimiter: str) -> Iterator[Record]:
    """Every record with the line it begins on. delimiter "": each line is one cell."""
    if not delimiter:
        for number, line in enumerate(lines, 1):
            yield Record(number, [line.rstrip("\r\n")] if line.strip() else [], line)
        return
    begin, tabs = 0, delimiter == "\t"

    def feed() -> Iterator[str]:
        for index in range(begin, len(lines)):
            if index - begin > LINES_OF_A_RECORD:
                raise csv.Error("unexpected end of data")
            yield lines[index]

    while begin < len(lines):
        offset = begin
        reader = csv.reader(feed(), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                end = offset + reader.line_num
                # In TSV a quoted cell with line breaks and tabs is a stray quote that swallowed rows.
                if tabs and end - begin > 1 and any("\t" in cell for cell in cells):
                    raise csv.Error("a quote is opened and swallows the next lines")
                yield Record(begin + 1, cells, "".join(lines[begin:end]))
                begin = end
        except csv.Error as error:
            raw = lines[begin].rstrip("\r\n")
            unclosed = "unexpected end" in str(error)
            problem = "a quote is opened here and never closed" if unclosed else f"quotes cannot be read: {error}"
            cells = raw.split("\t") if tabs else None
            yield Record(begin + 1, cells, raw, "" if tabs else problem, stray=tabs)
            begin += 1


def find_delimiter(lines: Sequence[str], header: Sequence[str] | None, certain: bool) -> str:
    """The delimiter under which most lines have as many cells as the first.

    certain: text without suffix .csv: unless nearly all lines agree, each line is one cell ("").
    """
    best, chosen = (0.0, 0), "" if certain else ","
    for candidate in DELIMITERS:
        sample = [record for record in records(lines[:SNIFFED_LINES], candidate) if record.cells != []]
        counts = Counter(len(record.cells) for record in sample if record.cells)
        width = len(header) if header else len(sample[0].cells or []) if sample else 0
        score = (counts[width] / max(1, len(sample)), width)
        if width > 1 and score[0] >= (0.9 if certain else MIN_AGREEING) and score > best:
            best, chosen = score, candidate
    if header and len(header) == 1 and certain:
        return ""
    return chosen


def _same_width(
    stream: Iterator[Record], width: int, notes: list[str]
) -> tuple[list[tuple[int, list[str]]], list[Rejection]]:
    """(line, cells) of the records that have `width` cells, and the others with their reasons."""
    rows: list[tuple[int, list[str]]] = []
    rejections: list[Rejection] = []
    stray = blank = 0
    for record in stream:
        stray += record.stray
        if record.cells is None:
            rejections.append(Rejection(record.line, "unreadable quotes", record.problem, shorten(record.raw)))
        elif not record.cells:
            blank += 1
        elif len(record.cells) != width:
            found = f"found {len(record.cells)} cell{'s' * (len(record.cells) != 1)}, expected {width}"
            rejections.append(Rejection(record.line, "wrong number of cells", found, shorten(record.raw)))
        elif SURROGATE.search(record.raw):
            rejections.append(broken_text(record.line, record.raw))
        else:
            rows.append((record.line, record.cells))
    if blank:
        notes.append(f"{blank} blank lines skipped")
    if stray:
        notes.append(f"{stray} lines with stray quotes were read as plain text")
    return rows, rejections


def broken_text(line: int, raw: str) -> Rejection:
    found = next((c for c in raw if SURROGATE.match(c)), "")
    byte = (
        f"byte 0x{ord(found) - 0xDC00:02X} is no UTF-8"
        if 0xDC80 <= ord(found or "\0") <= 0xDCFF
        else "half a character"
    )
    return Rejection(line, "broken text encoding", byte, shorten(raw))


def _refuse_repeated(names: Sequence[str], path: Path, line: int) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            places = [i for i, other in enumerate(names, 1) if other == name]
            raise DataError(
                f"{path}:{line}: the column name {name!r} stands {count} times (columns {name_some(places)}). "
                "Rename or remove one, so that it is clear which is meant."
            )


def _name_columns(
    cells: list[tuple[int, list[str]]], names: Sequence[str], notes: list[str]
) -> tuple[list[str], list[Row]]:
    """Column names and rows; nameless columns without a value are left out, and said."""
    nameless = [i for i, name in enumerate(names) if not name or name.startswith("Unnamed: ")]
    empty = [i for i in nameless if not any(row[i].strip() for _, row in cells)]
    if empty:
        places = name_some([i + 1 for i in empty], 30)
        notes.append(f"{len(empty)} columns without name and values ignored (columns {places})")
    kept: dict[int, str] = {}
    for index, name in enumerate(names):
        if index in empty:
            continue
        kept[index] = name or f"column_{index + 1}"
        if not name:
            notes.append(f"column {index + 1} has no name; it is read as {kept[index]!r}")
    return list(kept.values()), [Row(line, {name: row[i] for i, name in kept.items()}) for line, row in cells]
