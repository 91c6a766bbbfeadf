"""One question at a time: a specialist's own thread, and the line before it.

Comes in: work that blocks. Goes out: its result, on the event loop. Whoever leaves the line before their turn costs
nothing; work that has begun ends by itself, or when what it calls notices that nobody waits (`server/ask.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from afina.server.errors import overloaded

T = TypeVar("T")


class Turn:
    """most_waiting: more are refused with 503."""

    def __init__(self, name: str, most_waiting: int) -> None:
        self._thread = ThreadPoolExecutor(1, f"afina-run-{name}")
        self._waiting, self._most_waiting = 0, most_waiting

    async def take(self, work: Callable[[], T]) -> T:
        """The work's result, or what it raised. Raises ApiError where too many wait."""
        if self._waiting > self._most_waiting:
            raise overloaded()
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, copy_context().run, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """What waits is not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)
