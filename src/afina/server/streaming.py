"""Server-sent events, and clients that hang up.

Comes in: answers that have begun, and a writer that knows one endpoint's events. Goes out: the bytes of the stream, no
faster than the client reads. An error before the first byte is a plain HTTP error; a later one is an event. When the
client goes, what it asked for stops at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afina.server.errors import ApiError
from afina.server.inference import Answers, Usage, as_api_error, log
from afina.server.mailbox import Piece

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Sent instead of an answer to a client that is not there to read it; nginx's number for it, seen only in the log.
CLIENT_GONE = 499


def event(data: Mapping[str, Any] | str, name: str | None = None) -> bytes:
    """One event. data: an object, or its JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


class Writer(Protocol):
    """The events of one endpoint's stream."""

    def opening(self) -> Iterable[bytes]:
        """Before any text."""
        ...

    def pieces(self, pieces: list[Piece]) -> Iterable[bytes]: ...

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """After the last text."""
        ...

    def failing(self, error: ApiError) -> Iterable[bytes]:
        """Instead of what would have followed."""
        ...


class EventStream(Response):
    """The answer to a request with `stream: true`. answers: begun; errors of the request were answered before."""

    def __init__(self, answers: Answers, writer: Writer) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        del self.headers["content-length"]
        self.answers, self.writer = answers, writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            writing = self._write(send)
            await _unless_gone(receive, writing)
        except OSError:
            pass  # the client went while it was written to
        finally:
            self.answers.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self._end_of_time()):
                async for chunk in self._chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            return  # a client that takes nothing gets nothing more; the connection closes without an end
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _end_of_time(self) -> float | None:
        """A while after the answer's own time limit, which is told to the client first."""
        limit = self.answers.deadline
        return None if limit is None else limit - _clock_difference() + 5.0

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield b"".join(self.writer.opening())
        try:
            async for pieces in self.answers.pieces():
                if chunk := b"".join(self.writer.pieces(pieces)):
                    yield chunk
            yield b"".join(self.writer.closing(self.answers.usage))
        except ApiError as error:
            yield b"".join(self.writer.failing(error))
        except (OSError, GeneratorExit):
            raise
        except Exception as error:
            yield b"".join(self.writer.failing(as_api_error(error)))


def _clock_difference() -> float:
    """asyncio's clock is the monotonic one on every platform we run on; said here once, not assumed."""
    return time.monotonic() - asyncio.get_running_loop().time()


async def _gone(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client hung up first; then `work` is cancelled."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of `work`; if the client hangs up first, `work` is cancelled and the answer is for nobody."""
    result = await _unless_gone(request.receive, work)
    if result is None:
        log.info("the client hung up")
        return Response(status_code=CLIENT_GONE)
    return result
