"""Writes that are whole or absent, and hashes that key what was computed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, Any

from afina.core.errors import DataError, MachineError


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no white space, Unicode kept."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def digest(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a JSON value (or of bytes)."""
    raw = value if isinstance(value, bytes) else canonical_json(value).encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Sixteen hex digits of the SHA-256 of a file's bytes; of a folder, of its files' names and bytes.

    A file that has not changed since is not read again by this process.
    """
    if path.is_dir():
        return digest([[one.name, file_digest(one)] for one in sorted(path.iterdir()) if one.is_file()])
    state = path.stat()
    return _file_digest(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def explain_write_errors(path: Path, left: str = "Nothing half-written was left.") -> Generator[None]:
    """Turn the operating system's refusal to write into one clear line.

    left: what the reader finds on the disk now.
    """
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        raise  # of a stream, not of the disk
    except OSError as error:
        # Copying a folder gathers many errors in one that has no number.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            said in str(error)
            for said in ("No space left", "requested and")  # the second: a short write of numpy's
        ):
            reason = "the disk is full, or a limit is reached. Free some space, or choose another folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "the folder is not writable. Choose another folder, or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            reason = "a file stands where a folder is needed. Move it, or choose another folder"
        elif error.errno == errno.EISDIR:
            reason = "a folder stands where a file is needed. Choose another name"
        else:
            reason = f"{error.strerror or error}. Choose another folder"
        raise MachineError(f"{path}: cannot write: {reason}. {left}") from error


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Generator[IO[Any]]:
    """A file that appears under its name only when written to the end; on error nothing is left."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def read_jsonl(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def ensure_folder(path: Path) -> None:
    """Create the folder and prove that a file can be written in it."""
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass


def require_file(path: Path, what: str) -> None:
    """Raise DataError unless `path` is a non-empty, readable file."""
    if path.is_dir():
        raise DataError(f"{path}: found a folder, expected {what}. Name a file in it.")
    if not path.exists():
        raise DataError(
            f"{path}: no such file, expected {what}. Check the path; in a recipe it is relative to the recipe, "
            "on the command line to the current folder."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty, expected {what}. Export the table again.")
