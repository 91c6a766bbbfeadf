"""Many chat requests -> their answers: from the cache, as a batch, or side by side; under a cost cap.

Comes in: request bodies of /v1/chat/completions. Goes out: an `Answer` each, in the same order. A request that fails by
itself is an answer with an error; what concerns all of them (key, money, network) is raised, and what was answered by
then is kept. What is asked, and what the answers mean, is not known here.

Each request that is sent, one sent again included, is a row of five steps: set money aside, note it in the cache's
file, send, keep the answer (which takes the note away), settle. Whatever ends the process in between, the file says at
most too much was spent, never too little; and a worker begins the next request only when its last answer is on disk.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from afina.core.progress import Progress, progress
from afina.providers.batches import Batches
from afina.providers.budget import Budget
from afina.providers.cache import Answer, AnswerCache, request_key
from afina.providers.client import Connection, ProviderError
from afina.providers.dialect import FORMAT, LIMITS, Body, Dialect, Fall, is_about_format
from afina.providers.pacing import PATIENCE_S, Pacing, StoppedError, Tries
from afina.providers.prices import Price, dollars
from afina.providers.tokens import PER_CONVERSATION, PER_MESSAGE, counter

ESTIMATE_MARGIN = 1.3  # of prompt tokens, in what is said beforehand
# No tokenizer makes more tokens of a text than it has bytes; the chat format adds some per message.
MOST_PER_MESSAGE, MOST_PER_CONVERSATION = 16, 64
ITS_OWN = (400, 413, 422)  # status of a request that is refused for what stands in it
OF_ALL = ("model_not_found", "invalid_model", "DeploymentNotFound")  # codes of such a status that concern all requests


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
    half and may take hours. num_threads: requests under way at once. pause_s: between looks at a batch. patience_s: how
    long a provider is waited for that only says "too many requests".
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
        patience_s: float = PATIENCE_S,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.connection, self.cache, self.price, self.budget = connection, cache, price, budget
        self.batch, self.num_threads, self.tell = batch, num_threads, tell
        self.dialect = Dialect(connection.provider.name, tell, connection.provider.limit_key)
        self.pacing = Pacing(connection.provider.name, tell, patience_s)
        self._once = connection.once()  # each time a request is sent is ours to count and to pay
        self._batches = Batches(connection, cache, budget, self._most_usd, self._read_answer, pause_s, tell)

    # -- before -----------------------------------------------------------------------------------

    def estimate(self, bodies: Sequence[Body], answer_tokens: int = 64) -> Estimate:
        """answer_tokens: that one answer has, about."""
        count, exact = counter()
        keys = [self._key(body) for body in bodies]
        known = self.cache.get(set(keys))
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        prompt = sum(_prompt_tokens(body, count) for body in new.values())
        limits = sum(_limit(body) for body in new.values())
        likely = most = None
        if self.price is not None:
            likely = self.price.answers_usd(prompt, answer_tokens * len(new), batch=self.batch)
            most = self.price.answers_usd(round(prompt * ESTIMATE_MARGIN), limits)
        return Estimate(len(keys), len(keys) - len(new), prompt, exact, likely, most)

    def _key(self, body: Body) -> str:
        return request_key(self.connection.provider.base_url, body)

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, bodies: Sequence[Body], label: str | None = "asking", *, fall: Fall = Fall.SILENT) -> list[Answer]:
        """An answer each, in order. Raises ProviderError and BudgetError for what concerns them all.

        label: of the progress bar; None for none. fall: what to do where the provider takes no answers of a schema.
        """
        keys = [self._key(body) for body in bodies]
        known = self.cache.get(set(keys))
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        if new:
            with nullcontext() if label is None else progress(label, len(new), "requests") as bar:
                if self.batch and len(new) > 1:
                    found = self._batches.ask({key: self.dialect.speak(body, fall) for key, body in new.items()}, bar)
                    self.batch = self._batches.exist
                    known |= found
                rest = {key: body for key, body in new.items() if key not in known}
                known |= self._ask_directly(rest, bar, fall)
        return [known[key] for key in keys]

    def _ask_directly(self, new: Mapping[str, Body], bar: Progress | None, fall: Fall) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        left = list(new.items())[::-1]
        waiting: dict[Future[Answer], str] = {}
        stopped, began = threading.Event(), time.monotonic()
        with ThreadPoolExecutor(self.num_threads) as pool:
            try:
                while left or waiting:
                    # Few at a time are handed over, so that an error leaves few under way.
                    while left and len(waiting) < self.num_threads:
                        key, body = left.pop()
                        waiting[pool.submit(self._ask_one, key, body, fall, stopped)] = key
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        found[waiting.pop(future)] = future.result()
                        if bar is not None:
                            bar.advance(note=self._note(len(found), time.monotonic() - began))
            except BaseException:
                stopped.set()  # who waits, for the provider or for money, goes home
                pool.shutdown(wait=True, cancel_futures=True)  # what was begun is paid: it is waited for and kept
                raise
        return found

    def _note(self, count: int, elapsed_s: float) -> str:
        """What the progress bar says beside the count: rate and money."""
        per_s = count / max(elapsed_s, 1e-9)
        parts = [f"{per_s:.1f}/s" if per_s >= 1 else f"{per_s * 60:.0f}/min"]
        if self.budget.spent_usd:
            cap = "" if self.budget.cap_usd is None else f" of {dollars(self.budget.cap_usd)}"
            parts.append(f"{dollars(self.budget.spent_usd)}{cap} spent")
        return " · ".join(parts)

    def _ask_one(self, key: str, body: Body, fall: Fall, stopped: threading.Event) -> Answer:
        """Send a request until it is answered, or will not be."""
        tries = Tries()
        if not _is_text(body):
            return Answer(error="the question holds characters that are no text (half a surrogate pair)")
        while True:
            self.pacing.wait(stopped)
            sent = self.dialect.speak(body, fall)
            try:
                answer = self._pay(key, sent, stopped)
            except ProviderError as error:
                if self.dialect.learns(sent, body, error, fall):
                    continue
                if fall is Fall.NEVER and FORMAT in sent and is_about_format(error):
                    form = sent[FORMAT]["type"]
                    raise ProviderError(f"{error} Set structured: auto where {form} is not taken.") from error
                if _concerns_one(error):
                    return Answer(error=str(error))
                try:
                    self.pacing.after(error, tries, stopped)
                except ProviderError as final:
                    if _may_be_its_own(final) and self.pacing.others_work(tries):
                        return Answer(error=str(final))
                    raise
            else:
                self.pacing.answered()
                return answer

    def _pay(self, key: str, sent: Body, stopped: threading.Event) -> Answer:
        """Send a request once, its money set aside before and settled after."""
        # 1. Set aside the most that it can cost, for this process and for those after it.
        most = self._most_usd([sent])
        self.budget.reserve(most, "the next answer", lambda: not stopped.is_set())
        spent, note = 0.0, None
        try:
            if stopped.is_set():
                raise StoppedError
            note = self.cache.set_aside(key, most) if most else None
            # 2. Send. Until it is known better, all of it is gone.
            spent = most
            try:
                answer = self._send(sent, most)
            except ProviderError as error:
                if not error.maybe_paid:
                    spent = 0.0
                    self.cache.take_back(note)
                raise
            # 3. Keep the answer in the note's place.
            spent = answer.cost_usd or 0.0
            if answer.error is None:
                self.cache.put(key, answer, note)
            return answer
        finally:
            self.budget.settle(most, spent)

    def _send(self, body: Body, most_usd: float) -> Answer:
        """Raises ProviderError."""
        began = time.perf_counter()
        try:
            with self._once.explained("asking the model"):
                raw = self._once.client.chat.completions.with_raw_response.create(**body)
        except ProviderError as error:
            if error.written is None:
                raise
            # It holds its model to JSON by checking, and shows what did not pass: an answer that had to be paid.
            cost = most_usd if self.price else None
            return Answer(error.written, None, "stop", cost_usd=cost, latency_s=time.perf_counter() - began)
        latency_s = time.perf_counter() - began
        try:
            response = json.loads(raw.content)
        except (ValueError, RecursionError) as error:
            page = "html" in raw.headers.get("content-type", "") or raw.content.lstrip()[:1] == b"<"
            what = "a web page" if page else f"{len(raw.content)} bytes that are no JSON"
            raise ProviderError(
                f"{self.connection.provider.name}: what came back while asking the model is no answer of the API, but "
                f"{what}. Is {self.connection.provider.base_url} the right address?",
                status=200,
                maybe_paid=not page,
            ) from error
        return self._read_answer(response, latency_s, most_usd=most_usd)

    def _read_answer(self, response: Any, latency_s: float, *, batch: bool = False, most_usd: float = 0.0) -> Answer:
        """response: the body of a chat completion. most_usd: what it cost where it does not say how long it is."""
        price, cost = self.price, most_usd if self.price else None
        try:
            choice, usage = response["choices"][0], response.get("usage") or {}
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
            prompt, completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            said = response.get("error") if isinstance(response, dict) else None
            said = said.get("message") if isinstance(said, dict) else said
            reason = f"the provider's answer has no choices{f': {said}' if said else ''}"
            return Answer(error=self.connection.redacted(reason), cost_usd=cost, latency_s=latency_s)
        if price is not None and (prompt or completion):
            cost = price.answers_usd(prompt, completion, cached, batch=batch)
        refused = content is None and refusal is not None
        content = self.connection.without_key(str((refusal if refused else content) or ""))
        reason = choice.get("finish_reason")
        return Answer(content, None, reason, prompt, cached, completion, cost, latency_s, refused)

    def _most_usd(self, bodies: Sequence[Body], *, batch: bool = False) -> float:
        """The most that these can cost; 0 where no price is known."""
        if self.price is None:
            return 0.0
        prompt = sum(_most_prompt_tokens(body) for body in bodies)
        return self.price.answers_usd(prompt, sum(_limit(body) for body in bodies), batch=batch) or 0.0


# -- errors ----------------------------------------------------------------------------------------


def _concerns_one(error: ProviderError) -> bool:
    """Whether a refusal is for what stands in this request alone, so that the others are worth sending."""
    if error.status == 429:
        return not error.no_money and "too large" in str(error)  # for the limit of tokens per minute: it never fits
    return error.status in ITS_OWN and error.code not in OF_ALL


def _may_be_its_own(error: ProviderError) -> bool:
    """Whether it can be this request that the provider fails at, while it answers others."""
    return error.status is None or error.status == 200 or error.status >= 500


# -- tokens ----------------------------------------------------------------------------------------


def _prompt_tokens(body: Body, count: Callable[[str], int]) -> int:
    messages = sum(PER_MESSAGE + 1 + count(message["content"]) for message in body["messages"])
    return PER_CONVERSATION + messages + count(_format_text(body))


def _most_prompt_tokens(body: Body) -> int:
    texts = [message["content"].encode("utf-8", "replace") for message in body["messages"]]
    messages = sum(MOST_PER_MESSAGE + len(text) for text in texts)
    return MOST_PER_CONVERSATION + messages + len(_format_text(body).encode())


def _format_text(body: Body) -> str:
    return json.dumps(body[FORMAT], ensure_ascii=False) if FORMAT in body else ""


def _is_text(body: Body) -> bool:
    try:
        for message in body["messages"]:
            message["content"].encode()
    except UnicodeEncodeError:
        return False
    return True


def _limit(body: Body) -> int:
    return int(next(body[key] for key in LIMITS if key in body))
