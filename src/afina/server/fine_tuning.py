"""/v1/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume, events, checkpoints.

Comes in: a request. Goes out: the objects of `jobs.py`. What the API has and this server does not (reinforcement,
integrations) is refused by name. Training is nowhere here: a route writes rows and wakes the supervisor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from afina.server import hyperparameters, jobs
from afina.server.config import ServerConfig
from afina.server.context import Context, context_of
from afina.server.errors import bad_request, no_such_job, not_served, not_tunable
from afina.server.fields import Fields, as_text, string_too_long, wrong_type
from afina.server.hyperparameters import Method
from afina.server.job_plan import base_of, find_file
from afina.server.store import Page, page
from afina.server.tables import Checkpoint, Event, Job, Model
from afina.server.wire import Body

router = APIRouter(prefix="/fine_tuning/jobs")
MOST_METADATA, MOST_KEY_LENGTH, MOST_VALUE_LENGTH = 16, 64, 512
# The API names no upper limit; a page is made in memory.
MOST_LISTED = 10_000
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED)]
JOB_ID = re.compile(r"ftjob-[A-Za-z0-9]{24}")
FILE_ID = re.compile(r"file-[A-Za-z0-9]{1,64}")
FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)


class CreateJob(Body):
    """hyperparameters: deprecated, and still what most clients send; `method` holds them now."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=jobs.MAX_SEED)] | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[Any] | None = None
    metadata: dict[str, Any] | None = None


@router.post("")
def create(request: Request, body: CreateJob) -> dict[str, Any]:
    context = context_of(request)
    method, asked = _method(body)
    _no_integrations(body.integrations)
    metadata = _metadata(body.metadata)
    if body.suffix is not None and not body.suffix.isprintable():
        raise bad_request("Invalid 'suffix': it holds a character that cannot be printed.", "suffix", "invalid_value")
    with context.store.session() as session:
        model = _tunable(session, context.config, body.model, method)
        _require_file(session, body.training_file, "training_file")
        if body.validation_file is not None:
            _require_file(session, body.validation_file, "validation_file")
        new = jobs.NewJob(
            model=model,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=body.seed,
            method=method,
            asked=asked,
            metadata=metadata,
        )
        answer = _shown(context, jobs.create(session, new))
    context.supervisor.wake()
    return answer


