"""Sorted numbers in many files, read back a range of values at a time: what a merge needs, without the memory.

Comes in: arrays. Goes out: `.npy` files that appear whole or not at all, and slices over all of them. It knows nothing
of texts or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.storage import atomic_file

CUTS = 4096  # of the values, between which pieces begin and end


def save(path: Path, array: np.ndarray) -> None:
    """Whoever finds the file may take it for finished."""
    with atomic_file(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def load(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def peek(path: Path) -> np.ndarray:
    """The file's array, read from the disk where it is touched."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def total(paths: Sequence[Path]) -> int:
    """Entries in all files."""
    return sum(len(peek(path)) for path in paths)


def between(paths: Sequence[Path], low: int, high: int) -> np.ndarray:
    """All entries with low <= value < high, uint64, unsorted.

    Each file is sorted, by its first column if it has two.
    """
    found: list[np.ndarray] = []
    for path in paths:
        values, column = peek(path), _column(path)
        begin = int(np.searchsorted(column, np.uint64(low)))
        end = int(np.searchsorted(column, np.uint64(high - 1), side="right"))  # 2**64 itself is no uint64
        found.append(np.array(values[begin:end]))
    return np.concatenate(found)


def ranges(paths: Sequence[Path], top: int, at_most: int) -> list[tuple[int, int]]:
    """[0, top) in pieces of about `at_most` entries of all files: (low, high). Each file is sorted."""
    step = -(-top // CUTS)
    bounds = np.array([min(step * n, top - 1) for n in range(1, CUTS)], dtype=np.uint64)
    before = np.zeros(CUTS, dtype=np.int64)  # how many entries are below each bound; the last is above all
    for path in paths:
        before[:-1] += np.searchsorted(_column(path), bounds)
        before[-1] += len(peek(path))
    cuts = [0]
    for wanted in range(at_most, int(before[-1]), at_most):
        at = int(np.searchsorted(before, wanted, side="right"))
        if at < len(bounds) and int(bounds[at]) > cuts[-1]:
            cuts.append(int(bounds[at]))
    return list(zip(cuts, [*cuts[1:], top], strict=True))


def _column(path: Path) -> np.ndarray:
    values = peek(path)
    return values if values.ndim == 1 else values[:, 0]


def repeated(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[0], starts[0] + 1, ... of `lengths[0]`, then those of the next; int64."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def joined(arrays: Sequence[np.ndarray], dtype: Any = np.uint64) -> np.ndarray:
    """One array; an empty one of `dtype` where there are none."""
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)
