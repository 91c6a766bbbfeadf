"""One multipart upload, from the socket to the disk: the file in pieces, the fields in memory, both bounded.

Comes in: a request's headers and its stream. Goes out: the form's fields, the file's name, and its bytes under a
staging path that the caller owns. Nothing is left when the form is broken, too large, cut off, or its sender hangs up.
Starlette's own form parser spools a file to a temporary folder; here it is written once, to the disk where it stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote_to_bytes

import anyio
from anyio import CapacityLimiter, to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from afina.server.errors import ApiError, bad_request
from afina.server.fields import missing

WRITE_BYTES = 1024 * 1024  # collected before a thread writes them
MOST_FIELD_BYTES = 16 * 1024
MOST_PARTS = 16
MOST_HEADER_BYTES = 16 * 1024
MOST_NAME = 1000  # characters of a file's name
PARAMETER = re.compile(r';\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
CONTROL = ("Cc", "Cs", "Zl", "Zp")
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they show a name as another one


@dataclass
class Upload:
    """fields: of the form, decoded. filename: as it was sent, or None when there was no file."""

    path: Path
    fields: dict[str, str] = field(default_factory=dict[str, str])
    filename: str | None = None
    num_bytes: int = 0


async def receive(
    content_type: str, stream: AsyncIterator[bytes], path: Path, *, file_field: str, most_bytes: int, timeout_s: float
) -> Upload:
    """Write the file to `path`; on any error, the sender's going away included, `path` is gone.

    most_bytes: of the file. timeout_s: without a byte from the sender. Raises ApiError.
    """
    form = _Form(content_type, path, file_field, most_bytes)
    writers = CapacityLimiter(1)  # its own: an upload never waits for the threads of requests that wait for a model
    try:
        pieces = stream.__aiter__()
        while True:
            try:
                with anyio.fail_after(timeout_s):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise ApiError(408, f"The request's body stopped arriving for {timeout_s:g} seconds.") from None
            if piece is None:
                break
            form.feed(piece)
            if form.num_waiting >= WRITE_BYTES:
                await to_thread.run_sync(form.write, limiter=writers)
        form.check_end()
        await to_thread.run_sync(form.finish, limiter=writers)
    except OSError as error:
        form.abandon()
        raise disk_error(error) from error
    except BaseException:
        form.abandon()
        raise
    return form.upload


def disk_error(error: OSError) -> ApiError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "its disk is full" if full else "its disk refused to write"
    return ApiError(503, f"The server could not keep the file: {reason}. Nothing was stored.", type="server_error")


class _Form:
    """The parser's callbacks: collects fields, passes the file on."""

    def __init__(self, content_type: str, path: Path, file_field: str, most_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise _broken("the Content-Type has no boundary")
        self.upload = Upload(path)
        self._file_field, self._most_bytes = file_field, most_bytes
        self._file: IO[bytes] | None = None
        self._waiting: list[bytes] = []
        self.num_waiting = 0
        self._num_parts = 0
        self._header = [bytearray(), bytearray()]
        self._disposition = ""
        self._name = ""
        self._in_file = False
        self._value = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                },
                max_header_size=MOST_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _broken("its boundary is too long") from error

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _broken("a boundary or header is malformed") from error

    def check_end(self) -> None:
        if self._parser.state != MultipartState.END:
            raise _broken("it ends before its closing boundary")

    def write(self) -> None:
        """Runs in a thread, while nothing is fed."""
        if self._file is None:
            self._file = self.upload.path.open("xb")
        for piece in self._waiting:
            self._file.write(piece)
        self._waiting.clear()
        self.num_waiting = 0

    def finish(self) -> None:
        """The bytes are on the disk when this returns."""
        if self.upload.filename is None:
            return
        self.write()
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        if self._file is not None:
            # What is still in Python's buffer is not wanted, and a full disk would refuse it again.
            self.upload.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._file.close()

    def _part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MOST_PARTS:
            raise _broken(f"it has more than {MOST_PARTS} parts")
        self._header, self._disposition = [bytearray(), bytearray()], ""
        self._name, self._in_file, self._value = "", False, bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = _text(bytes(value))
        self._header = [bytearray(), bytearray()]

    def _headers_finished(self) -> None:
        parameters = _parameters(self._disposition)
        self._name = parameters.get("name", "")
        if not self._name:
            raise _broken("a part has no name")
        filename = parameters.get("filename")
        if self._name != self._file_field:
            if self._name in self.upload.fields:
                raise bad_request(
                    f"Duplicate parameter: '{self._name[:100]}'.", self._name[:100], "duplicate_parameter"
                )
            return
        if filename is None:
            raise bad_request(f"Expected '{self._name}' to be a file with a name, but got a plain field.", self._name)
        if self.upload.filename is not None:
            raise bad_request(f"Duplicate parameter: '{self._name}'.", self._name, "duplicate_parameter")
        self.upload.filename, self._in_file = filename, True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            if len(self._value) + end - start > MOST_FIELD_BYTES:
                raise bad_request(f"Invalid '{self._name[:100]}': the field is too long.", self._name[:100])
            self._value += data[start:end]
            return
        self.upload.num_bytes += end - start
        if self.upload.num_bytes > self._most_bytes:
            raise too_large_file(self._most_bytes)
        self._waiting.append(data[start:end])
        self.num_waiting += end - start

    def _part_end(self) -> None:
        if not self._in_file:
            self.upload.fields[self._name] = _text(bytes(self._value))


