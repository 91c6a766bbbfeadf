"""POST /afina/api/ask: a question to a catalogue's assistant, and its answer with sources, as server-sent events.

    event: passages   what was found, before a word is written
    event: delta      {"text"}: the next piece of the answer
    event: done       {"text", "sources", "support", "refused", "refusal", "note", "passages", "usage", "latency_s"}
    event: error      OpenAI's error body, instead of what would have followed

Comes in: {"model", "question"}. An error before the first event is a plain HTTP error. One question of a run is
answered at a time; when the client goes, its answer stops at the next word. Offsets of a source count Unicode
characters of its passage. Knows nothing of how answers are made (`strategies/grounded`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afina.core.errors import AfinaError, DataError
from afina.server.context import Context, context_of
from afina.server.errors import ApiError, bad_request
from afina.server.fields import as_text
from afina.server.inference import as_api_error, timed_out
from afina.server.page.api import find_run, run_error, shelf_of
from afina.server.page.runs import ServedRun, said_of
from afina.server.streaming import HEADERS, _unless_gone, event, unless_gone
from afina.server.wire import Body

if TYPE_CHECKING:
    from afina.retrieval.passage import Hit
    from afina.strategies.grounded.answer import Answer, Source

router = APIRouter(prefix="/afina/api")
Event = tuple[str, dict[str, Any]]


class Question(Body):
    model: str
    question: str


class HungUpError(Exception):
    """Nobody waits for the answer any more."""


@router.post("/ask")
async def ask(request: Request, body: Question) -> Response:
    run = find_run(shelf_of(request), body.model)
    if run.kind != "assistant":
        raise bad_request(f"'{run.name}' is a specialist without an index. Ask it with /afina/api/predict.", "model")
    question = as_text(body.question, "question")
    if not question.strip():
        raise bad_request("The question is empty.", "question")
    asking = Asking(context_of(request), run, question)
    return await unless_gone(request, asking.begin())


class Asking:
    """One question under way. Lives on the event loop; the run's thread writes into it."""

    def __init__(self, ctx: Context, run: ServedRun, question: str) -> None:
        self.ctx, self.run, self.question = ctx, run, question
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._gone = threading.Event()
        self._began = time.monotonic()
        self._deadline = self._loop.time() + ctx.config.request_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._first: Event | None = None
        self._told = ""

    async def begin(self) -> Response:
        """Wait for the first event, or raise what came instead of it."""
        self._task = asyncio.create_task(self._take_turn())
        try:
            self._first = await self._next()
        except BaseException:
            self.close()
            raise
        self.ctx.meter.first_token(time.monotonic() - self._began)
        return AnswerStream(self)

    async def events(self) -> AsyncIterator[Event]:
        """To the last; what goes wrong is one."""
        found = self._first
        try:
            while found is not None:
                yield found
                found = None if found[0] == "done" else await self._next()
        except ApiError as error:
            yield "error", error.body

    def close(self) -> None:
        """Nobody reads any more: a question that waits is not asked, an answer under way stops."""
        self._gone.set()
        if self._task is not None:
            self._task.cancel()

    async def _next(self) -> Event:
        try:
            async with asyncio.timeout_at(self._deadline):
                arrived = await self._arrived.get()
        except TimeoutError:
            raise timed_out(self.ctx.config.request_timeout_s, begun=self._first is not None) from None
        if isinstance(arrived, DataError):
            raise bad_request(said_of(arrived), "question") from arrived
        if isinstance(arrived, AfinaError):
            raise run_error(self.run, arrived) from arrived
        if isinstance(arrived, Exception):
            raise as_api_error(arrived) from arrived
        return arrived

    async def _take_turn(self) -> None:
        try:
            await self.run.turn.take(self._answer)
        except HungUpError:
            pass
        except Exception as error:
            self._arrived.put_nowait(error)

    # -- in the run's thread --------------------------------------------------------------------

    def _answer(self) -> None:
        if self._gone.is_set():
            return
        answer = self.run.grounded().ask(self.question, on_text=self._on_text, on_passages=self._on_passages)
        usage = answer.prediction.usage
        self.ctx.meter.tokens(self.run.name, usage.prompt_tokens, usage.completion_tokens)
        self._put("done", answer_object(answer))

    def _on_text(self, text: str) -> None:
        """text: all that is written so far."""
        if self._gone.is_set():
            raise HungUpError
        if len(text) > len(self._told) and text.startswith(self._told):
            self._put("delta", {"text": text[len(self._told) :]})
            self._told = text

    def _on_passages(self, hits: Sequence[Hit]) -> None:
        self._put("passages", {"passages": [hit_object(hit) for hit in hits]})

    def _put(self, kind: str, data: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, (kind, data))


class AnswerStream(Response):
    """The events of one question, no faster than the client reads."""

    def __init__(self, asking: Asking) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        del self.headers["content-length"]
        self.asking = asking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _unless_gone(receive, self._write(send))
        except OSError:
            pass  # the client went while it was written to
        finally:
            self.asking.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for kind, data in self.asking.events():
            await send({"type": "http.response.body", "body": event(data, kind), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# -- objects as they are sent ------------------------------------------------------------------


def answer_object(answer: Answer) -> dict[str, Any]:
    prediction = answer.prediction
    return {
        "text": answer.text,
        "sources": [source_object(source) for source in answer.sources],
        "support": answer.support,
        "refused": answer.refused,
        "refusal": answer.refusal,
        "note": answer.note,
        "passages": [hit_object(hit) for hit in answer.passages],
        "usage": {
            "prompt_tokens": prediction.usage.prompt_tokens,
            "completion_tokens": prediction.usage.completion_tokens,
        },
        "latency_s": prediction.latency_s,
    }


def source_object(source: Source) -> dict[str, Any]:
    return {
        "uid": source.uid,
        "title": source.title,
        "quote": source.quote,
        "start": source.start,
        "end": source.end,
        "score": source.score,
    }


def hit_object(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    return {"uid": passage.uid, "title": passage.title, "content": passage.content, "score": hit.score}
