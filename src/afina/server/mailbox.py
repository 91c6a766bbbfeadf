"""From the engine's thread to the event loop: what was generated waits here until its request reads it.

Comes in: deltas, from the engine's thread, which never waits. Goes out: what came since the last look, one delta a
choice, so a reader that is slow gets larger pieces and not more of them. What waits is bounded: a client that stops
reading is given up. Knows nothing of requests or wire formats.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from afina.engine.generation import Delta, Token

# What one token with its alternatives weighs in memory, roughly.
TOKEN_BYTES, TOP_BYTES = 250, 180


@dataclass(frozen=True)
class Piece:
    """index: of the generation within its request, from 0."""

    index: int
    delta: Delta


class TooMuchError(Exception):
    """More waits than may: the reader does not read."""


class Mailbox:
    """Of one request. every_piece: wake the reader for each delta; otherwise only when all generations have ended.

    on_full: called once, from the engine's thread, when more than `most_bytes` wait.
    """

    def __init__(self, generations: int, *, every_piece: bool, most_bytes: int, on_full: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._event = asyncio.Event()
        self._waiting: dict[int, list[Delta]] = {}
        self._bytes = 0
        self._woken = False
        self._error: Exception | None = None
        self.unfinished = generations
        self._every_piece, self._most_bytes, self._on_full = every_piece, most_bytes, on_full

    def put(self, index: int, delta: Delta) -> None:
        """Called by the engine's thread."""
        with self._lock:
            if self._error is not None:
                return
            self._waiting.setdefault(index, []).append(delta)
            self._bytes += _bytes_of(delta)
            self.unfinished -= delta.finish is not None
            full = self._bytes > self._most_bytes
            if full:
                self._error = TooMuchError()
                self._waiting.clear()
            wake = full or self._every_piece or self.unfinished == 0
        if full:
            self._on_full()
        if wake:
            self._wake()

    def fail(self, error: Exception) -> None:
        """Called by any thread; the first error is the one that is raised."""
        with self._lock:
            self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._woken:
                return
            self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop is closed: the server has stopped, nobody reads any more
            self._on_full()

    async def take(self) -> list[Piece]:
        """Wait for more. Raises what `fail` was given, or TooMuchError; never returns an empty list."""
        while True:
            await self._event.wait()
            self._event.clear()
            with self._lock:
                self._woken = False
                waiting, self._waiting, self._bytes = self._waiting, {}, 0
                error = self._error
            if error is not None:
                self._event.set()  # it comes behind the text, and again to whoever asks again
            if waiting:
                return [Piece(index, _joined(deltas)) for index, deltas in sorted(waiting.items())]
            if error is not None:
                raise error


def _bytes_of(delta: Delta) -> int:
    return len(delta.text) + sum(TOKEN_BYTES + TOP_BYTES * len(token.top) for token in delta.tokens)


def _joined(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    tokens: tuple[Token, ...] = tuple(token for delta in deltas for token in delta.tokens)
    return Delta("".join(delta.text for delta in deltas), tokens, deltas[-1].finish)
