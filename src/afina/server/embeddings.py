"""POST /v1/embeddings.

Comes in: texts or tokens. Goes out: one vector each, as numbers or as the base64 of little-endian float32, which is
what the SDK asks for. Fewer `dimensions` are the first ones, made a unit vector again. Knows nothing of how a vector is
made.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from afina.server.chat_body import Told, check_model
from afina.server.completions import as_tokens, several
from afina.server.context import Context, context_of
from afina.server.errors import ApiError, bad_request
from afina.server.fields import too_large
from afina.server.inference import as_json, in_thread
from afina.server.streaming import unless_gone
from afina.server.wire import Body

router = APIRouter()
MOST_INPUTS, MOST_TOKENS = 2048, 300_000
# Its own: a long list takes a while, and answers need the threads in which requests are prepared.
_threads = ThreadPoolExecutor(8, "afina-embed")


class EmbeddingBody(Body):
    model: str
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Told | None = None


@router.post("/embeddings")
async def create(body: EmbeddingBody, request: Request) -> Response:
    done = await unless_gone(request, answer(context_of(request), body))
    return done if isinstance(done, Response) else await as_json(done, large=body.encoding_format != "base64")


async def answer(ctx: Context, body: EmbeddingBody, *, background: bool = False) -> dict[str, Any]:
    """The list object. Raises ApiError. background: changes nothing here; an embedding is one pass."""
    gone = threading.Event()
    try:
        async with asyncio.timeout(None if background else ctx.config.request_timeout_s):
            name, data, tokens = await in_thread(lambda: _embed(ctx, body, gone), _threads)
    except TimeoutError:
        raise ApiError(503, "The server was too busy to embed this in time.", type="server_error") from None
    finally:
        gone.set()
    ctx.meter.tokens(name, tokens, 0)
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _embed(ctx: Context, body: EmbeddingBody, gone: threading.Event) -> tuple[str, list[dict[str, Any]], int]:
    """The model's full name, the embedding objects, how many tokens were read. gone: nobody waits any more."""
    check_model(body.model)
    form = body.encoding_format
    given = several(body.input, "input", MOST_INPUTS)
    if any(one == "" for one in given):
        raise bad_request("Invalid 'input': input cannot be an empty string.", "input", "invalid_value")
    served = ctx.pool.get(body.model)
    ids = [as_tokens(served, one, f"input[{i}]" if len(given) > 1 else "input") for i, one in enumerate(given)]
    for one in ids:
        if len(one) > served.context:
            raise bad_request(
                f"This model's maximum context length is {served.context} tokens, however you requested {len(one)} "
                f"tokens ({len(one)} in your prompt; 0 for the completion). Please reduce your prompt; or "
                "completion length.",
                "input",
                "context_length_exceeded",
            )
    tokens = sum(map(len, ids))
    if tokens > MOST_TOKENS:
        message = f"Requested {tokens} tokens, max {MOST_TOKENS} tokens per request."
        raise bad_request(message, "input", "max_tokens_per_request")
    vectors = served.embed(ids, gone.is_set)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(_shortened(vector, body.dimensions), form)}
        for i, vector in enumerate(vectors)
    ]
    return served.name, data, tokens


def _shortened(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first dimensions, at length 1. Raises ApiError for more than there are."""
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise too_large("dimensions", len(vector), dimensions)
    part = vector[:dimensions].astype(np.float32)
    length = float(np.linalg.norm(part))
    return part / length if length > 0 else part


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(x) for x in vector]
