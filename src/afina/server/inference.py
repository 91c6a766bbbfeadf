"""From a prepared request to generated text: the one way that chat, responses, completions and batches share.

Comes in: prompts as tokens, the shape of the answer, how to sample. Goes out: pieces of text as they are generated, or
whole answers, and what they used. Knows time limits, errors and cancelling; knows no wire format.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from json import JSONEncoder
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from fastapi.responses import JSONResponse, Response

from afina.core.chat import Conversation
from afina.core.errors import AfinaError, MachineError, ModelError, SchemaError
from afina.core.schema import dumps
from afina.core.storage import digest
from afina.engine.generation import Generation, Token
from afina.engine.sampling import Sampling
from afina.engine.shapes import Shape
from afina.server.errors import ApiError, bad_request, too_long
from afina.server.fields import (
    array_too_long,
    as_list,
    as_text,
    empty_array,
    string_too_long,
    too_large,
    too_small,
    wrong_type,
)
from afina.server.mailbox import Mailbox, Piece, TooMuchError

if TYPE_CHECKING:
    from afina.server.context import Context
    from afina.server.pool import Served

log = logging.getLogger("afina.server")
# Its own: requests that wait for a model to load leave the common threads to others.
_threads = ThreadPoolExecutor(32, "afina-prepare")

# What may wait for a client that reads slowly, and what one whole answer may weigh.
STREAM_BYTES, ANSWER_BYTES = 4 * 2**20, 64 * 2**20
MOST_STOPS, MOST_STOP = 4, 4096  # how many, and characters of one
# How much shorter a tokenizer may make a text before it cuts it, as by joining an accent with its letter.
SHRINKING = 4
T = TypeVar("T")
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Prepared:
    """What is asked of the model. Every prompt is answered `each` times; seeds differ between those answers."""

    served: Served
    prompts: Sequence[list[int]]
    shape: Shape
    samplings: Sequence[Sampling]
    each: int = 1

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes with the model and with how its prompts are rendered."""
        served = self.served
        return "fp_" + digest([served.name, served.base_name, served.chat.fingerprint])[:10]


@dataclass(frozen=True)
class Usage:
    """Tokens. A prompt counts once, however often it is answered."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass
class Whole:
    """One answer. tokens: only where log-probabilities were asked for."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish = "stop"


