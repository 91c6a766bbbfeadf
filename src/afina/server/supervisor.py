"""Jobs and their processes: started, followed, stopped, started again.

One thread looks every 0.2 s (at once when woken) at the rows of jobs that are queued, running, or asked to stop, and
at their folders, and does what is due. All that matters is in the database and in the folders; what the thread keeps in
memory only saves reading again. So a server that is killed between any two statements finds, when it starts again, a
state that it knows how to go on from:

| row | process | what happens |
|---|---|---|
| queued | none | when there is room the row becomes running, the folder is prepared, the process is started |
| running | lives | its log is told; a `finished` or `failed` line ends the job |
| running | dead, last line `stopped`, or dead before this server started | it is started again |
| running | dead without a word | a failure is counted; it is started again, or the job fails |
| stop = "pause" | lives / dead | it is asked to save and end / `stop` is cleared |
| stop = "cancel" | lives / dead | it is killed / its leftovers are removed |

Knows nothing of how a process runs (`executor.py`) nor of what a log line becomes (`job_import.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from afina.core.errors import AfinaError
from afina.server import jobs, names
from afina.server.config import ServerConfig
from afina.server.executor import TRAINER_LOG, Executor, LocalExecutor
from afina.server.job_check import Checker
from afina.server.job_folder import clean, is_clean, is_prepared, last_words, prepare
from afina.server.job_import import Followed, Importer
from afina.server.job_log import NAME, LogReader
from afina.server.job_plan import JobError, plan_of
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import Job

if TYPE_CHECKING:
    from afina.server.pool import ModelPool

POLL_S = 0.2  # while a job is under way
IDLE_POLL_S = 5.0  # otherwise; whoever changes a row wakes the thread
MOST_FAILURES = 3  # deaths without a new step between them
RESTART_AFTER_S = 1.0  # times the failures
ASK_AGAIN_S = 5.0  # between two requests to stop
STOP_PATIENCE_S = 600.0  # one step of a large model may take minutes; what still lives then is killed
LINGER_S = 30.0  # of a process whose job is over
SHUTDOWN_PATIENCE_S = 5.0  # for trainers to save when the server ends; they go on saving without it
logger = logging.getLogger(__name__)


@dataclass
class Watched:
    """A job under way, as this server saw it. lived: its process was seen alive, or started, by this server.
    log_size: of what was read of its log when this server started its process, whose own words are behind it.
    not_before: when it may be started again. asked_since, asked_at: when it was asked to stop, first and last."""

    followed: Followed
    lived: bool = False
    log_size: int = 0
    not_before: float = 0.0
    asked_since: float | None = None
    asked_at: float = 0.0


class Supervisor:
    """Owns its thread, and the checker's. executor: where processes run; this machine unless told otherwise."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        places: Places,
        pool: ModelPool | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.config, self.store, self.places, self.pool = config, store, places, pool
        self.executor: Executor = executor or LocalExecutor()
        self.importer = Importer(store, places, config.organisation)
        self.checker = Checker(config, store, places, self.wake)
        self._watched: dict[str, Watched] = {}
        self._lingering: dict[str, float] = {}  # job that is over: when its process, if it still lives, is killed
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="afina-supervisor", daemon=True)

    def start(self) -> None:
        self._sweep()
        self._thread.start()
        self.checker.start()

    def wake(self) -> None:
        """Something was asked for: look at once."""
        self.checker.wake()
        self._wake.set()

    def stop(self) -> None:
        """Ask all processes to save and end; the next server starts them again. Clients see them as running."""
        self._stopping = True
        self.checker.stop()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=SHUTDOWN_PATIENCE_S)
        folders = [self.places.job(job_id) for job_id in (*self._watched, *self._lingering)]
        for folder in folders:
            self.executor.stop(folder)
        deadline = time.monotonic() + SHUTDOWN_PATIENCE_S
        while time.monotonic() < deadline and any(self.executor.alive(folder) for folder in folders):
            time.sleep(0.05)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                busy = self.look()
            except Exception:  # a database that restarts, a full disk: the jobs wait for it
                logger.exception("the supervisor's look failed; it looks again")
                busy = True
            self._wake.wait(POLL_S if busy else IDLE_POLL_S)

    def look(self) -> bool:
        """One round over the jobs under way; whether there are any."""
        with self.store.reading() as session:
            under_way = or_(Job.status.in_(("queued", "running")), Job.stop.is_not(None))
            rows = session.scalars(select(Job).where(under_way).order_by(Job.seq)).all()
        taken = self._end_lingering()
        for job in rows:
            if job.status == "running" or job.stop is not None:
                taken += self._guarded(job, self._follow)
        for job in rows:
            if job.status == "queued" and job.stop is None and taken < self.config.jobs_at_once:
                taken += self._guarded(job, self._begin)
        return bool(rows) or bool(self._lingering)

    def _guarded(self, job: Job, act: Callable[[Job], bool]) -> bool:
        """Whether the job takes a place. What goes wrong with one job is no other's trouble."""
        if self._stopping:
            return True
        try:
            return act(job)
        except Exception:
            logger.exception("job %s: something went wrong; it is looked at again", job.id)
            return True

    # -- beginnings ------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> bool:
        """Start a queued job, from its beginning or from where it was paused."""
        if self.executor.alive(self.places.job(job.id)):
            return True  # paused and resumed before its process could end
        watched = self._watch(job)
        self._tell(job, watched)
        if not self._is_now_running(job):
            return False
        if watched.followed.ending is not None:  # it finished in the moment it was paused
            return self._conclude(job, watched)
        return self._launch(job, watched)

    def _launch(self, job: Job, watched: Watched) -> bool:
        """Prepare the folder, unless that was done, and start the process."""
        folder = self.places.job(job.id)
        try:
            if not is_prepared(folder):
                prepare(folder, plan_of(job, self.config, self.store, self.places))
        except JobError as problem:
            return self._fail(job, problem.code, problem.param, problem.message)
        except (OSError, AfinaError) as problem:
            logger.exception("job %s: its folder cannot be prepared", job.id)
            reason = problem.strerror if isinstance(problem, OSError) else "the data folder cannot be written"
            return self._fail(job, "server_error", None, f"The server could not prepare the job: {reason}.")
        watched.log_size, watched.lived, watched.asked_since = watched.followed.reader.offset, True, None
        self.executor.start(folder)
        return True

    def _is_now_running(self, job: Job) -> bool:
        """Move it from queued to running, unless it was paused or cancelled meanwhile."""
        with self.store.session() as session:
            row = jobs.find(session, job.id, lock=True)
            if row.status != "queued" or row.stop is not None:
                return False
            row.status = "running"
        return True

    # -- under way -------------------------------------------------------------------------------------------

    def _follow(self, job: Job) -> bool:
        """Tell what its process told, and stop it, end the job or start it again as is due."""
        alive = self.executor.alive(self.places.job(job.id))  # asked first: then a dead one's log is complete
        watched = self._watch(job)
        if job.stop == "cancel":
            return self._end_cancelled(job, alive)
        self._tell(job, watched)
        if job.stop == "pause":
            return self._end_paused(job, watched, alive)
        if watched.followed.ending is not None:
            return self._conclude(job, watched)
        if alive:
            watched.lived = True
            return True
        return self._start_again(job, watched)

    def _tell(self, job: Job, watched: Watched) -> None:
        for name in self.importer.take(job.id, watched.followed):
            if self.pool is not None:
                self.pool.forget(name)

    def _start_again(self, job: Job, watched: Watched) -> bool:
        """Its process is dead, and the job is not over.

        No failure is counted for a process that was told to stop, nor for one that died while no server saw it: a
        machine that is switched off is no fault of the job.
        """
        if watched.not_before:
            if time.monotonic() < watched.not_before:
                return True
            watched.not_before = 0.0
            return self._launch(job, watched)
        spoke = watched.followed.reader.offset > watched.log_size
        if not watched.lived or (spoke and watched.followed.last_kind == "stopped"):
            return self._launch(job, watched)
        with self.store.session() as session:
            row = jobs.find(session, job.id, lock=True)
            if row.status != "running":
                return False
            row.failures += 1
            failures = row.failures
            if failures < MOST_FAILURES:
                message = "The training process ended unexpectedly; it is started again from its last checkpoint"
                jobs.add_event(session, job.id, f"restart-{names.random_text(8)}", message, level="warn")
        if failures >= MOST_FAILURES:
            words = jobs.one_line(last_words(self.places.job(job.id), TRAINER_LOG), 500)
            message = f"The training process ended {failures} times without finishing a new step."
            return self._fail(job, "server_error", None, f"{message} Its last words: {words}" if words else message)
        watched.not_before = time.monotonic() + RESTART_AFTER_S * failures
        return True

    # -- ends ------------------------------------------------------------------------------------------------

    def _conclude(self, job: Job, watched: Watched) -> bool:
        """Its process said how it ended."""
        ending = watched.followed.ending
        assert ending is not None
        if ending["kind"] == "failed":
            code, param = str(ending.get("code") or "server_error"), ending.get("param")
            return self._fail(job, code, param, str(ending.get("message") or "The job failed."), int(ending["at"]))
        for name in self.importer.succeed(job.id, watched.followed):
            if self.pool is not None:
                self.pool.forget(name)
        return self._over(job)

    def _fail(self, job: Job, code: str, param: str | None, message: str, at: int | None = None) -> bool:
        self.importer.fail(job.id, code, param, message, at)
        return self._over(job)

    def _end_paused(self, job: Job, watched: Watched, alive: bool) -> bool:
        """Ask it to save and end; when it has, the job can be resumed."""
        folder, now = self.places.job(job.id), time.monotonic()
        if not alive:
            with self.store.session() as session:
                row = jobs.find(session, job.id, lock=True)
                if row.stop == "pause":
                    row.stop = None
            watched.lived, watched.asked_since = False, None
            self._wake.set()  # it may be queued again already
            return False
        if watched.asked_since is None:
            watched.asked_since, watched.asked_at = now, -ASK_AGAIN_S
        if now - watched.asked_since > STOP_PATIENCE_S:
            self.executor.kill(folder)
        elif now - watched.asked_at >= ASK_AGAIN_S:
            self.executor.stop(folder)
            watched.asked_at = now
        return True

    def _end_cancelled(self, job: Job, alive: bool) -> bool:
        if alive:
            self.executor.kill(self.places.job(job.id))
            return True
        self._over(job)
        with self.store.session() as session:
            jobs.find(session, job.id, lock=True).stop = None
        return False

    def _over(self, job: Job) -> bool:
        """Clean up behind a job that is over; whether its process still takes a place."""
        with self.store.reading() as session:
            if jobs.find(session, job.id).status not in jobs.FINAL:
                return True  # paused in this moment: its end is told after it is resumed
        self._watched.pop(job.id, None)
        if self.executor.alive(self.places.job(job.id)):
            self._lingering[job.id] = time.monotonic() + LINGER_S
            return True
        clean(self.places.job(job.id), self.importer.kept_models(job.id))
        return False

    def _end_lingering(self) -> int:
        """Processes whose job is over; how many still live."""
        for job_id, deadline in list(self._lingering.items()):
            folder = self.places.job(job_id)
            if self.executor.alive(folder):
                if time.monotonic() > deadline:
                    self.executor.kill(folder)
                continue
            clean(folder, self.importer.kept_models(job_id))
            del self._lingering[job_id]
        return len(self._lingering)

    def _sweep(self) -> None:
        """What a server that was killed behind a job's end did not come to: its leftovers."""
        with self.store.reading() as session:
            over = session.scalars(select(Job.id).where(Job.status.in_(jobs.FINAL), Job.stop.is_(None))).all()
        for job_id in over:
            if not is_clean(self.places.job(job_id)):
                self._lingering[job_id] = time.monotonic() + LINGER_S

    def _watch(self, job: Job) -> Watched:
        folder = self.places.job(job.id)
        return self._watched.setdefault(job.id, Watched(Followed(LogReader(folder / NAME))))
