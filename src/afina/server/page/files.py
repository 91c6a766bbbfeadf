"""The page's files, and the reports that were opened in it: all that is sent without an API key.

Comes in: a path. Goes out: a file of `static/`, read once and held in memory, so that no path ever reaches the disk; or
the report behind a ticket. An iframe cannot send a key, so whoever has the key first asks for a ticket, an address that
nobody can guess and that is good for an hour. Everything carries a Content-Security-Policy: the page loads nothing from
elsewhere and turns no text into markup; a report runs no script at all.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

ROOT, ASSETS, REPORTS = "/", "/afina/page/", "/afina/report/"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TICKET_S, MOST_TICKETS = 3600.0, 1000
EXPIRED = "This report is no longer open here. Open it again from the page."


class Tickets:
    """Addresses of opened reports. Thread-safe. clock: seconds that only grow; given by tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[str, tuple[Path, float]] = {}

    def issue(self, report: Path) -> str:
        """The address at which the report can be read from now on, for `TICKET_S` seconds."""
        ticket = secrets.token_urlsafe(32)
        with self._lock:
            now = self._clock()
            self._open = {key: value for key, value in self._open.items() if value[1] > now}
            while len(self._open) >= MOST_TICKETS:
                del self._open[next(iter(self._open))]
            self._open[ticket] = (report, now + TICKET_S)
        return REPORTS + ticket

    def find(self, address: str) -> Path | None:
        with self._lock:
            report, until = self._open.get(address.removeprefix(REPORTS), (None, 0.0))
        return report if until > self._clock() else None


class PageFiles:
    """ASGI, before the Door."""

    def __init__(self, app: ASGIApp, tickets: Tickets) -> None:
        self.app, self.tickets = app, tickets
        self.files = _read_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif path.startswith(REPORTS):
            await (await run_in_threadpool(self._report, path))(scope, receive, send)
        elif (found := self.files.get(path)) is not None:
            await _sent(scope, *found)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _report(self, path: str) -> Response:
        report = self.tickets.find(path)
        try:
            body = report.read_bytes() if report is not None else None
        except OSError:
            body = None
        if body is None:
            return PlainTextResponse(EXPIRED, 404, headers=COMMON)
        headers = {**COMMON, "Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(body, media_type=TYPES[".html"], headers=headers)


def _sent(scope: Scope, body: bytes, kind: str, etag: str) -> Response:
    headers = {**COMMON, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": etag}
    if Headers(scope=scope).get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)


def _read_all() -> dict[str, tuple[bytes, str, str]]:
    """URL -> content, type, ETag."""
    found: dict[str, tuple[bytes, str, str]] = {}

    def walk(folder: Traversable, url: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{url}{entry.name}/")
            elif kind := TYPES.get(Path(entry.name).suffix):
                body = entry.read_bytes()
                found[url + entry.name] = (body, kind, f'"{hashlib.sha256(body).hexdigest()[:20]}"')

    walk(resources.files("afina.server.page") / "static", ASSETS)
    found[ROOT] = found.pop(f"{ASSETS}index.html")
    return found