class Answers:
    """The generations of one request while they run. Lives on the event loop; whoever begins it closes it.

    streamed: pieces are wanted as they come. background: a batch's, which has no time limit and makes nobody wait.
    """

    def __init__(self, ctx: Context, prepared: Prepared, *, streamed: bool = False, background: bool = False) -> None:
        self.prepared = prepared
        self._ctx, self._background, self._streamed = ctx, background, streamed
        self.timeout_s = None if background else ctx.config.request_timeout_s
        self._began = time.monotonic()
        self.deadline = None if self.timeout_s is None else self._began + self.timeout_s
        count = len(prepared.prompts) * prepared.each
        # A request with more answers than the model writes at once hands them over one by one, and does not crowd out
        # the requests of others.
        self._at_once = ctx.config.max_rows
        every_piece = streamed or count > self._at_once
        most = STREAM_BYTES if streamed else ANSWER_BYTES
        self._box = Mailbox(count, every_piece=every_piece, most_bytes=most, on_full=self.cancel)
        self._generations = [self._generation(i) for i in range(count)]
        self._first: list[Piece] = []
        self._submitted = self._ended = 0
        self._open = False

    def _generation(self, index: int) -> Generation:
        prompt, k = divmod(index, self.prepared.each)
        sampling = self.prepared.samplings[prompt]
        if sampling.seed is not None and k:
            sampling = replace(sampling, seed=sampling.seed + k)
        box = self._box
        return Generation(
            self.prepared.prompts[prompt],
            self.prepared.shape,
            sampling,
            lambda delta: box.put(index, delta),
            box.fail,
        )

    async def begin(self) -> None:
        """Hand everything to the engine and wait for the first of it, or an error."""
        self._open = True
        _count(self._ctx, self._background, 1)
        try:
            self._submit()
            if self._generations:
                self._first = await self._take()
        except BaseException:
            self.close()
            raise
        if self._streamed:
            self._ctx.meter.first_token(time.monotonic() - self._began)

    def _submit(self) -> None:
        """Raises ApiError when the server is full and nothing of this request runs."""
        while self._submitted < min(len(self._generations), self._ended + self._at_once):
            try:
                self.prepared.served.submit(self._generations[self._submitted])
            except ApiError:
                if self._submitted == self._ended:
                    raise
                return  # tried again when one of ours has ended
            self._submitted += 1

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """What is generated, as it comes. Raises ApiError."""
        while self._ended < len(self._generations):
            taken, self._first = self._first or await self._take(), []
            self._ended += sum(piece.delta.finish is not None for piece in taken)
            self._submit()
            yield taken

    async def whole(self) -> list[Whole]:
        """Every answer in full, in order; closes."""
        answers = [Whole() for _ in self._generations]
        texts: list[list[str]] = [[] for _ in answers]
        try:
            async for taken in self.pieces():
                for piece in taken:
                    texts[piece.index].append(piece.delta.text)
                    answers[piece.index].tokens.extend(piece.delta.tokens)
                    answers[piece.index].finish = piece.delta.finish or "stop"
        finally:
            self.close()
        for answer, parts in zip(answers, texts, strict=True):
            answer.text = "".join(parts)
        return answers

    async def _take(self) -> list[Piece]:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await self._box.take()
        except TimeoutError:
            begun = any(generation.completion_tokens for generation in self._generations)
            raise timed_out(self.timeout_s or 0, begun=begun) from None
        except TooMuchError:
            raise bad_request(
                "The answer is larger than this server keeps for one request, or was read too slowly. Ask for fewer "
                "choices, tokens or logprobs."
            ) from None
        except Exception as error:
            raise as_api_error(error) from error

    def cancel(self) -> None:
        """Stop what still runs; from any thread. A generation that has ended does not notice."""
        for generation in self._generations:
            generation.cancel()

    def close(self) -> None:
        """Nobody reads any more: stop what still runs, and count what was used. Once."""
        if not self._open:
            return
        self._open = False
        self.cancel()
        _count(self._ctx, self._background, -1)
        used = self.usage
        self._ctx.meter.tokens(self.prepared.served.name, used.prompt, used.completion, used.cached)

    @property
    def usage(self) -> Usage:
        each = self.prepared.each
        return Usage(
            prompt=sum(map(len, self.prepared.prompts)),
            completion=sum(generation.completion_tokens for generation in self._generations),
            cached=sum(generation.cached_tokens for generation in self._generations[::each]),
        )


async def answered(ctx: Context, prepared: Prepared, *, background: bool = False) -> tuple[list[Whole], Usage]:
    """Every answer in full, and what they used."""
    answers = Answers(ctx, prepared, background=background)
    await answers.begin()
    return await answers.whole(), answers.usage


def timed_out(limit_s: float, *, begun: bool) -> ApiError:
    """begun: the model was writing already. Asking again would take as long, so clients are told not to; a request
    that only waited for its turn may come again."""
    if not begun:
        return ApiError(
            503,
            f"The server was too busy to begin this request within {limit_s:g} seconds. Try again in a moment.",
            type="server_error",
            headers={"Retry-After": "1"},
        )
    return ApiError(
        408,
        f"The answer took longer than this server's limit of {limit_s:g} seconds. Ask for fewer tokens, or raise "
        "request_timeout_s in the server's configuration.",
        code="request_timeout",
        headers={"x-should-retry": "false"},
    )


def as_api_error(error: Exception) -> ApiError:
    """What a client is told. Our own faults are told to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SchemaError):
        return bad_request(f"The answer cannot be held to this schema: {error}")
    if isinstance(error, MachineError):
        log.error("%s", error)
        return ApiError(503, "The server has no room for this model or request just now.", type="server_error")
    if isinstance(error, AfinaError):
        log.error("%s", error)
        return ApiError(500, "The model cannot be used; the server's log says why.", type="server_error")
    log_bug("a request", error)
    return ApiError(500, "The server had an error while processing your request.", type="server_error")


def log_bug(what: str, error: BaseException) -> None:
    """Where it happened, and not with what: values in a message may be a user's text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s failed:\n%s%s", what, frames, type(error).__qualname__)


