"""Files and fine-tuning jobs at a provider, as plain JSON objects of its API.

Comes in: a Connection and ids. Goes out: what the provider says, or ProviderError. What the files hold, what a job
costs and what is kept of it is not known here.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from afina.providers.client import Connection, ProviderError, UnreachableError

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "cancelled")
RECENT = 100  # jobs and files that are looked through for one of ours
PATIENCE_S = 900.0  # without an answer, while a job is followed
RUN_KEY = "afina_run"  # in a job's metadata: which run it belongs to


# -- files -----------------------------------------------------------------------------------------


def upload(connection: Connection, path: Path, name: str, purpose: str = "fine-tune") -> str:
    """The id of the uploaded file; one of this name and size that is there already is taken instead.

    name: says what the file holds (its hash), so that a killed upload is not repeated.
    """
    size = path.stat().st_size
    with connection.explained(f"uploading {path.name}"):
        known = connection.client.files.list(purpose=purpose, limit=RECENT)
        for file in known.data:
            if file.filename == name and file.bytes == size and file.status != "error":
                return file.id
        with path.open("rb") as content:
            return connection.client.files.create(file=(name, content), purpose=purpose).id  # type: ignore[arg-type]


def read_file(connection: Connection, file_id: str) -> bytes:
    with connection.explained(f"reading the file {file_id}"):
        return connection.client.files.content(file_id).read()


# -- jobs ------------------------------------------------------------------------------------------


def create_job(
    connection: Connection,
    *,
    model: str,
    training_file: str,
    validation_file: str | None,
    suffix: str | None,
    seed: int,
    hyperparameters: Mapping[str, Any],
    run: str,
) -> Json:
    """Create a supervised job, once: if no answer comes, the job of this run is looked for before it is an error."""
    request: Json = {
        "model": model,
        "training_file": training_file,
        "seed": seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters)}},
        "metadata": {RUN_KEY: run},
    }
    request |= {"validation_file": validation_file} if validation_file else {}
    request |= {"suffix": suffix} if suffix else {}
    once = connection.once()
    try:
        with once.explained("creating the job"):
            return _job(once.client.fine_tuning.jobs.create(**request))
    except ProviderError as error:
        unsure = isinstance(error, UnreachableError) or (error.status or 0) >= 500
        found = find_job(connection, run, training_file, seed) if unsure else None
        if found is None:
            raise
        return found


def find_job(connection: Connection, run: str, training_file: str, seed: int) -> Json | None:
    """The newest job of a run that was not in vain: by its metadata, or by file and seed where it has none."""
    with connection.explained("looking for the job of this run"):
        page = connection.client.fine_tuning.jobs.list(limit=RECENT, extra_query={f"metadata[{RUN_KEY}]": run})
        jobs: list[Json] = [_job(job) for job in page.data]
        if not jobs:  # a provider that does not filter, or lost the metadata
            jobs = [_job(job) for job in connection.client.fine_tuning.jobs.list(limit=RECENT).data]
    for job in jobs:
        metadata = job.get("metadata") or {}
        ours = metadata.get(RUN_KEY) == run
        if not metadata:
            ours = job.get("training_file") == training_file and job.get("seed") == seed
        if ours and job.get("status") not in ("failed", "cancelled"):
            return job
    return None


def _job(answer: Any) -> Json:
    """The SDK's object as plain JSON, with the keys that are read from it. Raises KeyError, which is explained."""
    job: Json = answer.to_dict()
    return {
        **job,
        "id": str(job["id"]),
        "status": str(job["status"]),
        "model": job["model"],
        "created_at": job["created_at"],
    }


def get_job(connection: Connection, job_id: str) -> Json:
    with connection.explained(f"asking for the job {job_id}"):
        return _job(connection.client.fine_tuning.jobs.retrieve(job_id))


def list_jobs(connection: Connection, limit: int = 20) -> list[Json]:
    """The newest first."""
    found: list[Json] = []
    with connection.explained("listing the jobs"):
        for job in connection.client.fine_tuning.jobs.list(limit=min(limit, RECENT)):
            found.append(_job(job))
            if len(found) >= limit:
                break
    return found


def change_job(connection: Connection, job_id: str, verb: str) -> Json:
    """verb: cancel, pause or resume."""
    with connection.explained(f"{verb} of the job {job_id}"):
        return _job(getattr(connection.client.fine_tuning.jobs, verb)(job_id))


def new_events(
    connection: Connection, job_id: str, seen: set[str] | None = None, limit: int | None = None
) -> list[Json]:
    """Events that are not in `seen`, which grows by them; the oldest first.

    limit: at most so many of the newest.
    """
    seen = set() if seen is None else seen
    found: list[Json] = []
    with connection.explained(f"asking for the events of {job_id}"):
        for event in connection.client.fine_tuning.jobs.list_events(job_id, limit=RECENT):
            if event.id in seen or len(found) == limit:
                break
            found.append(event.to_dict())
    seen.update(event["id"] for event in found)
    return found[::-1]


def follow(
    connection: Connection, job_id: str, tell: Callable[[Json], None], pause_s: float, patience_s: float = PATIENCE_S
) -> Json:
    """The job when it has ended. tell: is given every event, the oldest first.

    A provider that does not answer for a while is waited for; after `patience_s` that is an error, and the job goes on
    without us.
    """
    seen: set[str] = set()
    last_answer = time.monotonic()
    while True:
        try:
            job = get_job(connection, job_id)  # before the events, so that none of an ended job is missed
            for event in new_events(connection, job_id, seen):
                tell(event)
            last_answer = time.monotonic()
            if job["status"] in ENDED:
                return job
        except ProviderError as error:
            waits = isinstance(error, UnreachableError) or error.status == 429 or (error.status or 0) >= 500
            if not waits or time.monotonic() - last_answer > patience_s:
                raise
        time.sleep(pause_s)


def step_metrics(connection: Connection, job: Mapping[str, Any]) -> str | None:
    """The CSV of the job's losses; None where there is none. It comes in base64 from some providers."""
    files = job.get("result_files") or []
    if not files:
        return None
    raw = read_file(connection, files[0])
    try:
        decoded = base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error:
        decoded = raw
    return decoded.decode("utf-8", "replace")


def list_models(connection: Connection) -> list[Json]:
    with connection.explained("listing the models"):
        return [model.to_dict() for model in connection.client.models.list()]
