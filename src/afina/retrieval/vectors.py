"""Products as vectors on disk, and those nearest to a question: an approximate index (usearch, HNSW).

Comes in: shards, and a sentence model. Goes out: a folder `vectors` with

    index.json      as the words' record, with the model's fingerprint
    parts/*.npy     vectors of one shard each, while the index is being made: what took long is kept
    nearest.usearch the approximate index; keys are rows in the order they were added
    uids.npy        the uid of each row, as bytes

It knows nothing of words or of how two rankings become one (fusion.py).
Malkov & Yashunin 2018, arXiv:1603.09320.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.errors import AfinaError, MachineError, RunError
from afina.core.progress import progress
from afina.core.storage import atomic_file, ensure_folder, explain_write_errors, write_json
from afina.retrieval.building import CONTINUES, Shard, inspect_shard, only_one, shard_rows
from afina.retrieval.embedding import SentenceModel
from afina.retrieval.passage import Passage, passage_text
from afina.retrieval.record import MEND, RECORD, IndexedFile, IndexedShard, check_files, crc32_of

VERSION = 1
NEAREST, UIDS, PARTS = "nearest.usearch", "uids.npy", "parts"
EMBEDDED_CHARS = 800  # of title and content together: about what a sentence model reads
CONNECTIVITY, EXPANSION = 16, 128  # of the graph; found among the nearest ten: 0.99 on random vectors


@dataclass(frozen=True)
class VectorRecord:
    """What index.json says. model: fingerprint of the one that made the vectors. width: of a vector."""

    model: str
    width: int
    shards: tuple[IndexedShard, ...] = ()
    files: tuple[IndexedFile, ...] = ()
    version: int = VERSION
    usearch: str = ""


class VectorIndex:
    """An index that was opened. Safe for several threads."""

    def __init__(self, folder: Path, record: VectorRecord, model: SentenceModel) -> None:
        self.record, self._model = record, model
        self._nearest = _restore(folder / NEAREST, record.width)
        self._uids: np.ndarray = np.load(folder / UIDS, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, model: SentenceModel) -> VectorIndex:
        """The index in `folder`, checked byte by byte. RunError where there is none, or one of another model."""
        import_usearch()
        record = read_vectors(folder)
        if reason := outdated(record, model):
            raise RunError(f"{folder}: these vectors cannot be used: {reason}. {MEND}")
        check_files(folder, record.files)
        return cls(folder, record, model)

    def search(self, question: str, k: int) -> list[tuple[str, float]]:
        """(uid, cosine in [-1, 1]) of the nearest `k` products, nearest first; equal ones by uid."""
        if k < 1 or not len(self._uids) or not question.strip():
            return []
        found = self._nearest.search(self._model.encode([question])[0], min(k, len(self._uids)))
        pairs = [
            (self._uids[int(key)].decode(), round(1 - float(gap), 6))
            for key, gap in zip(found.keys, found.distances, strict=True)
        ]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def build_vectors(folder: Path, shards: Sequence[Path], model: SentenceModel, tell: Callable[[str], None]) -> None:
    """Make `folder` hold the vectors of exactly these shards; shards that are in it are not embedded again.

    A killed call goes on after the last whole shard. Where the model or a shard was changed, all is made anew,
    and said.
    """
    import_usearch()
    ensure_folder(folder)
    wanted = [inspect_shard(path) for path in shards]
    with only_one(folder), explain_write_errors(folder, CONTINUES):
        record, missing = _start(folder, wanted, model, tell)
        if not missing and record.files:
            return
        with progress("vectors", sum(shard.rows for shard in missing), "products") as bar:
            for shard in missing:
                _embed(folder, shard, model, bar.advance)
        _assemble(folder, record, missing)


def _start(
    folder: Path, wanted: Sequence[Shard], model: SentenceModel, tell: Callable[[str], None]
) -> tuple[VectorRecord, list[Shard]]:
    """The record to go on from, and the shards that are not in it."""
    empty = VectorRecord(model.fingerprint, model.width, usearch=usearch_version())
    reason = ""
    try:
        record = read_vectors(folder) if (folder / RECORD).exists() else empty
        reason = outdated(record, model) or ""
        if Counter(s.sha256 for s in record.shards) - Counter(s.sha256 for s in wanted):
            reason = reason or "a shard was changed or taken away since it was added"
        check_files(folder, record.files)
    except AfinaError as error:
        record, reason = empty, str(error)
    if reason:
        tell(f"{folder}: the vectors are made anew: {reason}")
        (folder / RECORD).unlink(missing_ok=True)
        record = empty
    there = Counter(shard.sha256 for shard in record.shards)
    missing: list[Shard] = []
    for shard in wanted:
        there[shard.sha256] -= 1
        if there[shard.sha256] < 0:
            missing.append(shard)
    return record, missing


def _part(folder: Path, shard: Shard, model: str) -> Path:
    return folder / PARTS / f"{shard.sha256[:32]}-{model}.npy"


def _embed(folder: Path, shard: Shard, model: SentenceModel, advance: Callable[[int], None]) -> None:
    """The shard's vectors as a part, unless it is there: (rows, D) float16."""
    path = _part(folder, shard, model.fingerprint)
    if path.exists():
        advance(shard.rows)
        return
    vectors = np.zeros((shard.rows, model.width), dtype=np.float16)
    at = 0
    for rows in shard_rows(shard):
        vectors[at : at + len(rows)] = model.encode([embedded_text(Passage(*row)) for row in rows])
        at += len(rows)
        advance(len(rows))
    with atomic_file(path, "wb") as file:
        np.save(file, vectors, allow_pickle=False)


