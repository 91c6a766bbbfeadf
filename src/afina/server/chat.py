"""POST /v1/chat/completions.

Comes in: a request of the contract's section 5. Goes out: the answer object, or its chunks as server-sent events. How
text is generated is `inference.py`'s matter, how a stream is sent `streaming.py`'s; here is only the wire format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afina.core.chat import Conversation
from afina.engine.generation import Token
from afina.engine.sampling import Sampling
from afina.server.calls import CallPiece, CallReader
from afina.server.chat_body import ChatBody
from afina.server.context import Context, context_of
from afina.server.errors import ApiError
from afina.server.inference import (
    Answers,
    Prepared,
    Usage,
    Whole,
    answered,
    as_json,
    biases,
    in_thread,
    is_fine_tuned,
    limited,
    prompt_of,
    stops,
)
from afina.server.mailbox import Piece
from afina.server.messages import conversation
from afina.server.names import new_id
from afina.server.streaming import DONE, EventStream, event, unless_gone
from afina.server.structured import chat_format, shape_of
from afina.server.tools import calling
from afina.server.wire import now

router = APIRouter()


@router.post("/chat/completions")
async def create(body: ChatBody, request: Request) -> Response:
    ctx = context_of(request)
    if body.stream:
        return await unless_gone(request, stream(ctx, body))
    done = await unless_gone(request, answer(ctx, body))
    return done if isinstance(done, Response) else await as_json(done, large=bool(body.logprobs))


async def answer(ctx: Context, body: ChatBody, *, background: bool = False) -> dict[str, Any]:
    """The answer object. background: for a batch, behind everybody who waits. Raises ApiError."""
    asked = await _asked(ctx, body)
    wholes, usage = await answered(ctx, asked.prepared, background=background)
    head = _head("chat.completion", asked.prepared)

    def write() -> list[dict[str, Any]]:
        return [_choice(i, whole, asked) for i, whole in enumerate(wholes)]

    # Hundreds of thousands of log-probabilities take a while to write down.
    choices = await in_thread(write) if asked.logprobs else write()
    return {**head, "choices": choices, "usage": usage_object(usage), **_tail(asked.prepared)}


async def stream(ctx: Context, body: ChatBody) -> Response:
    asked = await _asked(ctx, body)
    answers = Answers(ctx, asked.prepared, streamed=True)
    await answers.begin()
    return EventStream(answers, Chunks(asked, bool(body.stream_options and body.stream_options.include_usage)))


@dataclass(frozen=True)
class Asked:
    """calls: the answer may be calls of tools. old: they go out as the deprecated `function_call`."""

    prepared: Prepared
    calls: bool
    old: bool
    logprobs: bool

    def reader(self) -> CallReader:
        reader = CallReader()
        if not self.calls:
            reader.is_calls = False
        return reader


async def _asked(ctx: Context, body: ChatBody) -> Asked:
    """Everything that can be refused is refused here, before a token is generated."""

    def prepare() -> Asked:
        body.check()
        messages = conversation(body.messages)
        ft = is_fine_tuned(body.model)
        choice, parallel = body.tool_choice, body.parallel_tool_calls
        calls = calling(body.tools, choice, parallel, body.functions, body.function_call, ft=ft)
        wanted = chat_format(body.response_format, ft=ft)
        stop = stops(body.stop)
        served = ctx.pool.get(body.model)
        prompt = prompt_of(served, Conversation(messages, calls.tools))
        shape = shape_of(wanted, calls, messages, served.codec)
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=biases(body.logit_bias, served),
            seed=body.seed,
            stop=stop,
            top_logprobs=body.top,
        )
        sampling = limited(ctx, served, prompt, sampling, body.tokens_asked)
        prepared = Prepared(served, [prompt], shape, [sampling], body.n or 1)
        return Asked(prepared, bool(calls.tools), calls.old, bool(body.logprobs))

    return await in_thread(prepare)


# -- the answer object ------------------------------------------------------------------------


def _head(kind: str, prepared: Prepared) -> dict[str, Any]:
    return {"id": new_id("chatcmpl-", 29), "object": kind, "created": now(), "model": prepared.served.name}


def _tail(prepared: Prepared) -> dict[str, Any]:
    return {"service_tier": "default", "system_fingerprint": prepared.fingerprint}


def _choice(index: int, whole: Whole, asked: Asked) -> dict[str, Any]:
    reader = asked.reader()
    read = (reader.feed(whole.text), reader.end())
    calls = joined([piece for part in read for piece in part.calls])
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if not reader.is_calls:
        message["content"] = whole.text
    elif asked.old and calls:
        message["function_call"] = {"name": calls[0][0], "arguments": calls[0][1]}
    elif calls:
        message["tool_calls"] = [
            {"id": call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ]
    shown = asked.logprobs and not reader.is_calls
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_object(whole.tokens) if shown else None,
        "finish_reason": finish_reason(whole.finish, bool(reader.is_calls), asked.old),
    }


def joined(pieces: list[CallPiece]) -> list[tuple[str, str]]:
    """Name and arguments of every call."""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append((piece.name, ""))
        else:
            name, arguments = calls[piece.index]
            calls[piece.index] = (name, arguments + piece.arguments)
    return calls


def call_id() -> str:
    return new_id("call_", 24)


def finish_reason(finish: str, is_calls: bool, old: bool) -> str:
    if finish == "length" or not is_calls:
        return "stop" if finish == "tool_calls" else finish
    return "function_call" if old else "tool_calls"


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def token_object(text: bytes, logprob: float) -> dict[str, Any]:
    """A token that is part of a character is shown as U+FFFD; its bytes are exact. Impossible is -9999.0, as no JSON
    number is -inf."""
    return {"token": text.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(text)}


def logprobs_object(tokens: Iterable[Token]) -> dict[str, Any]:
    content = [
        {
            **token_object(token.text, token.logprob),
            "top_logprobs": [token_object(text, logprob) for _, text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


# -- the stream -------------------------------------------------------------------------------


class Completions:
    """What the streams of chat and completions have in common. head: the fields of every event."""

    head: dict[str, Any]
    include_usage: bool

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        told = {"usage": usage} if self.include_usage else {}
        return event({**self.head, "choices": choices, **told})

    def closing(self, usage: Usage) -> Iterable[bytes]:
        if self.include_usage:
            yield self._event([], usage_object(usage))
        yield DONE

    def failing(self, error: ApiError) -> Iterable[bytes]:
        yield event(error.body)
        yield DONE


class Chunks(Completions):
    """Writes `chat.completion.chunk` events. Choices come in the order in which they are generated, told by index."""

    def __init__(self, asked: Asked, include_usage: bool) -> None:
        self.asked, self.include_usage = asked, include_usage
        self.head = {**_head("chat.completion.chunk", asked.prepared), **_tail(asked.prepared)}
        self.readers = [asked.reader() for _ in range(asked.prepared.each)]
        self.begun: set[int] = set()
        self.tokens: dict[int, list[Token]] = {}

    def opening(self) -> Iterable[bytes]:
        """Every choice opens before any goes on: clients count choices in the order in which they first see them. One
        choice alone, that may be calls, waits until it is known what it is."""
        if not self.asked.calls or len(self.readers) > 1:
            for index in range(len(self.readers)):
                yield self._open(index)

    def _open(self, index: int) -> bytes:
        self.begun.add(index)
        is_text = self.readers[index].is_calls is False
        return self._chunk(index, {"role": "assistant", "content": "" if is_text else None, "refusal": None})

    def pieces(self, pieces: list[Piece]) -> Iterable[bytes]:
        for piece in pieces:
            yield from self._piece(piece)

    def _piece(self, piece: Piece) -> Iterable[bytes]:
        index, delta = piece.index, piece.delta
        reader = self.readers[index]
        self.tokens.setdefault(index, []).extend(delta.tokens)
        parts = [reader.feed(delta.text), reader.end()] if delta.finish else [reader.feed(delta.text)]
        if reader.is_calls is None:
            if not delta.finish:
                return  # not yet known what it will be
            reader.is_calls = False
        if index not in self.begun:
            yield self._open(index)
        text = "".join(part.text for part in parts)
        tokens = self.tokens.pop(index)
        if reader.is_calls:
            for call in (call for part in parts for call in part.calls):
                yield self._chunk(index, self._call(call))
        elif text or tokens:
            yield self._chunk(index, {"content": text}, tokens)
        if delta.finish:
            yield self._chunk(index, {}, finish=finish_reason(delta.finish, bool(reader.is_calls), self.asked.old))

    def _call(self, call: CallPiece) -> dict[str, Any]:
        function = {"arguments": call.arguments}
        if call.name is not None:
            function = {"name": call.name, "arguments": ""}
        if self.asked.old:
            return {"function_call": function}
        head = {"id": call_id(), "type": "function"} if call.name is not None else {}
        return {"tool_calls": [{"index": call.index, **head, "function": function}]}

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: list[Token] | None = None, finish: str | None = None
    ) -> bytes:
        logprobs = logprobs_object(tokens) if tokens and self.asked.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._event([choice], None)
