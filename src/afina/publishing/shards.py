"""A catalogue's shards as a publication: Parquet files by split, and a card from which `load_dataset` reads them.

Comes in: the catalogue's folder (manifest.json, shards/) and which shards. Goes out: an unsealed folder. A shard is
checked against the manifest's hash first, so that half a file is never published. Where it goes is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from afina.core.catalogue_config import SHARD_RANGE
from afina.core.storage import explain_write_errors, read_json, write_text
from afina.publishing.card import FEATURES, data_card
from afina.publishing.settings import file_name
from afina.publishing.target import PublishError

MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
TYPES: dict[str, Any] = {"string": polars.String, "int64": polars.Int64}


@dataclass(frozen=True)
class ShardSource:
    """folder: the catalogue's. manifest: what its manifest.json holds."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def num_shards(self) -> int:
        return len(self.manifest["shards"])


def find_shards(source: Path) -> ShardSource | None:
    """The catalogue in a run folder, or the folder itself; None where there is none. Raises PublishError."""
    for folder in (source / "catalogue", source):
        path = folder / MANIFEST
        if not path.exists():
            continue
        try:
            manifest = read_json(path)
            for shard in manifest["shards"]:
                _ = str(shard["name"]), int(shard["rows"]), str(shard["parquet_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if folder == source:
                return None  # another program's manifest.json
            raise PublishError(f"{path}: is damaged ({error}). Prepare the catalogue again.") from error
        return ShardSource(folder, manifest)
    return None


def choose(text: str, num_shards: int) -> list[int]:
    """Numbers of shards meant by `0-4`, `0,7` or `all`, in order. Raises PublishError."""
    if text == "all":
        return list(range(num_shards))
    if SHARD_RANGE.fullmatch(text) is None:
        raise PublishError(f"--shards is {text!r}, expected numbers of shards as 0, 0-4 or 0,7, or all.")
    found: set[int] = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise PublishError(f"--shards: {piece} counts backwards. Write {high}-{low}.")
        if high >= num_shards:
            raise PublishError(
                f"--shards: {piece} is beyond the catalogue, whose {num_shards} shards are 0 to {num_shards - 1}."
            )
        found |= set(range(low, high + 1))
    return sorted(found)


def build_shards(
    source: ShardSource,
    chosen: Sequence[int],
    folder: Path,
    *,
    title: str,
    license_id: str = "other",
    languages: Sequence[str] = (),
) -> dict[str, Any]:
    """Put the publication together in an empty folder. Returns what its manifest says of where it comes from.

    Raises PublishError for a shard that is missing, damaged or of other columns.
    """
    counts = dict.fromkeys(SPLITS, 0)
    for number in chosen:
        shard = source.manifest["shards"][number]
        rows = _read(source.folder / "shards" / f"{shard['name']}.parquet", shard)
        for split in SPLITS:
            part = rows.filter(polars.col("split") == split).select(list(FEATURES))
            if part.height:
                counts[split] += part.height
                _write(part, folder / "data" / split / f"{shard['name']}.parquet")
    counts = {split: count for split, count in counts.items() if count}
    made_of = source.manifest.get("source") or {}
    described = {
        "name": file_name(str(made_of.get("path") or made_of.get("name") or "a file")),
        "sha256": made_of.get("sha256", "not known"),
        "rows": int(source.manifest.get("rows") or sum(s["rows"] for s in source.manifest["shards"])),
        "num_shards": source.num_shards,
    }
    write_text(folder / "README.md", data_card(title, counts, chosen, described, license_id, languages))
    return {"catalogue_key": str(source.manifest.get("key", "")), "shards": list(chosen), "rows": counts}


def _read(path: Path, shard: Mapping[str, Any]) -> polars.DataFrame:
    if not path.exists():
        raise PublishError(f"{path}: no such file, though the manifest names it. Prepare the catalogue again.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = str(shard["parquet_sha256"])
    if not wanted or not found.startswith(wanted):
        raise PublishError(f"{path}: was changed since it was prepared (its hash is another). Prepare it again.")
    rows = polars.read_parquet(path)
    missing = [name for name in (*FEATURES, "split") if name not in rows.columns]
    if missing or rows.schema["uid"] != polars.String:
        what = f"has no column {missing[0]!r}" if missing else f"holds uid as {rows.schema['uid']}, expected text"
        raise PublishError(f"{path}: {what}. Prepare the catalogue again.")
    unknown = sorted(set(rows["split"].unique().to_list()) - set(SPLITS), key=str)
    if rows.height != shard["rows"] or unknown:
        what = f"holds the split {unknown[0]!r}" if unknown else f"holds {rows.height} rows, not {shard['rows']}"
        raise PublishError(f"{path}: {what}. Prepare the catalogue again.")
    return rows.cast({name: TYPES[dtype] for name, dtype in FEATURES.items()})


def _write(rows: polars.DataFrame, path: Path) -> None:
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(path, compression="zstd")
