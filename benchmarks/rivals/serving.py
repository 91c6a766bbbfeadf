"""One server, or the engine without one, under load: requests per second and time to the first token.

    python benchmarks/rivals/serving.py afina|engine|transformers|transformers-batching --clients 1,8,32 --seconds 8

The last line is one JSON object: `<kind>_<clients>_<figure>`. kind: text (free, greedy, at most TOKENS tokens) or
structured (a strict JSON schema). A client sends its next request when the last one is answered. Times in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import httpx

TOKENS = 32
NANO = Path(str(resources.files("afina"))) / "assets" / "nano"
TABLE = Path(str(resources.files("afina"))) / "assets" / "noticias" / "noticias.csv"
SYSTEM = "Classifique a frase da notícia conforme a polaridade e a emoção universal de Ekman."
EMOTIONS = ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"]
SCHEMA = {
    "type": "object",
    "properties": {
        "polaridade": {"type": "string", "enum": ["positivo", "negativo", "neutro"]},
        "emocao": {"type": "string", "enum": EMOTIONS},
    },
    "required": ["polaridade", "emocao"],
    "additionalProperties": False,
}
KEY = "sk-benchmark"


@dataclass
class Load:
    """What one load did. finished: (seconds, completion tokens) of each request. first: seconds to the first token."""

    elapsed_s: float = 0.0
    finished: list[tuple[float, int]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    errors: int = 0

    def figures(self) -> dict[str, float | int]:
        times = sorted(t for t, _ in self.finished)
        firsts = sorted(self.first)
        found: dict[str, float | int] = {"errors": self.errors}
        if times:
            found["requests_per_s"] = len(times) / self.elapsed_s
            found["tokens_per_s"] = sum(n for _, n in self.finished) / self.elapsed_s
            found["latency_p50_s"] = median(times)
            found["latency_p95_s"] = times[int(0.95 * (len(times) - 1))]
        if firsts:
            found["first_token_p50_s"] = median(firsts)
            found["first_token_p95_s"] = firsts[int(0.95 * (len(firsts) - 1))]
        return found


def sentences() -> list[str]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [row[key] for row in csv.DictReader(file) for key in ("f1", "f2", "f3")]


def body(model: str, text: str, kind: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    made: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    if stream:
        made["stream"] = True
    if kind == "structured":
        schema = {"name": "news", "strict": True, "schema": SCHEMA}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    return made


# -- over HTTP -----------------------------------------------------------------------------------


async def http_load(url: str, model: str, kind: str, clients: int, seconds: float, *, stream: bool) -> Load:
    texts, load, began = sentences(), Load(), time.perf_counter()
    limits = httpx.Limits(max_connections=clients)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as http:

        async def client(number: int) -> None:
            turn = number
            while time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                asked = body(model, texts[turn % len(texts)], kind, stream=stream)
                try:
                    if stream:
                        await first_token(http, asked, sent, load)
                    else:
                        answer = await http.post("/chat/completions", json=asked)
                        answer.raise_for_status()
                        tokens = answer.json()["usage"]["completion_tokens"]
                        load.finished.append((time.perf_counter() - sent, tokens))
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                    load.errors += 1
                turn += clients

        await asyncio.gather(*(client(n) for n in range(clients)))
    load.elapsed_s = time.perf_counter() - began
    return load


async def first_token(http: httpx.AsyncClient, asked: dict[str, Any], sent: float, load: Load) -> None:
    """Read a whole stream; note when the first text came."""
    seen = False
    async with http.stream("POST", "/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if not seen and choices[0].get("delta", {}).get("content"):
                seen = True
                load.first.append(time.perf_counter() - sent)


@contextlib.contextmanager
def server(command: list[str], env: dict[str, str], ready: str) -> Generator[None]:
    """A server process that answers at `ready` before the body runs."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(ready, timeout=2).status_code < 500:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} ended: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def over_http(command: list[str], env: dict[str, str], port: int, model: str, kinds: list[str], plan: Any) -> Any:
    url = f"http://127.0.0.1:{port}"

    def measure(kind: str, clients: int, seconds: float, *, stream: bool) -> Load:
        return asyncio.run(http_load(f"{url}/v1", model, kind, clients, seconds, stream=stream))

    with server(command, env, f"{url}/health"):
        return plan(measure, kinds)


