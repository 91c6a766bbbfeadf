"""metrics.jsonl and the progress bar of a training.

Comes in: what each step reports. Goes out: one JSON line per record, appended as training goes; after a kill the
lines past the checkpoint are cut, so that no step stands twice. It computes nothing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from afina.core.progress import Progress
from afina.core.storage import explain_write_errors, write_jsonl


class Recorder:
    """Appends to `path` and moves a bar of `total` steps.

    A line has step, epoch, loss, validation_loss and calibrated_loss (where measured), learning_rate, grad_norm,
    tokens_per_s, elapsed_s (training time over all sittings).
    """

    def __init__(self, path: Path, label: str, total: int, from_step: int) -> None:
        self.path = path
        self.rows = [row for row in read_metrics(path) if row["step"] <= from_step]
        write_jsonl(path, self.rows)
        self._before_s = float(self.rows[-1]["elapsed_s"]) if self.rows else 0.0
        self._began = self._marked = time.perf_counter()
        self._tokens = 0
        self.bar = Progress(label, total, "steps")
        self.bar.done = from_step
        self._loss = ""

    @property
    def elapsed_s(self) -> float:
        return self._before_s + time.perf_counter() - self._began

    def count(self, tokens: int) -> None:
        """A step has read so many tokens."""
        self._tokens += tokens

    def step_done(self) -> None:
        self.bar.advance(note=self._loss)

    def pause(self, paused_s: float) -> None:
        """Time spent on evaluation or saving, which is no part of tokens/s."""
        self._marked += paused_s

    def record(self, row: dict[str, Any]) -> None:
        """One line; tokens_per_s and elapsed_s are added."""
        now = time.perf_counter()
        row = dict(row)
        if "loss" in row:
            row["tokens_per_s"] = round(self._tokens / max(1e-9, now - self._marked), 1)
            self._tokens, self._marked = 0, now
            self._loss = f"loss {row['loss']:.3f} · {row['tokens_per_s']:,.0f} tokens/s"
        row["elapsed_s"] = round(self.elapsed_s, 3)
        self.rows.append(row)
        with explain_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self.bar.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
