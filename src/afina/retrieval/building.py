"""Shards of a catalogue -> an index on disk, a batch at a time; killed at any moment, the same call goes on.

Comes in: Parquet files with the columns uid, title, content. Goes out: a folder with the library's files and index.json
(record.py). Memory holds a few thousand rows and the library's buffer, whatever the catalogue's size.

How no row is added twice or lost: before a batch is committed, index.json names its shards under `adding`. The
library's commit is atomic, and nothing is ever deleted from the index, so whoever comes next need only count: the index
holds as many products as `shards` have (the commit never came: it is made again) or as many as `shards` and `adding`
(it came, only the note of it did not). Any other number is damage, and all is built anew.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, DataError, MachineError, RunError
from afina.core.progress import progress
from afina.core.storage import ensure_folder, explain_write_errors
from afina.retrieval.record import (
    WORDS,
    IndexedShard,
    Record,
    check_files,
    files_of,
    read_record,
    sha256_of,
    write_record,
)
from afina.retrieval.words import ANALYSER, analysers, import_tantivy

COLUMNS = ("uid", "title", "content")
COMMIT_ROWS = 100_000  # committed together: each commit makes a segment, and fewer segments answer faster
READ_ROWS = 5_000  # held at once
BUFFER_BYTES = 128 << 20  # the library writes a segment when its words take more
CONTINUES = "What was committed is kept: the same command continues."


@dataclass(frozen=True)
class Shard:
    """A Parquet file that is to be in the index."""

    path: Path
    sha256: str
    rows: int

    @property
    def entry(self) -> IndexedShard:
        return IndexedShard(self.path.name, self.sha256, self.rows)


def build(folder: Path, shards: Sequence[Path], *, catalogue_key: str, tell: Callable[[str], None]) -> None:
    """Make `folder` the index of exactly these shards, with as little work as that takes.

    Shards that are in it are known by their content and stay; new ones are added; where one was changed or taken away,
    all is built anew, and said. tell: is given each line that the user should read.
    Raises DataError for a shard that cannot be read, RunError if another process is building here, MachineError where
    nothing can be written.
    """
    ensure_folder(folder)
    wanted = [inspect_shard(path) for path in shards]
    with only_one(folder):
        record = _start(folder, wanted, catalogue_key, tell)
        if record.complete:
            if record.catalogue_key != catalogue_key:
                write_record(folder, replace(record, catalogue_key=catalogue_key))
            return
        missing = _missing(record, wanted)
        with progress("index", sum(shard.rows for shard in missing), "products") as bar:
            _add(folder, record, missing, bar.advance)


# -- what is there -------------------------------------------------------------------------------------


def _start(folder: Path, wanted: Sequence[Shard], catalogue_key: str, tell: Callable[[str], None]) -> Record:
    """The record to go on from: complete if nothing is left to do."""
    reason = ""
    try:
        record = _settled(folder)
        reason = record.outdated() or ""
        gone = Counter(shard.sha256 for shard in record.shards) - Counter(shard.sha256 for shard in wanted)
        if not reason and gone:
            name = next(shard.name for shard in record.shards if shard.sha256 in gone)
            reason = f"{name} was changed or taken away since it was added"
        if not reason:
            if record.complete and not _missing(record, wanted):
                return record
            return replace(record, catalogue_key=catalogue_key, complete=False, files=())
    except AfinaError as error:
        reason = str(error) if (folder / WORDS).exists() else ""
    if reason:
        tell(f"{folder}: the index is built anew: {reason}")
    with explain_write_errors(folder):
        (folder / "index.json").unlink(missing_ok=True)
        if (folder / WORDS).exists():
            shutil.rmtree(folder / WORDS)
    return Record(catalogue_key=catalogue_key)


def _settled(folder: Path) -> Record:
    """The record with the batch under way counted in or out. Raises RunError where the files do not bear it out."""
    record = read_record(folder)
    if record.complete:
        check_files(folder / WORDS, record.files)
        return record
    if record.outdated():
        return record
    if not (folder / WORDS).exists():
        return replace(record, shards=(), adding=())
    try:
        found = int(_open(folder / WORDS).searcher().num_docs)
    except Exception as error:  # the library raises ValueError for all that it dislikes
        raise RunError(f"{folder}: cannot be read ({error})") from error
    if found == record.num_products:
        return replace(record, adding=())
    if found == record.added().num_products:
        return record.added()
    raise RunError(f"{folder}: it holds {found} products, expected {record.num_products}")


def _missing(record: Record, wanted: Sequence[Shard]) -> list[Shard]:
    """Shards that are not in the index, in the order given."""
    there = Counter(shard.sha256 for shard in record.shards)
    missing: list[Shard] = []
    for shard in wanted:
        if there[shard.sha256]:
            there[shard.sha256] -= 1
        else:
            missing.append(shard)
    return missing


# -- adding ----------------------------------------------------------------------------------------------


def _add(folder: Path, record: Record, missing: Sequence[Shard], advance: Callable[[int], None]) -> None:
    """Commit the shards batch by batch, and finish."""
    words = folder / WORDS
    with _explained(folder):
        write_record(folder, record)  # before anything that it would have to explain
        words.mkdir(exist_ok=True)
        index = _open(words)
        writer = index.writer(heap_size=BUFFER_BYTES, num_threads=1)  # one thread: products stay in their order
        for batch in _batches(missing):
            record = replace(record, adding=tuple(shard.entry for shard in batch))
            write_record(folder, record)
            for shard in batch:
                _add_shard(writer, shard, advance)
            writer.commit()
            record = record.added()
            write_record(folder, record)
        writer.commit()  # an empty catalogue is an index too
        writer.wait_merging_threads()
        write_record(folder, replace(record, complete=True, files=files_of(words)))


def _batches(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    batch: list[Shard] = []
    for shard in shards:
        batch.append(shard)
        if sum(one.rows for one in batch) >= COMMIT_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _add_shard(writer: Any, shard: Shard, advance: Callable[[int], None]) -> None:
    document = import_tantivy().Document
    for rows in shard_rows(shard):
        for uid, title, content in rows:
            writer.add_document(document(uid=uid, title=title, content=content))
        advance(len(rows))


def shard_rows(shard: Shard) -> Iterator[list[tuple[str, str, str]]]:
    """READ_ROWS rows at a time. Raises DataError where a row has no text in a column."""
    import polars as pl

    frame = pl.scan_parquet(shard.path).select(COLUMNS)
    for start in range(0, shard.rows, READ_ROWS):
        try:
            piece = frame.slice(start, READ_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{shard.path}: cannot be read from row {start + 1} on: {error}. {AGAIN}") from error
        if any(piece.null_count().row(0)):
            raise DataError(f"{shard.path}: a row from {start + 1} on has no uid, title or content. {AGAIN}")
        yield piece.rows()


AGAIN = "Prepare the catalogue again: afina prepare RECIPE."


def inspect_shard(path: Path) -> Shard:
    """What a shard is known by. Raises DataError if it is none."""
    import polars as pl

    if not path.is_file():
        raise DataError(f"{path}: no such shard. {AGAIN}")
    try:
        frame = pl.scan_parquet(path)
        schema = frame.collect_schema()
        rows = int(frame.select(pl.len()).collect().item())
        shard = Shard(path, sha256_of(path), rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}. {AGAIN}"
        ) from error
    if wrong := [name for name in COLUMNS if schema.get(name) != pl.String]:
        raise DataError(f"{path}: no text column {wrong[0]!r}; it has {', '.join(schema)}. {AGAIN}")
    return shard


# -- the library ---------------------------------------------------------------------------------------------


def _schema() -> Any:
    builder = import_tantivy().SchemaBuilder()
    builder.add_text_field("uid", stored=True, tokenizer_name="raw", index_option="basic")
    for name in ("title", "content"):  # how often a word stands there; not where
        builder.add_text_field(name, stored=True, tokenizer_name=ANALYSER, index_option="freq")
    return builder.build()


def _open(words: Path) -> Any:
    """The library's index in the folder, made if need be. Raises ValueError if it is damaged or of another schema."""
    index = import_tantivy().Index(_schema(), path=str(words), reuse=True)
    index.register_tokenizer(ANALYSER, analysers()[0])
    index.reload()
    return index


