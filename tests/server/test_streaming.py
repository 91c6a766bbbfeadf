"""Streams: the chunks of the contract, clients that hang up or read slowly, and the mailbox between engine and loop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx
import pytest
from inference_material import LABELS, MODEL, SAY, STRICT, TOOL, chat, client, events, refused
from openai import APIError, AsyncOpenAI, OpenAI
from pydantic import BaseModel

from afina.engine.generation import Delta, Token
from afina.server.errors import overloaded
from afina.server.mailbox import Mailbox, TooMuchError

if TYPE_CHECKING:
    from conftest import Api, Server


class Labels(BaseModel):
    polaridade: Literal["positivo", "negativo"]
    certa: bool


def streamed(api: Api, **more: Any) -> list[Any]:
    answer = chat(api, stream=True, **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    return events(answer.text)


# -- chunks -----------------------------------------------------------------------------------


def test_the_chunks_are_the_contracts(lite: Api) -> None:
    chunks = streamed(lite, max_completion_tokens=12)
    first, *middle, last = chunks
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["id"], chunk["created"], chunk["model"]) == (first["id"], first["created"], MODEL)
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        assert list(choice) == ["index", "delta", "logprobs", "finish_reason"]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in middle)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert last["choices"][0]["delta"] == {}
    whole = chat(lite, max_completion_tokens=12).json()["choices"][0]
    assert last["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == whole["message"]["content"]


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(lite: Api) -> None:
    chunks = streamed(lite, stream_options={"include_usage": True, "include_obfuscation": False})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert {**chunks[-1]["usage"], "prompt_tokens_details": 0} == {
        **chat(lite).json()["usage"],
        "prompt_tokens_details": 0,
    }


def test_choices_are_told_apart_by_index_and_all_open_first(lite: Api) -> None:
    chunks = streamed(lite, n=3, temperature=1.2, seed=5, max_completion_tokens=10)
    opened = [chunk["choices"][0] for chunk in chunks[:3]]
    assert [(choice["index"], choice["delta"].get("role")) for choice in opened] == [
        (0, "assistant"), (1, "assistant"), (2, "assistant"),
    ]  # fmt: skip
    texts = ["", "", ""]
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    whole = chat(lite, n=3, temperature=1.2, seed=5, max_completion_tokens=10).json()
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


def test_logprobs_are_streamed(lite: Api) -> None:
    chunks = streamed(lite, logprobs=True, top_logprobs=2)
    told = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    whole = chat(lite, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in told] == [one["token"] for one in whole]


def test_calls_are_streamed_name_first_then_arguments(lite: Api) -> None:
    chunks = streamed(lite, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_completion_tokens=200)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    (opening,) = deltas[1]["tool_calls"]
    assert opening == {
        "index": 0, "id": opening["id"], "type": "function", "function": {"name": "rotular", "arguments": ""},
    }  # fmt: skip
    rest = [delta["tool_calls"][0] for delta in deltas[2:-1]]
    assert all(list(call) == ["index", "function"] and list(call["function"]) == ["arguments"] for call in rest)
    assert set(json.loads("".join(call["function"]["arguments"] for call in rest))) == set(LABELS["properties"])
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_deprecated_function_calls_are_streamed(lite: Api) -> None:
    functions = [{"name": "f", "parameters": LABELS}]
    chunks = streamed(lite, functions=functions, function_call={"name": "f"}, max_completion_tokens=100)
    calls = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks]
    assert calls[1] == {"name": "f", "arguments": ""}
    assert json.loads("".join(call["arguments"] for call in calls if call))
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_the_sdks_streaming_helper_parses(lite: Api) -> None:
    with client(lite).chat.completions.stream(
        model=MODEL, messages=SAY, response_format=Labels, n=2  # type: ignore[arg-type]
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert [isinstance(choice.message.parsed, Labels) for choice in final.choices] == [True, True]


def test_the_sdks_helper_takes_calls(lite: Api) -> None:
    with client(lite).chat.completions.stream(
        model=MODEL, messages=SAY, tools=[TOOL], tool_choice="required", parallel_tool_calls=False  # type: ignore
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments


def test_errors_before_the_first_byte_are_plain(lite: Api) -> None:
    for stream in (True, False):
        refused(chat(lite, stream=stream, model="gpt-9"), None, "model_not_found", 404)
        refused(chat(lite, stream=stream, temperature=9), "temperature", "decimal_above_max_value")
        long = [{"role": "user", "content": "palavra " * 9000}]
        refused(chat(lite, stream=stream, messages=long), "messages", "context_length_exceeded")


def test_an_error_in_the_middle_is_an_event(lite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from afina.server import inference

    taken = 0
    take = inference.Answers._take

    async def fail_later(self: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > 2:
            raise overloaded()
        return await take(self)

    monkeypatch.setattr(inference.Answers, "_take", fail_later)
    answer = chat(lite, stream=True, max_completion_tokens=400, response_format=STRICT)
    assert answer.status_code == 200
    told = events(answer.text)
    assert set(told[-1]["error"]) == {"message", "type", "param", "code"}
    taken = 0
    with pytest.raises(APIError, match="as many requests as it can hold"):
        list(client(lite).chat.completions.create(model=MODEL, messages=SAY, stream=True, max_completion_tokens=400))  # type: ignore


# -- the real server --------------------------------------------------------------------------


def test_text_arrives_while_it_is_written(server: Server) -> None:
    sdk = OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    # Long enough to see it grow: the end of the text is forbidden.
    arrived = [
        time.monotonic()
        for _ in sdk.chat.completions.create(
            model=MODEL, messages=SAY, stream=True, max_completion_tokens=200, logit_bias=_endless(server)  # type: ignore
        )
    ]  # fmt: skip
    assert len(arrived) > 20
    assert arrived[-1] - arrived[0] > (arrived[-1] - arrived[-2]) * 3


def test_async_clients_share_the_server(server: Server) -> None:
    async def ask(sdk: AsyncOpenAI) -> str:
        text = ""
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=SAY, stream=True, max_completion_tokens=20, temperature=0  # type: ignore
        )  # fmt: skip
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as sdk:
            return await asyncio.gather(*(ask(sdk) for _ in range(16)))

    texts = asyncio.run(all_of_them())
    assert len(texts) == 16
    assert len(set(texts)) == 1


def test_a_client_that_hangs_up_stops_its_generation(server: Server) -> None:
    asked = {"model": MODEL, "messages": SAY, "max_completion_tokens": 1900, "logit_bias": _endless(server)}
    for stream in (True, False):
        before = _completion_tokens(server)
        with server.http as http:
            if stream:
                with http.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/chat/completions", json=asked, timeout=0.5)
        deadline = time.monotonic() + 30
        while _completion_tokens(server) == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert _completion_tokens(server) - before < 1900, "it did not go on to its end"


def test_a_client_that_does_not_read_holds_up_nobody(server: Server) -> None:
    place = urlsplit(server.url)
    body = json.dumps(
        {"model": MODEL, "messages": SAY, "stream": True, "max_completion_tokens": 500, "logprobs": True,
         "top_logprobs": 20, "logit_bias": _endless(server)}
    ).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((place.hostname, place.port or 80)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(head + body)
        with server.http as http:
            for _ in range(3):
                answer = http.post(
                    "/v1/chat/completions", json={"model": MODEL, "messages": SAY, "max_completion_tokens": 5}
                )
                assert answer.status_code == 200


def _endless(server: Server) -> dict[str, int]:
    """Forbids the token that ends a text; it is the second of nano's vocabulary."""
    return {"1": -100}