@router.get("")
def list_jobs(request: Request, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
    context = context_of(request)
    with context.store.reading() as session:
        where = _metadata_filter(session, request, limit, after)
        found = page(session, Job, *where, limit=limit, after=after)
    return _list(found, lambda job: _shown(context, job))


@router.get("/{job_id}")
def retrieve(request: Request, job_id: str) -> dict[str, Any]:
    context = context_of(request)
    with context.store.reading() as session:
        return _shown(context, jobs.find(session, _known(job_id)))


@router.post("/{job_id}/cancel")
def cancel(request: Request, job_id: str) -> dict[str, Any]:
    return _changed(request, job_id, jobs.cancel)


@router.post("/{job_id}/pause")
def pause(request: Request, job_id: str) -> dict[str, Any]:
    return _changed(request, job_id, jobs.pause)


@router.post("/{job_id}/resume")
def resume(request: Request, job_id: str) -> dict[str, Any]:
    return _changed(request, job_id, jobs.resume)


@router.get("/{job_id}/events")
def list_events(request: Request, job_id: str, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
    with context_of(request).store.reading() as session:
        job = jobs.find(session, _known(job_id))
        found = page(session, Event, Event.job_id == job.id, limit=limit, after=after)
    return _list(found, jobs.event_object)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(request: Request, job_id: str, limit: Limit = 10, after: str | None = None) -> dict[str, Any]:
    with context_of(request).store.reading() as session:
        job = jobs.find(session, _known(job_id))
        found = page(session, Checkpoint, Checkpoint.job_id == job.id, limit=limit, after=after)
    answer = _list(found, jobs.checkpoint_object)
    ids = [checkpoint["id"] for checkpoint in answer["data"]]
    return {**answer, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}


# -- what a new job may ask for ----------------------------------------------------------------------------------


def _method(body: CreateJob) -> tuple[Method, dict[str, Any]]:
    """The method, and all its hyperparameters as asked."""
    fields = Fields({"type": "supervised"} if body.method is None else body.method, "method")
    kind = fields.one_of("type", ("supervised", "dpo", "reinforcement"))
    if kind == "reinforcement":
        raise bad_request(
            "The method 'reinforcement' is not supported by this server: it needs a grader's reward for sampled "
            "answers. Use 'supervised', or 'dpo' with preferred and non-preferred answers.",
            "method",
            "unsupported_value",
        )
    method: Method = "dpo" if kind == "dpo" else "supervised"
    for other in ("supervised", "dpo", "reinforcement"):
        if other != method and fields.take(other, None) is not None:
            message = f"Invalid 'method.{other}': the method's type is '{method}'. Send 'method.{method}' or nothing."
            raise bad_request(message, f"method.{other}", "invalid_value")
    given = fields.take(method, None)
    fields.done()
    return method, _asked(body.hyperparameters, given, method)


def _asked(deprecated: Mapping[str, Any] | None, given: Any, method: Method) -> dict[str, Any]:
    """What the method says; what it leaves out, the deprecated field says."""
    where = f"method.{method}.hyperparameters"
    inner = Fields({} if given is None else given, f"method.{method}")
    newer = inner.take("hyperparameters", None)
    inner.done()
    if newer is not None and not isinstance(newer, dict):
        raise wrong_type(where, "an object", newer)
    asked = hyperparameters.parse(cast(dict[str, Any], newer or {}), method, where)
    fallback = hyperparameters.parse(deprecated or {}, method, "hyperparameters")
    for name, value in asked.items():
        if hyperparameters.AUTO not in (value, fallback[name]) and value != fallback[name]:
            message = f"'{where}.{name}' and the deprecated 'hyperparameters.{name}' differ. Send the first one only."
            raise bad_request(message, f"hyperparameters.{name}", "invalid_value")
    return {name: fallback[name] if value == hyperparameters.AUTO else value for name, value in asked.items()}


def _no_integrations(integrations: list[Any] | None) -> None:
    for i, one in enumerate(integrations or []):
        kind = Fields(one, f"integrations[{i}]").one_of("type", ("wandb",))
        raise not_served(f"The integration '{kind}'", "integrations")


def _metadata(given: Mapping[str, Any] | None) -> dict[str, str] | None:
    if given is None:
        return None
    if len(given) > MOST_METADATA:
        message = (
            f"Invalid 'metadata': too many properties. Expected an object with at most {MOST_METADATA} properties, "
            f"but got an object with {len(given)} properties instead."
        )
        raise bad_request(message, "metadata", "object_above_max_properties")
    for key, value in given.items():
        if len(as_text(key, "metadata")) > MOST_KEY_LENGTH:
            raise string_too_long("metadata", MOST_KEY_LENGTH, len(key))
        if len(as_text(value, f"metadata.{key}")) > MOST_VALUE_LENGTH:
            raise string_too_long(f"metadata.{key}", MOST_VALUE_LENGTH, len(value))
    return dict(given)


def _tunable(session: Session, config: ServerConfig, name: str, method: Method) -> str:
    """The name that the job carries: a snapshot for an alias, a fine-tuned model's or checkpoint's own name."""
    full = config.full_name(name)
    if full is None:
        if not name.isprintable() or session.scalar(select(Model).where(Model.name == name)) is None:
            raise not_tunable(name)
        full = name
    alias = config.alias(base_of(session, full))
    if method == "dpo" and alias is not None and alias.style == "completion":
        message = f"The method 'dpo' is not supported for {name}: it compares answers of chat models."
        raise bad_request(message, "method", "unsupported_value")
    return full


def _require_file(session: Session, file_id: str, param: str) -> None:
    file = find_file(session, file_id) if FILE_ID.fullmatch(file_id) else None
    if file is None:
        raise bad_request(f"invalid {param}: {file_id}", param)
    if file.purpose != "fine-tune":
        message = (
            f"invalid {param}: {file_id} has the purpose '{file.purpose}'. Upload it with the purpose 'fine-tune'."
        )
        raise bad_request(message, param)


# -- details -----------------------------------------------------------------------------------------------------


def _known(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise no_such_job(job_id)
    return job_id


def _metadata_filter(session: Session, request: Request, limit: int, after: str | None) -> list[ColumnElement[bool]]:
    """`metadata[key]=value`, each of which must hold, or `metadata=null` for jobs without metadata.

    Compared here and not by the database, where a key would become part of a path expression.
    """
    wanted: dict[str, str] = {}
    nothing = False
    for key, value in request.query_params.multi_items():
        if key == "metadata":
            if value != "null":
                message = "Invalid 'metadata': expected 'null', or a filter as 'metadata[key]=value'."
                raise bad_request(message, "metadata", "invalid_value")
            nothing = True
        elif match := FILTER.fullmatch(key):
            wanted[match[1]] = value
    if not wanted and not nothing:
        return []

    def fits(meta: dict[str, Any] | None) -> bool:
        has = meta or {}
        return not (nothing and has) and all(has.get(key) == value for key, value in wanted.items())

    query = select(Job.seq, Job.meta).order_by(Job.seq.desc())
    if after is not None and "\0" not in after:
        query = query.where(Job.seq <= select(Job.seq).where(Job.id == after).scalar_subquery())
    seqs = [seq for seq, meta in session.execute(query) if fits(meta)]
    return [Job.seq.in_(seqs[: limit + 2])]  # the cursor's own row, the page, and one to know that there are more


def _changed(request: Request, job_id: str, change: Callable[[Session, str], Job]) -> dict[str, Any]:
    """Change the job's state, and wake who carries it out."""
    context = context_of(request)
    with context.store.session() as session:
        answer = _shown(context, change(session, _known(job_id)))
    context.supervisor.wake()
    return answer


def _shown(context: Context, job: Job) -> dict[str, Any]:
    return jobs.job_object(job, context.config.organisation)


def _list(found: Page[Any], shown: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": [shown(row) for row in found.rows], "has_more": found.has_more}
