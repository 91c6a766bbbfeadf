"""POST /v1/completions: text and what follows it, for models without turns.

Comes in: the contract's legacy request. Goes out: `text_completion` objects, whole or as server-sent events. Knows only
the wire format; generation is `inference.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from afina.engine.generation import Token
from afina.engine.sampling import Sampling
from afina.engine.shapes import Text
from afina.server.chat import Completions, usage_object
from afina.server.chat_body import (
    Choices,
    Penalty,
    Seed,
    Share,
    StreamOptions,
    Temperature,
    Told,
    check_model,
    only_with,
)
from afina.server.context import Context, context_of
from afina.server.errors import bad_request, not_served
from afina.server.fields import array_too_long, as_text, empty_array, too_large, too_small, wrong_type
from afina.server.inference import (
    Answers,
    Prepared,
    Usage,
    Whole,
    answered,
    as_json,
    biases,
    in_thread,
    limited,
    refuse_flood,
    stops,
    vocabulary,
)
from afina.server.mailbox import Piece
from afina.server.names import new_id
from afina.server.streaming import EventStream, unless_gone
from afina.server.wire import Body, now

if TYPE_CHECKING:
    from afina.server.pool import Served

router = APIRouter()
MOST_PROMPTS, MOST_ANSWERS = 2048, 4096
DEFAULT_TOKENS = 16
LOWEST = -9999.0


class CompletionBody(Body):
    model: str
    prompt: Any = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Choices | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    stop: Any = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Any] | None = None
    seed: Seed | None = None
    user: Told | None = None

    def check(self) -> None:
        check_model(self.model)
        if self.suffix:
            raise not_served("Text after the completion ('suffix')", "suffix")
        if self.echo and self.logprobs is not None:
            raise not_served("'echo' together with 'logprobs' (log-probabilities of the prompt)", "echo")
        if self.stream_options is not None and not self.stream:
            raise only_with("stream_options", "stream")
        if self.best_of is not None and self.n is not None and self.best_of < self.n:
            raise bad_request(
                f"'best_of' ({self.best_of}) must be at least 'n' ({self.n}): of that many completions the best 'n' "
                "are returned. Raise 'best_of', or leave it out.",
                "best_of",
                "invalid_value",
            )
        if self.stream and (self.best_of or 0) > self.choices:
            raise bad_request("'best_of' above 'n' cannot be used with 'stream'.", "best_of", "invalid_value")

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def each(self) -> int:
        """Answers to generate for every prompt."""
        return max(self.choices, self.best_of or 0)


@router.post("/completions")
async def create(body: CompletionBody, request: Request) -> Response:
    ctx = context_of(request)
    if body.stream:
        return await unless_gone(request, stream(ctx, body))
    done = await unless_gone(request, answer(ctx, body))
    return done if isinstance(done, Response) else await as_json(done, large=body.logprobs is not None)


@dataclass(frozen=True)
class Asked:
    """texts: what every prompt says, where it is echoed."""

    prepared: Prepared
    texts: list[str]
    body: CompletionBody


async def answer(ctx: Context, body: CompletionBody, *, background: bool = False) -> dict[str, Any]:
    """The answer object. Raises ApiError."""
    asked = await _asked(ctx, body)
    prepared, each = asked.prepared, body.each
    if body.max_tokens == 0:
        wholes = [Whole(finish="length") for _ in range(len(prepared.prompts) * each)]
        usage = Usage(prompt=sum(map(len, prepared.prompts)))
    else:
        wholes, usage = await answered(ctx, prepared, background=background)
    choices: list[dict[str, Any]] = []
    for i in range(len(prepared.prompts)):
        for whole in _best(wholes[i * each : (i + 1) * each], body.choices):
            choices.append(_choice(len(choices), whole, asked.texts[i] if body.echo else "", body.logprobs))
    return {**_head(prepared), "choices": choices, "usage": usage_object(usage)}


async def stream(ctx: Context, body: CompletionBody) -> Response:
    asked = await _asked(ctx, body)
    if body.max_tokens == 0:
        raise too_small("max_tokens", 1, 0)
    answers = Answers(ctx, asked.prepared, streamed=True)
    await answers.begin()
    return EventStream(answers, Chunks(asked))


async def _asked(ctx: Context, body: CompletionBody) -> Asked:

    def prepare() -> Asked:
        body.check()
        stop = stops(body.stop)
        given = _given(body.prompt)
        if len(given) * body.each > MOST_ANSWERS:
            raise too_large("best_of" if body.best_of else "n", MOST_ANSWERS // len(given), body.each)
        served = ctx.pool.get(body.model)
        prompts = [
            as_tokens(served, one, f"prompt[{i}]" if len(given) > 1 else "prompt") for i, one in enumerate(given)
        ]
        asked_logprobs = body.logprobs if body.logprobs is not None or body.each == body.choices else 0
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=biases(body.logit_bias, served),
            seed=body.seed,
            stop=stop,
            top_logprobs=asked_logprobs,
        )
        most = DEFAULT_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
        samplings = [limited(ctx, served, prompt, sampling, most, "prompt") for prompt in prompts]
        texts = [one if isinstance(one, str) else served.codec.decode(one) for one in given]
        return Asked(Prepared(served, prompts, Text(), samplings, body.each), texts, body)

    return await in_thread(prepare)


def _given(value: Any) -> list[str | list[int]]:
    """The prompts: one or several texts, or one or several lists of tokens; null is the beginning of a document."""
    if value is None:
        return [""]
    return several(value, "prompt", MOST_PROMPTS)


def several(value: Any, param: str, most: int) -> list[str | list[int]]:
    """Texts or token lists, one or several of either. Raises ApiError."""
    if isinstance(value, str):
        return [as_text(value, param)]
    if not isinstance(value, list):
        raise wrong_type(param, "one of a string, array of strings, array of integers, or array of arrays", value)
    items = cast(list[Any], value)
    if not items:
        raise empty_array(param)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return [cast(list[int], items)]
    if len(items) > most:
        raise array_too_long(param, most, len(items))
    return [_one(item, f"{param}[{i}]", type(items[0])) for i, item in enumerate(items)]


def _one(item: Any, param: str, kind: type) -> str | list[int]:
    if kind is str:
        return as_text(item, param)
    if kind is not list or not isinstance(item, list):
        raise wrong_type(param, "an array of integers" if kind is list else "a string", item)
    tokens = cast(list[Any], item)
    if not tokens:
        raise empty_array(param)
    for j, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int):
            raise wrong_type(f"{param}[{j}]", "an integer", token)
    return cast(list[int], tokens)


def as_tokens(served: Served, given: str | list[int], param: str) -> list[int]:
    """A prompt's tokens. Raises ApiError for ids that the model does not know."""
    if isinstance(given, str):
        refuse_flood(served, len(given), param)
        # Nothing at all is the beginning of a document, which is what stands behind the end of another.
        return served.codec.completion_prompt(given) or [served.codec.eos]
    most = vocabulary(served) - 1
    for j, token in enumerate(given):
        if token < 0:
            raise too_small(f"{param}[{j}]", 0, token)
        if token > most:
            raise too_large(f"{param}[{j}]", most, token)
    return given