def open_words(folder: Path) -> Any:
    """The library's index of a folder that was checked. Raises RunError where it cannot be read all the same."""
    try:
        return _open(folder / WORDS)
    except Exception as error:  # the library raises ValueError for all that it dislikes
        raise RunError(f"{folder}: cannot be read ({error}). Build it again: afina index RECIPE.") from error


@contextlib.contextmanager
def _explained(folder: Path) -> Generator[None]:
    """The library's refusals to write, which it calls ValueError, as those of the disk that they are."""
    try:
        with explain_write_errors(folder, CONTINUES):
            yield
    except AfinaError:
        raise
    except ValueError as error:
        text = str(error)
        if "LockBusy" in text or "lockfile" in text.lower():
            raise _busy(folder) from error
        if any(
            sign in text for sign in ("No space left", "File too large", "Disk quota", "os error 28", "os error 27")
        ):
            full = OSError(errno.ENOSPC, "No space left on device")
            with explain_write_errors(folder, CONTINUES):
                raise full from error
        raise MachineError(f"{folder}: the index cannot be written: {text}. {CONTINUES}") from error


def _busy(folder: Path) -> RunError:
    return RunError(f"{folder}: another process is building this index. Wait until it ends.")


@contextlib.contextmanager
def only_one(folder: Path) -> Generator[None]:
    """No other process builds in the folder meanwhile."""
    with explain_write_errors(folder):
        file = (folder / ".building").open("ab")
    with file:
        try:
            import fcntl  # no such module on Windows, where the library's own lock must do
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(folder) from error
        except OSError:
            pass  # a file system without locks
        yield
