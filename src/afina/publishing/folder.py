"""A publication into a folder: whole or not at all, and nothing of anybody else's is overwritten.

Comes in: a sealed publication, a path. Goes out: the folder. A killed call leaves the earlier folder or the new one;
the same call continues.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from afina.core.storage import explain_write_errors
from afina.publishing.files import MANIFEST, Publication, PublishedFile, describe, list_files, read_manifest
from afina.publishing.target import PublishError


def check_folder(target: Path, *, overwrite: bool) -> None:
    """Raises PublishError for a target that holds anything but an earlier publication as it was written.

    overwrite: files of the earlier publication that were changed since may be replaced.
    """
    _restore(target)
    if target.is_file() or target.is_symlink():
        raise PublishError(f"{target}: found a file or a link, expected a folder. Choose another target.")
    if not target.exists() or not any(target.iterdir()):
        return
    before = read_manifest(target / MANIFEST)
    if before is None:
        raise PublishError(
            f"{target}: is not empty and holds no publication ({MANIFEST} is missing). Choose another folder, so that "
            "nothing of yours is overwritten."
        )
    found = [path for path in list_files(target) if path != MANIFEST]
    if foreign := [path for path in found if path not in before]:
        raise PublishError(
            f"{target}: holds {foreign[0]}, which the earlier publication did not write, and which would be lost. Move "
            "it, or choose another folder."
        )
    changed = [path for path in found if describe(target, path) != before[path]]
    if changed and not overwrite:
        raise PublishError(
            f"{target}: {changed[0]} was changed since it was published. Pass --yes to replace it, or choose another "
            "folder."
        )


def write_folder(publication: Publication, target: Path) -> int:
    """Put the publication at `target`, which `check_folder` let pass. Returns how many files are new or changed.

    Raises MachineError where it cannot be written; the target is then as it was.
    """
    kept = _already_there(publication, target)
    if kept == len(publication.files) and len(list_files(target)) == kept:
        return 0
    staging, old = _staging(target), _old(target)
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        try:
            for file in publication.files:
                _copy(publication.folder, staging, file)
            if target.exists():
                target.rename(old)
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            _restore(target)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return len(publication.files) - kept


def _copy(source: Path, staging: Path, file: PublishedFile) -> None:
    place = staging / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / file.path, place)
    if describe(staging, file.path) != file:
        raise PublishError(f"{file.path}: was changed while it was copied. Let its run finish, and publish again.")


def _already_there(publication: Publication, target: Path) -> int:
    there = [file for file in publication.files if (target / file.path).is_file()]
    return sum(describe(target, file.path) == file for file in there)


def _restore(target: Path) -> None:
    """After a kill between two renames the earlier folder comes back, or its remains go."""
    old = _old(target)
    if not old.exists():
        return
    with explain_write_errors(target):
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.publishing")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.before")
