"""A batch's input file: its lines, and what is wrong with them.

Comes in: a path. Goes out: the requests in order, or the list of faults that the failed batch shows. One line is held
at a time. Knows nothing of what a body must be: that is the endpoint's matter, line by line, when the batch runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from afina.server.errors import ApiError
from afina.server.fields import kind_of
from afina.server.gate import check_json

MOST_LINES, MOST_FAULTS, MOST_ID = 50_000, 50, 512
MOST_LINE_BYTES = 10 * 2**20  # as of a request's body
KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Line:
    """number: from 1, blank lines counted."""

    number: int
    custom_id: str
    body: dict[str, Any]


class LineFaultError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def faults(path: Path, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """How many requests there are, and what is wrong, at most MOST_FAULTS entries as `errors.data` shows them."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    total = 0
    for number, raw in _raw_lines(path):
        total += 1
        if total > MOST_LINES:
            found.append(_entry("too_many_tasks", f"A batch has at most {MOST_LINES} requests.", None, None))
            break
        try:
            line = parse(number, raw, endpoint)
            if line.custom_id in seen:
                raise LineFaultError(
                    "duplicate_custom_id",
                    f"The custom_id '{line.custom_id}' for this request is a duplicate of another request. The "
                    "custom_id parameter must be unique for each request in a batch.",
                    "custom_id",
                )
            seen.add(line.custom_id)
        except LineFaultError as fault:
            found.append(_entry(fault.code, fault.message, number, fault.param))
        if len(found) >= MOST_FAULTS:
            break
    if not total:
        found.append(_entry("empty_file", "The input file is empty. Please ensure it holds requests.", None, None))
    return total, found


def lines(path: Path, endpoint: str) -> Iterator[Line]:
    """The requests of a file without faults."""
    for number, raw in _raw_lines(path):
        yield parse(number, raw, endpoint)


def _entry(code: str, message: str, line: int | None, param: str | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The number and text of each line that is not blank; None for one that is too long, which is the last."""
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES), b""), 1):
            if len(raw) == MOST_LINE_BYTES and not raw.endswith(b"\n"):
                yield number, None
                return
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if text.strip():
                yield number, text


def parse(number: int, raw: bytes | None, endpoint: str) -> Line:
    """Raises LineFaultError."""
    if raw is None:
        raise LineFaultError("invalid_json_line", f"This line is longer than {MOST_LINE_BYTES // 2**20} MB.")
    try:
        check_json(raw)
        value = json.loads(raw)
    except ApiError:
        raise LineFaultError("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(value, dict):
        raise LineFaultError("invalid_json_line", f"This line is {kind_of(value)}, expected a JSON object.")
    fields = cast(dict[str, Any], value)
    for key in KEYS:
        if key not in fields:
            raise LineFaultError("missing_required_parameter", f"Missing required parameter: '{key}'.", key)
    for key in fields:
        if key not in KEYS:
            raise LineFaultError("unknown_parameter", f"Unknown parameter: '{key[:100]}'.", key[:100])
    custom_id, method, url, body = (fields[key] for key in KEYS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID:
        message = f"Invalid 'custom_id': expected a string of 1 to {MOST_ID} characters."
        raise LineFaultError("invalid_value", message, "custom_id")
    if method != "POST":
        message = f"Invalid method value: '{str(method)[:100]}'. Supported values are: 'POST'."
        raise LineFaultError("invalid_method", message, "method")
    if url != endpoint:
        message = (
            f"The URL provided for this request ('{str(url)[:100]}') does not match the batch endpoint ('{endpoint}')."
        )
        raise LineFaultError("invalid_url", message, "url")
    if not isinstance(body, dict):
        message = f"Invalid type for 'body': expected an object, but got {kind_of(body)} instead."
        raise LineFaultError("invalid_type", message, "body")
    return Line(number, custom_id, cast(dict[str, Any], body))
