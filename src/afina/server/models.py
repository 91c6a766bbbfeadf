"""/v1/models: base models of the configuration, fine-tuned models and checkpoints of the database.

A fine-tune's object also tells where it came from (`parent`, `job_id`), which clients that do not know it ignore.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.requests import Request

from afina.server.context import Context, context_of
from afina.server.errors import ApiError, bad_request, no_such_model
from afina.server.places import Places
from afina.server.tables import Job, Model
from afina.server.wire import now

router = APIRouter()
ENDED = ("succeeded", "failed", "cancelled")


def model_object(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": model.owned_by,
        "shutdown_date": None,
        "parent": model.parent,
        "job_id": model.job_id,
    }


def _base_object(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "system", "shutdown_date": None}


@router.get("/models")
def list_models(request: Request) -> dict[str, Any]:
    """Fine-tuned models, the newest first, then base models."""
    ctx = context_of(request)
    with ctx.store.reading() as session:
        rows = session.scalars(select(Model).order_by(Model.seq.desc())).all()
    created = _first_start(ctx)
    bases = [_base_object(name, created) for name in (*ctx.config.models, *ctx.config.short_names)]
    return {"object": "list", "data": [*map(model_object, rows), *bases]}


@router.get("/models/{name:path}")
def retrieve_model(request: Request, name: str) -> dict[str, Any]:
    ctx = context_of(request)
    for written in _readings(name):
        if ctx.config.full_name(written) is not None:
            return _base_object(written, _first_start(ctx))
        with ctx.store.reading() as session:
            row = _find(session, written)
        if row is not None:
            return model_object(row)
    raise no_such_model(name)


@router.delete("/models/{name:path}")
def delete_model(request: Request, name: str) -> dict[str, Any]:
    """Of a fine-tuned model or checkpoint: the row, and the weights unless another fine-tune stands on them. The job
    and its checkpoints' records stay."""
    ctx = context_of(request)
    for written in _readings(name):
        if ctx.config.full_name(written) is not None:
            message = (
                f"The model '{written}' is a base model of this server, and only fine-tuned models can be deleted."
            )
            raise ApiError(403, message, param="model")
        with ctx.store.session() as session:
            row = _find(session, written)
            if row is None:
                continue
            _refuse_while_used(session, row)
            session.execute(delete(Model).where(Model.seq == row.seq))
            others = [model.folder for model in session.scalars(select(Model))]
        ctx.pool.forget(row.name)
        if row.folder not in others and not _needed(ctx.places, row.folder, others):
            shutil.rmtree(ctx.places.absolute(row.folder), ignore_errors=True)
        return {"id": row.name, "object": "model", "deleted": True}
    raise no_such_model(name)


def _readings(name: str) -> list[str]:
    """A name has colons and slashes, which some clients percent-encode, and some proxies once more."""
    decoded = unquote(name)
    return [name] if decoded == name or "\0" in decoded else [name, decoded]


def _find(session: Session, name: str) -> Model | None:
    return session.scalar(select(Model).where(Model.name == name))


def _first_start(ctx: Context) -> int:
    """Base models are as old as the data folder."""
    return int(ctx.store.setting("first_start", str(now())))


def _refuse_while_used(session: Session, model: Model) -> None:
    job_id = session.scalar(select(Job.id).where(Job.model == model.name, Job.status.not_in(ENDED)).limit(1))
    if job_id is not None:
        message = (
            f"The model '{model.name}' is the base of the fine-tuning job {job_id}, which has not ended. Cancel it."
        )
        raise bad_request(message, "model")


def _needed(places: Places, folder: str, others: list[str]) -> bool:
    """Whether another fine-tune's adapter says that this folder is its base."""
    weights = places.absolute(folder)
    return any(_stands_on(places.absolute(other), weights) for other in others)


def _stands_on(adapter: Path, weights: Path) -> bool:
    try:
        base = json.loads((adapter / "base.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(base, dict) and any(
        isinstance(value, str) and value.startswith("/") and Path(value) == weights for value in base.values()
    )
