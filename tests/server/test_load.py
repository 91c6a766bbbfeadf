"""Sixty-four clients at once: no errors, no growth, nothing left behind. AFINA_LOAD=60 makes it a minute.

The clients share the machine with the server, so the latencies that are printed are those of a crowded machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from small_model import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Server, StartServer

MODEL = "gpt-4o-mini-2024-07-18"
LABELS = {
    "type": "object",
    "properties": {"polaridade": {"enum": ["positivo", "negativo", "neutro"]}, "certa": {"type": "boolean"}},
    "required": ["polaridade", "certa"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "labels", "strict": True, "schema": LABELS}}
TOOL = {"type": "function", "function": {"name": "rotular", "parameters": LABELS, "strict": True}}
CLIENTS = 64
SECONDS = float(os.environ.get("AFINA_LOAD", "5"))
WARM_UP_S, WARM_UP_REQUESTS = max(2.0, SECONDS / 5), 8 * CLIENTS
# Keys and values of recent texts are kept up to 256 MiB; these conversations fill a small part of it.
GROWTH_BYTES = 128 * 2**20
KINDS = ("text", "structured", "stream", "two", "calls", "refused", "leaves")


@dataclass
class Seen:
    """latencies_s: of whole answers, by kind. faults: what was not as it should be."""

    latencies_s: list[float] = field(default_factory=list[float])
    kinds: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    def p95_s(self) -> float:
        return sorted(self.latencies_s)[int(0.95 * (len(self.latencies_s) - 1))]


def body(kind: str, chance: random.Random) -> dict[str, Any]:
    """A request of a kind; texts differ, so that prompts are read and not only remembered."""
    text = "Polaridade de: " + " ".join(chance.choice(["bom", "ruim", "produto", "chegou", "não"]) for _ in range(12))
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": 24,
    }
    more: dict[str, dict[str, Any]] = {
        "structured": {"response_format": STRICT},
        "stream": {"stream": True, "stream_options": {"include_usage": True}},
        "two": {"n": 2, "logprobs": True, "top_logprobs": 3},
        "calls": {"tools": [TOOL], "tool_choice": "required"},
        "refused": {"temperature": 9},
        "leaves": {"stream": True, "max_completion_tokens": 1000},
    }
    return {**asked, **more.get(kind, {})}


async def ask(http: httpx.AsyncClient, kind: str, chance: random.Random) -> str | None:
    """One request; what was wrong with its answer."""
    asked = body(kind, chance)
    if kind in ("stream", "leaves"):
        async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            if answer.status_code != 200:
                return f"{kind}: {answer.status_code}"
            if kind == "leaves":
                async for _ in answer.aiter_bytes():
                    return None
            text = (await answer.aread()).decode()
        return None if text.endswith("data: [DONE]\n\n") and '"usage":{' in text else f"stream: {text[-200:]}"
    answer = await http.post("/v1/chat/completions", json=asked)
    if answer.status_code != (400 if kind == "refused" else 200):
        return f"{kind}: {answer.status_code} {answer.text[:200]}"
    if kind == "refused":
        return None
    choices = answer.json()["choices"]
    if len(choices) != (2 if kind == "two" else 1):
        return f"{kind}: {len(choices)} choices"
    if kind == "structured" and choices[0]["finish_reason"] == "stop":
        json.loads(choices[0]["message"]["content"])
    return None


async def client(
    http: httpx.AsyncClient, until: float, number: int, seen: Seen, kinds: tuple[str, ...], at_least: int
) -> None:
    chance = random.Random(number)
    while time.monotonic() < until or seen.kinds.total() < at_least:
        kind = chance.choice(kinds)
        began = time.monotonic()
        try:
            fault = await ask(http, kind, chance)
        except (httpx.HTTPError, ValueError) as error:
            fault = f"{kind}: {type(error).__name__} {error}"
        if kind not in ("refused", "leaves"):
            seen.latencies_s.append(time.monotonic() - began)
        seen.kinds[kind] += 1
        if fault:
            seen.faults.append(fault)


async def crowd(
    server: Server, clients: int, seconds: float, kinds: tuple[str, ...] = KINDS, at_least: int = 0
) -> Seen:
    """at_least: requests, however long they take."""
    seen = Seen()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"Authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, limits=limits, timeout=120, trust_env=False
    ) as http:
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(http, until, number, seen, kinds, at_least) for number in range(clients)))
    return seen


def gauges(server: Server) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.mark.slow
def test_sixty_four_clients(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    data_dir: Path = tmp_path_factory.mktemp("load") / "data"
    # Small, so that many requests are served in few seconds: what could leak is the server's.
    base = small_model(data_dir.parent / "base")
    server = start_server(data_dir, environment={"AFINA_BASE_MODEL": str(base)})
    process = psutil.Process(server.process.pid)
    whole = tuple(kind for kind in KINDS if kind not in ("refused", "leaves"))
    asyncio.run(crowd(server, 1, 1.0, whole))  # loads the model
    alone = asyncio.run(crowd(server, 1, min(5.0, SECONDS / 5), whole))
    warm = asyncio.run(crowd(server, CLIENTS, WARM_UP_S, at_least=WARM_UP_REQUESTS))
    before = process.memory_info().rss
    seen = asyncio.run(crowd(server, CLIENTS, SECONDS))
    after = process.memory_info().rss
    print(
        f"{sum(seen.kinds.values())} requests in {SECONDS:g} s, {dict(seen.kinds)}; p95 {seen.p95_s() * 1000:.0f} ms "
        f"of {CLIENTS} clients, {alone.p95_s() * 1000:.0f} ms of one; resident {before / 2**20:.0f} MiB -> "
        f"{after / 2**20:.0f} MiB"
    )
    assert alone.faults + warm.faults + seen.faults == []
    assert all(seen.kinds[kind] > 0 for kind in KINDS), seen.kinds
    assert after - before < GROWTH_BYTES
    deadline = time.monotonic() + 20
    while gauges(server)["afina_requests_in_flight"] > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    left = gauges(server)
    assert left["afina_requests_in_flight"] == 1  # this question
    assert left['afina_answers{state="running"}'] == left['afina_answers{state="waiting"}'] == 0
    assert server.stop() == 0
    assert "failed" not in server.errors()