async def in_thread(prepare: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
    """Load the model, render and check in a thread: all of it may take long, and the loop serves others."""
    loop, context = asyncio.get_running_loop(), copy_context()
    try:
        return await loop.run_in_executor(threads or _threads, context.run, prepare)
    except AfinaError as error:
        raise as_api_error(error) from error


async def as_json(data: Any, *, large: bool) -> Response:
    """The answer object as a response. large: it may hold so many numbers that writing them all at once would stop
    everything else; then it is written piece by piece, in a thread."""
    if not large:
        return JSONResponse(data)
    encoder = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    written = await in_thread(lambda: "".join(encoder.iterencode(data)).encode())
    return Response(written, media_type="application/json")


# -- what all endpoints say alike -------------------------------------------------------------


def limited(
    ctx: Context, served: Served, prompt: list[int], sampling: Sampling, asked: int | None, param: str = "messages"
) -> Sampling:
    """`sampling` with its token limit: what was asked for, at most what the server allows and the context leaves.

    Raises ApiError for a prompt that leaves no room.
    """
    room = served.context - len(prompt)
    if room < 1:
        raise too_long(served.context, len(prompt), param)
    cap = ctx.config.max_completion_tokens or room
    return replace(sampling, max_tokens=min(asked if asked is not None else cap, cap, room))


def prompt_of(served: Served, conversation: Conversation, param: str = "messages") -> list[int]:
    """The prompt's tokens. Raises ApiError for turns that the model's template cannot take."""
    messages, tools = conversation.messages, conversation.tools
    characters = len(messages) + sum(len(one.content or "") for one in messages)
    characters += sum(len(call.arguments) + len(call.name) for one in messages for call in one.tool_calls)
    characters += sum(len(tool.description) + len(dumps(tool.parameters)) for tool in tools)
    refuse_flood(served, characters, param)
    try:
        return served.chat.prompt(conversation)
    except ModelError as error:
        raise bad_request(f"The model cannot take these messages: {error}", param, "invalid_value") from error


def refuse_flood(served: Served, characters: int, param: str) -> None:
    """A text that cannot fit, whatever its tokens are, is refused before it is cut into tokens: that takes a second a
    megabyte, in which nothing else runs. Raises ApiError."""
    longest = SHRINKING * _longest_token(served)
    if characters > longest * served.context:
        raise too_long(served.context, characters // longest, param, at_least=True)


def _longest_token(served: Served) -> int:
    """Bytes."""
    if served.codec not in _longest:
        _longest[served.codec] = max(1, *map(len, served.codec.all_bytes))
    return _longest[served.codec]


_longest: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def stops(value: Any) -> tuple[str, ...]:
    """`stop`: a text, up to four of them, or null."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (_stop(value, "stop"),) if value else ()
    if not isinstance(value, list):
        raise wrong_type("stop", "one of a string or array of strings", value)
    items = as_list(value, "stop", "strings")
    if not items:
        raise empty_array("stop")
    if len(items) > MOST_STOPS:
        raise array_too_long("stop", MOST_STOPS, len(items))
    texts = [_stop(item, f"stop[{i}]") for i, item in enumerate(items)]
    if not all(texts):
        raise bad_request("Invalid 'stop': a stop text may not be empty.", "stop", "invalid_value")
    return tuple(texts)


def _stop(value: Any, param: str) -> str:
    text = as_text(value, param)
    if len(text) > MOST_STOP:
        raise string_too_long(param, MOST_STOP, len(text))
    return text


def biases(value: dict[str, Any] | None, served: Served) -> dict[int, float]:
    """`logit_bias`: token ids of this model's vocabulary, as decimal text, to numbers from -100 to 100."""
    found: dict[int, float] = {}
    for key, bias in (value or {}).items():
        param = f"logit_bias.{key[:40]}"
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wrong_type(param, "a decimal", bias)
        if bias < -100:
            raise too_small(param, -100.0, bias)
        if bias > 100:
            raise too_large(param, 100.0, bias)
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary(served)):
            message = (
                f"Invalid key in 'logit_bias': {key[:40]}. Should be a token id from 0 to {vocabulary(served) - 1}."
            )
            raise bad_request(message, "logit_bias", "invalid_value")
        found[int(key)] = float(bias)
    return found


def vocabulary(served: Served) -> int:
    return int(served.codec.lexer.vocab_size)


def is_fine_tuned(model: str) -> bool:
    return model.startswith("ft:")


# -- who goes first ---------------------------------------------------------------------------

_in_flight: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _count(ctx: Context, background: bool, change: int) -> None:
    if not background:
        _in_flight[ctx.pool] = _in_flight.get(ctx.pool, 0) + change


def requests_in_flight(ctx: Context) -> int:
    """Requests that somebody waits for just now; batches hold back while there are any."""
    return _in_flight.get(ctx.pool, 0)