def _completion_tokens(server: Server) -> float:
    with server.http as http:
        text = http.get("/metrics").text
    lines = [
        line for line in text.splitlines() if line.startswith("afina_tokens_total") and 'kind="completion"' in line
    ]
    return sum(float(line.split()[-1]) for line in lines)


# -- the mailbox ------------------------------------------------------------------------------


def delta(text: str, finish: Any = None, tokens: int = 0) -> Delta:
    return Delta(text, tuple(Token(1, b"a", -1.0, ()) for _ in range(tokens)), finish)


def test_what_waits_is_joined_by_choice() -> None:
    async def run() -> None:
        box = Mailbox(2, every_piece=True, most_bytes=1000, on_full=lambda: None)

        def engine() -> None:
            for text in "abc":
                box.put(0, delta(text, tokens=1))
            box.put(1, delta("x", "stop"))

        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()
        pieces = await box.take()
        assert [(piece.index, piece.delta.text, piece.delta.finish) for piece in pieces] == [
            (0, "abc", None), (1, "x", "stop"),
        ]  # fmt: skip
        assert len(pieces[0].delta.tokens) == 3
        assert box.unfinished == 1

    asyncio.run(run())


def test_whole_answers_wake_their_reader_once() -> None:
    async def run() -> None:
        box = Mailbox(2, every_piece=False, most_bytes=1000, on_full=lambda: None)
        box.put(0, delta("a", "stop"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await box.take()
        box.put(1, delta("b", "length"))
        assert len(await box.take()) == 2

    asyncio.run(run())


def test_a_reader_that_does_not_read_is_given_up() -> None:
    given_up: list[bool] = []

    async def run() -> None:
        box = Mailbox(1, every_piece=True, most_bytes=1000, on_full=lambda: given_up.append(True))
        for _ in range(100):
            box.put(0, delta("x" * 50))
        for _ in range(2):
            with pytest.raises(TooMuchError):
                await box.take()

    asyncio.run(run())
    assert given_up == [True]


def test_text_before_an_error_is_read_before_it() -> None:
    async def run() -> None:
        box = Mailbox(1, every_piece=True, most_bytes=1000, on_full=lambda: None)
        box.put(0, delta("a"))
        box.fail(ValueError("x"))
        box.fail(ValueError("y"))
        assert (await box.take())[0].delta.text == "a"
        for _ in range(2):
            with pytest.raises(ValueError, match="x"):
                await box.take()

    asyncio.run(run())


def test_a_closed_loop_stops_the_engine() -> None:
    stopped: list[bool] = []

    async def make() -> Mailbox:
        return Mailbox(1, every_piece=True, most_bytes=1000, on_full=lambda: stopped.append(True))

    asyncio.run(make()).put(0, delta("a"))
    assert stopped == [True]
