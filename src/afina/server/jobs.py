"""Fine-tuning jobs as rows: made, told as OpenAI's objects, and moved from state to state.

    validating_files -> queued -> running -> succeeded | failed | cancelled
                          queued | running -> paused -> queued

Comes in: an open transaction. Goes out: rows and JSON objects. A change of state and the event that tells it are one
transaction, so neither is ever seen without the other. Knows nothing of processes; what a client asks of a running
one is left in `Job.stop` for the supervisor.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from afina.server import names
from afina.server.errors import bad_request, no_such_job
from afina.server.hyperparameters import EVERY_METHOD, Method
from afina.server.tables import Checkpoint, Event, Job

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
Level = Literal["info", "warn", "error"]
MAX_SEED = 2**31 - 1
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")


@dataclass(frozen=True)
class NewJob:
    """A checked request. model: a base's snapshot name or an `ft:` name. asked: every hyperparameter of the method,
    numbers or "auto". seed: None to draw one."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int | None
    method: Method
    asked: dict[str, Any]
    metadata: dict[str, str] | None


def create(session: Session, new: NewJob) -> Job:
    """The job's row, in state validating_files, and its first two events."""
    job = Job(
        id=names.job_id(),
        model=new.model,
        created_at=int(time.time()),
        finished_at=None,
        fine_tuned_model=None,
        status="validating_files",
        stop=None,
        training_file=new.training_file,
        validation_file=new.validation_file,
        suffix=new.suffix,
        seed=secrets.randbelow(MAX_SEED + 1) if new.seed is None else new.seed,
        method=new.method,
        asked=new.asked,
        hyperparameters=None,
        integrations=[],
        meta=new.metadata,
        error=None,
        trained_tokens=None,
        estimated_finish=None,
        result_files=[],
        failures=0,
    )
    session.add(job)
    session.flush()
    add_event(session, job.id, "created", f"Created fine-tuning job: {job.id}")
    also = f" and validation file: {job.validation_file}" if job.validation_file else ""
    add_event(session, job.id, "validating", f"Validating training file: {job.training_file}{also}")
    return job


def find(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """The job's row. lock: nobody else changes it before the transaction ends (SQLite's transactions wait for each
    other anyway). Raises ApiError for an unknown id."""
    query = select(Job).where(Job.id == job_id)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise no_such_job(job_id)
    return job


def add_event(
    session: Session,
    job_id: str,
    key: str,
    message: str,
    *,
    level: Level = "info",
    data: dict[str, Any] | None = None,
    at: int | None = None,
) -> None:
    """key: what is told; a job's keys are different. data: of a step, which makes it an event of type metrics."""
    session.add(
        Event(
            id=names.event_id(),
            job_id=job_id,
            key=key,
            created_at=int(time.time()) if at is None else at,
            level=level,
            message=message,
            type="message" if data is None else "metrics",
            data=data or {},
        )
    )
    session.flush()  # events keep the order in which they are told


# -- changes of state that a client asks for ---------------------------------------------------------------------


def cancel(session: Session, job_id: str) -> Job:
    """From every state that is not final. The job is cancelled at once; its process, if any, is ended soon after."""
    job = find(session, job_id, lock=True)
    if job.status in FINAL:
        raise _wrong_state(job, "cancelled", "is over already")
    job.status, job.stop, job.estimated_finish = "cancelled", "cancel", None
    add_event(session, job.id, "cancelled", "The job was cancelled")
    return job


def pause(session: Session, job_id: str) -> Job:
    """From queued and running. A running process saves its work and ends, within a step."""
    job = find(session, job_id, lock=True)
    if job.status not in ("queued", "running"):
        raise _wrong_state(job, "paused", "only a queued or running job can be paused")
    if job.status == "running":
        job.stop = "pause"
    job.status, job.estimated_finish = "paused", None
    add_event(session, job.id, f"paused-{names.random_text(8)}", "The job was paused")
    return job


def resume(session: Session, job_id: str) -> Job:
    """From paused, to the queue: it goes on from where it was saved."""
    job = find(session, job_id, lock=True)
    if job.status != "paused":
        raise _wrong_state(job, "resumed", "only a paused job can be resumed")
    job.status = "queued"
    add_event(session, job.id, f"resumed-{names.random_text(8)}", "The job was resumed")
    return job


def _wrong_state(job: Job, wanted: str, why: str) -> Exception:
    """400 and not 409: the clients try 409 again and again by themselves."""
    return bad_request(f"Job {job.id} cannot be {wanted}: its status is '{job.status}', and {why}.")


# -- changes of state that the server makes ----------------------------------------------------------------------


def enqueue(session: Session, job: Job, hyperparameters: dict[str, Any]) -> None:
    """The files are good. hyperparameters: numbers only."""
    job.status, job.hyperparameters = "queued", hyperparameters
    add_event(session, job.id, "validated", "Files validated, moving job to queued state")


def fail(session: Session, job: Job, code: str, param: str | None, message: str, at: int | None = None) -> None:
    """code, param, message: the job's `error`, told in one event too."""
    message = one_line(message, 4000)
    job.status, job.stop, job.estimated_finish = "failed", None, None
    job.error = {"code": code, "message": message, "param": param}
    job.finished_at = int(time.time()) if at is None else at
    add_event(session, job.id, "failed", message, level="error", at=at)


def one_line(text: str, most: int) -> str:
    """text without control characters, cut to `most` characters."""
    text = CONTROL.sub(" ", text).replace("\n", " ").strip()
    return text if len(text) <= most else text[: most - 3] + "..."


# -- objects as they are sent ------------------------------------------------------------------------------------


def job_object(job: Job, organisation: str) -> dict[str, Any]:
    """The `fine_tuning.job`. Its `hyperparameters` are deprecated, and still read by every client."""
    chosen = job.hyperparameters or job.asked
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.model,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": f"org-{organisation}",
        "result_files": job.result_files,
        "status": job.status,
        "validation_file": job.validation_file,
        "training_file": job.training_file,
        "hyperparameters": {name: chosen[name] for name in EVERY_METHOD},
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "user_provided_suffix": job.suffix,
        "seed": job.seed,
        "estimated_finish": job.estimated_finish,
        "integrations": job.integrations,
        "metadata": job.meta,
        "usage_metrics": None,
        "shared_with_openai": False,
        "eval_id": None,
        "method": {"type": job.method, job.method: {"hyperparameters": chosen}},
    }


def event_object(event: Event) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "data": event.data,
        "type": event.type,
    }


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "metrics": checkpoint.metrics,
        "step_number": checkpoint.step,
    }
