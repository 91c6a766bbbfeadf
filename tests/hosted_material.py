"""Material of the tests of hosted training: a recipe, and a server that says what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from command_line import news, recipe_text, write_csv


def hosted_recipe(folder: Path, url: str, *, num_rows: int = 40, **changes: Any) -> Path:
    """A recipe over a few news items, trained at `url` in a few steps."""
    write_csv(folder / "news.csv", news(num_rows))
    train = {
        "provider": url,
        "base_model": "gpt-4o-mini-2024-07-18",
        "suffix": "teste",
        "hyperparameters": {"n_epochs": 1, "batch_size": 8},
    }
    raw = yaml.safe_load(recipe_text(train=train, output_dir=str(folder / "run")))
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            raw[group][name] = value
        else:
            raw[group] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


# -- a server that says what it is told -----------------------------------------------------------------


@dataclass
class Scripted:
    """answers: "METHOD /path" -> (status, body) or a list of them, one a call, the last repeated. calls: what came."""

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def count(self, call: str) -> int:
        return sum(1 for name, _ in self.calls if name == call)


def error(status: int, message: str, code: str | None = None) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "x", "param": None, "code": code}}


def completion(content: str, prompt: int = 10, completion: int = 5) -> tuple[int, dict[str, Any]]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return 200, {**head, "choices": [choice], "usage": usage}


@contextmanager
def scripted(answers: Mapping[str, Any]) -> Generator[Scripted]:
    """A real HTTP server for what no honest server can be brought to say: no money, overload, a lost answer."""
    told = Scripted(answers=dict(answers))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = f"{self.command} {self.path.split('?')[0]}"
            with lock:
                told.calls.append((name, raw))
                found = told.answers.get(name, error(404, f"Invalid URL ({name})"))
                if isinstance(found, Sequence) and not isinstance(found, tuple):
                    found = found.pop(0) if len(found) > 1 else found[0]
            if callable(found):
                found = found(raw)
            if found is None:  # hangs up without an answer
                self.close_connection = True
                return
            status, body = found
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
