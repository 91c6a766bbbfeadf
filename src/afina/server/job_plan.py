"""What a job's process shall train, from the job's row, the files' rows, its base model and the configuration.

Comes in: a job whose files were checked. Goes out: a `Plan` of paths and numbers, or the error that the job fails with
because something was deleted meanwhile. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from afina.server import names
from afina.server.config import ServerConfig
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import File, Job, Model
from afina.server.wire import now


class JobError(Exception):
    """Why a job fails: the contract's `error` of a job."""

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(message)
        self.code, self.param, self.message = code, param, message


def file_deleted(param: str) -> JobError:
    """param: training_file or validation_file."""
    message = f"The job failed because the {param.replace('_', ' ')} was deleted"
    return JobError(f"deleted_{param}", param, message)


def model_gone(model: str) -> JobError:
    message = f"The job failed because the model {model} was deleted, or is not configured any more"
    return JobError("model_not_available", "model", message)


@dataclass(frozen=True)
class Plan:
    """One job, ready to be written. base_name: a hub id, a folder or afina/nano; None with base_folder, a servable
    folder of an earlier job. train: recipe keys. max_length: tokens, the base's own if None. style: "chat",
    "completion" or "auto"."""

    job_id: str
    model: str
    method: str
    base_name: str | None
    base_folder: Path | None
    training_file: Path
    validation_file: Path | None
    hyperparameters: dict[str, Any]
    seed: int
    train: dict[str, Any]
    max_length: int | None
    style: str


def plan_of(job: Job, config: ServerConfig, store: Store, places: Places) -> Plan:
    """Raises JobError when a file or the base model is no more."""
    assert job.hyperparameters is not None, job.id
    with store.reading() as session:
        training = path_of(session, places, job.training_file, "training_file")
        validation = job.validation_file and path_of(session, places, job.validation_file, "validation_file")
        parent = session.scalar(select(Model).where(Model.name == job.model))
        alias = config.alias(base_of(session, job.model))
    if parent is None and (alias is None or job.model.startswith("ft:")):
        raise model_gone(job.model)
    return Plan(
        job_id=job.id,
        model=job.model,
        method=job.method,
        base_name=alias.base_model if parent is None and alias is not None else None,
        base_folder=None if parent is None else places.absolute(parent.folder),
        training_file=training,
        validation_file=validation or None,
        hyperparameters=job.hyperparameters,
        seed=job.seed,
        train={} if alias is None else alias.train,
        max_length=None if alias is None else alias.context,
        style="auto" if alias is None else alias.style,
    )


def path_of(session: Session, places: Places, file_id: str, param: str) -> Path:
    """Where a file's bytes are; they are there when its row is. Raises JobError when it was deleted."""
    if find_file(session, file_id) is None:
        raise file_deleted(param)
    return places.file(file_id)


def find_file(session: Session, file_id: str) -> File | None:
    """A file's row, unless it has expired."""
    lasts = or_(File.expires_at.is_(None), File.expires_at > now())
    return session.scalar(select(File).where(File.id == file_id, lasts))


def base_of(session: Session, model: str) -> str:
    """The base model's name under a name: of a fine-tuned model the snapshot that its first job began with.

    The rows know it; a name tells it too, once its model is deleted.
    """
    row = session.scalar(select(Model).where(Model.name == model))
    if row is not None:
        return row.base
    match = names.FINE_TUNED.match(model)
    return match["base"] if match else model
