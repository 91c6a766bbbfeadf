"""Which files a catalogue is, what kind each has, and the hash of their bytes.

Comes in: the recipe's path, a file or a folder. Goes out: `SourceFile`s in the order in which they are read. Knows
nothing of what stands in them.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError, MachineError
from afina.core.storage import require_file
from afina.data.table import name_some, shorten

SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".zip")
WANTED = "JSON Lines (plain, .gz or .zip), one product on each line"
PREFERRED_MEMBER = "trn.json"  # of LF-AmazonTitles' zip: the others are labels and tests


@dataclass(frozen=True)
class SourceFile:
    """kind: told from the file's first bytes, whatever its name. member: of a zip. sha256: of the file, hexadecimal."""

    path: Path
    kind: Literal["plain", "gzip", "zip"]
    member: str | None
    num_bytes: int
    sha256: str

    @property
    def shown(self) -> str:
        return f"{self.path}!{self.member}" if self.member else str(self.path)

    def described(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "member": self.member,
            "kind": self.kind,
            "bytes": self.num_bytes,
            "sha256": self.sha256,
        }


def find_sources(config: CatalogueConfig) -> tuple[list[SourceFile], list[str]]:
    """The catalogue's files, sorted by name, and notes on those that were passed over.

    Raises DataError for what is absent, empty, or a zip that leaves open which member is meant.
    """
    path = config.path
    if not path.is_dir():
        require_file(path, f"a catalogue as {WANTED}")
        return [_describe(path, config.member)], []
    names = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    wanted = [entry for entry in names if entry.name.lower().endswith(SUFFIXES)]
    if not wanted:
        found = name_some([entry.name for entry in names]) or "nothing"
        raise DataError(f"{path}: the folder holds {found}, expected files of {WANTED}.")
    for entry in wanted:
        require_file(entry, f"a catalogue as {WANTED}")
    passed = [entry.name for entry in names if entry not in wanted]
    notes = [f"passed over in the folder: {name_some(passed)}"] if passed else []
    return [_describe(entry, config.member) for entry in wanted], notes


def _describe(path: Path, member: str | None) -> SourceFile:
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MachineError(f"{path}: cannot read: {error.strerror or error}.") from error
    kind: Literal["plain", "gzip", "zip"] = "plain"
    if head.startswith(b"\x1f\x8b"):
        kind = "gzip"
    elif head.startswith(b"PK") or path.suffix.lower() == ".zip":
        kind = "zip"
    chosen = _member(path, member) if kind == "zip" else None
    if member is not None and kind != "zip":
        raise DataError(f"catalogue.member is {member!r}, but {path} is no zip. Remove the key.")
    return SourceFile(path, kind, chosen, path.stat().st_size, sha256)


def _member(path: Path, wanted: str | None) -> str:
    """The name of the zip's member that is meant."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(f"{path}: the zip is cut short or damaged ({error}). Download it again.") from error
    shown = name_some([shorten(name, 60) for name in names]) or "no files"
    if wanted is not None:
        if names.count(wanted) != 1:
            raise DataError(f"{path}: the zip holds {shown}, expected one member {wanted!r}. Mend catalogue.member.")
        return wanted
    usable = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("__MACOSX/")]
    preferred = [name for name in usable if name.rpartition("/")[2].lower().startswith(PREFERRED_MEMBER)]
    for candidates in (preferred, usable, names):
        if len(candidates) == 1:
            return candidates[0]
    raise DataError(
        f"{path}: the zip holds {shown}, expected one file of {WANTED}, or one called {PREFERRED_MEMBER}. "
        "Name the one that is meant: catalogue.member=..."
    )
