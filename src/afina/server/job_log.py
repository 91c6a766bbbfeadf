"""log.jsonl: what a job's process tells, read as it grows.

Comes in: a file that another process appends to, and that may end in half a line. Goes out: each whole line once, as an
object. Knows nothing of databases and of what the lines mean.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, cast

NAME = "log.jsonl"
MOST_BYTES_A_READ = 4 * 1024 * 1024
logger = logging.getLogger(__name__)


class LogReader:
    """Reads one file from its beginning. offset: bytes that were given out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines behind `offset`, at most about 4 MiB of them, and the offset behind them.

        The offset moves by `advance` only, once what was read is kept.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                raw = file.read(MOST_BYTES_A_READ)
        except FileNotFoundError:
            return [], self.offset
        end = raw.rfind(b"\n") + 1
        if not end:
            return [], self.offset
        found = [parsed for line in raw[:end].split(b"\n") if line.strip() and (parsed := _parse(line)) is not None]
        return found, self.offset + end

    def advance(self, offset: int) -> None:
        self.offset = offset


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line, or the whole end of one that a killed process had begun; None for what is neither."""
    for start in (0, line.rfind(b'{"key"')):
        if start < 0:
            continue
        try:
            value = json.loads(line[start:])
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(cast(dict[str, Any], value).get("key"), str):
            return finite(value)
    logger.warning("a damaged line of a job's log is left out: %r", line[:200])
    return None


def finite(value: Any) -> Any:
    """value with null for numbers that JSON does not have (a loss that is not a number)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in cast(dict[str, Any], value).items()}
    return [finite(inner) for inner in cast(list[Any], value)] if isinstance(value, list) else value
