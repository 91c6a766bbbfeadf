"""Checkpoints that are whole or absent: a step's weights, optimizer, schedule and random state in one folder.

Comes in: a folder. It is written under another name, flushed, and renamed; only a renamed one counts. It knows
nothing of what is in them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from afina.core.errors import MachineError
from afina.core.storage import explain_write_errors

NAME = re.compile(r"^checkpoint-(\d+)$")
STAGING = ".writing"
# What torch.save and safetensors say when the system refuses to write more.
DISK_FULL = ("No space left", "PytorchStreamWriter", "File too large", "unexpected pos", "iostream error")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := NAME.match(path.name))]
    return sorted((step, path) for step, path in found if (path / "trainer_state.json").exists())


@contextmanager
def staged(final: Path) -> Generator[Path]:
    """A folder to write a checkpoint into, which becomes `final` at the end, or vanishes.

    Raises MachineError when the disk is full or refuses; older checkpoints are not touched.
    """
    staging = final.parent / STAGING
    with disk_errors(final):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            for path in staging.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)  # left by a training that was continued from before it
            staging.rename(final)
            _flush_folder(final.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """torch and safetensors hide a full disk in exceptions of their own; show it as what it is."""
    with explain_write_errors(path):
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if any(text in str(error) for text in DISK_FULL):
                raise MachineError(
                    f"{path}: cannot write: the disk is full. Free some space, then give the same command again: it "
                    "continues from the checkpoint before. Nothing half-written was left."
                ) from OSError(errno.ENOSPC, str(error))
            raise


def keep_only(folder: Path, steps: set[int]) -> None:
    """Remove every other checkpoint."""
    for step, path in complete(folder):
        if step not in steps:
            # Renamed first, so that a kill in between leaves no half checkpoint under a good name.
            doomed = folder / f".removing-{step}"
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
