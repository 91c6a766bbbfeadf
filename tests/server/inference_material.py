"""What the tests of the inference endpoints share: the official client on a server in this process, small requests."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import anyio.from_thread
from openai import OpenAI

from afina.server.batches import start_batches

if TYPE_CHECKING:
    from conftest import Api

MODEL = "gpt-4o-mini-2024-07-18"
SAY = [{"role": "user", "content": "Diga bom dia."}]
LABELS = {
    "type": "object",
    "properties": {
        "polaridade": {"type": "string", "enum": ["positivo", "negativo", "neutro"]},
        "emocao": {"type": "string", "enum": ["alegria", "tristeza"]},
        "certa": {"type": "boolean"},
    },
    "required": ["polaridade", "emocao", "certa"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "labels", "strict": True, "schema": LABELS}}
TOOL = {
    "type": "function",
    "function": {"name": "rotular", "description": "Rotula", "parameters": LABELS, "strict": True},
}
OTHER_TOOL = {"type": "function", "function": {"name": "parar", "parameters": {"type": "object", "properties": {}}}}


def client(api: Api) -> OpenAI:
    key = api.http.headers["authorization"].removeprefix("Bearer ")
    return OpenAI(base_url="http://testserver/v1", api_key=key, http_client=api.http, max_retries=0)


def chat(api: Api, **more: Any) -> Any:
    """The raw HTTP answer of a small chat request."""
    return api.http.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": SAY, "max_completion_tokens": 8, "temperature": 0, **more},
    )


def events(text: str) -> list[Any]:
    """The objects of a stream that ended as it should."""
    parts = [part for part in text.split("\n\n") if part]
    assert parts[-1] == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


def refused(answer: Any, param: str | None, code: str | None, status: int = 400) -> str:
    """The message of a refusal that has this status, param and code and the four keys of the contract."""
    body = answer.json()
    assert answer.status_code == status, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code), error
    return cast(str, error["message"])


def portal(api: Api) -> anyio.from_thread.BlockingPortal:
    assert api.http.portal is not None
    return api.http.portal


@contextlib.contextmanager
def batches_running(api: Api) -> Iterator[None]:
    """The batch worker of a server that did not start one itself."""
    if api.context.batches is not None:
        yield
        return
    worker = portal(api).call(functools.partial(start_batches, api.context))
    try:
        yield
    finally:
        portal(api).call(worker.stop)
        api.context.batches = None


def wait_for(true: Callable[[], bool], what: str, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"no {what} in {patience_s} s"
        time.sleep(0.05)
