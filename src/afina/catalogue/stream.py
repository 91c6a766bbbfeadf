"""The bytes of a catalogue's file, unpacked as they are read, in blocks that end where a line ends.

Comes in: a `SourceFile`. Goes out: `Block`s of about eight megabytes, always cut at the same places, so that work on
one can be kept. A file that is cut short or damaged is refused with the line that was reached. isal unpacks, two to
four times as fast as zlib.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from afina.catalogue.libraries import library
from afina.catalogue.source import SourceFile
from afina.core.errors import DataError, MachineError

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 20  # a longer line is no product
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of name and extra field
READ_BYTES = 1 << 20


class Reader(Protocol):
    """As much of a stream as is needed here. It may give less than was asked for; nothing only at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Block:
    """Whole lines of one file. first_line: number of its first, from 1. place: bytes of the packed file read so far."""

    data: bytes
    first_line: int
    place: int


def blocks(source: SourceFile, size: int = BLOCK_BYTES) -> Generator[Block]:
    """All lines of a file. Raises DataError with the line that was reached; MachineError if it cannot be read."""
    line, carried = 1, b""
    with _opened(source) as (reader, packed):
        while True:
            with _explained(source, line):
                chunk = _read_exactly(reader, size)
            if line == 1 and not carried:
                chunk = _without_mark(chunk, source)
            data = carried + chunk
            end = data.rfind(b"\n") + 1 if chunk else len(data)
            if end:
                yield Block(data[:end] if end < len(data) else data, line, packed.tell())
                line += data.count(b"\n", 0, end)
            carried = data[end:]
            if not chunk:
                return
            if len(carried) > MAX_LINE_BYTES:
                raise DataError(
                    f"{source.shown}:{line}: the line has more than {MAX_LINE_BYTES >> 20} MiB, expected a product. "
                    "Is it JSON Lines, one object on each line?"
                )


def _without_mark(chunk: bytes, source: SourceFile) -> bytes:
    if chunk.startswith(UTF16):
        raise DataError(f"{source.shown}: is UTF-16, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 ...")
    return chunk.removeprefix(BOM)


def _read_exactly(reader: Reader, size: int) -> bytes:
    """`size` bytes, fewer only at the end: where blocks are cut must not depend on how the file is packed."""
    pieces: list[bytes] = []
    while size > 0 and (piece := reader.read(min(size, READ_BYTES))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def _explained(source: SourceFile, line: int) -> Generator[None]:
    try:
        yield
    except (EOFError, zlib.error, zipfile.BadZipFile, library("isal.igzip").BadGzipFile, NotImplementedError) as error:
        raise _damaged(source, line, error) from error
    except library("isal.isal_zlib").error as error:
        raise _damaged(source, line, error) from error
    except OSError as error:
        raise MachineError(f"{source.shown}: cannot read beyond line {line}: {error.strerror or error}.") from error


def _damaged(source: SourceFile, line: int, error: Exception) -> DataError:
    reason = str(error)[:200] or type(error).__name__
    return DataError(
        f"{source.shown}: the {source.kind} file is cut short or damaged somewhere after line {line:,} ({reason}). "
        "Nothing of it was used. Download or pack it again."
    )


# -- packed files ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: SourceFile) -> Generator[tuple[Reader, BinaryIO]]:
    """The unpacked stream, and the file below it, whose place tells how far it is."""
    with contextlib.ExitStack() as stack:
        with _explained(source, 1):
            packed = stack.enter_context(source.path.open("rb"))
            reader: Reader = packed
            gzipped = source.kind == "gzip"
            if source.member is not None:
                reader = member = stack.enter_context(_open_member(packed, source.path, source.member, stack))
                gzipped = member.peek(2)[:2] == b"\x1f\x8b"
            if gzipped:
                reader = stack.enter_context(library("isal.igzip").IGzipFile(fileobj=reader, mode="rb"))
        yield reader, packed


def _open_member(packed: BinaryIO, path: Path, name: str, stack: contextlib.ExitStack) -> io.BufferedReader:
    """The member's bytes, unpacked by isal where the zip is of the usual kinds, else by the standard library."""
    archive = stack.enter_context(zipfile.ZipFile(path))
    info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise zipfile.BadZipFile(f"the member {name} is encrypted: unpack it first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return io.BufferedReader(stack.enter_context(archive.open(info)), READ_BYTES)  # type: ignore[arg-type]
    packed.seek(info.header_offset)
    header = packed.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"no member begins at byte {info.header_offset}")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    packed.seek(info.header_offset + LOCAL_HEADER.size + name_length + extra_length)
    return io.BufferedReader(_Member(packed, info), READ_BYTES)


class _Member(io.RawIOBase):
    """A member of a zip, checked against its size and checksum when it ends."""

    def __init__(self, packed: BinaryIO, info: zipfile.ZipInfo) -> None:
        super().__init__()
        self._packed, self._info = packed, info
        self._left = info.compress_size
        self._size = self._checksum = 0
        self._zlib = library("isal.isal_zlib")
        self._inflate = self._zlib.decompressobj(wbits=-15) if info.compress_type == zipfile.ZIP_DEFLATED else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        self._size += len(data)
        self._checksum = self._zlib.crc32(data, self._checksum)
        if not data and len(buffer):
            self._check()
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        if self._inflate is None:
            return self._take(size)
        while not self._inflate.eof:
            tail = self._inflate.unconsumed_tail
            packed = tail or self._take(READ_BYTES)
            data: bytes = self._inflate.decompress(packed, size)
            if data:
                return data
            if not packed:
                raise EOFError("the member ends early")
        return b""

    def _take(self, size: int) -> bytes:
        data = self._packed.read(min(size, self._left))
        if self._left and not data:
            raise EOFError("the file ends within the member")
        self._left -= len(data)
        return data

    def _check(self) -> None:
        if self._size != self._info.file_size or self._checksum != self._info.CRC:
            raise zipfile.BadZipFile(f"the member {self._info.filename} fails its checksum")
