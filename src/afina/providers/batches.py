"""Requests as one file to a provider's batch endpoint: half the price, hours of patience.

Comes in: request bodies by key. Goes out: the answers that the batch gave; requests without one are left to be asked
otherwise. A batch that is under way is found again by whoever asks any of its requests, also after a kill.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from afina.core.progress import Progress
from afina.core.storage import digest, write_jsonl
from afina.providers.budget import Budget
from afina.providers.cache import Answer, AnswerCache
from afina.providers.client import Connection, ProviderError, UnreachableError
from afina.providers.dialect import Body
from afina.providers.jobs import PATIENCE_S, read_file, upload

BATCH_SIZE = 20_000  # requests in one batch; the API takes 50,000 and 200 MB
BATCH_KEY = "afina_batch"
BATCH_ENDED = ("completed", "failed", "expired", "cancelled")
NO_BATCHES = (404, 405, 501)


class MostUsd(Protocol):
    def __call__(self, bodies: Sequence[Body], *, batch: bool = False) -> float: ...


class ReadAnswer(Protocol):
    def __call__(self, response: Any, latency_s: float, *, batch: bool = False, most_usd: float = 0.0) -> Answer: ...


class Batches:
    """exist: whether the provider has batches, as far as is known. The other settings are the `Asker`'s."""

    def __init__(
        self,
        connection: Connection,
        cache: AnswerCache,
        budget: Budget,
        most_usd: MostUsd,
        read_answer: ReadAnswer,
        pause_s: float,
        tell: Callable[[str], None],
    ) -> None:
        self.connection, self.cache, self.budget = connection, cache, budget
        self.most_usd, self.read_answer = most_usd, read_answer
        self.pause_s, self.tell = pause_s, tell
        self.exist = True

    def ask(self, new: Mapping[str, Body], bar: Progress | None) -> dict[str, Answer]:
        """What batches answered, by key. Raises ProviderError and BudgetError."""
        # 1. What earlier calls asked is waited for, whatever else they asked beside it.
        found: dict[str, Answer] = {}
        asked: set[str] = set()
        for name, its_keys in self.cache.batches_of(new).items():
            batch_id = self.cache.batch(name)
            assert batch_id is not None, "an unfinished batch has an id"
            found |= self._finish(name, batch_id, its_keys, 0.0, bar)
            asked.update(its_keys)
        # 2. The rest goes in new ones; what a batch did not answer is not put in another.
        keys = sorted(key for key in new if key not in asked)
        for start in range(0, len(keys), BATCH_SIZE):
            part = {key: new[key] for key in keys[start : start + BATCH_SIZE]}
            answers = self._ask_part(part, bar)
            if answers is None:
                self.tell(f"{self.connection.provider.name}: has no batches; asking directly")
                self.exist = False
                break
            found |= answers
        return {key: answer for key, answer in found.items() if key in new}

    def _ask_part(self, part: Mapping[str, Body], bar: Progress | None) -> dict[str, Answer] | None:
        """The answers of one batch; None where there are no batches."""
        name = digest([self.connection.provider.base_url, sorted(part)])
        most = self.most_usd(list(part.values()), batch=True)
        self.budget.reserve(most, f"a batch of {len(part)} answers")
        note = self.cache.set_aside(name, most) if most else None
        try:
            batch_id = self._find(name) or self._create(name, part)
            self.cache.note_batch(name, batch_id, part)
        except ProviderError as error:
            if error.maybe_paid:  # it may be under way; the same command looks for it by its name
                self.budget.settle(most, most)
                raise
            self.budget.settle(most, 0.0)
            self.cache.take_back(note)
            if error.status in NO_BATCHES:
                return None
            raise
        except BaseException:
            self.budget.settle(most, most)
            raise
        return self._finish(name, batch_id, list(part), most, bar)

    def _find(self, name: str) -> str | None:
        """A batch of these requests that was created by a call that could not note it."""
        with self.connection.explained("looking for the batch"):
            for batch in self.connection.client.batches.list(limit=100).data:
                if (batch.metadata or {}).get(BATCH_KEY) == name and batch.status not in ("failed", "cancelled"):
                    return batch.id
        return None

    def _create(self, name: str, part: Mapping[str, Body]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "batch.jsonl"
            lines = (
                {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                for key, body in part.items()
            )
            write_jsonl(path, lines)
            file_id = upload(self.connection, path, f"afina-{name}.jsonl", "batch")
        once = self.connection.once()
        with once.explained("creating the batch"):
            batch_id = once.client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={BATCH_KEY: name},
            ).id
        self.tell(f"batch {batch_id} of {len(part)} requests; stopped, the same command finds it again")
        return batch_id

    def _finish(
        self, name: str, batch_id: str, keys: Sequence[str], reserved_usd: float, bar: Progress | None
    ) -> dict[str, Answer]:
        """The answers of a batch, when it has ended. reserved_usd: of the budget, by this call."""
        try:
            batch, seen = self._follow(batch_id, bar)
            found: dict[str, Answer] = {}
            asked = set(keys)
            if batch.output_file_id:
                for line in read_file(self.connection, batch.output_file_id).splitlines():
                    key, answer = self._line(line)
                    if key in asked and answer is not None:
                        found[key] = answer
            noted = self.cache.end_batch(name, found)
        except BaseException:
            self.budget.settle(reserved_usd, reserved_usd)  # it goes on without us, and will be paid
            raise
        # What an earlier call set aside was counted as spent until now.
        cost = sum(answer.cost_usd or 0.0 for answer in found.values())
        self.budget.settle(reserved_usd, cost - (noted - reserved_usd))
        if len(found) < len(keys):
            self.tell(f"batch {batch_id}: {batch.status}, {len(keys) - len(found)} requests without an answer")
            if bar is not None:
                bar.advance(-max(0, seen - len(found)))
        return found

    def _follow(self, batch_id: str, bar: Progress | None) -> tuple[Any, int]:
        """The batch when it has ended, and how many of its requests were counted as done."""
        seen, last_answer = 0, time.monotonic()
        while True:
            try:
                with self.connection.explained(f"asking for the batch {batch_id}"):
                    batch = self.connection.client.batches.retrieve(batch_id)
                last_answer = time.monotonic()
            except ProviderError as error:
                waits = isinstance(error, UnreachableError) or error.status == 429 or (error.status or 0) >= 500
                if not waits or time.monotonic() - last_answer > PATIENCE_S:
                    raise
                time.sleep(self.pause_s)
                continue
            counts = batch.request_counts
            if counts is not None and counts.completed + counts.failed > seen:
                if bar is not None:
                    bar.advance(counts.completed + counts.failed - seen, note="batch")
                seen = counts.completed + counts.failed
            if batch.status in BATCH_ENDED:
                return batch, seen
            time.sleep(self.pause_s)

    def _line(self, line: bytes) -> tuple[str, Answer | None]:
        """The key of an output line and its answer; None for one that failed."""
        try:
            row = json.loads(line)
            response = row.get("response") or {}
            if response.get("status_code") != 200:
                return str(row.get("custom_id")), None
            answer = self.read_answer(response["body"], 0.0, batch=True)
            return str(row["custom_id"]), answer if answer.error is None else None
        except (ValueError, KeyError, AttributeError, TypeError):
            return "", None
