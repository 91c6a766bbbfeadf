"""What a running batch has finished: one file that grows by a line for each request, and survives any death.

Comes in: finished requests. Goes out: which are done already, and in the end the output and the error file. A line that
was cut off by a death is as if it had never been begun. Knows nothing of how requests are answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afina.core.storage import ensure_folder


class Results:
    """The results of one batch. done: line number -> whether the request succeeded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "done.jsonl"
        self.done: dict[int, bool] = {}
        ensure_folder(folder)
        self._repair()
        self._file = self.path.open("ab", buffering=0)

    def _repair(self) -> None:
        """Cut off what is no whole line, and read the rest."""
        if not self.path.exists():
            return
        good = 0
        with self.path.open("rb") as file:
            for raw in file:
                try:
                    entry = json.loads(raw) if raw.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    break
                self.done[entry["number"]] = entry["ok"]
                good += len(raw)
        if good < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(good)

    def add(self, number: int, ok: bool, line: Mapping[str, Any]) -> None:
        """One finished request, written at once and whole."""
        entry = json.dumps({"number": number, "ok": ok, "line": line}, ensure_ascii=False).encode() + b"\n"
        written = 0
        while written < len(entry):
            written += self._file.write(entry[written:]) or 0
        self.done[number] = ok

    @property
    def completed(self) -> int:
        return sum(self.done.values())

    @property
    def failed(self) -> int:
        return len(self.done) - self.completed

    def write(self, ok: bool) -> Path | None:
        """The output file (ok) or the error file, in the order of the input; None where it would be empty."""
        places: list[tuple[int, int]] = []
        at = 0
        with self.path.open("rb") as file:
            for raw in file:
                entry = json.loads(raw)
                if entry["ok"] is ok:
                    places.append((entry["number"], at))
                at += len(raw)
            if not places:
                return None
            made = self.folder / ("output.jsonl" if ok else "error.jsonl")
            with made.open("wb") as out:
                for _, start in sorted(places):
                    file.seek(start)
                    line = json.loads(file.readline())["line"]
                    out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
        return made

    def close(self) -> None:
        self._file.close()
