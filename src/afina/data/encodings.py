"""Bytes -> text: UTF-8 first, every fallback said aloud, binary files refused.

Comes in: a file's bytes. Goes out: the text, the encoding's name and notes. Where a UTF-8 file has
single broken bytes, they come through as lone surrogates, so that only the rows with them are rejected.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from afina.core.errors import DataError

SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook. Export the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook. Export the sheet as CSV"),
    (b"%PDF", "a PDF document. Export the table as CSV"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"SQLite format 3", "an SQLite database. Export the table as CSV"),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it"),
    (b"BZh", "a bzip2 file. Unpack it, or use gzip"),
    (b"\xfd7zXZ", "an xz file. Unpack it, or use gzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd file. Unpack it, or use gzip"),
)
FORMATS = "CSV, TSV, JSONL, JSON, Parquet, Alpaca or chat JSONL, plain or gzipped"


@dataclass(frozen=True)
class Text:
    text: str
    encoding: str
    notes: tuple[str, ...] = ()


def unpack(raw: bytes, path: Path) -> bytes:
    """The bytes without gzip, if they were gzipped. Raises DataError if the archive is damaged or empty."""
    if not raw.startswith(b"\x1f\x8b"):
        if path.suffix == ".gz":
            raise DataError(f"{path}: is named .gz, but is no gzip file. Rename it, or compress it again.")
        return raw
    try:
        unpacked = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the gzip archive is damaged or cut off ({error}). Copy it again.") from error
    if not unpacked:
        raise DataError(f"{path}: the gzip archive holds an empty file, expected a table. Export the table again.")
    return unpacked


def decode(raw: bytes, path: Path) -> Text:
    """The file's text. Raises DataError for binary files, naming what they seem to be."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if raw.startswith(mark) and encoding == "utf-16":
            try:
                return Text(raw.decode("utf-16"), "UTF-16", ("read as UTF-16: it begins with its byte order mark",))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: begins like UTF-16, but is not ({error.reason}). Save it as UTF-8."
                ) from error
    _refuse_binary(raw, path)
    had_mark = raw.startswith(codecs.BOM_UTF8)
    body = raw.removeprefix(codecs.BOM_UTF8)
    name = "UTF-8 with BOM" if had_mark else "UTF-8"
    try:
        return Text(body.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        byte, line = body[error.start], body.count(b"\n", 0, error.start) + 1
    lenient = body.decode("utf-8", "surrogateescape")
    num_broken = len(SURROGATE.findall(lenient))
    num_beyond_ascii = sum(1 for c in lenient if ord(c) > 127) - num_broken
    if had_mark or num_beyond_ascii > num_broken:
        note = f"{num_broken} bytes are no UTF-8, the first is 0x{byte:02X} at line {line}"
        return Text(lenient, name, (f"{note}; the rows with them are rejected",))
    try:
        text, encoding = body.decode("cp1252"), "Windows-1252"
        if not re.search(rb"[\x80-\x9f]", body):
            encoding = "Latin-1"
    except UnicodeDecodeError:
        text, encoding = body.decode("latin-1"), "Latin-1"
    return Text(text, encoding, (f"read as {encoding}: byte 0x{byte:02X} at line {line} is no UTF-8",))


def _refuse_binary(raw: bytes, path: Path) -> None:
    for signature, meaning in SIGNATURES:
        if raw.startswith(signature):
            raise DataError(f"{path}: found {meaning}; expected a table as {FORMATS}.")
    head = raw[: 1 << 20]
    place = raw.find(b"\x00")
    if place >= 0:
        line = raw.count(b"\n", 0, place) + 1
        raise DataError(
            f"{path}:{line}: found a NUL byte (at byte {place}): a binary file, or UTF-16 without its mark. "
            f"Expected a table as {FORMATS}. Save it as UTF-8 text."
        )
    if len(CONTROL.findall(head)) > len(head) // 50:
        raise DataError(f"{path}: found control characters throughout: a binary file. Expected a table as {FORMATS}.")
