"""The files of new jobs, checked one job after another in a thread of its own.

Comes in: jobs in state validating_files. Goes out: queued with hyperparameters that are numbers, or failed with the
contract's error. A job that is checked when the server is killed is checked again at the next start. A file has a row
only when all its bytes are there, so there is nothing to wait for. Knows nothing of processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import select

from afina.data import training_file
from afina.server import hyperparameters, jobs
from afina.server.config import ServerConfig
from afina.server.job_plan import JobError, base_of, file_deleted, path_of
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import Job

RETRY_S = 2.0
logger = logging.getLogger(__name__)


class Checker:
    """One thread. queued: called when a job has entered the queue."""

    def __init__(self, config: ServerConfig, store: Store, places: Places, queued: Callable[[], None]) -> None:
        self.config, self.store, self.places, self.queued = config, store, places, queued
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="afina-check", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A check under way is given up with the process; it changes nothing."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                while not self._stopping and self.check_next():
                    self.queued()
                self._wake.wait()
            except Exception:
                logger.exception("checking a job's files failed; it is tried again")
                self._wake.wait(RETRY_S)

    def check_next(self) -> bool:
        """Check the oldest job that waits for it; False when there is none."""
        with self.store.reading() as session:
            waiting = select(Job).where(Job.status == "validating_files").order_by(Job.seq).limit(1)
            job = session.scalar(waiting)
            base = None if job is None else base_of(session, job.model)
        if job is None or base is None:
            return False
        alias = self.config.alias(base)
        completions = alias is not None and alias.style == "completion"
        num_examples, error = 0, None
        try:
            num_examples = self._check(job, completions)
        except JobError as problem:
            error = problem
        with self.store.session() as session:
            job = jobs.find(session, job.id, lock=True)
            if job.status != "validating_files":
                return True  # cancelled meanwhile
            if error is None:
                jobs.enqueue(session, job, hyperparameters.resolve(job.asked, num_examples))
            else:
                jobs.fail(session, job, error.code, error.param, error.message)
        return True

    def _check(self, job: Job, completions: bool) -> int:
        """Examples of the training file. Raises JobError for the first file that cannot be trained on."""
        num_examples = self._check_file(job, job.training_file, "training_file", completions)
        if job.validation_file is not None:
            self._check_file(job, job.validation_file, "validation_file", completions)
        return num_examples

    def _check_file(self, job: Job, file_id: str, param: str, completions: bool) -> int:
        with self.store.reading() as session:
            path = path_of(session, self.places, file_id, param)
        method = "dpo" if job.method == "dpo" else "supervised"
        try:
            checked = training_file.check(path, method, completion_model=completions, most_problems=1)
        except FileNotFoundError as problem:
            raise file_deleted(param) from problem
        except OSError as problem:
            logger.exception("job %s: %s cannot be read", job.id, file_id)
            message = f"The server could not read the {param.replace('_', ' ')}: {problem.strerror or 'disk error'}."
            raise JobError("server_error", param, message) from problem
        error = training_file.job_error(checked, param)
        if error is not None:
            raise JobError(**error)
        return checked.num_examples
