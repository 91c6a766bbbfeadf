"""/health for whoever watches the server, /metrics for Prometheus; both at the root."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import Response

from afina import __version__
from afina.server.context import Context, context_of
from afina.server.metrics import CONTENT_TYPE
from afina.server.tables import File, Job

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"])
def health(request: Request) -> dict[str, Any]:
    """200 while the database answers; open to everybody, so it says nothing more."""
    with context_of(request).store.reading() as session:
        session.execute(select(1))
    return {"status": "ok", "version": __version__}


@router.get("/metrics")
def metrics(request: Request) -> Response:
    return Response(context_of(request).meter.text(), headers={"content-type": CONTENT_TYPE})


def watch(ctx: Context) -> None:
    """What is counted only when somebody looks."""

    def jobs_by_status() -> dict[str, float]:
        with ctx.store.reading() as session:
            counts = session.execute(select(Job.status, func.count()).group_by(Job.status))
            return {status: float(number) for status, number in counts.tuples()}

    def num_files() -> float:
        with ctx.store.reading() as session:
            return float(session.scalar(select(func.count()).select_from(File)) or 0)

    ctx.meter.watch("afina_jobs", "Fine-tuning jobs.", jobs_by_status, label="status")
    ctx.meter.watch("afina_files", "Files kept.", num_files)
    ctx.meter.watch("afina_answers", "Answers that models write or that wait.", ctx.pool.answers, label="state")
