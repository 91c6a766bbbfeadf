"""What the server remembers, as tables: SQLite by default, PostgreSQL by URL.

`seq` grows with every row, so that lists are newest first and a page's cursor is exact even within a second. Times are
Unix seconds. Files and weights lie on disk (`places.py`); rows only name them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Integer, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1
# SQLite counts up by itself only in a plain INTEGER key.
Sequence = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[Any]: JSON,
        int: BigInteger,
    }


class Setting(Base):
    """One fact about the database itself: its schema's version, the organisation's name."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class ApiKey(Base):
    """digest: SHA-256 of the key in hex; the key itself is shown once and never kept. shown: its first and last
    characters. revoked_at: None while it opens the door."""

    __tablename__ = "api_keys"
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    shown: Mapped[str]
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]


class File(Base):
    """An uploaded or made file; its bytes lie in the data folder under its id."""

    __tablename__ = "files"
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    purpose: Mapped[str] = mapped_column(index=True)
    filename: Mapped[str]
    bytes: Mapped[int]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]


class Job(Base):
    """A fine-tuning job.

    model: the base's snapshot name, or the `ft:` name it goes on from. asked: hyperparameters as they were sent.
    hyperparameters: the chosen numbers, once they are. stop: "pause" or "cancel" while that is asked of its process.
    failures: how often its process ended without a word.
    """

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str]
    created_at: Mapped[int]
    finished_at: Mapped[int | None]
    fine_tuned_model: Mapped[str | None]
    status: Mapped[str] = mapped_column(index=True)
    stop: Mapped[str | None]
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    method: Mapped[str]
    asked: Mapped[dict[str, Any]]
    hyperparameters: Mapped[dict[str, Any] | None]
    integrations: Mapped[list[Any]]
    meta: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    trained_tokens: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    result_files: Mapped[list[str]]
    failures: Mapped[int] = mapped_column(default=0)


class Event(Base):
    """key: what it reports, as `step-12`; a job reports each thing once, however often its process was killed."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "key"),)
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str] = mapped_column(index=True)
    key: Mapped[str]
    created_at: Mapped[int]
    level: Mapped[str]
    message: Mapped[str]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]


class Checkpoint(Base):
    """name: of the model that can be asked for; the last checkpoint's is the job's own."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str] = mapped_column(index=True)
    step: Mapped[int]
    created_at: Mapped[int]
    name: Mapped[str] = mapped_column(unique=True)
    metrics: Mapped[dict[str, Any]]


class Model(Base):
    """A fine-tuned model or checkpoint. Base models are the configuration's and have no row.

    base: snapshot name at the root of its lineage. parent: the name that its job went on from.
    folder: of its weights, relative to the data folder. style: how its prompts are rendered ("chat", "completion").
    """

    __tablename__ = "models"
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    owned_by: Mapped[str]
    job_id: Mapped[str] = mapped_column(index=True)
    step: Mapped[int]
    base: Mapped[str]
    parent: Mapped[str]
    folder: Mapped[str]


class Batch(Base):
    """body: the batch object as it is answered, without what changes; the rest are its columns."""

    __tablename__ = "batches"
    seq: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    endpoint: Mapped[str]
    input_file_id: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    meta: Mapped[dict[str, Any] | None]
    times: Mapped[dict[str, Any]]
    errors: Mapped[list[Any]]
    output_expires_after_s: Mapped[int | None]
