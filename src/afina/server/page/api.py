"""/afina/api: what the page asks besides OpenAI's endpoints. All of it wants the API key.

    GET  /afina/api/models    who can be asked, and how: runs, fine-tuned models, base models
    GET  /afina/api/runs      the runs, with the verdict of their reports
    POST /afina/api/predict   one row for a specialist -> its answer, with a confidence for each field
    POST /afina/api/reports   the address of a run's report.html, for an iframe

Comes in: requests. Goes out: JSON. Streams are `server/ask.py`'s matter.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import JSONResponse, Response

from afina.core.errors import AfinaError, MachineError
from afina.core.predictor import Prediction
from afina.core.task import Task
from afina.server.config import Alias
from afina.server.context import Context, context_of
from afina.server.errors import ApiError, bad_request
from afina.server.fields import as_text
from afina.server.inference import timed_out
from afina.server.page.runs import RunShelf, ServedRun, said_of
from afina.server.streaming import unless_gone
from afina.server.tables import Model
from afina.server.wire import Body

router = APIRouter(prefix="/afina/api")
log = logging.getLogger("afina.server")
T = TypeVar("T")
LISTED_SYSTEMS = 12  # of a report's comparison


class Row(Body):
    """inputs: of the task, by name."""

    model: str
    inputs: dict[str, Any]


class WhichRun(Body):
    run: str


def shelf_of(request: Request) -> RunShelf:
    return cast(RunShelf, request.app.state.shelf)


# -- who can be asked --------------------------------------------------------------------------


@router.get("/models")
def list_models(request: Request) -> dict[str, Any]:
    """Runs first, then fine-tuned models, the newest first, then base models, those that are the same as one."""
    ctx = context_of(request)
    with ctx.store.reading() as session:
        tuned = [
            {"id": row.name, "kind": "fine-tuned", "base": row.base, "created": row.created_at}
            for row in session.scalars(select(Model).order_by(Model.seq.desc()))
        ]
    runs = [_run_model(run) for run in shelf_of(request).runs.values() if run.kind is not None]
    return {"object": "list", "data": [*runs, *tuned, *_bases(ctx)]}


def _run_model(run: ServedRun) -> dict[str, Any]:
    task, manifest = cast(Task, run.task), run.manifest
    assert manifest is not None
    return {
        "id": run.name,
        "kind": run.kind,
        "base": shown_base(manifest.base_model),
        "created": manifest.created,
        "instruction": task.instruction,
        "inputs": list(task.inputs),
        "schema": task.output,
        "fields": [
            {"path": field.path, "labels": None if field.labels is None else list(field.labels), "multi": field.multi}
            for field in task.fields
        ],
        "reasoning": task.reasoning,
        "free_text": task.free_text,
        "report": run.report_page is not None,
    }


def _bases(ctx: Context) -> list[dict[str, Any]]:
    """also: other names of the same model."""
    found: dict[str, dict[str, Any]] = {}
    named = [*ctx.config.models.items()]
    named += [(short, ctx.config.models[full]) for short, full in ctx.config.short_names.items()]
    for name, alias in sorted(named, key=lambda item: item[0] != item[1].base_model):
        same = found.setdefault(_alike(alias), {"id": name, "kind": "base", "also": []})
        if same["id"] == name:
            same |= {"base": shown_base(alias.base_model), "style": alias.style}
        else:
            same["also"].append(name)
    return list(found.values())


def _alike(alias: Alias) -> str:
    return alias.model_dump_json(exclude={"train"}) + str(alias.train.get("revision"))


def shown_base(base_model: str) -> str:
    """A hub id as it is, a folder by its name alone."""
    return Path(base_model).name if base_model.startswith(("/", ".", "~")) else base_model


# -- runs and their reports --------------------------------------------------------------------


@router.get("/runs")
def list_runs(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_run(run) for run in shelf_of(request).runs.values()]}


def _run(run: ServedRun) -> dict[str, Any]:
    report = run.report() or {}
    manifest = run.manifest
    systems = report.get("systems")
    return {
        "id": run.name,
        "kind": run.kind,
        "folder": run.folder.name,
        "created": None if manifest is None else manifest.created,
        "base": None if manifest is None else shown_base(manifest.base_model),
        "report": run.report_page is not None,
        "num_test": report.get("num_test"),
        "verdict": report.get("verdict"),
        "systems": [
            {key: system.get(key) for key in ("name", "exact_match")}
            for system in (systems[:LISTED_SYSTEMS] if isinstance(systems, list) else [])
            if isinstance(system, dict)
        ],
    }


@router.post("/reports")
def open_report(request: Request, body: WhichRun) -> dict[str, Any]:
    shelf = shelf_of(request)
    run = find_run(shelf, body.run, param="run")
    page = run.report_page
    if page is None:
        raise ApiError(404, f"The run '{run.name}' has no report.html. Write it with: afina report {run.folder.name}")
    return {"url": shelf.tickets.issue(page)}


# -- one row for a specialist ------------------------------------------------------------------


@router.post("/predict")
async def predict(request: Request, body: Row) -> Response:
    run = find_run(shelf_of(request), body.model)
    inputs = checked_inputs(run, body.inputs)
    ctx = context_of(request)
    answered = await unless_gone(request, answered_in_turn(ctx, run, lambda: run.specialist().predict([inputs])[0]))
    if isinstance(answered, Response):
        return answered
    if answered.error is not None:
        raise bad_request(f"'{run.name}' could not answer: {answered.error}", "inputs")
    usage = answered.usage
    ctx.meter.tokens(run.name, usage.prompt_tokens, usage.completion_tokens)
    return JSONResponse(prediction_object(run.name, answered))


def prediction_object(name: str, answer: Prediction) -> dict[str, Any]:
    return {
        "object": "afina.prediction",
        "model": name,
        "output": answer.output,
        "confidence": dict(answer.confidence),
        "probabilities": {path: _labelled(found) for path, found in answer.probabilities.items()},
        "reasoning": dict(answer.reasoning),
        "truncated": answer.truncated,
        "latency_s": answer.latency_s,
        "usage": dataclasses.asdict(answer.usage),
    }


def _labelled(found: Mapping[Any, float]) -> list[dict[str, Any]]:
    """The likeliest first."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return [{"label": label, "probability": probability} for label, probability in ranked]


