"""A catalogue's shards as a publication: Parquet files by split, and a card from which `load_dataset` reads them.

Comes in: the catalogue's folder (manifest.json, shards/) and which shards. Goes out: an unsealed folder. A shard is
checked against the manifest's hash first, so that half a file is never published. Where it goes is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from afina.catalogue.catalogue import Catalogue
from afina.catalogue.shards import parse_shards
from afina.core.storage import explain_write_errors, write_text
from afina.publishing.card import FEATURES, Origin, data_card
from afina.publishing.settings import file_name
from afina.publishing.target import PublishError

MANIFEST = "manifest.json"
LEAST_SHARE = 0.1  # of the contents, that makes a language the data set's
SPLITS = ("train", "validation", "test")
TYPES: dict[str, Any] = {"string": polars.String, "int64": polars.Int64}


def find_shards(source: Path) -> Catalogue | None:
    """The catalogue in a run folder, or the folder itself; None where there is none. Raises RunError for half a one."""
    for folder in (source / "catalogue", source):
        if (folder / MANIFEST).exists() and (folder / "shards").is_dir():
            return Catalogue.load(folder)
    return None


def build_shards(
    catalogue: Catalogue,
    shards: str,
    folder: Path,
    *,
    title: str,
    license_id: str = "other",
    languages: Sequence[str] = (),
) -> dict[str, Any]:
    """Put the publication together in an empty folder. Returns what its manifest says of where it comes from.

    shards: as `0-4,7` or all. Raises DataError for one that there is not, PublishError for a damaged one.
    """
    chosen = parse_shards(shards, catalogue.num_shards)
    counts = dict.fromkeys(SPLITS, 0)
    for number in chosen:
        shard = catalogue.manifest["shards"][number]
        rows = _read(catalogue.file(number), shard)
        for split in SPLITS:
            part = rows.filter(polars.col("split") == split).select(list(FEATURES))
            if part.height:
                counts[split] += part.height
                _write(part, folder / "data" / split / f"{shard['name']}.parquet")
    counts = {split: count for split, count in counts.items() if count}
    made_of = catalogue.manifest["source"]
    files = {file_name(str(one["path"])): str(one["sha256"]) for one in made_of.get("files", [made_of])}
    origin = Origin(files, catalogue.num_rows, catalogue.num_shards, tuple(chosen))
    told = list(languages) or _languages(catalogue.report)
    write_text(folder / "README.md", data_card(title, counts, origin, license_id, told))
    return {"catalogue_key": catalogue.key, "shards": chosen, "rows": counts}


def _languages(report: Mapping[str, Any]) -> list[str]:
    """Codes of the languages that a tenth of the sampled contents has; none where they were not told."""
    found: Mapping[str, int] = (report.get("languages") or {}).get("contents") or {}
    least = LEAST_SHARE * sum(found.values())
    return [code for code, count in found.items() if len(code) == 2 and count >= least > 0]


def _read(path: Path, shard: Mapping[str, Any]) -> polars.DataFrame:
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
