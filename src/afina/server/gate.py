"""What every request passes before an endpoint sees it, as plain ASGI, which leaves streams and hang-ups as they are.

    Envelope   outermost: ids, headers, time, counts, and the answer to every error
    Door       the API key
    Turnstile  rate limits
    Intake     the body: its type, its size, and whether its JSON is one

Each raises ApiError; only the Envelope answers. No trace ever leaves; the log gets one, without values.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import quote

import anyio
from anyio import CapacityLimiter, to_thread
from python_multipart.multipart import parse_options_header
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afina.server import names
from afina.server.config import ServerConfig
from afina.server.errors import ApiError, bad_request
from afina.server.fields import MOST_DEPTH, depth_of
from afina.server.keys import Keys, digest_of, masked
from afina.server.limits import Limits
from afina.server.metrics import CALLER, Meter
from afina.server.refusals import unparsable
from afina.server.upload import MOST_HEADER_BYTES, MOST_PARTS, disk_error

log = logging.getLogger("afina.server")
UPLOADS = "/v1/files"
INFERENCE = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
        *("/afina/api/ask", "/afina/api/predict"),
    }
)
OPEN = frozenset({"/health"})
METRICS = "/metrics"
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
THREADED_BYTES = 256 * 1024  # a longer body is parsed in a thread
# Python reads a million values in a second in which nothing else runs; no honest body has so many.
MOST_KEYS, MOST_COMMAS = 200_000, 1_000_000
KEY = re.compile(rb'"\s*:')
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY). `afina keys create` makes one."
)
OUR_BUG = "The server had an error while processing your request. Sorry about that!"


def answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


def unknown_url(method: str, path: str) -> ApiError:
    return ApiError(404, f"Invalid URL ({method} {path[:200]})")


def stopping() -> ApiError:
    message = "The server is stopping. Try again in a moment."
    return ApiError(503, message, type="server_error", headers={"Retry-After": "5"})


class Envelope:
    """log_requests: one line each on standard error."""

    def __init__(self, app: ASGIApp, meter: Meter, organisation: str, log_requests: bool) -> None:
        self.app, self.meter, self.log_requests = app, meter, log_requests
        self.headers = {
            "openai-version": "2020-10-01",
            "openai-organization": organisation,
            "openai-project": "default",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        request_id = scope.setdefault("state", {})["request_id"] = names.request_id()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        with self.meter.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_with_headers)
            except asyncio.CancelledError:  # the server stops, and its patience is over
                if status == 0:
                    await answer(stopping())(scope, receive, send_with_headers)
                raise
            except ClientDisconnect:
                status = status or 499  # nobody is there to read an answer
            except Exception as error:
                if status == 0:
                    await answer(as_api_error(error, request_id))(scope, receive, send_with_headers)
                else:  # in the middle of a stream: the connection ends without its end, which the client notices
                    _log_bug(error, request_id)
        seconds = time.perf_counter() - began
        self.meter.request(scope["method"], _route(scope), status, seconds)
        if self.log_requests:
            line = f"{time.strftime('%H:%M:%S')} {status} {scope['method']} {quote(scope['path'])}"
            print(f"{line} {seconds * 1000:.0f}ms {request_id}", file=sys.stderr, flush=True)


def as_api_error(error: Exception, request_id: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DataError):  # as a NUL character, which PostgreSQL keeps in no text
        return bad_request("A text in your request has a character that this server cannot keep.")
    if isinstance(error, OperationalError | InterfaceError):
        _log_bug(error, request_id)
        return ApiError(503, "The server's database does not answer. Try again in a moment.", type="server_error")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        _log_bug(error, request_id)
        return disk_error(error)
    _log_bug(error, request_id)
    return ApiError(500, OUR_BUG, type="server_error")


def _log_bug(error: BaseException, request_id: str) -> None:
    """Where it happened, and not with what: values in a message may be a user's text."""
    chain: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = "".join(traceback.format_tb(seen.__traceback__))
        chain.append(f"{frames}{type(seen).__module__}.{type(seen).__qualname__}")
        seen = seen.__cause__
    log.error("request %s failed:\n%s", request_id, "\ncaused by:\n".join(chain))


def _route(scope: Scope) -> str:
    """The route's pattern, of which there are few; never the path, of which there are many."""
    pattern: str | None = getattr(scope.get("route"), "path", None)
    if pattern is None:
        return "other"
    return pattern if pattern.startswith("/v1") or not scope["path"].startswith("/v1") else f"/v1{pattern}"


