"""Rate limits: so many requests and tokens a minute for each key; off unless configured.

Comes in: a key's digest. Goes out: leave to go on or the contract's 429, and the `x-ratelimit-*` headers. A bucket
fills steadily, as the live service's does. Tokens are known only after an answer, so the bucket of tokens may go below
zero, and then the next request waits until it is above.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from afina.server.errors import ApiError


@dataclass
class _Bucket:
    """level: what is left, at `at` (seconds of the monotonic clock)."""

    level: float
    at: float


@dataclass(frozen=True)
class _Limit:
    per_minute: int
    kind: str  # "requests", "tokens"

    def level(self, bucket: _Bucket, at: float) -> float:
        return min(float(self.per_minute), bucket.level + (at - bucket.at) * self.per_minute / 60)

    def wait_s(self, missing: float) -> float:
        return missing * 60 / self.per_minute


class Limits:
    """Thread-safe. clock: seconds that only grow; given by tests."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        asked = (("requests", requests_per_minute), ("tokens", tokens_per_minute))
        self._limits = [_Limit(number, kind) for kind, number in asked if number is not None]
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._guard = threading.Lock()
        self._clock = clock

    @property
    def on(self) -> bool:
        return bool(self._limits)

    def admit(self, caller: str) -> dict[str, str]:
        """Takes one request from the caller's buckets. Raises ApiError 429 with Retry-After when one is empty.

        The headers that the answer carries.
        """
        with self._guard:
            at = self._clock()
            refused = next((limit for limit in self._limits if self._left(caller, limit, at) < 1), None)
            if refused is None:
                for limit in self._limits:
                    if limit.kind == "requests":
                        self._take(caller, limit, 1, at)
            headers = self._headers(caller, at)
            if refused is None:
                return headers
            wait_s = refused.wait_s(1 - self._left(caller, refused, at))
        message = (
            f"Rate limit reached for {refused.kind} per minute: Limit {refused.per_minute}. "
            f"Please try again in {_duration(wait_s)}."
        )
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
        raise ApiError(429, message, type=refused.kind, code="rate_limit_exceeded", headers=headers)

    def spend_tokens(self, caller: str, tokens: int) -> None:
        with self._guard:
            at = self._clock()
            for limit in self._limits:
                if limit.kind == "tokens":
                    self._take(caller, limit, tokens, at)

    def _left(self, caller: str, limit: _Limit, at: float) -> float:
        bucket = self._buckets.get((caller, limit.kind))
        return float(limit.per_minute) if bucket is None else limit.level(bucket, at)

    def _take(self, caller: str, limit: _Limit, amount: int, at: float) -> None:
        self._buckets[caller, limit.kind] = _Bucket(self._left(caller, limit, at) - amount, at)

    def _headers(self, caller: str, at: float) -> dict[str, str]:
        headers: dict[str, str] = {}
        for limit in self._limits:
            left = self._left(caller, limit, at)
            headers[f"x-ratelimit-limit-{limit.kind}"] = str(limit.per_minute)
            headers[f"x-ratelimit-remaining-{limit.kind}"] = str(max(0, math.floor(left)))
            headers[f"x-ratelimit-reset-{limit.kind}"] = _duration(limit.wait_s(limit.per_minute - left))
        return headers


def _duration(seconds: float) -> str:
    """As the live service writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
