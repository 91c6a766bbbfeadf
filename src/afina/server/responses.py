"""POST /v1/responses: one answer, whole or as typed events. Nothing is kept.

Comes in: a request of the Responses API. Goes out: a `response` object with its output items, or the events in which it
grows. Knows only the wire format; generation is `inference.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afina.core.chat import Conversation, Tool
from afina.engine.generation import Token
from afina.engine.sampling import Sampling
from afina.server.calls import CallPiece, CallReader
from afina.server.chat import call_id, logprobs_object
from afina.server.context import Context, context_of
from afina.server.errors import ApiError
from afina.server.inference import (
    Answers,
    Prepared,
    Usage,
    answered,
    as_json,
    in_thread,
    is_fine_tuned,
    limited,
    prompt_of,
)
from afina.server.mailbox import Piece
from afina.server.names import new_id
from afina.server.response_body import ResponseBody, calling_of, messages_of, tools_of
from afina.server.streaming import EventStream, event, unless_gone
from afina.server.structured import Format, shape_of, text_format
from afina.server.wire import now

router = APIRouter()
Event = tuple[str, dict[str, Any]]


@router.post("/responses")
async def create(body: ResponseBody, request: Request) -> Response:
    ctx = context_of(request)
    if body.stream:
        return await unless_gone(request, stream(ctx, body))
    done = await unless_gone(request, answer(ctx, body))
    return done if isinstance(done, Response) else await as_json(done, large=bool(body.top))


async def answer(ctx: Context, body: ResponseBody, *, background: bool = False) -> dict[str, Any]:
    """The response object. Raises ApiError."""
    asked = await _asked(ctx, body)
    (whole,), usage = await answered(ctx, asked.prepared, background=background)
    output = Output(asked.calls, asked.logprobs)
    for _ in output.feed(whole.text, whole.tokens, whole.finish):
        pass
    return asked.object(output, usage)


async def stream(ctx: Context, body: ResponseBody) -> Response:
    asked = await _asked(ctx, body)
    answers = Answers(ctx, asked.prepared, streamed=True)
    await answers.begin()
    return EventStream(answers, Events(asked))


@dataclass(frozen=True)
class Asked:
    """calls: the answer may be calls of functions."""

    prepared: Prepared
    body: ResponseBody
    calls: bool
    logprobs: bool
    tools: list[Tool]
    wanted: Format
    id: str = field(default_factory=lambda: new_id("resp_", 48))
    created_at: int = field(default_factory=now)

    def object(self, output: Output | None = None, usage: Usage | None = None, error: ApiError | None = None) -> Any:
        """The response object: in progress without usage, failed with an error."""
        body = self.body
        cut = output is not None and output.finish == "length"
        status = "failed" if error else "in_progress" if usage is None else "incomplete" if cut else "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "completed_at": now() if status == "completed" else None,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": self.prepared.served.name,
            "output": [] if output is None else output.items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": format_object(self.wanted), "verbosity": "medium"},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": [_tool_object(tool) for tool in self.tools],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if usage is None else usage_object(usage),
            "user": body.user,
            "metadata": body.metadata or {},
        }


async def _asked(ctx: Context, body: ResponseBody) -> Asked:
    """Everything that can be refused is refused here, before a token is generated."""

    def prepare() -> Asked:
        body.check()
        messages = messages_of(body)
        ft = is_fine_tuned(body.model)
        tools = tools_of(body, ft=ft)
        calls = calling_of(body, tools)
        wanted = text_format(body.text.format if body.text else None, ft=ft)
        served = ctx.pool.get(body.model)
        prompt = prompt_of(served, Conversation(messages, calls.tools), "input")
        shape = shape_of(wanted, calls, messages, served.codec)
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_logprobs=body.top,
        )
        sampling = limited(ctx, served, prompt, sampling, body.max_output_tokens, "input")
        prepared = Prepared(served, [prompt], shape, [sampling])
        return Asked(prepared, body, bool(calls.tools), body.top is not None, tools, wanted)

    return await in_thread(prepare)


def format_object(wanted: Format) -> dict[str, Any]:
    if wanted.kind != "json_schema":
        return {"type": wanted.kind}
    return {
        "type": "json_schema",
        "name": wanted.name,
        "description": wanted.description,
        "schema": wanted.schema,
        "strict": wanted.strict,
    }


def _tool_object(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description or None,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


# -- output items -----------------------------------------------------------------------------


class Output:
    """The output items of one answer, and the events in which they grow."""

    def __init__(self, calls: bool, logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self.finish: str | None = None
        self._reader = CallReader()
        self._reader.is_calls = None if calls else False
        self._logprobs = logprobs
        self._tokens: list[Token] = []

    def feed(self, text: str, tokens: Iterable[Token], finish: str | None) -> Iterator[Event]:
        """The next piece of the answer, and what it changes."""
        reader = self._reader
        self._tokens.extend(tokens)
        parts = [reader.feed(text), reader.end()] if finish else [reader.feed(text)]
        if reader.is_calls is None:
            if not finish:
                return
            reader.is_calls = False
        self.finish = finish or self.finish
        if reader.is_calls:
            for call in (call for part in parts for call in part.calls):
                yield from self._call(call)
        else:
            yield from self._text("".join(part.text for part in parts), finish)
        if finish and self.items:
            yield from self._done()

    def _text(self, text: str, finish: str | None) -> Iterator[Event]:
        if not self.items:
            self.items.append(
                {
                    "id": new_id("msg_", 48),
                    "type": "message",
                    "status": "in_progress",
                    "role": "assistant",
                    "content": [],
                }
            )
            yield "response.output_item.added", {"output_index": 0, "item": {**self.items[0], "content": []}}
            part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            self.items[0]["content"] = [part]
            yield "response.content_part.added", {**self._at(), "part": {**part, "logprobs": []}}
        part = self.items[0]["content"][0]
        part["text"] += text
        shown = logprobs_object(self._tokens)["content"] if self._logprobs else []
        part["logprobs"].extend(shown)
        self._tokens.clear()
        if text or shown:
            yield "response.output_text.delta", {**self._at(), "delta": text, "logprobs": shown}

    def _at(self) -> dict[str, Any]:
        return {"item_id": self.items[0]["id"], "output_index": 0, "content_index": 0}

    def _call(self, call: CallPiece) -> Iterator[Event]:
        if call.name is not None:
            if self.items:
                yield from self._done()
            item = {
                "id": new_id("fc_", 48),
                "type": "function_call",
                "status": "in_progress",
                "arguments": "",
                "call_id": call_id(),
                "name": call.name,
            }
            self.items.append(item)
            yield "response.output_item.added", {"output_index": call.index, "item": dict(item)}
            return
        item = self.items[call.index]
        item["arguments"] += call.arguments
        place = {"item_id": item["id"], "output_index": call.index}
        yield "response.function_call_arguments.delta", {**place, "delta": call.arguments}

    def _done(self) -> Iterator[Event]:
        """The last item is whole, or cut."""
        index, item = len(self.items) - 1, self.items[-1]
        item["status"] = "incomplete" if self.finish == "length" else "completed"
        if item["type"] == "message":
            part = item["content"][0]
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            yield "response.output_text.done", {**self._at(), **told}
            yield "response.content_part.done", {**self._at(), "part": part}
        else:
            place = {"item_id": item["id"], "output_index": index}
            yield "response.function_call_arguments.done", {**place, "arguments": item["arguments"]}
        yield "response.output_item.done", {"output_index": index, "item": item}


class Events:
    """Writes the typed events, numbered from 0. The last one carries the whole response."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.output = Output(asked.calls, asked.logprobs)
        self.number = 0

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return event(data, kind)

    def opening(self) -> Iterable[bytes]:
        yield self._event("response.created", {"response": self.asked.object()})
        yield self._event("response.in_progress", {"response": self.asked.object()})

    def pieces(self, pieces: list[Piece]) -> Iterable[bytes]:
        for piece in pieces:
            delta = piece.delta
            for kind, fields in self.output.feed(delta.text, delta.tokens, delta.finish):
                yield self._event(kind, fields)

    def closing(self, usage: Usage) -> Iterable[bytes]:
        response = self.asked.object(self.output, usage)
        yield self._event(f"response.{response['status']}", {"response": response})

    def failing(self, error: ApiError) -> Iterable[bytes]:
        yield self._event("error", {"code": error.code, "message": error.message, "param": error.param})
        yield self._event("response.failed", {"response": self.asked.object(self.output, error=error)})
