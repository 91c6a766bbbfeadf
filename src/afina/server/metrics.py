"""What the server counts: Prometheus metrics, and the tokens that the rate limits charge.

Comes in: one call for each answered request, one for the tokens of each answer. Goes out: the text of /metrics. Every
server has a registry of its own, so that several can live in one test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from afina import __version__
from afina.server.limits import Limits

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Whose request is being answered: the digest of its key. Set by gate.py, inherited by the endpoint's thread.
CALLER: ContextVar[str | None] = ContextVar("caller", default=None)


class Meter:
    """Thread-safe. limits: charged with the tokens that are counted."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "afina_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "afina_request_seconds", "Until the last byte.", ["method", "route"], buckets=SECONDS, registry=registry
        )
        self._first_token = Histogram(
            "afina_first_token_seconds", "Until the first text.", buckets=SECONDS, registry=registry
        )
        self._tokens = Counter("afina_tokens", "Tokens read and written.", ["model", "kind"], registry=registry)
        self.in_flight = Gauge("afina_requests_in_flight", "Requests being answered.", registry=registry)
        Gauge("afina_info", "Version of the server.", ["version"], registry=registry).labels(__version__).set(1)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int, cached: int = 0) -> None:
        """Tokens of one answer; charged to the key whose request is being answered."""
        self._tokens.labels(model, "prompt").inc(prompt)
        self._tokens.labels(model, "completion").inc(completion)
        self._tokens.labels(model, "cached").inc(cached)
        caller = CALLER.get()
        if caller is not None:
            self.limits.spend_tokens(caller, prompt + completion)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def watch(self, name: str, about: str, read: Callable[[], float | dict[str, float]], label: str = "of") -> None:
        """A gauge that is read when somebody looks: a number, or numbers by the value of one label."""
        self.registry.register(_Watched(name, about, read, label))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Watched(Collector):
    def __init__(self, name: str, about: str, read: Callable[[], float | dict[str, float]], label: str) -> None:
        self.name, self.about, self.read, self.label = name, about, read, label

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        value = self.read()
        if not isinstance(value, dict):
            return [GaugeMetricFamily(self.name, self.about, value=value)]
        family = GaugeMetricFamily(self.name, self.about, labels=[self.label])
        for key, number in sorted(value.items()):
            family.add_metric([key], number)
        return [family]
