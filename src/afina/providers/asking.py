"""Many chat requests -> their answers: from the cache, as a batch, or side by side; under a cost cap.

Comes in: request bodies of /v1/chat/completions. Goes out: an `Answer` each, in the same order. A request that fails by
itself is an answer with an error; what concerns all of them (key, money, network) is raised, and what was answered by
then is kept. What is asked, and what the answers mean, is not known here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.progress import Progress, progress
from afina.core.storage import digest, write_jsonl
from afina.providers.budget import Budget
from afina.providers.cache import Answer, AnswerCache, request_key
from afina.providers.client import Connection, ProviderError, UnreachableError
from afina.providers.jobs import read_file, upload
from afina.providers.prices import Price
from afina.providers.tokens import PER_CONVERSATION, PER_MESSAGE, counter

Body = dict[str, Any]
BATCH_SIZE = 20_000  # requests in one batch; the API takes 50,000 and 200 MB
BATCH_KEY = "afina_batch"
BATCH_ENDED = ("completed", "failed", "expired", "cancelled")
ESTIMATE_MARGIN = 1.3  # prompts are reserved for with so much more than was estimated
NO_BATCHES = (404, 405, 501)
UNSCHEMED = "response_format"


@dataclass(frozen=True)
class Estimate:
    """What asking will cost. likely_usd, most_usd: None where no price is known; 0 where all is in the cache.

    most_usd: if every answer is as long as it may be.
    """

    num_requests: int
    num_cached: int
    prompt_tokens: int
    exact: bool
    likely_usd: float | None
    most_usd: float | None

    @property
    def num_new(self) -> int:
        return self.num_requests - self.num_cached


class Asker:
    """Asks one provider, and pays for no request twice.

    price: of the model; None where none is known: then nothing is reserved. batch: try /v1/batches first, which costs
    half and may take hours. num_threads: requests under way at once. pause_s: between looks at a batch.
    """

    def __init__(
        self,
        connection: Connection,
        cache: AnswerCache,
        price: Price | None,
        budget: Budget,
        *,
        batch: bool = True,
        num_threads: int = 8,
        pause_s: float = 15.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.connection, self.cache, self.price, self.budget = connection, cache, price, budget
        self.batch, self.num_threads, self.pause_s, self.tell = batch, num_threads, pause_s, tell
        self.schema_refused = False  # the model takes no response_format: it is asked without

    # -- before -----------------------------------------------------------------------------------

    def estimate(self, bodies: Sequence[Body], answer_tokens: int = 64) -> Estimate:
        """answer_tokens: that one answer has, about."""
        count, exact = counter()
        keys = [self._key(body) for body in bodies]
        known = self.cache.get(set(keys))
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        prompt = sum(_prompt_tokens(body, count) for body in new.values())
        limits = sum(int(body["max_completion_tokens"]) for body in new.values())
        likely = most = None
        if self.price is not None:
            likely = self.price.answers_usd(prompt, answer_tokens * len(new), batch=self.batch)
            most = self.price.answers_usd(round(prompt * ESTIMATE_MARGIN), limits)
        return Estimate(len(keys), len(keys) - len(new), prompt, exact, likely, most)

    def _key(self, body: Body) -> str:
        return request_key(self.connection.provider.base_url, body)

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, bodies: Sequence[Body], label: str = "asking") -> list[Answer]:
        """An answer each, in order. Raises ProviderError and BudgetError for what concerns them all."""
        keys = [self._key(body) for body in bodies]
        known = self.cache.get(set(keys))
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        if new:
            with progress(label, len(set(keys)), "requests") as bar:
                bar.advance(len(known))
                if self.batch and len(new) > 1:
                    known |= self._ask_batches(new, bar)
                rest = {key: body for key, body in new.items() if key not in known}
                known |= self._ask_directly(rest, bar)
        return [known[key] for key in keys]

    def _ask_directly(self, new: Mapping[str, Body], bar: Progress) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        left = list(new.items())
        waiting: dict[Future[Answer], str] = {}
        with ThreadPoolExecutor(self.num_threads) as pool:
            try:
                while left or waiting:
                    # Few at a time are handed over, so that an error leaves few under way.
                    while left and len(waiting) < self.num_threads:
                        key, body = left.pop()
                        waiting[pool.submit(self._ask_one, key, body)] = key
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        found[waiting.pop(future)] = future.result()
                        bar.advance(note=f"${self.budget.spent_usd:.2f}" if self.budget.spent_usd else "")
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # what was begun is paid: it is waited for and kept
                raise
        return found

    def _ask_one(self, key: str, body: Body) -> Answer:
        reserved = self._most_usd([body])
        self.budget.reserve(reserved, "the next answer")
        actual = 0.0
        try:
            answer = self._request(body)
            if answer.error is None:
                self.cache.put(key, answer)
            actual = answer.cost_usd or 0.0
        finally:
            self.budget.settle(reserved, actual)
        return answer

    def _request(self, body: Body) -> Answer:
        if self.schema_refused:
            body = {name: value for name, value in body.items() if name != UNSCHEMED}
        began = time.perf_counter()
        try:
            with self.connection.explained("asking the model"):
                response = self.connection.client.chat.completions.create(**body)
        except ProviderError as error:
            if isinstance(error, UnreachableError) or error.status is None or error.status not in (400, 413, 422):
                raise
            if UNSCHEMED in body and UNSCHEMED in str(error):
                self.schema_refused = True
                return self._request(body)
            return Answer(error=str(error), latency_s=time.perf_counter() - began)
        return self._answer(response.to_dict(), time.perf_counter() - began, batch=False)

    def _answer(self, response: Mapping[str, Any], latency_s: float, *, batch: bool) -> Answer:
        """response: the body of a chat completion."""
        try:
            choice, usage = response["choices"][0], response.get("usage") or {}
            content = choice["message"].get("content")
            refusal = choice["message"].get("refusal")
        except (KeyError, IndexError, TypeError):
            return Answer(error="the provider's answer has no choices", latency_s=latency_s)
        prompt, completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        cost = self.price.answers_usd(prompt, completion, cached, batch=batch) if self.price else None
        if content is None:
            content = "" if refusal is None else str(refusal)
        return Answer(content, None, choice.get("finish_reason"), prompt, cached, completion, cost, latency_s)

    def _most_usd(self, bodies: Sequence[Body], *, batch: bool = False) -> float:
        """The most that these can cost; 0 where no price is known."""
        if self.price is None:
            return 0.0
        count, _ = counter()
        prompt = sum(_prompt_tokens(body, count) for body in bodies)
        limits = sum(int(body["max_completion_tokens"]) for body in bodies)
        return self.price.answers_usd(round(prompt * ESTIMATE_MARGIN), limits, batch=batch) or 0.0

    # -- batches ----------------------------------------------------------------------------------

    def _ask_batches(self, new: Mapping[str, Body], bar: Progress) -> dict[str, Answer]:
        """What batches answered. Requests that they did not answer are left to be asked directly."""
        found: dict[str, Answer] = {}
        keys = sorted(new)
        for start in range(0, len(keys), BATCH_SIZE):
            part = {key: new[key] for key in keys[start : start + BATCH_SIZE]}
            reserved = self._most_usd(list(part.values()), batch=True)
            self.budget.reserve(reserved, f"a batch of {len(part)} answers")
            answers: dict[str, Answer] = {}
            try:
                try:
                    batch_id = self._begin_batch(part)
                except ProviderError as error:
                    if error.status not in NO_BATCHES:
                        raise
                    self.tell(f"{self.connection.provider.name}: has no batches; asking directly")
                    self.batch = False
                    return found
                answers = self._finish_batch(batch_id, part, bar)
            finally:
                self.budget.settle(reserved, sum(answer.cost_usd or 0.0 for answer in answers.values()))
            found |= answers
        return found

    def _begin_batch(self, part: Mapping[str, Body]) -> str:
        """The id of the batch of these requests: one that is under way, or a new one."""
        name = digest([self.connection.provider.base_url, sorted(part)])
        if (known := self.cache.batch(name)) is not None:
            return known
        with self.connection.explained("looking for the batch"):
            for batch in self.connection.client.batches.list(limit=100).data:
                if (batch.metadata or {}).get(BATCH_KEY) == name and batch.status not in ("failed", "cancelled"):
                    self.cache.note_batch(name, batch.id)
                    return batch.id
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
        self.cache.note_batch(name, batch_id)
        self.tell(f"batch {batch_id} of {len(part)} requests; stopped, the same command finds it again")
        return batch_id

    def _finish_batch(self, batch_id: str, part: Mapping[str, Body], bar: Progress) -> dict[str, Answer]:
        seen = 0
        while True:
            with self.connection.explained(f"asking for the batch {batch_id}"):
                batch = self.connection.client.batches.retrieve(batch_id)
            counts = batch.request_counts
            if counts is not None and counts.completed + counts.failed > seen:
                bar.advance(counts.completed + counts.failed - seen, note="batch")
                seen = counts.completed + counts.failed
            if batch.status in BATCH_ENDED:
                break
            time.sleep(self.pause_s)
        found: dict[str, Answer] = {}
        if batch.output_file_id:
            for line in read_file(self.connection, batch.output_file_id).splitlines():
                key, answer = self._batch_line(line)
                if key in part and answer is not None:
                    self.cache.put(key, answer)
                    found[key] = answer
        self.cache.note_batch(digest([self.connection.provider.base_url, sorted(part)]), batch_id, done=True)
        if len(found) < len(part):
            self.tell(f"batch {batch_id}: {batch.status}, {len(part) - len(found)} requests without an answer")
            bar.advance(-max(0, seen - len(found)))
        return found

    def _batch_line(self, line: bytes) -> tuple[str, Answer | None]:
        """The key of an output line and its answer; None for one that failed."""
        try:
            row = json.loads(line)
            response = row.get("response") or {}
            if response.get("status_code") != 200:
                return str(row.get("custom_id")), None
            answer = self._answer(response["body"], 0.0, batch=True)
            return str(row["custom_id"]), answer if answer.error is None else None
        except (ValueError, KeyError, AttributeError, TypeError):
            return "", None


def _prompt_tokens(body: Body, count: Callable[[str], int]) -> int:
    messages = sum(PER_MESSAGE + 1 + count(message["content"]) for message in body["messages"])
    schema = json.dumps(body[UNSCHEMED], ensure_ascii=False) if UNSCHEMED in body else ""
    return PER_CONVERSATION + messages + count(schema)
