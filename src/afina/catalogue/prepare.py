"""A catalogue's file -> clean rows in shards, split by cluster, with an account of every row. Top to bottom.

Comes in: the recipe's group `catalogue`, a folder, the seed and the shares of the splits. Goes out: in the folder
manifest.json, report.json, rejected.jsonl and shards/. The file may be larger than memory: it goes through in blocks of
eight megabytes, in several processes. Killed at any moment, the same call continues; another source or other settings
begin anew. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from afina.catalogue.account import (
    SAMPLE_ROWS,
    TokenCounter,
    describe_sample,
    make_report,
    require_usable,
    sum_parts,
    summary_lines,
)
from afina.catalogue.catalogue import VERSION, Catalogue
from afina.catalogue.deciding import Decided, decide
from afina.catalogue.part import Part, PartWork, make_part
from afina.catalogue.rows import Columns, find_columns
from afina.catalogue.scratch import only_one, open_scratch, remove_scratch
from afina.catalogue.shards import ShardWork, make_shard, parse_shards, shard_works
from afina.catalogue.source import SourceFile, find_sources
from afina.catalogue.stream import blocks
from afina.catalogue.uids import Unique, drop_repeated_uids
from afina.catalogue.workers import Workers
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import RunError
from afina.core.progress import Progress, progress
from afina.core.storage import atomic_file, digest, explain_write_errors, write_json

if TYPE_CHECKING:
    from afina.catalogue.duplicates import Duplicates

__all__ = ["Catalogue", "parse_shards", "prepare_catalogue", "summary_lines"]

Tell = Callable[[str], None]
# Keys of the recipe's group that do not change the shards.
LATER = {
    "path", "member", "max_rejected", "shards", "rounds", "formats", "system", "questions",
    "max_train_rows", "max_validation_rows", "max_test_rows",
}  # fmt: skip
MEGABYTE = 1 << 20


def _quiet(line: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Extent:
    """How much of the preparation is done. A benchmark leaves out what it does not measure."""

    cleaning: bool = True
    duplicates: bool = True


def prepare_catalogue(
    config: CatalogueConfig,
    folder: Path,
    *,
    seed: int,
    shares: Mapping[str, float],
    tell: Tell = _quiet,
    count_tokens: TokenCounter | None = None,
    extent: Extent | None = None,
) -> Catalogue:
    """The prepared catalogue; at once, if the folder holds it already.

    shares: split name -> share, summing to 1. count_tokens: tokens of each of some texts, for the report.
    Raises DataError for a source that cannot be used, MachineError where nothing can be written or a library is absent,
    RunError while another process prepares the same folder. Without an error the shards are whole; after one there is
    no manifest.
    """
    assert abs(sum(shares.values()) - 1) < 1e-9, f"shares of a split must sum to 1, found {dict(shares)}"
    extent = extent or Extent()
    sources, notes = find_sources(config)
    key = _key(config, sources, seed, shares, extent)
    with only_one(folder):
        if (kept := _kept(folder, key)) is not None:
            remove_scratch(folder)
            tell(f"{folder}: prepared before, from the same source and settings")
            return kept
        (folder / "manifest.json").unlink(missing_ok=True)  # what is being replaced is not whole
        for left in [*folder.glob(".*.tmp"), *folder.glob("shards/.*.tmp")]:  # by a killed call, while it wrote
            left.unlink(missing_ok=True)
        scratch = open_scratch(folder, key)
        with Workers() as workers:
            work = _Preparation(config, folder, scratch, seed, shares, extent, workers)
            return work.run(sources, notes, key, count_tokens)


def _key(
    config: CatalogueConfig, sources: Sequence[SourceFile], seed: int, shares: Mapping[str, float], extent: Extent
) -> str:
    settings = config.model_dump(mode="json", exclude=LATER)
    files = [[source.sha256, source.member, source.path.name if len(sources) > 1 else ""] for source in sources]
    return digest([VERSION, settings, files, seed, dict(shares), extent.cleaning, extent.duplicates])


def _kept(folder: Path, key: str) -> Catalogue | None:
    try:
        catalogue = Catalogue.load(folder)
    except RunError:
        return None
    return catalogue if catalogue.key == key else None


@dataclass(frozen=True)
class _Preparation:
    config: CatalogueConfig
    folder: Path
    scratch: Path
    seed: int
    shares: Mapping[str, float]
    extent: Extent
    workers: Workers

    def run(
        self, sources: Sequence[SourceFile], notes: list[str], key: str, count_tokens: TokenCounter | None
    ) -> Catalogue:
        # 1. Rows: read, cleaned, judged, a block at a time.
        parts, more = self._read(sources)
        read = sum_parts(summary for part in parts if (summary := part.done()) is not None)
        firsts = self._first_rejected(parts, sources)
        require_usable(read, self.config, {kind: _place(row) for kind, row in firsts.items()})
        # 2. Rows that repeat others.
        unique = drop_repeated_uids([part.rows for part in parts])
        found = self._find_duplicates(unique)
        # 3. What stays, and on which side of the split.
        decided = decide(unique.files, found, self.config, self.seed, self.shares)
        # 4. Shards.
        shards = self._write_shards(unique, decided)
        # 5. The account, and last of all the manifest.
        self._write_rejected(parts, sources, unique, decided, firsts)
        repeated = sum(table.height for table in unique.rejected.values())
        report = {
            "version": VERSION,
            "key": key,
            "sources": [source.described() for source in sources],
            **make_report(read, found, decided, shards, repeated, self.config),
            **(describe_sample(shards, count_tokens) if self.extent.cleaning else {"tokens": None, "languages": None}),
            "first_rejected": firsts,
            "notes": [*notes, *more],
        }
        self._finish(sources, key, report, shards)
        return Catalogue.load(self.folder)

    # -- reading -----------------------------------------------------------------------------------

    def _read(self, sources: Sequence[SourceFile]) -> tuple[list[Part], list[str]]:
        parts: list[Part] = []
        notes: list[str] = []
        total = sum(source.num_bytes for source in sources) // MEGABYTE
        with progress("reading", total, "MiB") as bar:
            works = self._part_works(sources, parts, notes, bar)
            for _ in self.workers.run(make_part, works):
                pass
        return parts, notes

    def _part_works(
        self, sources: Sequence[SourceFile], parts: list[Part], notes: list[str], bar: Progress
    ) -> Iterator[PartWork]:
        """What is not done yet. `parts` and `notes` are filled on the way."""
        before = 0
        for place, source in enumerate(sources):
            columns: Columns | None = None
            with closing(blocks(source)) as coming:
                for block in coming:
                    if columns is None:
                        columns, said = find_columns(block.data, self.config, source.shown)
                        notes += said
                    part = Part(self.scratch, len(parts), place)
                    parts.append(part)
                    if part.done() is None:
                        prefix = f"{source.path.name}:" if len(sources) > 1 else ""
                        yield PartWork(
                            part, block.data, block.first_line, columns, prefix, self.config, self.extent.cleaning
                        )
                    bar.advance((before + block.place) // MEGABYTE - bar.done)
            before += source.num_bytes

    def _first_rejected(self, parts: Sequence[Part], sources: Sequence[SourceFile]) -> dict[str, dict[str, Any]]:
        """Kind -> the first row of it."""
        firsts: dict[str, dict[str, Any]] = {}
        for part in parts:
            table = polars.read_parquet(part.rejected).unique("kind", keep="first", maintain_order=True)
            for row in table.iter_rows(named=True):
                firsts.setdefault(row["kind"], {**row, "source": sources[part.source].path.name})
        return firsts

    # -- repetitions -------------------------------------------------------------------------------

    def _find_duplicates(self, unique: Unique) -> Duplicates | None:
        if not self.extent.duplicates:
            return None
        from afina.catalogue.duplicates import find_duplicates  # with scipy, which the processes need not load

        self.workers.rest()
        bars: dict[str, Progress] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                for bar in bars.values():
                    bar.close()
                bars[stage] = Progress(f"duplicates, {stage}", total, "pieces")
            bars[stage].advance(done - bars[stage].done)

        try:
            return find_duplicates(
                unique.files,
                self.config.near_duplicate_threshold,
                self.scratch / "duplicates",
                seed=self.seed,
                progress=told,
            )
        finally:
            for bar in bars.values():
                bar.close()

    # -- writing -----------------------------------------------------------------------------------

    def _write_shards(self, unique: Unique, decided: Decided) -> list[dict[str, Any]]:
        """The shards' summaries, in order."""
        folder = self.folder / "shards"
        num_kept = int(decided.kept_N.sum())
        sample = np.unique(np.linspace(0, num_kept - 1, min(SAMPLE_ROWS, num_kept)).astype(np.int64))
        works = list(shard_works(unique.files, decided, self.config.shard_rows, folder, self.scratch, sample))
        wanted = {path for work in works for path in work.files.values()}
        with explain_write_errors(folder):
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():
                if path.is_file() and path not in wanted:  # of other settings, or of a killed process
                    path.unlink()
        missing = [work for work in works if work.done() is None]
        with progress("writing shards", len(missing), "shards") as bar:
            for _ in self.workers.run(make_shard, missing):
                bar.advance()
        return [_done(work) for work in works]

    def _write_rejected(
        self,
        parts: Sequence[Part],
        sources: Sequence[SourceFile],
        unique: Unique,
        decided: Decided,
        firsts: dict[str, dict[str, Any]],
    ) -> None:
        """rejected.jsonl, in file order. `firsts` learns of the kinds that were not known yet."""
        with atomic_file(self.folder / "rejected.jsonl", "wb") as file:
            for part in parts:
                tables = [polars.read_parquet(part.rejected)]
                tables += [more[part.number] for more in (unique.rejected, decided.dropped) if part.number in more]
                source = sources[part.source].path.name
                table = polars.concat(tables).sort("line").with_columns(source=polars.lit(source))
                table.write_ndjson(file)
                for row in table.unique("kind", keep="first", maintain_order=True).iter_rows(named=True):
                    firsts.setdefault(row["kind"], row)

    def _finish(
        self,
        sources: Sequence[SourceFile],
        key: str,
        report: dict[str, Any],
        shards: Sequence[Mapping[str, Any]],
    ) -> None:
        counted = report["rows"]
        assert counted["kept"] + counted["rejected"] == counted["read"], f"rows were lost: {counted}"
        write_json(self.folder / "report.json", report)
        files = [source.described() for source in sources]
        manifest = {
            "version": VERSION,
            "key": key,
            "source": files[0] if len(files) == 1 else {"files": files},
            "rows": counted["kept"],
            "shards": [
                {
                    "name": shard["name"],
                    "rows": shard["rows"],
                    "splits": shard["splits"],
                    **{f"{ending}_sha256": shard[f"{ending}_sha256"] for ending in ("parquet", "jsonl")},
                    **{f"{ending}_bytes": shard["sizes"][ending] for ending in ("parquet", "jsonl")},
                }
                for shard in shards
            ],
        }
        write_json(self.folder / "manifest.json", manifest)
        remove_scratch(self.folder)


def _done(work: ShardWork) -> dict[str, Any]:
    summary = work.done()
    assert summary is not None, f"{work.name} was just written"
    return summary


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['source']}:{row['line']}, {row['reason']}"