def _best(wholes: list[Whole], count: int) -> list[Whole]:
    """The likeliest per token, as `best_of` promises; all of them where no more than `count` were written."""
    if len(wholes) == count:
        return wholes
    return sorted(wholes, key=_likelihood, reverse=True)[:count]


def _likelihood(whole: Whole) -> float:
    return sum(token.logprob for token in whole.tokens) / len(whole.tokens) if whole.tokens else 0.0


# -- the answer object ------------------------------------------------------------------------


def _head(prepared: Prepared) -> dict[str, Any]:
    return {
        "id": new_id("cmpl-", 29),
        "object": "text_completion",
        "created": now(),
        "model": prepared.served.name,
        "system_fingerprint": prepared.fingerprint,
    }


def _choice(index: int, whole: Whole, echoed: str, logprobs: int | None) -> dict[str, Any]:
    return {
        "text": echoed + whole.text,
        "index": index,
        "logprobs": None if logprobs is None else _logprobs(whole.tokens, logprobs, 0),
        "finish_reason": "length" if whole.finish == "length" else "stop",
    }


def _logprobs(tokens: list[Token], count: int, offset: int) -> dict[str, Any]:
    """offset: characters before the first token. Positions count the tokens' own texts."""
    texts = [token.text.decode("utf-8", "replace") for token in tokens]
    offsets: list[int] = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops = [
        {text.decode("utf-8", "replace"): max(logprob, LOWEST) for _, text, logprob in token.top} for token in tokens
    ]
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, LOWEST) for token in tokens],
        "top_logprobs": tops if count else None,
        "text_offset": offsets,
    }


# -- the stream -------------------------------------------------------------------------------


class Chunks(Completions):
    """Writes a `text_completion` event for every piece."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.head = _head(asked.prepared)
        options = asked.body.stream_options
        self.include_usage = bool(options and options.include_usage)
        count = len(asked.prepared.prompts) * asked.prepared.each
        self.written = [0] * count

    def opening(self) -> Iterable[bytes]:
        if self.asked.body.echo:
            for index in range(len(self.written)):
                yield self._chunk(index, self.asked.texts[index // self.asked.prepared.each], [], None)

    def pieces(self, pieces: list[Piece]) -> Iterable[bytes]:
        for piece in pieces:
            delta = piece.delta
            finish = None if delta.finish is None else "length" if delta.finish == "length" else "stop"
            if delta.text or delta.tokens or finish:
                yield self._chunk(piece.index, delta.text, list(delta.tokens), finish)

    def _chunk(self, index: int, text: str, tokens: list[Token], finish: str | None) -> bytes:
        count = self.asked.body.logprobs
        logprobs = None if count is None else _logprobs(tokens, count, self.written[index])
        self.written[index] += sum(len(token.text.decode("utf-8", "replace")) for token in tokens)
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        return self._event([choice], None)
