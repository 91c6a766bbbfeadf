"""What a job's process told, made rows: events, checkpoints, models, and the job's end.

Comes in: lines of log.jsonl, perhaps some of them for the second time. Goes out: each told once, in order, in the
words of OpenAI's service. Every function is one transaction or none, so that a server killed at any moment goes on
where it was: a line is either told with all that follows from it, or read again. Knows nothing of processes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from afina.core.storage import explain_write_errors
from afina.server import jobs, names, results
from afina.server.job_folder import KEPT_CHECKPOINTS
from afina.server.job_log import LogReader
from afina.server.job_plan import base_of
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import Checkpoint, Event, File, Job, Model

logger = logging.getLogger(__name__)
STEP_DATA = (
    "step", "train_loss", "total_steps", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy",
    "full_valid_loss", "full_valid_mean_token_accuracy",
)  # fmt: skip


@dataclass
class Followed:
    """What the server knows of a job's log. told: keys of its events. started: the line of that kind, with the totals.
    ending: the line that finished or failed it. last_kind: of the last line. pace_from: time and step of the first step
    since the process last began; last: of the newest."""

    reader: LogReader
    told: set[str] | None = None
    started: dict[str, Any] | None = None
    ending: dict[str, Any] | None = None
    last_kind: str | None = None
    pace_from: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)


class Importer:
    """organisation: its slug, for names."""

    def __init__(self, store: Store, places: Places, organisation: str) -> None:
        self.store, self.places, self.organisation = store, places, organisation

    def take(self, job_id: str, followed: Followed) -> list[str]:
        """Tell all whole lines behind those already told. Returns the names of models that are no more.

        A job's end is only remembered, in `followed.ending`: the caller knows whether it may be told yet.
        """
        gone: list[str] = []
        while True:
            lines, offset = followed.reader.read()
            if offset == followed.reader.offset:
                return gone
            with self.store.session() as session:
                job = jobs.find(session, job_id, lock=True)
                if job.status in jobs.FINAL:
                    return gone
                if followed.told is None:
                    followed.told = set(session.scalars(select(Event.key).where(Event.job_id == job_id)))
                new_keys, gone_now = self._tell(session, job, followed, lines)
            followed.told |= new_keys
            followed.reader.advance(offset)
            gone += gone_now

    def succeed(self, job_id: str, followed: Followed) -> list[str]:
        """The job's end, after its `finished` line: the model, the result file, the last events; all or nothing.

        Nothing for a job that was cancelled or paused meanwhile. Returns the names of models that are no more.
        """
        assert followed.ending is not None
        at, step = int(followed.ending["at"]), int(followed.ending["step"])
        file_id, content = result_file_id(job_id), self._result_file(job_id)
        # The bytes lie there before the row that names them; their id follows from the job's, so a second attempt
        # writes the same file.
        self._write(file_id, content)
        with self.store.session() as session:
            job = jobs.find(session, job_id, lock=True)
            if job.status != "running":
                return []
            base = base_of(session, job.model)
            name = names.fine_tuned_name(base, self.organisation, job.suffix)
            self._add_model(session, job, base, name, step, str(followed.ending["folder"]), at)
            known = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step))
            if known is None:
                session.add(_checkpoint(job, name, step, at, followed.checkpoints.get(step, {}).get("metrics")))
                session.flush()
            gone = self._forget_old(session, job_id)
            jobs.add_event(session, job_id, "model", f"New fine-tuned model created: {name}", at=at)
            jobs.add_event(session, job_id, "completed", "The job has successfully completed", at=at)
            session.add(
                File(
                    id=file_id,
                    purpose="fine-tune-results",
                    filename=results.FILENAME,
                    bytes=len(content),
                    created_at=at,
                    expires_at=None,
                )
            )
            job.status, job.stop, job.finished_at, job.fine_tuned_model = "succeeded", None, at, name
            job.trained_tokens, job.estimated_finish = _trained_tokens(job, followed), None
            job.result_files, job.failures = [file_id], 0
        return gone

    def fail(self, job_id: str, code: str, param: str | None, message: str, at: int | None = None) -> None:
        """The job's end when it cannot be finished. Does nothing for a job that is over, or paused meanwhile."""
        with self.store.session() as session:
            job = jobs.find(session, job_id, lock=True)
            if job.status in ("running", "queued"):
                jobs.fail(session, job, code, param, message, at)

    def kept_models(self, job_id: str) -> set[str]:
        """Names of the folders of the job's models that can be asked for, as step-30."""
        with self.store.reading() as session:
            folders = session.scalars(select(Model.folder).where(Model.job_id == job_id)).all()
        return {folder.rsplit("/", 1)[-1] for folder in folders}

    def _write(self, file_id: str, content: bytes) -> None:
        staged = self.places.incoming()
        with explain_write_errors(self.places.files):
            try:
                with staged.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                staged.replace(self.places.file(file_id))
            finally:
                staged.unlink(missing_ok=True)

    # -- details ---------------------------------------------------------------------------------------------

    def _tell(
        self, session: Session, job: Job, followed: Followed, lines: list[dict[str, Any]]
    ) -> tuple[set[str], list[str]]:
        """The keys that are told now, and the names of models that are no more."""
        told, gone = set[str](), list[str]()
        for line in lines:
            key, known = line["key"], followed.told or set()
            try:
                _remember(followed, line)
                if key not in known and key not in told and self._tell_one(session, job, followed, line):
                    told.add(key)
                    gone += self._forget_old(session, job.id) if line["kind"] == "checkpoint" else []
            except (KeyError, TypeError, ValueError) as error:
                logger.warning("job %s: a line of its log is left out (%r): %r", job.id, error, line)
        return told, gone

    def _tell_one(self, session: Session, job: Job, followed: Followed, line: dict[str, Any]) -> bool:
        """Whether the line was told by an event of its key."""
        kind, at = line["kind"], int(line["at"])
        if kind == "started":
            jobs.add_event(session, job.id, line["key"], "Fine-tuning job started", at=at)
            for number, warning in enumerate(line.get("warnings") or []):
                text = jobs.one_line(str(warning), 2000)
                jobs.add_event(session, job.id, f"warning-{number}", text, level="warn", at=at)
            return True
        if kind == "step":
            data = {name: line[name] for name in STEP_DATA if name in line}
            jobs.add_event(session, job.id, line["key"], step_message(line), data=data, at=at)
            job.failures = 0  # it gets on
            if job.status == "running":
                job.estimated_finish = _estimated_finish(followed, int(line["total_steps"]))
            return True
        if kind == "checkpoint":
            return self._tell_checkpoint(session, job, followed, line)
        return False

    def _tell_checkpoint(self, session: Session, job: Job, followed: Followed, line: dict[str, Any]) -> bool:
        step, at = int(line["step"]), int(line["at"])
        if followed.started is not None and step >= int(followed.started["total_steps"]):
            return False  # the last one is the job's model itself, and told with its end
        base = base_of(session, job.model)
        name = names.fine_tuned_name(base, self.organisation, job.suffix, step)
        self._add_model(session, job, base, name, step, str(line["folder"]), at)
        session.add(_checkpoint(job, name, step, at, line.get("metrics")))
        message = f"Checkpoint created at step {step} with Snapshot ID: {name}"
        jobs.add_event(session, job.id, line["key"], message, at=at)
        session.flush()
        return True

    def _add_model(self, session: Session, job: Job, base: str, name: str, step: int, folder: str, at: int) -> None:
        session.add(
            Model(
                name=name,
                created_at=at,
                owned_by=self.organisation,
                job_id=job.id,
                step=step,
                base=base,
                parent=job.model,
                folder=self.places.relative(self.places.job(job.id) / folder),
            )
        )

    def _forget_old(self, session: Session, job_id: str) -> list[str]:
        """Remove the rows of all but the last checkpoints; their names."""
        rows = session.scalars(
            select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc())
        ).all()
        old = rows[KEPT_CHECKPOINTS:]
        for checkpoint in old:
            model = session.scalar(select(Model).where(Model.name == checkpoint.name))
            if model is not None:
                session.delete(model)
            session.delete(checkpoint)
        session.flush()
        return [checkpoint.name for checkpoint in old]

    def _result_file(self, job_id: str) -> bytes:
        with self.store.reading() as session:
            query = select(Event.data).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
            return results.result_file(session.scalars(query).all())


