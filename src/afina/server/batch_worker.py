"""Runs batches: line after line through the same code as the HTTP endpoints, behind everybody who waits.

Comes in: batches in the database. Goes out: their progress, and in the end their output and error files. A server that
dies goes on where it was: what is finished is in `batch_results.py`'s file and is not asked again. Knows nothing of
HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError
from sqlalchemy import select

from afina.core.storage import ensure_folder
from afina.server import chat, completions, embeddings, files, responses
from afina.server.batch_input import Line, faults, lines
from afina.server.batch_results import Results
from afina.server.chat_body import ChatBody
from afina.server.completions import CompletionBody
from afina.server.embeddings import EmbeddingBody
from afina.server.errors import ApiError, bad_request
from afina.server.inference import as_api_error, log_bug, requests_in_flight
from afina.server.refusals import refusal
from afina.server.response_body import ResponseBody
from afina.server.tables import Batch, File
from afina.server.wire import Body, now

if TYPE_CHECKING:
    from afina.server.context import Context

MIDDLE = ("in_progress", "finalizing")
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
BATCHES_AT_ONCE = 4
LOOK_EVERY_S, SAVE_EVERY_S, YIELD_S = 5.0, 1.0, 0.05
# Waits before a request that found the server full is tried again.
RETRIES_S = (0.5, 1, 2, 4, 8, *[15] * 20)
OUTPUT_EXPIRES_S = 30 * 86400


class Answer(Protocol):
    def __call__(self, ctx: Context, body: Any, *, background: bool) -> Awaitable[dict[str, Any]]: ...


ENDPOINTS: dict[str, tuple[type[Body], Answer]] = {
    "/v1/chat/completions": (ChatBody, chat.answer),
    "/v1/completions": (CompletionBody, completions.answer),
    "/v1/embeddings": (EmbeddingBody, embeddings.answer),
    "/v1/responses": (ResponseBody, responses.answer),
}


def folder_of(ctx: Context, batch_id: str) -> Path:
    return ctx.places.root / "batches" / batch_id


def keep_input(ctx: Context, batch_id: str, file_id: str) -> None:
    """The input stays the batch's own, whatever becomes of the file."""
    folder = folder_of(ctx, batch_id)
    ensure_folder(folder)
    try:
        os.link(ctx.places.file(file_id), folder / "input.jsonl")
    except FileNotFoundError:
        raise
    except OSError:  # a disk without hard links
        shutil.copyfile(ctx.places.file(file_id), folder / "input.jsonl")


def start_batches(ctx: Context) -> BatchWorker:
    """Called once, in the event loop, when everything else of the context works."""
    _sweep(ctx)
    ctx.batches = BatchWorker(ctx)
    return ctx.batches


def _sweep(ctx: Context) -> None:
    """Folders of batches that have ended, or never came to be."""
    with ctx.store.reading() as session:
        running = set(session.scalars(select(Batch.id).where(Batch.status.in_(RUNNING))))
    for folder in folder_of(ctx, "").glob("batch_*"):
        if folder.name not in running:
            shutil.rmtree(folder, ignore_errors=True)


def wake(ctx: Context) -> None:
    """There is something new; from any thread."""
    if ctx.batches is not None:
        ctx.batches.wake()