def embedded_text(product: Passage) -> str:
    """What of a product the model reads: its title, and the first sentences of its content."""
    left = max(0, EMBEDDED_CHARS - len(product.title))
    return (
        f"{product.title[:EMBEDDED_CHARS]}. {passage_text(product, left)}" if left else product.title[:EMBEDDED_CHARS]
    )


def _assemble(folder: Path, record: VectorRecord, missing: Sequence[Shard]) -> None:
    """The parts into the index, in their order, by one thread: the same parts make the same graph."""
    nearest = _new(record.width) if not record.files else _restore(folder / NEAREST, record.width, view=False)
    uids = [] if not record.files else list(np.load(folder / UIDS, allow_pickle=False))
    for shard in missing:
        vectors = np.load(_part(folder, shard, record.model), mmap_mode="r", allow_pickle=False)
        nearest.add(np.arange(len(uids), len(uids) + shard.rows, dtype=np.uint64), np.asarray(vectors), threads=1)
        uids += [row[0].encode() for rows in shard_rows(shard) for row in rows]
    (folder / RECORD).unlink(missing_ok=True)  # from here on the files are between two states; the parts are whole
    with atomic_file(folder / NEAREST, "wb") as file:
        file.write(nearest.save())
    with atomic_file(folder / UIDS, "wb") as file:
        np.save(file, np.array(uids, dtype=np.bytes_), allow_pickle=False)
    files = tuple(
        IndexedFile(name, (folder / name).stat().st_size, crc32_of(folder / name)) for name in (NEAREST, UIDS)
    )
    shards = (*record.shards, *(shard.entry for shard in missing))
    write_json(folder / RECORD, asdict(replace(record, shards=shards, files=files)))
    shutil.rmtree(folder / PARTS, ignore_errors=True)


# -- what is there ------------------------------------------------------------------------------------


def read_vectors(folder: Path) -> VectorRecord:
    """Raises RunError where there is no record, or where it is not one."""
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"{folder}: no vectors of products here. {MEND}")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in (("shards", IndexedShard), ("files", IndexedFile)):
            raw[name] = tuple(kind(**one) for one in raw[name])
        return VectorRecord(**raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: damaged ({type(error).__name__}: {error}). {MEND}") from error


def outdated(record: VectorRecord, model: SentenceModel) -> str | None:
    """Why the vectors cannot be used with this model and program; None if they can."""
    for name, found, wanted in (
        ("version", record.version, VERSION),
        ("usearch", record.usearch, usearch_version()),
        ("model", record.model, model.fingerprint),
        ("width", record.width, model.width),
    ):
        if found != wanted:
            return f"their {name} is {found}, expected {wanted}"
    return None


# -- the library ---------------------------------------------------------------------------------------


def import_usearch() -> Any:
    """The library of nearest vectors. Raises MachineError where it is not installed."""
    try:
        import usearch.index
    except ImportError as error:
        raise MachineError(
            "Vectors of products (sources.dense) need usearch, which is not installed. Install it: "
            "pip install 'afina[dense]', or leave sources.dense out."
        ) from error
    return usearch.index


def usearch_version() -> str:
    return ".".join(importlib.metadata.version("usearch").split(".")[:2])


def _new(width: int) -> Any:
    return import_usearch().Index(
        ndim=width,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION,
        expansion_search=EXPANSION,
    )


def _restore(path: Path, width: int, view: bool = True) -> Any:
    """view: read where it lies, as it is needed. Raises RunError if it is no such index."""
    try:
        index = _new(width)
        (index.view if view else index.load)(str(path))
    except Exception as error:  # the library raises RuntimeError for all that it dislikes
        raise RunError(f"{path}: cannot be read ({error}). {MEND}") from error
    return index
