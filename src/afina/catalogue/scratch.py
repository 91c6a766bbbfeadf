"""The folder of a preparation that is not finished: pieces that appear whole, and are there when it continues.

Comes in: bytes and names. Goes out: files, and whether a piece is done. A piece is done when its summary stands beside
it and names the sizes of its files. They are not forced to the disk: after a power cut a piece may be missing, and is
made again; what the user gets (`core.storage.atomic_file`) is forced.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import polars

from afina.core.errors import RunError
from afina.core.storage import explain_write_errors

KEPT = "What is done is kept: with space for the rest, the same call continues."
PREFIX = ".work-"


def put(path: Path, data: bytes | memoryview) -> None:
    """The file is whole or absent, whenever this process is killed. Raises MachineError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_write_errors(path, KEPT):
        try:
            with temporary.open("wb") as file:
                file.write(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def parquet_bytes(table: polars.DataFrame, compression: Any = "uncompressed", level: int | None = None) -> memoryview:
    """Not compressed by default: what is soon read again and then removed is not worth the time."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression=compression, compression_level=level)
    return buffer.getbuffer()


def put_summary(path: Path, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Last of a piece: it says that the others are there."""
    sizes = {name: file.stat().st_size for name, file in files.items()}
    put(path, json.dumps({**summary, "sizes": sizes}).encode())


def summary_of(path: Path, files: Mapping[str, Path]) -> dict[str, Any] | None:
    """The summary of a piece that is done; None where it must be made."""
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        sizes = {name: file.stat().st_size for name, file in files.items()}
    except (OSError, ValueError):
        return None
    return summary if summary.get("sizes") == sizes else None


def open_scratch(folder: Path, key: str) -> Path:
    """The folder for pieces of this key; those of others are removed."""
    scratch = folder / f"{PREFIX}{key}"
    with explain_write_errors(scratch):
        for other in folder.glob(f"{PREFIX}*"):
            if other != scratch:
                shutil.rmtree(other)
        scratch.mkdir(exist_ok=True)
        for half in scratch.glob(".*.tmp"):  # of a process that was killed
            half.unlink()
    return scratch


def remove_scratch(folder: Path) -> None:
    for scratch in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def only_one(folder: Path) -> Generator[None]:
    """No other process prepares this folder meanwhile. Raises RunError if one does."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    with file:
        try:
            import fcntl  # no such module on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError as error:
            raise RunError(
                f"{folder}: another process is preparing this catalogue. Wait until it ends, or choose another folder."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
