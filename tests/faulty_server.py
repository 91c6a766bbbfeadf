"""A real HTTP server that speaks /v1/chat/completions, counts every request by its content, and fails as it is told."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Says:
    """What the server does with one request.

    cut_after: bytes of the answer's body that are sent before the connection breaks; None for all. delay_s: before the
    answer. billed: (prompt, completion) tokens that have to be paid, whatever becomes of the answer.
    """

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    delay_s: float = 0.0
    billed: tuple[int, int] = (0, 0)


def answer(content: str | None, *, prompt: int = 10, completion: int = 5, **more: Any) -> Says:
    """A chat completion. more: finish_reason, refusal, usage (None: not told), or fields of `Says`."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    usage = more.pop("usage", usage)
    message = {"role": "assistant", "content": content, "refusal": more.pop("refusal", None)}
    choice = {"index": 0, "message": message, "finish_reason": more.pop("finish_reason", "stop"), "logprobs": None}
    whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    whole |= {} if usage is None else {"usage": usage}
    return Says(content=json.dumps(whole).encode(), billed=(prompt, completion), **more)


def error(status: int, message: str, code: str | None = None, **more: Any) -> Says:
    """A refusal of the API's shape. more: param, failed_generation, or headers."""
    headers = more.pop("headers", {})
    said = {"message": message, "type": "x", "param": more.pop("param", None), "code": code, **more}
    return Says(status, json.dumps({"error": said}).encode(), headers)


@dataclass
class Call:
    """One request. text: of its last message. sent: its whole answer was handed to the network."""

    text: str
    body: Body
    headers: Mapping[str, str]
    life: int
    began: float
    sent: bool = False


Script = Callable[[Call], Says]


class FaultyServer:
    """script: what to say to a request. life: of the process that asks, as the test counts."""

    def __init__(self, script: Script) -> None:
        self.script, self.life = script, 0
        self.calls: list[Call] = []
        self.billed: list[tuple[int, int]] = []
        self.under_way = self.most_under_way = 0
        self.url = ""
        self.lock = threading.Lock()

    def count(self, text: str) -> int:
        """Requests whose last message is this text."""
        with self.lock:
            return sum(call.text == text for call in self.calls)

    def counts(self) -> Counter[str]:
        with self.lock:
            return Counter(call.text for call in self.calls)

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)))
        with self.lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            call = Call(body["messages"][-1]["content"], body, headers, self.life, time.monotonic())
            self.calls.append(call)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            says = self.script(call)
            with self.lock:
                self.billed.append(says.billed)
            time.sleep(says.delay_s)
            _send(handler, says)
            call.sent = says.cut_after is None
        finally:
            with self.lock:
                self.under_way -= 1


def _send(handler: BaseHTTPRequestHandler, says: Says) -> None:
    handler.send_response(says.status)
    for name, value in {"Content-Type": "application/json", **says.headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(says.content)))
    handler.end_headers()
    handler.wfile.write(says.content[: says.cut_after])
    handler.wfile.flush()
    if says.cut_after is not None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty_server(script: Script | Sequence[Says] | Says) -> Generator[FaultyServer]:
    """script: a function, or what is said one request after the other, the last for all that follow."""
    if isinstance(script, Says):
        script = [script]
    served = FaultyServer(script if callable(script) else _one_by_one(script))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            # The other side was killed: it may be gone at any moment.
            with suppress(ConnectionError, TimeoutError):
                if self.path.split("?")[0].endswith("/chat/completions"):
                    served.take(self)
                else:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    _send(self, error(404, f"Invalid URL (POST {self.path})"))
                return
            self.close_connection = True

        def do_GET(self) -> None:
            _send(self, error(404, f"Invalid URL (GET {self.path})"))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def _one_by_one(all_says: Sequence[Says]) -> Script:
    left, lock = list(all_says), threading.Lock()

    def say(call: Call) -> Says:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return say


def echo(call: Call) -> Says:
    """The question in capitals."""
    return answer(call.text.upper())


def bill_anything(seed: int, delay_s: float = 0.0) -> Script:
    """Answers of any length up to the limit; prompts of as many tokens as they have bytes, which is the most."""
    chance, lock = random.Random(seed), threading.Lock()

    def say(call: Call) -> Says:
        prompt = sum(len(message["content"].encode()) + 16 for message in call.body["messages"])
        with lock:
            completion = chance.choice([1, call.body["max_completion_tokens"], chance.randint(1, 50)])
            pause_s = chance.uniform(0, delay_s)
        completion = min(completion, call.body["max_completion_tokens"])
        return answer(call.text.upper(), prompt=prompt, completion=completion, delay_s=pause_s)

    return say
