"""Answers that were paid for, in one SQLite file: the same question is never paid twice.

Comes in: requests as JSON. Goes out: the answers kept of them, and what all of it cost. A request is known by the hash
of its content and of the provider's address. Safe for several threads; several processes may share the file.

What is paid for is noted before it is sent, and the note goes with the answer that comes. A note that is left is money
for an answer that was lost: its process was killed, or the connection broke. It counts as spent.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import MachineError, RunError
from afina.core.storage import canonical_json, explain_write_errors

TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, cost_usd REAL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    key TEXT PRIMARY KEY, batch_id TEXT, done INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS batch_requests (key TEXT PRIMARY KEY, batch TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside (
    id INTEGER PRIMARY KEY AUTOINCREMENT, purpose TEXT NOT NULL, amount_usd REAL NOT NULL, created REAL NOT NULL
);
"""
# Two processes that asked the same both paid; the first answer stays.
KEEP = """
INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key)
DO UPDATE SET cost_usd = COALESCE(cost_usd, 0) + COALESCE(excluded.cost_usd, 0)
"""


@dataclass(frozen=True)
class Answer:
    """What a model said to one request. content: None where there is an error. Tokens are counts.

    finish_reason: "length" where the answer was cut off. cost_usd: None where no price is known. refused: the content
    is the model's reason for not answering.
    """

    content: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    latency_s: float = 0.0
    refused: bool = False


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

    # -- answers ----------------------------------------------------------------------------------

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are here, by key."""
        found: dict[str, Answer] = {}
        with self._lock:
            for key in keys:
                row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = Answer(**json.loads(row[0]))
        return found

    def put(self, key: str, answer: Answer, note: int | None = None) -> None:
        """Keep an answer in the place of the note that was made for it. Raises MachineError if it cannot be written."""
        with self._writing():
            self._put(key, answer)
            self._database.execute("DELETE FROM set_aside WHERE id = ?", (note,))

    def _put(self, key: str, answer: Answer) -> None:
        text = json.dumps(asdict(answer), ensure_ascii=False)
        self._database.execute(KEEP, (key, text, answer.cost_usd, time.time()))

    # -- money ------------------------------------------------------------------------------------

    def set_aside(self, purpose: str, amount_usd: float) -> int:
        """Note what may have to be paid, before it is asked for. Returns the note's number."""
        with self._writing():
            row = self._database.execute(
                "INSERT INTO set_aside (purpose, amount_usd, created) VALUES (?, ?, ?)",
                (purpose, amount_usd, time.time()),
            )
            return int(row.lastrowid or 0)

    def take_back(self, note: int | None) -> None:
        """It need not be paid."""
        if note is not None:
            with self._writing():
                self._database.execute("DELETE FROM set_aside WHERE id = ?", (note,))

    @property
    def spent_usd(self) -> float:
        """What all answers here cost together, where it is known, and what lost ones may have cost."""
        with self._lock:
            kept = self._database.execute("SELECT COALESCE(SUM(cost_usd), 0) FROM answers").fetchone()[0]
        return float(kept) + self.lost_usd

    @property
    def lost_usd(self) -> float:
        """The most that requests cost whose answer never came here: killed, cut off, or still under way."""
        with self._lock:
            return float(self._database.execute("SELECT COALESCE(SUM(amount_usd), 0) FROM set_aside").fetchone()[0])

    # -- batches that are under way ---------------------------------------------------------------

    def batch(self, name: str) -> str | None:
        """The id of an unfinished batch."""
        with self._lock:
            row = self._database.execute("SELECT batch_id FROM batches WHERE key = ? AND done = 0", (name,)).fetchone()
        return row[0] if row else None

    def batches_of(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Unfinished batches that ask some of these requests: name of the batch -> all requests that it asks."""
        with self._lock:
            names: set[str] = set()
            for key in keys:
                row = self._database.execute(
                    "SELECT batch FROM batch_requests JOIN batches ON batches.key = batch "
                    "WHERE batch_requests.key = ? AND done = 0",
                    (key,),
                ).fetchone()
                names |= {row[0]} if row else set()
            query = "SELECT key FROM batch_requests WHERE batch = ?"
            return {name: [row[0] for row in self._database.execute(query, (name,))] for name in sorted(names)}

    def note_batch(self, name: str, batch_id: str, keys: Iterable[str]) -> None:
        """A batch is under way."""
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, 0, ?)", (name, batch_id, time.time()))
            self._database.executemany(
                "INSERT OR REPLACE INTO batch_requests VALUES (?, ?)", [(key, name) for key in keys]
            )

    def end_batch(self, name: str, answers: Mapping[str, Answer]) -> float:
        """Keep a batch's answers, all or none. Returns the US dollars that were set aside for it."""
        with self._writing():
            for key, answer in answers.items():
                self._put(key, answer)
            amount = self._database.execute(
                "SELECT COALESCE(SUM(amount_usd), 0) FROM set_aside WHERE purpose = ?", (name,)
            ).fetchone()[0]
            self._database.execute("DELETE FROM set_aside WHERE purpose = ?", (name,))
            self._database.execute("DELETE FROM batch_requests WHERE batch = ?", (name,))
            self._database.execute("UPDATE batches SET done = 1 WHERE key = ?", (name,))
        return float(amount)

    # -- details ----------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Generator[None]:
        """One transaction: whole or not at all."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                full = "full" in str(error) or "disk I/O" in str(error)
                reason = "the disk is full, or a limit is reached. Free some space" if full else str(error)
                raise MachineError(
                    f"{self.path}: cannot write: {reason}. The answers in it are kept; the same command goes on."
                ) from error

    def close(self) -> None:
        self._database.close()
