"""index.json: what an index holds, and proof that its files are the ones that were written.

Comes in: an index's folder. Goes out: its record, or a RunError that says what is wrong with it. It never changes the
library's own files, and knows nothing of products.

    {"version", "afina", "tantivy", "analyser", "catalogue_key", "complete",
     "shards": [{"name", "sha256", "rows"}],   added, in this order
     "adding": [...],                           being added: in the index or not, its number of products tells
     "files": [{"name", "bytes", "crc32"}]}     of a complete index
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.errors import RunError
from afina.core.storage import write_json
from afina.retrieval.words import SETTINGS

VERSION = 1
RECORD, WORDS = "index.json", "words"  # in an index's folder: this record, and the folder of the library's files
META = "meta.json"  # of the library: which of its files count
BLOCK_BYTES = 1 << 20
MEND = "Build it again: afina index RECIPE."


@dataclass(frozen=True)
class IndexedShard:
    """A Parquet file whose products are in the index. sha256: of its bytes."""

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class IndexedFile:
    """One of the library's files. name: inside the folder of words."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Record:
    """What index.json says. tantivy: its major and minor version, which own the files' format."""

    catalogue_key: str
    shards: tuple[IndexedShard, ...] = ()
    adding: tuple[IndexedShard, ...] = ()
    files: tuple[IndexedFile, ...] = ()
    complete: bool = False
    version: int = VERSION
    afina: str = __version__
    tantivy: str = field(default_factory=lambda: tantivy_version())
    analyser: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))

    @property
    def num_products(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def added(self) -> Record:
        """What was being added is in the index."""
        return replace(self, shards=self.shards + self.adding, adding=())

    def outdated(self) -> str | None:
        """Why this program cannot use the index; None if it can."""
        for name, found, wanted in (
            ("version", self.version, VERSION),
            ("tantivy", self.tantivy, tantivy_version()),
            ("analyser", self.analyser, SETTINGS),
        ):
            if found != wanted:
                return f"its {name} is {found}, expected {wanted}"
        return None


def tantivy_version() -> str:
    return ".".join(importlib.metadata.version("tantivy").split(".")[:2])


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading and writing ---------------------------------------------------------------------------


def write_record(folder: Path, record: Record) -> None:
    write_json(folder / RECORD, asdict(record))


def read_record(folder: Path) -> Record:
    """Raises RunError where there is none, or where it is not one."""
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"{folder}: no index of products here (no {RECORD}). Build it: afina index RECIPE.")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in (("shards", IndexedShard), ("adding", IndexedShard), ("files", IndexedFile)):
            raw[name] = tuple(kind(**one) for one in raw[name])
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: damaged ({type(error).__name__}: {error}). {MEND}") from error


def usable_record(folder: Path, catalogue_key: str | None = None) -> Record:
    """The record of a complete index that this program can read. RunError for any other, or of another catalogue."""
    record = read_record(folder)
    if reason := record.outdated():
        raise RunError(f"{folder}: this index was built by another version of Afina: {reason}. {MEND}")
    if not record.complete:
        raise RunError(
            f"{folder}: this index is not finished: {len(record.shards)} shards are in it. The same command goes on: "
            "afina index RECIPE."
        )
    if catalogue_key is not None and record.catalogue_key != catalogue_key:
        raise RunError(
            f"{folder}: this index is of another catalogue: its key is {record.catalogue_key}, expected "
            f"{catalogue_key}. {MEND}"
        )
    return record


# -- the library's files -----------------------------------------------------------------------------


def files_of(words: Path) -> tuple[IndexedFile, ...]:
    """The files that make up the index now, in order of their names: those of the segments that META lists."""
    meta = json.loads((words / META).read_text(encoding="utf-8"))
    segments = {segment["segment_id"].replace("-", "") for segment in meta["segments"]}
    names = sorted(p.name for p in words.iterdir() if p.name == META or p.name.split(".")[0] in segments)
    return tuple(IndexedFile(name, (words / name).stat().st_size, crc32_of(words / name)) for name in names)


def check_files(words: Path, files: Sequence[IndexedFile]) -> None:
    """Raises RunError if a file is not, byte for byte, what was written. Reads all of them, once."""
    for file in files:
        path = words / file.name
        if not path.is_file():
            raise RunError(f"{path}: missing from the index. {MEND}")
        if (found := path.stat().st_size) != file.bytes:
            raise RunError(f"{path}: damaged: {found} bytes, expected {file.bytes}. {MEND}")
    for file in files:
        if crc32_of(words / file.name) != file.crc32:
            raise RunError(f"{words / file.name}: damaged: its checksum is another than when it was written. {MEND}")


def crc32_of(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        for block in _blocks(file):
            value = zlib.crc32(block, value)
    return value


def _blocks(file: Any) -> Iterable[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block
