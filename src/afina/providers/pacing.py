"""When a request that failed is sent again: pauses that all workers keep, and an end of patience.

Comes in: the errors of single requests. Goes out: a pause, or the error, said in full. It sends nothing itself.

A provider that says "too many requests" is waited for as long as it asks, by all workers together, while it answers any
of them now and then. A request that fails otherwise is sent again a few times; one that may have been paid although its
answer was lost, only twice, because each time costs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from afina.core.progress import seconds
from afina.providers.client import ProviderError, UnreachableError

PATIENCE_S = 300.0  # without any answer, of a provider that says "too many requests"
NUM_RETRIES = 4  # of a request that failed and costs nothing
NUM_PAID_RETRIES = 2  # of one that may have to be paid
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
SAID_FROM_S = 5.0  # shorter pauses are not worth a line
AGAIN = (408, 409, 425)


class StoppedError(Exception):
    """Another request's failure ended the work while this one waited."""


@dataclass
class Tries:
    """What became of one request so far. began: when it failed first, on the monotonic clock."""

    refused: int = 0
    failed: int = 0
    lost: int = 0
    began: float | None = None


class Pacing:
    """One for all requests to a provider. Thread-safe."""

    def __init__(self, provider: str, tell: Callable[[str], None], patience_s: float = PATIENCE_S) -> None:
        self.provider, self.tell, self.patience_s = provider, tell, patience_s
        self._lock = threading.Lock()
        self._open_at = self._last_answer = self._said_until = 0.0

    def wait(self, stopped: threading.Event) -> None:
        """Wait until requests may be sent. Raises StoppedError."""
        while not stopped.is_set():
            left = self._open_at - time.monotonic()
            if left <= 0:
                return
            stopped.wait(left)
        raise StoppedError

    def answered(self) -> None:
        """A request was answered."""
        self._last_answer = time.monotonic()

    def others_work(self, tries: Tries) -> bool:
        """Whether other requests were answered while this one failed, so that the failure is its own."""
        return tries.began is not None and self._last_answer > tries.began

    def after(self, error: ProviderError, tries: Tries, stopped: threading.Event) -> None:
        """Wait after a failure, as long as it is worth it. Raises the error when it is not, and StoppedError."""
        now = time.monotonic()
        tries.began = now if tries.began is None else tries.began
        if error.status == 429 and not error.no_money:
            self._slow_down(error, tries, now)
        elif error.maybe_paid:
            tries.lost += 1
            if tries.lost > NUM_PAID_RETRIES:
                raise error
            self._pause_one(error, tries.lost, stopped)
        elif isinstance(error, UnreachableError) or error.status in AGAIN or (error.status or 0) >= 500:
            tries.failed += 1
            if tries.failed > NUM_RETRIES:
                raise error
            self._pause_one(error, tries.failed, stopped)
        else:
            raise error

    def _slow_down(self, error: ProviderError, tries: Tries, now: float) -> None:
        """All requests pause."""
        tries.refused += 1
        pause_s = error.retry_after_s or _growing_s(tries.refused)
        with self._lock:
            waited_s = now - max(self._last_answer, tries.began or now)
            if waited_s + pause_s > self.patience_s:
                why = f"No answer came for {seconds(waited_s)}"
                why += f", and it asks to wait {seconds(pause_s)}" if error.retry_after_s else ""
                raise ProviderError(
                    f"{error} {why}; at most {seconds(self.patience_s)} are waited.",
                    status=error.status,
                    code=error.code,
                    retry_after_s=error.retry_after_s,
                ) from error
            self._open_at = max(self._open_at, now + pause_s)
            if pause_s >= SAID_FROM_S and now >= self._said_until:
                self._said_until = now + pause_s
                asks = " as it asks" if error.retry_after_s else ""
                self.tell(f"{self.provider}: too many requests; waiting {seconds(pause_s)}{asks}")

    def _pause_one(self, error: ProviderError, count: int, stopped: threading.Event) -> None:
        pause_s = error.retry_after_s or _growing_s(count)
        if pause_s > self.patience_s:
            raise error
        if stopped.wait(pause_s):
            raise StoppedError


def _growing_s(count: int) -> float:
    """0.5 s, 1 s, 2 s, ... with a quarter of chance, so that many do not come at once."""
    return min(FIRST_PAUSE_S * 2 ** (count - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)
