"""The exact files of a publication, and the manifest of their hashes that travels with them.

Comes in: a folder in which a publication was put together. Goes out: `Publication`, sealed: every file hashed,
`publication.json` written, nothing private in it. The same files make the same bytes, manifest included, so that
what is at a destination already can be told by hash. Where it goes is not known here.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from afina import __version__
from afina.core.storage import explain_write_errors, read_json, write_json
from afina.publishing.private import refuse_private
from afina.publishing.target import Kind, PublishError

MANIFEST = "publication.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class PublishedFile:
    """path: relative, with slashes. sha256: of its bytes, in hex."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Publication:
    """A folder that may leave this machine. files: all of it, by path, the manifest included."""

    kind: Kind
    folder: Path
    files: tuple[PublishedFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def lines(self) -> list[str]:
        """Each file and its size, for whoever has to agree."""
        width = max(len(file.path) for file in self.files)
        rows = [f"  {file.path:<{width}}  {file.num_bytes:>14,} bytes" for file in self.files]
        return [*rows, f"  {len(self.files)} files, {self.num_bytes:,} bytes"]


def put(source: Path, folder: Path, path: str) -> None:
    """A file of the run in the publication, without a copy of its bytes where the system has links."""
    place = folder / path
    with explain_write_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(source.resolve())
        except (OSError, NotImplementedError):  # Windows wants a privilege for it
            shutil.copyfile(source, place)


def seal(folder: Path, kind: Kind, made_of: Mapping[str, Any]) -> Publication:
    """Hash every file and write the manifest. made_of: hashes and names of where it comes from.

    Raises PublishError where a file holds what must not leave.
    """
    refuse_private(folder)
    files = [describe(folder, path) for path in list_files(folder) if path != MANIFEST]
    manifest = {
        "version": MANIFEST_VERSION,
        "kind": kind,
        "afina": __version__,
        **made_of,
        "files": [{"path": one.path, "bytes": one.num_bytes, "sha256": one.sha256} for one in files],
    }
    write_json(folder / MANIFEST, manifest)
    return Publication(kind, folder, (*files, describe(folder, MANIFEST)))


def describe(folder: Path, path: str) -> PublishedFile:
    place = folder / path
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return PublishedFile(path, place.stat().st_size, found)


def list_files(folder: Path) -> list[str]:
    """Paths of all files under a folder, sorted."""
    return sorted(str(PurePosixPath(*p.relative_to(folder).parts)) for p in folder.rglob("*") if not p.is_dir())


def read_manifest(path: Path) -> dict[str, PublishedFile] | None:
    """The files of an earlier publication by path; None where the file is not there. Raises PublishError."""
    if not path.exists():
        return None
    try:
        found = [PublishedFile(str(f["path"]), int(f["bytes"]), str(f["sha256"])) for f in read_json(path)["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PublishError(f"{path}: is no manifest of a publication ({error}). Choose another target.") from error
    return {file.path: file for file in found}
