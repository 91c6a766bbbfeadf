"""Progress of long work: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager


class Progress:
    """Counts steps of known number and tells the reader how far the work is.

    Not thread-safe. `total` may be 0 (nothing to do).
    """

    LINE_EVERY_S = 15.0  # where standard error is no terminal

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0, ""
        self._began = self._last = time.monotonic()
        self._live = sys.stderr.isatty()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more steps are done. note: what else to show, as 'loss 0.41'."""
        self.done += count
        self.note = note
        now = time.monotonic()
        if now - self._last >= (0.1 if self._live else self.LINE_EVERY_S):
            self._last = now
            self._print(end="" if self._live else "\n")

    def _print(self, end: str) -> None:
        elapsed = time.monotonic() - self._began
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        width = 24
        filled = width * self.done // max(1, self.total)
        bar = f"{'━' * filled}{'╌' * (width - filled)} " if self._live else ""
        text = f"{self.label} {bar}{self.done}/{self.total} {self.unit} · {seconds(left)} left"
        text += f" · {self.note}" if self.note else ""
        print(f"\r\x1b[2K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str = "rows") -> Generator[Progress]:
    """A Progress that cleans up after itself."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def seconds(value: float) -> str:
    """A duration a person reads: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"


def size(num_bytes: float) -> str:
    """A number of bytes a person reads, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
