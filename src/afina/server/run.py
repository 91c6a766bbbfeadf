"""`afina serve`: one process, from a configuration to a graceful end.

Comes in: a ServerConfig. Goes out: an address and a snippet on standard output, then answers until SIGINT or SIGTERM.
What a user can mend (a port in use, a folder in use, a database away) is raised as AfinaError before anything serves.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Generator

import h11
import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from afina.core.errors import MachineError
from afina.server import names
from afina.server.config import ServerConfig
from afina.server.errors import bad_request

KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(config: ServerConfig, *, preset_key: str | None = None, log_requests: bool = False) -> None:
    """Returns when a signal ended it. Raises AfinaError when it cannot start."""
    listening = _bind(config.host, config.port)
    port = listening.getsockname()[1]
    if not config.on_loopback:
        print(
            f"afina: warning: {config.host} can be reached from other machines, and what they send is not encrypted. "
            "Put a proxy with TLS before it.",
            file=sys.stderr,
        )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would log every malformed upload
    from afina.server.app import create_app  # loads torch, for which a refusal need not wait

    app = create_app(config, preset_key=preset_key, log_requests=log_requests)
    settings = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(config.shutdown_timeout_s),
    )
    with contextlib.closing(listening):
        try:
            _Server(settings, lambda: _announce(config, app, port, preset_key)).run(sockets=[listening])
        except SystemExit:  # uvicorn's, when the application could not start
            if app.state.failure is None:
                raise
    if app.state.failure is not None:
        raise app.state.failure


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens, and for which a signal is an end like any other."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What lives now lives to the end. Looking through half a million objects of libraries, each time that a large
        # request made many of its own, would stop everything for half a second.
        gc.collect()
        gc.freeze()
        if not self.should_exit:
            self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """Refuses what is no HTTP with the contract's body as well."""

    def send_400_response(self, msg: str) -> None:
        body = JSONResponse(bad_request(msg).body)
        headers = [*body.raw_headers, (b"x-request-id", names.request_id().encode()), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(body.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise MachineError(f"--host {host}: no such address ({error.strerror or error}). Try 127.0.0.1.") from error
    # Said to be TCP: only then asyncio sends what is written at once (TCP_NODELAY); else an answer's body waits for the
    # client's acknowledgement of its head, which takes 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # Taken from now on, not only when everything is loaded; connections wait meanwhile.
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise MachineError(
                f"Port {port} of {host} is in use. Stop what uses it, or choose another --port."
            ) from error
        reason = error.strerror or error
        raise MachineError(
            f"{host}:{port}: cannot listen there ({reason}). Choose another --host or --port."
        ) from error
    return listening


def _announce(config: ServerConfig, app: FastAPI, port: int, preset_key: str | None) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    root = f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"
    url = f"{root}/v1"
    folder = app.state.context.places.root
    key: str | None = app.state.first_key
    lines = [f"Afina serves {url} (data in {folder}). Ctrl-C stops it."]
    if key is not None:
        lines.append(f"API key, shown this once: {key}")
    elif preset_key is None:
        lines.append("API key: made at an earlier start; `afina keys create` makes another.")
    # A key in the fragment stays in the browser. Where nobody watches, as in a service's log, none is written.
    for_page: str | None = key or (app.state.context.keys.page_key if sys.stdout.isatty() else None)
    lines.append(f"Page: {root}/{f'#key={for_page}' if for_page else ''}")
    lines += ["", *(f"    {line}" for line in snippet(url, key, preset_key is not None)), ""]
    print("\n".join(lines), flush=True)


def snippet(url: str, key: str | None, preset: bool) -> list[str]:
    """Four lines that work as pasted. A key is in them only when it was just made."""
    shown = f'"{key}"' if key is not None else 'os.environ["AFINA_API_KEY"]' if preset else 'input("API key: ")'
    return [
        ("import os; " if preset and key is None else "") + "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}", api_key={shown})',
        'asked = [{"role": "user", "content": "Bom dia!"}]',
        'print(client.chat.completions.create(model="gpt-4o-mini", messages=asked).choices[0].message.content)',
    ]
