"""/v1/batches: create, list, retrieve, cancel. `batch_worker.py` runs them.

Comes in: the id of an uploaded file of requests. Goes out: batch objects. Knows nothing of how requests are answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select

from afina.server import files
from afina.server.batch_worker import keep_input, start_batches, wake
from afina.server.chat_body import Metadata
from afina.server.context import Context, context_of
from afina.server.errors import ApiError, bad_request, no_such_batch, no_such_file
from afina.server.names import batch_id
from afina.server.store import page
from afina.server.tables import Batch
from afina.server.wire import Body, now

__all__ = ["router", "start_batches"]
router = APIRouter()
WINDOW_S = 24 * 3600
TIMES = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class OutputExpiry(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchBody(Body):
    input_file_id: str
    endpoint: Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


def batch_object(batch: Batch) -> dict[str, Any]:
    times = {f"{name}_at": batch.times.get(f"{name}_at") for name in TIMES}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.meta,
    }


@router.post("/batches")
def create_batch(body: BatchBody, request: Request) -> dict[str, Any]:
    ctx = context_of(request)
    _require_input(ctx, body.input_file_id)
    created_at, new = now(), batch_id()
    # The folder first: a row without it could not run. A folder without a row is swept at the next start.
    try:
        keep_input(ctx, new, body.input_file_id)
    except FileNotFoundError:
        raise _about_input(no_such_file(body.input_file_id)) from None
    batch = Batch(
        id=new,
        created_at=created_at,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        status="validating",
        total=0,
        completed=0,
        failed=0,
        meta=body.metadata,
        times={"expires_at": created_at + WINDOW_S},
        errors=[],
        output_expires_after_s=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    with ctx.store.session() as session:
        session.add(batch)
    wake(ctx)
    return batch_object(batch)


def _require_input(ctx: Context, file_id: str) -> None:
    try:
        files.require(ctx, file_id, "batch")
    except ApiError as error:
        raise _about_input(error) from None


def _about_input(error: ApiError) -> ApiError:
    return ApiError(error.status, error.message, param="input_file_id", code=error.code)


@router.get("/batches")
def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> dict[str, Any]:
    with context_of(request).store.reading() as session:
        found = page(session, Batch, limit=limit, after=after)
    rows = [batch_object(batch) for batch in found.rows]
    return {
        "object": "list",
        "data": rows,
        "first_id": rows[0]["id"] if rows else None,
        "last_id": rows[-1]["id"] if rows else None,
        "has_more": found.has_more,
    }


@router.get("/batches/{batch_id}")
def retrieve_batch(request: Request, batch_id: str) -> dict[str, Any]:
    with context_of(request).store.reading() as session:
        batch = session.scalar(select(Batch).where(Batch.id == batch_id))
    if batch is None:
        raise no_such_batch(batch_id)
    return batch_object(batch)


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
    ctx = context_of(request)
    with ctx.store.session() as session:
        batch = session.scalar(select(Batch).where(Batch.id == batch_id).with_for_update())
        if batch is None:
            raise no_such_batch(batch_id)
        if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
            # 400 and not 409: the SDKs try a 409 again.
            raise bad_request(f"Cannot cancel a batch with status '{batch.status}'.", None, "invalid_batch_status")
        if batch.status != "cancelling":
            batch.status = "cancelling"
            batch.times = {**batch.times, "cancelling_at": now()}
        shown = batch_object(batch)
    wake(ctx)
    return shown