class BatchWorker:
    """One task that looks for batches, one for each batch that runs."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._lines = 0  # of all batches, being answered now
        self._main = self._loop.create_task(self._watch(), name="batches")

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped; the next one will look
            self._loop.call_soon_threadsafe(self._news.set)

    async def stop(self) -> None:
        """What is unfinished waits for the next start."""
        tasks = [self._main, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._news.clear()
            try:
                for batch_id, status in await asyncio.to_thread(self._unfinished):
                    if status == "cancelling":
                        self._cancelled.add(batch_id)
                    if batch_id not in self._running and len(self._running) < BATCHES_AT_ONCE:
                        task = self._loop.create_task(self._guarded(batch_id), name=batch_id)
                        self._running[batch_id] = task
            except Exception as error:
                log_bug("looking for batches", error)
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _unfinished(self) -> list[tuple[str, str]]:
        with self.ctx.store.reading() as session:
            query = select(Batch.id, Batch.status).where(Batch.status.in_(RUNNING)).order_by(Batch.seq)
            return [(row.id, row.status) for row in session.execute(query)]

    async def _guarded(self, batch_id: str) -> None:
        try:
            await _Run(self, batch_id).go()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log_bug(f"batch {batch_id}", error)
            entry = {
                "code": "server_error",
                "message": "The server could not run this batch.",
                "line": None,
                "param": None,
            }
            await asyncio.to_thread(self.save, batch_id, "failed", errors=[entry])
        finally:
            self._running.pop(batch_id, None)
            self._cancelled.discard(batch_id)
            self._news.set()

    def is_cancelled(self, batch_id: str) -> bool:
        return batch_id in self._cancelled

    async def place(self, stop: Callable[[], bool]) -> bool:
        """Wait until a line may begin: many while nobody else asks, one while somebody does. False: `stop` said so."""
        while not stop():
            idle = requests_in_flight(self.ctx) == 0
            if self._lines < (max(1, self.ctx.config.max_rows // 2) if idle else 1):
                self._lines += 1
                return True
            await asyncio.sleep(YIELD_S)
        return False

    def leave(self) -> None:
        self._lines -= 1

    # -- the database, in threads ---------------------------------------------------------------

    def load(self, batch_id: str) -> Batch:
        with self.ctx.store.reading() as session:
            return session.scalars(select(Batch).where(Batch.id == batch_id)).one()

    def save(self, batch_id: str, status: str | None = None, **columns: Any) -> None:
        """Set columns, and the status with its time. A batch that is being cancelled goes on only to an end."""
        with self.ctx.store.session() as session:
            batch = session.scalars(select(Batch).where(Batch.id == batch_id).with_for_update()).one()
            for name, value in columns.items():
                setattr(batch, name, value)
            going_on = ("validating", "in_progress", *(() if status in MIDDLE else ("finalizing", "cancelling")))
            if status == "completed" and batch.status == "cancelling":
                status = "cancelled"  # asked for while the last files were written
            if status is not None and batch.status in going_on:
                batch.status = status
                batch.times = {**batch.times, f"{status}_at": now()}


class _Run:
    """One batch, from wherever it is to its end."""

    def __init__(self, worker: BatchWorker, batch_id: str) -> None:
        self.worker, self.ctx, self.id = worker, worker.ctx, batch_id
        self.folder = folder_of(worker.ctx, batch_id)
        self.broken: BaseException | None = None  # a result could not be kept

    async def go(self) -> None:
        batch = await asyncio.to_thread(self.worker.load, self.id)
        if batch.status == "validating" and not await self._validate(batch):
            await asyncio.to_thread(shutil.rmtree, self.folder, True)
            return
        self.expires_at = int(batch.times["expires_at"])
        self.results = await asyncio.to_thread(Results, self.folder)
        try:
            if batch.status != "finalizing":
                await self._answer(batch)
            await self._finish(batch)
        finally:
            self.results.close()

    async def _validate(self, batch: Batch) -> bool:
        """1. Every line is a request to this endpoint, and each has a name of its own."""
        total, found = await asyncio.to_thread(faults, self.folder / "input.jsonl", batch.endpoint)
        if found:
            await asyncio.to_thread(self.worker.save, self.id, "failed", errors=found)
            return False
        await asyncio.to_thread(self.worker.save, self.id, "in_progress", total=total)
        return True

    def _over(self) -> bool:
        return self.broken is not None or self.worker.is_cancelled(self.id) or now() >= self.expires_at

    async def _answer(self, batch: Batch) -> None:
        """2. Answer what is not answered yet, several lines at once."""
        requests = self._left(batch.endpoint)
        tasks: set[asyncio.Task[None]] = set()
        saving = asyncio.get_running_loop().create_task(self._save_counts())
        try:
            while await self.worker.place(self._over):
                line = await asyncio.to_thread(next, requests, None)
                if line is None:
                    self.worker.leave()
                    break
                task = asyncio.get_running_loop().create_task(self._line(line, batch.endpoint))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(self._ended)
            while tasks and not self.worker.is_cancelled(self.id):
                await asyncio.wait(tasks, timeout=YIELD_S * 10)
        finally:
            # Cancelled, or the server stops: what is half done is not done.
            left = [saving, *tasks]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if self.broken is not None:
            raise self.broken

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Called for every line that began, whatever became of it."""
        self.worker.leave()
        if not task.cancelled() and task.exception() is not None:
            self.broken = self.broken or task.exception()

    def _left(self, endpoint: str) -> Iterator[Line]:
        return (x for x in lines(self.folder / "input.jsonl", endpoint) if x.number not in self.results.done)

    async def _save_counts(self) -> None:
        shown = (-1, -1)
        while True:
            counts = (self.results.completed, self.results.failed)
            if counts != shown:
                await asyncio.to_thread(self.worker.save, self.id, completed=counts[0], failed=counts[1])
                shown = counts
            await asyncio.sleep(SAVE_EVERY_S)

    async def _line(self, line: Line, endpoint: str) -> None:
        try:
            body, status = await self._asked(line, endpoint), 200
        except ApiError as error:
            body, status = error.body, error.status
        response = {"status_code": status, "request_id": secrets.token_hex(16), "body": body}
        self._add(line, status == 200, response, None)

    async def _asked(self, line: Line, endpoint: str) -> dict[str, Any]:
        """The endpoint's answer. A server that is full is asked again, patiently."""
        kind, answer = ENDPOINTS[endpoint]
        body = parsed(kind, line.body)
        if getattr(body, "stream", None):
            raise bad_request("A request in a batch cannot be answered as a stream.", "stream", "invalid_value")
        for wait_s in (*RETRIES_S, None):
            try:
                return await answer(self.ctx, body, background=True)
            except ApiError as error:
                if error.status != 503 or wait_s is None or self._over():
                    raise
                await asyncio.sleep(wait_s)
            except Exception as error:
                raise as_api_error(error) from error
        raise AssertionError("the last try raises or returns")

    def _add(self, line: Line, ok: bool, response: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
        written = {"id": f"batch_req_{secrets.token_hex(16)}", "custom_id": line.custom_id}
        self.results.add(line.number, ok, {**written, "response": response, "error": error})

    async def _finish(self, batch: Batch) -> None:
        """3. The files, then the last status; each step may be done twice and makes one file."""
        left = await asyncio.to_thread(lambda: list(self._left(batch.endpoint)) if self._over() else [])
        cancelled = self.worker.is_cancelled(self.id)
        ending = "cancelled" if cancelled else "expired" if left else "completed"
        await asyncio.to_thread(lambda: [self._add(line, False, None, _UNDONE[ending]) for line in left])
        if not cancelled:
            await asyncio.to_thread(self.worker.save, self.id, "finalizing")
        ids = {f"{name}_file_id": await asyncio.to_thread(self._made, batch, name) for name in ("output", "error")}
        counts = {"completed": self.results.completed, "failed": self.results.failed}
        if self.worker.is_cancelled(self.id):
            ending = "cancelled"
        await asyncio.to_thread(self.worker.save, self.id, ending, **ids, **counts)
        await asyncio.to_thread(shutil.rmtree, self.folder, True)

    def _made(self, batch: Batch, name: str) -> str | None:
        """The id of the output or error file, which is made unless it was made before."""
        filename = f"{self.id}_{name}.jsonl"
        with self.ctx.store.reading() as session:
            known = session.scalar(select(File.id).where(File.filename == filename, File.purpose == "batch_output"))
        if known is not None:
            return known
        path = self.results.write(name == "output")
        if path is None:
            return None
        expires_s = batch.output_expires_after_s or OUTPUT_EXPIRES_S
        return files.add_made(self.ctx, "batch_output", filename, path, expires_s).id


_UNDONE = {
    "expired": {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
    "cancelled": {"code": "batch_cancelled", "message": "The batch was cancelled before this request was executed."},
}


def parsed(kind: type[Body], body: dict[str, Any]) -> Body:
    """A line's body, checked as the HTTP endpoint checks it. Raises ApiError."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems: list[Any] = [{**p, "loc": ("body", *p["loc"])} for p in error.errors()]
        raise refusal(problems, body) from None