# -- the engine by itself ----------------------------------------------------------------------------


def engine_load(served: Any, kind: str, clients: int, seconds: float) -> Load:
    """As many requests under way as there are clients; the next one is sent where the last one ended."""
    from afina.core.chat import Conversation, Message
    from afina.engine.generation import Delta, Generation
    from afina.engine.sampling import Sampling
    from afina.engine.shapes import JsonSchema, Text

    texts, load, began = sentences(), Load(), time.perf_counter()
    ended = threading.Semaphore(0)
    shape = JsonSchema(SCHEMA, strict=True) if kind == "structured" else Text()

    def send(turn: int) -> None:
        sent, first = time.perf_counter(), [True]
        messages = (Message("system", SYSTEM), Message("user", texts[turn % len(texts)]))
        ids = served.chat.prompt(Conversation(messages))

        def on_delta(delta: Delta) -> None:
            if first[0] and delta.text:
                first[0] = False
                load.first.append(time.perf_counter() - sent)
            if delta.finish is not None:
                load.finished.append((time.perf_counter() - sent, generation.completion_tokens))
                following(turn + clients)

        def on_error(error: Exception) -> None:
            load.errors += 1
            following(turn + clients)

        generation = Generation(ids, shape, Sampling(temperature=0.0, max_tokens=TOKENS), on_delta, on_error)
        served.submit(generation)

    def following(turn: int) -> None:
        if time.perf_counter() - began < seconds:
            send(turn)
        else:
            ended.release()

    for number in range(clients):
        send(number)
    for _ in range(clients):
        ended.acquire()
    load.elapsed_s = time.perf_counter() - began
    return load


def engine(kinds: list[str], plan: Any) -> Any:
    from afina.server.config import ServerConfig
    from afina.server.places import Places
    from afina.server.pool import ModelPool
    from afina.server.store import Store

    with tempfile.TemporaryDirectory() as folder:
        pool = ModelPool(ServerConfig(), Store(f"sqlite:///{folder}/afina.db"), Places(Path(folder)))
        served = pool.get("afina/nano")
        try:
            return plan(lambda kind, clients, seconds, stream: engine_load(served, kind, clients, seconds), kinds)
        finally:
            pool.close()


# -- the plan ------------------------------------------------------------------------------------------


def make_plan(clients: list[int], seconds: float) -> Callable[..., dict[str, Any]]:
    def plan(measure: Callable[..., Load], kinds: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in kinds:
            measure(kind, min(8, clients[-1]), 2.0, stream=False)  # warm
            for count in clients:
                for stream in (False, True):
                    figures = measure(kind, count, seconds, stream=stream).figures()
                    if stream:
                        figures = {k: v for k, v in figures.items() if k.startswith("first") or (k == "errors" and v)}
                    for key, value in figures.items():
                        found[re.sub(r"\W", "_", f"{kind}_{count}_{key}")] = value
        return found

    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival", choices=("afina", "engine", "transformers", "transformers-batching"))
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    asked = parser.parse_args()
    plan = make_plan([int(n) for n in asked.clients.split(",")], asked.seconds)
    both, port = ["text", "structured"], free_port()
    if asked.rival == "engine":
        print(json.dumps(engine(both, plan)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if asked.rival == "afina":
            command = [sys.executable, "-m", "afina", "serve", "--port", str(port), "--data-dir", folder]
            found = over_http(command, {"AFINA_API_KEY": KEY}, port, "afina/nano", both, plan)
        else:
            command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(NANO), "--port", str(port)]
            command += ["--continuous-batching"] * (asked.rival == "transformers-batching")
            # It has no strict schemas: free text only.
            found = over_http(command, {"HF_HOME": folder}, port, str(NANO), ["text"], plan)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