def checked_inputs(run: ServedRun, inputs: dict[str, Any]) -> dict[str, str]:
    """Every input of the task as text, at least one of them not empty. Raises ApiError."""
    task = cast(Task, run.task)
    wanted = list(task.inputs)
    if strange := [name for name in inputs if name not in task.inputs]:
        message = f"'{run.name}' has no input '{strange[0][:100]}'. Its inputs: {', '.join(wanted)}."
        raise bad_request(message, f"inputs.{strange[0][:100]}")
    if missing := [name for name in wanted if name not in inputs]:
        raise bad_request(f"The input '{missing[0]}' is missing.", f"inputs.{missing[0]}")
    texts = {name: as_text(inputs[name], f"inputs.{name}") for name in wanted}
    if not any(text.strip() for text in texts.values()):
        raise bad_request("All inputs are empty. Fill in at least one.", f"inputs.{wanted[0]}")
    return texts


def find_run(shelf: RunShelf, name: str, *, param: str = "model") -> ServedRun:
    """Raises ApiError for a name that is no run, or, where a model is wanted, a run without one."""
    run = shelf.runs.get(name)
    if run is None or (param == "model" and run.kind is None):
        known = ", ".join(run.name for run in shelf.runs.values()) or "none; start with: afina serve RUN"
        raise ApiError(
            404, f"This server has no run '{name[:200]}'. Its runs: {known}.", param=param, code="model_not_found"
        )
    return run


async def answered_in_turn(ctx: Context, run: ServedRun, work: Callable[[], T]) -> T:
    """Work of a run's model, one at a time. Raises ApiError."""
    limit_s = ctx.config.request_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await run.turn.take(work)
    except TimeoutError:
        raise timed_out(limit_s, begun=True) from None
    except AfinaError as error:
        raise run_error(run, error) from error


def run_error(run: ServedRun, error: AfinaError) -> ApiError:
    """The owner gave these runs, and what is wrong with one is said to whoever has a key."""
    log.error("run %s: %s", run.name, error)
    status = 503 if isinstance(error, MachineError) else 500
    return ApiError(status, f"'{run.name}' cannot answer: {said_of(error)}", type="server_error")