def too_large_file(most_bytes: int) -> ApiError:
    shown = f"{most_bytes / 2**20:g} MB" if most_bytes >= 2**20 else f"{most_bytes} bytes"
    return ApiError(413, f"The file is larger than {shown}, the most that one file may have.", param="file")


def plain_name(sent: str) -> str:
    """What is kept of a file's name: its last part, without control characters, otherwise unchanged.

    Clients send whole paths, of either kind of system. Raises ApiError for a name that is too long to be one.
    """
    last = re.split(r"[/\\]", sent)[-1]
    kept = "".join(c for c in last if unicodedata.category(c) not in CONTROL and c not in TURNING).strip()
    if len(kept) > MOST_NAME:
        raise bad_request(f"Invalid 'file': its name is longer than {MOST_NAME} characters.", "file")
    return "file" if kept in ("", ".", "..") else kept


def require_field(upload: Upload, name: str) -> str:
    if name not in upload.fields:
        raise missing(name)
    return upload.fields[name]


def _parameters(disposition: str) -> dict[str, str]:
    """Of `form-data; name="file"; filename="x"; filename*=utf-8''x`; the extended form wins (RFC 6266)."""
    plain: dict[str, str] = {}
    extended: dict[str, str] = {}
    for match in PARAMETER.finditer(disposition):
        name, value = match[1].lower(), match[2].strip()
        if name.endswith("*"):
            extended[name[:-1]] = _extended(value.strip('"'))
            continue
        if value.startswith('"'):
            value = re.sub(r'\\(["\\])', r"\1", value[1:-1])
            # What browsers and httpx write for these in a quoted name (HTML, "multipart form data").
            value = value.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
        plain.setdefault(name, value)
    return plain | extended


def _extended(value: str) -> str:
    """RFC 5987: charset'language'percent-encoded."""
    charset, _, rest = value.partition("'")
    _, _, encoded = rest.partition("'")
    if charset.lower() not in ("utf-8", "utf8", "iso-8859-1"):
        raise _broken("a file name is in an unknown character set")
    try:
        return unquote_to_bytes(encoded.encode("latin-1", "replace")).decode(charset)
    except UnicodeDecodeError as error:
        raise _broken("a file name is not in the character set that it says") from error


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _broken(reason: str) -> ApiError:
    return bad_request(f"We could not parse the multipart form of your request: {reason}.")
