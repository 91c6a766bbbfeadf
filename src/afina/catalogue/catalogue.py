"""A prepared catalogue: what its folder holds, opened and checked.

Comes in: a folder. Goes out: `Catalogue`, or RunError where it is not whole. manifest.json is written last, so that it
stands only beside complete shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.catalogue.shards import parse_shards
from afina.core.errors import RunError
from afina.core.storage import read_json

VERSION = 1
HOW = "Run: afina prepare RECIPE.yaml"


@dataclass(frozen=True)
class Catalogue:
    """manifest, report: what manifest.json and report.json hold."""

    folder: Path
    manifest: dict[str, Any]
    report: dict[str, Any]

    @property
    def key(self) -> str:
        """Of the source's bytes and the settings of the preparation: what an index or a selection belongs to."""
        return self.manifest["key"]

    @property
    def num_rows(self) -> int:
        return self.manifest["rows"]

    @property
    def num_shards(self) -> int:
        return len(self.manifest["shards"])

    def shard_paths(self, shards: str = "all", ending: str = "parquet") -> list[Path]:
        """Files of the shards, as '0-4,7'. Raises DataError for one that there is not."""
        return [self.file(number, ending) for number in parse_shards(shards, self.num_shards)]

    def file(self, number: int, ending: str = "parquet") -> Path:
        return self.folder / "shards" / f"{self.manifest['shards'][number]['name']}.{ending}"

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Raises RunError if the folder holds no complete catalogue of this version."""
        try:
            catalogue = cls(folder, read_json(folder / "manifest.json"), read_json(folder / "report.json"))
            version = catalogue.manifest["version"]
            missing = [
                path.name
                for ending in ("parquet", "jsonl")
                for number, shard in enumerate(catalogue.manifest["shards"])
                if (path := catalogue.file(number, ending)).stat().st_size != shard[f"{ending}_bytes"]
            ]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(f"{folder}: holds no complete catalogue ({error}). {HOW}") from error
        if version != VERSION:
            raise RunError(f"{folder}: the catalogue has version {version}, expected {VERSION}. {HOW}")
        if missing:
            raise RunError(f"{folder}: {missing[0]} is not as it was written. {HOW}")
        return catalogue
