"""Answers that were paid for, in one SQLite file: the same question is never paid twice.

Comes in: requests as JSON. Goes out: the answers kept of them, and what all of it cost. A request is known by the hash
of its content and of the provider's address. Safe for several threads; several processes may share the file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import RunError
from afina.core.storage import canonical_json, explain_write_errors

TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, cost_usd REAL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    key TEXT PRIMARY KEY, batch_id TEXT, done INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Answer:
    """What a model said to one request. content: None where there is an error. Tokens are counts.

    finish_reason: "length" where the answer was cut off. cost_usd: None where no price is known.
    """

    content: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    latency_s: float = 0.0


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json([base_url, body]).encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """The answers in the file `path`, which is made if need be. Raises RunError for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")  # an answer that was paid for survives a power cut
            self._database.executescript(TABLES)
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path}: cannot be used as a store of answers ({error}). Move it away.") from error

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are here, by key."""
        found: dict[str, Answer] = {}
        with self._lock:
            for key in keys:
                row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = Answer(**json.loads(row[0]))
        return found

    def put(self, key: str, answer: Answer) -> None:
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                (key, json.dumps(asdict(answer), ensure_ascii=False), answer.cost_usd, time.time()),
            )

    @property
    def spent_usd(self) -> float:
        """What all answers here cost together, where it is known."""
        with self._lock:
            return float(self._database.execute("SELECT COALESCE(SUM(cost_usd), 0) FROM answers").fetchone()[0])

    # -- batches that are under way ---------------------------------------------------------------

    def batch(self, key: str) -> str | None:
        """The id of an unfinished batch of these questions."""
        with self._lock:
            row = self._database.execute("SELECT batch_id FROM batches WHERE key = ? AND done = 0", (key,)).fetchone()
        return row[0] if row else None

    def note_batch(self, key: str, batch_id: str, *, done: bool = False) -> None:
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", (key, batch_id, int(done), time.time())
            )

    def close(self) -> None:
        self._database.close()