class Door:
    """401 without a key in force."""

    def __init__(self, app: ASGIApp, keys: Callable[[], Keys]) -> None:
        self.app, self.keys = app, keys
        # Its own: a request that waits for a model holds one of the common threads.
        self.readers = CapacityLimiter(2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            digest = await self._admit(Headers(scope=scope).get("authorization", ""))
            CALLER.set(digest)
        await self.app(scope, receive, send)

    async def _admit(self, header: str) -> str:
        scheme, _, plain = header.partition(" ")
        plain = plain.strip()
        if scheme.lower() != "bearer" or not plain:
            raise ApiError(401, NO_KEY)
        keys, digest = self.keys(), digest_of(plain)
        known = keys.match(digest) if keys.fresh else await to_thread.run_sync(keys.match, digest, limiter=self.readers)
        if not known:
            message = f"Incorrect API key provided: {masked(plain)}. `afina keys create` on the server makes one."
            raise ApiError(401, message, code="invalid_api_key")
        return digest


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    if path in OPEN:
        return True
    host = (scope.get("client") or ("", 0))[0]
    headers = Headers(scope=scope)
    direct = not any(name in headers for name in FORWARDED)
    return path == METRICS and direct and "authorization" not in headers and (host.startswith("127.") or host == "::1")


class Turnstile:
    """Rate limits of the inference endpoints."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = CALLER.get()
        if scope["type"] != "http" or not self.limits.on or caller is None or scope["path"] not in INFERENCE:
            await self.app(scope, receive, send)
            return
        state = self.limits.admit(caller)

        async def send_with_state(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(state)
            await send(message)

        await self.app(scope, receive, send_with_state)


class Intake:
    """Bodies: JSON is read and checked here, an upload only measured; it is read by `upload.py`."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "\0" in scope["path"]:
            raise unknown_url(scope["method"], quote(scope["path"]))
        if b"%00" in scope.get("query_string", b""):
            raise bad_request("A query parameter has a NUL character.")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            headers = Headers(scope=scope)
            encoding = headers.get("content-encoding", "identity").lower()
            if encoding != "identity":
                raise ApiError(415, f"Unsupported content encoding: {encoding[:100]!r}. Send the body as it is.")
            if scope["path"] == UPLOADS and scope["method"] == "POST":
                receive = self._measured(headers, receive)
            else:
                receive = await self._parsed(headers, receive)
        await self.app(scope, receive, send)

    def _measured(self, headers: Headers, receive: Receive) -> Receive:
        """An upload, cut off when it passes what one file and its form may have."""
        _require_type(headers, "multipart/form-data")
        most = self.config.max_file_bytes + MOST_PARTS * 4 * MOST_HEADER_BYTES
        if _length(headers) > most:
            _too_large(self.config.max_file_bytes)
        so_far = 0

        async def receive_measured() -> Message:
            nonlocal so_far
            message = await receive()
            so_far += len(message.get("body", b""))
            if so_far > most:
                _too_large(self.config.max_file_bytes)
            return message

        return receive_measured

    async def _parsed(self, headers: Headers, receive: Receive) -> Receive:
        """A JSON body, read whole and found good; endpoints read it again from memory."""
        most = self.config.max_body_bytes
        if _length(headers) > most:
            _too_large(most)
        body = bytearray()
        more = True
        while more:
            try:
                with anyio.fail_after(self.config.body_timeout_s):
                    message = await receive()
            except TimeoutError:
                reason = f"The request's body stopped arriving for {self.config.body_timeout_s:g} seconds."
                raise ApiError(408, reason) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                _too_large(most)
        if body:
            _require_type(headers, "application/json")
            if len(body) > THREADED_BYTES:
                await to_thread.run_sync(check_json, bytes(body))
            else:
                check_json(bytes(body))
        told = False

        async def receive_again() -> Message:
            nonlocal told
            if told:
                return await receive()  # how an endpoint learns that the client hung up
            told = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return receive_again


def check_json(body: bytes) -> None:
    """Raises ApiError for what is no JSON by RFC 8259, and for what Python reads but cannot write again: NaN, infinite
    numbers, halves of surrogate pairs, nesting that recursion would not survive."""
    if len(body) > THREADED_BYTES and (body.count(b",") > MOST_COMMAS or len(KEY.findall(body)) > MOST_KEYS):
        message = f"The request's body has more than {MOST_KEYS} keys or {MOST_COMMAS} values, the most read here."
        raise ApiError(413, message)
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise unparsable(f"byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise unparsable(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise unparsable(f"it nests deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, NotJsonError) else "a number has too many digits"
        raise unparsable(reason) from None
    if body.count(b"[") + body.count(b"{") > MOST_DEPTH and depth_of(value) > MOST_DEPTH:
        raise unparsable(f"it nests deeper than {MOST_DEPTH} levels")
    if SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise unparsable("a string has half of a surrogate pair, which is no character") from None


class NotJsonError(ValueError):
    pass


def _no_constant(word: str) -> NoReturn:
    raise NotJsonError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise NotJsonError("a number is too large")
    return number


def _length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _too_large(most: int) -> NoReturn:
    message = f"The request's body is larger than {most / 2**20:g} MB, the most that is read here."
    raise ApiError(413, message)


def _require_type(headers: Headers, wanted: str) -> None:
    sent = headers.get("content-type", "")
    kind, _ = parse_options_header(sent)
    if kind == wanted.encode() or (wanted == "application/json" and re.fullmatch(rb"application/[\w.-]+\+json", kind)):
        return
    message = (
        f"Unsupported content type: '{kind.decode('latin-1')[:100]}'. This API method only accepts '{wanted}' "
        f"requests, but you specified the header 'Content-Type: {sent[:100]}'. Please try again with a supported "
        "content type."
    )
    raise bad_request(message, code="unsupported_content_type")