def result_file_id(job_id: str) -> str:
    """The id of a job's result file: it follows from the job's, so that no second one is ever made."""
    return "file-" + job_id.removeprefix("ftjob-")[:22]


def step_message(line: dict[str, Any]) -> str:
    """As `Step 299/300: training loss=0.00, validation loss=0.27, full validation loss=0.40`."""
    parts = [f"Step {line['step']}/{line['total_steps']}: training loss={_loss(line.get('train_loss'))}"]
    if "valid_loss" in line:
        parts.append(f"validation loss={_loss(line['valid_loss'])}")
    if "full_valid_loss" in line:
        parts.append(f"full validation loss={_loss(line['full_valid_loss'])}")
    return ", ".join(parts)


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"


def _remember(followed: Followed, line: dict[str, Any]) -> None:
    """What the server keeps in memory of a line, told before or not."""
    kind = line["kind"]
    followed.last_kind = kind
    if kind == "started":
        followed.started = line
        followed.pace_from = None
    elif kind == "step":
        followed.last = (float(line["at"]), int(line["step"]))
        followed.pace_from = followed.pace_from or followed.last
    elif kind == "checkpoint":
        followed.checkpoints[int(line["step"])] = line
    elif kind in ("finished", "failed"):
        followed.ending = line


def _estimated_finish(followed: Followed, total_steps: int) -> int | None:
    """Unix seconds, from the pace since the process last began; None before there is one."""
    if followed.last is None or followed.pace_from is None or followed.last[1] <= followed.pace_from[1]:
        return None
    (since, first), (now, step) = followed.pace_from, followed.last
    return round(now + (now - since) / (step - first) * (total_steps - step))


def _checkpoint(job: Job, name: str, step: int, at: int, metrics: Any) -> Checkpoint:
    shown = {"step": step, **(metrics if isinstance(metrics, dict) else {}), "type": job.method}
    return Checkpoint(id=names.checkpoint_id(), job_id=job.id, step=step, created_at=at, name=name, metrics=shown)


def _trained_tokens(job: Job, followed: Followed) -> int:
    """Tokens of the training file, as trained on, times the epochs; validation is not counted."""
    per_epoch = (followed.started or {}).get("tokens_per_epoch")
    if per_epoch is None or job.hyperparameters is None:
        return int((followed.ending or {}).get("trained_tokens", 0))
    return int(per_epoch) * int(job.hyperparameters["n_epochs"])
