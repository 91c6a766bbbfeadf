"""Rows of unfinished work, kept in a file beside its output as they come, so that a killed job continues.

Comes in: rows as JSON, in groups that were made together. Goes out: the rows of an interrupted job with the same key.
What the rows mean is not known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from afina.core.errors import RunError
from afina.core.storage import explain_write_errors

LEFT = "What was made so far is kept: with space for the rest, the same command continues."


class KeptRows:
    """The rows of one output that is not whole yet; a context, in which no other process can work on the same output.

    output: what the rows will become; the file's name is made of its. key: of all that decides the rows; those of
    another key are removed. step: rows that are made together: only whole groups are kept, so that the same rows are
    made together as without the interruption (who shares a batch moves the last digits of a confidence).
    Raises RunError if another process is at it, MachineError where nothing can be written.
    """

    def __init__(self, output: Path, key: str, step: int) -> None:
        self.path = output.with_name(f".{output.name}.partial.jsonl")
        self._key, self._step = key, step
        self.rows: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> KeptRows:
        with explain_write_errors(self.path):
            self._file = self.path.open("a+b", buffering=0)  # a full disk is told by write, not again by close
            _lock(self._file, self.path)
            self.rows = self._read(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None, "left without having been entered"
        if not self.rows:
            self.discard()
        self._file.close()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep one more group."""
        assert self._file is not None, "used outside its context"
        with explain_write_errors(self.path, LEFT):
            _write(self._file, b"".join(_line(row) for row in rows))
        self.rows += rows

    def discard(self) -> None:
        """Remove the file: its rows are of no more use."""
        self.path.unlink(missing_ok=True)

    def _read(self, file: IO[bytes]) -> list[dict[str, Any]]:
        """The rows of this key, in whole groups; the rest of the file is cut off."""
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]  # after the last line end stands nothing, or half a line
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            found = []  # not what we wrote: made again
        if not found or found[0].get("key") != self._key:
            os.ftruncate(file.fileno(), 0)
            _write(file, _line({"key": self._key}))
            return []
        num_kept = (len(found) - 1) // self._step * self._step
        os.ftruncate(file.fileno(), sum(len(line) + 1 for line in lines[: 1 + num_kept]))
        return found[1 : 1 + num_kept]


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _write(file: IO[bytes], data: bytes) -> None:
    """All of it: an unbuffered file may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _lock(file: IO[bytes], path: Path) -> None:
    """Until the file is closed, or this process ends."""
    try:
        import fcntl  # no such module on Windows
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunError(
            f"{path}: another process is writing this output. Wait until it ends, or choose another --output."
        ) from error
    except OSError:
        pass  # a file system without locks
