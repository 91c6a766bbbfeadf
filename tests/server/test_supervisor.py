"""Jobs followed from their folders, with processes that keep the folder's contract and train nothing."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import contract_process
import pytest
from job_material import BASE, Desk, chat_lines, open_desk, wait_for
from sqlalchemy import select

from afina.server import executor as executor_module
from afina.server import job_folder, job_import, jobs, results, supervisor
from afina.server.executor import LocalExecutor, trainer_environment
from afina.server.hyperparameters import auto_batch_size, auto_epochs, resolve
from afina.server.job_log import LogReader
from afina.server.names import FINE_TUNED
from afina.server.supervisor import Supervisor
from afina.server.tables import Checkpoint, File, Model

TOKENS = contract_process.TOKENS_PER_EXAMPLE


@pytest.fixture
def desk(tmp_path: Path, database: str | None) -> Generator[Desk]:
    """On both kinds of database."""
    desk = open_desk(tmp_path / "data", database_url=database)
    yield desk
    desk.store.close()


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> LocalExecutor:
    """Real processes, of contract_process.py."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *sys.path]))
    monkeypatch.setattr(supervisor, "POLL_S", 0.02)
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0.01)
    return LocalExecutor("contract_process")


@contextmanager
def serving(desk: Desk, executor: LocalExecutor) -> Generator[Supervisor]:
    running = Supervisor(desk.config, desk.store, desk.places, None, executor)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass
class Stepwise:
    """An executor whose processes get on by one epoch whenever somebody looks whether they live. Nothing runs beside
    the test, so that a test can say between which two statements of the server it was killed."""

    living: set[Path] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    starts: int = 0

    def start(self, folder: Path) -> None:
        if folder not in self.living:
            self.starts += 1
            self.living.add(folder)

    def alive(self, folder: Path) -> bool:
        if folder not in self.living:
            return False
        job = contract_process.Job(folder)
        if not job.keys:
            job.begin()
        for step in range(job.saved + 1, job.saved + 1 + job.per_epoch):
            job.step(step)
        if job.saved >= job.total:
            job.finish()
            self.living.discard(folder)
        return folder in self.living

    def stop(self, folder: Path) -> None:
        self.asked.append(("stop", folder.name))
        if folder in self.living:
            job = contract_process.Job(folder)
            job.say(f"stopped-{job.saved}", "stopped", step=job.saved)
        self.living.discard(folder)

    def kill(self, folder: Path) -> None:
        self.asked.append(("kill", folder.name))
        self.living.discard(folder)


def by_hand(desk: Desk, executor: Any) -> Supervisor:
    """A supervisor without threads: the test says when it looks."""
    return Supervisor(desk.config, desk.store, desk.places, None, executor)


def look_until(server: Supervisor, done: Callable[[], bool], most: int = 100) -> None:
    for _ in range(most):
        server.checker.check_next()
        server.look()
        if done():
            return
    raise AssertionError(f"not done after {most} looks")


# -- a whole job -------------------------------------------------------------------------------------------------


def test_job_with_real_process_succeeds(desk: Desk, real: LocalExecutor) -> None:
    job_id = desk.add_job(examples=10, n_epochs=3, batch_size=5)
    with serving(desk, real):
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not real.alive(desk.places.job(job_id)) and not (desk.places.job(job_id) / "input").exists())
    desk.check_success(job_id, examples=10, n_epochs=3, batch_size=5, tokens=TOKENS)
    job = desk.job(job_id)
    name = job.fine_tuned_model or ""
    match = FINE_TUNED.match(name)
    assert match
    assert (match["base"], match["org"], match["suffix"], match["step"]) == (BASE, "afina", "not-cias-1", None)
    first, second = (row.name for row in desk.rows(Checkpoint, job_id)[:2])
    assert desk.messages(job_id) == [
        f"Created fine-tuning job: {job_id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/6: training loss=1.50",
        "Step 2/6: training loss=1.00",
        f"Checkpoint created at step 2 with Snapshot ID: {first}",
        "Step 3/6: training loss=0.75",
        "Step 4/6: training loss=0.60",
        f"Checkpoint created at step 4 with Snapshot ID: {second}",
        "Step 5/6: training loss=0.50",
        "Step 6/6: training loss=0.43",
        f"New fine-tuned model created: {name}",
        "The job has successfully completed",
    ]
    metrics = {**contract_process.measures(4), "step": 4, "type": "supervised"}
    assert desk.rows(Checkpoint, job_id)[1].metrics == metrics
    assert base64.b64decode(desk.places.file(job.result_files[0]).read_bytes()).decode().splitlines()[:3] == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,1.5,0.5,,",
        "2,1.0,0.66667,,",
    ]


def test_only_three_checkpoints_are_kept(desk: Desk) -> None:
    server = by_hand(desk, Stepwise())
    forgotten: list[str] = []
    server.pool = type("Pool", (), {"forget": staticmethod(forgotten.append)})()  # type: ignore[assignment]
    job_id = desk.add_job(n_epochs=6)
    look_until(server, lambda: desk.job(job_id).status == "succeeded")
    desk.check_success(job_id, examples=10, n_epochs=6, batch_size=5, tokens=TOKENS)
    told = [m.rsplit(": ", 1)[1] for m in desk.messages(job_id) if m.startswith("Checkpoint created")]
    assert len(told) == 5
    assert forgotten == told[:3]


def test_spec_is_what_the_process_reads(desk: Desk) -> None:
    from afina.server import job_process

    executor = Stepwise()
    server, job_id = by_hand(desk, executor), desk.add_job(examples=1000, batch_size=4)
    server.checker.check_next()
    server.look()
    folder = desk.places.job(job_id)
    spec = job_process.read_spec(folder / "spec.json")
    assert spec.hyperparameters.model_dump(exclude={"beta"}) == {
        "n_epochs": 3,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    assert (spec.seed, spec.base.name, spec.base.folder, spec.style) == (7, "afina/nano", None, "auto")
    assert Path(spec.training_file).read_text(encoding="utf-8") == chat_lines(1000)


def test_chained_job_keeps_its_base_when_the_model_is_deleted(desk: Desk) -> None:
    executor = Stepwise()
    server, first = by_hand(desk, executor), desk.add_job()
    look_until(server, lambda: desk.job(first).status == "succeeded")
    parent = desk.job(first).fine_tuned_model or ""
    second = desk.add_job(model=parent)
    look_until(server, lambda: desk.job(second).status == "running")
    base = json.loads((desk.places.job(second) / "spec.json").read_text())["base"]
    assert base["name"] is None
    with desk.store.session() as session:
        folder = desk.places.absolute(session.scalars(select(Model.folder).where(Model.name == parent)).one())
    (folder / "served.json").unlink()
    assert (Path(base["folder"]) / "served.json").is_file()
    (folder / "served.json").write_text("{}")
    look_until(server, lambda: desk.job(second).status == "succeeded")
    last = desk.rows(Model, second)[-1]
    assert (last.base, last.parent) == (BASE, parent)
    assert last.name.startswith(f"ft:{BASE}:afina:")


def test_model_deleted_before_the_start_fails_the_job(desk: Desk) -> None:
    server, first = by_hand(desk, Stepwise()), desk.add_job()
    look_until(server, lambda: desk.job(first).status == "succeeded")
    parent = desk.job(first).fine_tuned_model or ""
    second = desk.add_job(model=parent)
    with desk.store.session() as session:
        session.delete(session.scalars(select(Model).where(Model.name == parent)).one())
    look_until(server, lambda: desk.job(second).status == "failed")
    error = desk.job(second).error or {}
    assert (error["code"], error["param"]) == ("model_not_available", "model")
    assert parent in error["message"]


# -- bad files ---------------------------------------------------------------------------------------------------


def bad_role(line: int) -> str:
    lines = chat_lines(120).splitlines()
    row = json.loads(lines[line - 1])
    del row["messages"][1]["role"]
    lines[line - 1] = json.dumps(row)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (
            chat_lines(7),
            "invalid_n_examples",
            "Training file has 7 example(s), but must have at least 10 examples",
        ),
        (
            bad_role(100),
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Example 100, message 2 "
            "Discriminator 'role' is missing in value",
        ),
    ],
)
def test_bad_training_file_fails_the_job(desk: Desk, content: str, code: str, message: str) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job()
    desk.places.file(desk.job(job_id).training_file).write_text(content)
    look_until(server, lambda: desk.job(job_id).status == "failed")
    job = desk.job(job_id)
    assert job.error == {"code": code, "param": "training_file", "message": message}
    last = desk.events(job_id)[-1]
    assert (last.level, last.type, last.message) == ("error", "message", message)
    assert job.finished_at is not None
    assert not desk.places.job(job_id).exists()


@pytest.mark.parametrize("when", ["validating", "queued"])
def test_deleted_training_file_fails_the_job(desk: Desk, when: str) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job()
    if when == "queued":
        server.checker.check_next()
        assert desk.job(job_id).status == "queued"
    with desk.store.session() as session:
        session.delete(session.scalars(select(File)).one())
    look_until(server, lambda: desk.job(job_id).status == "failed")
    assert desk.job(job_id).error == {
        "code": "deleted_training_file",
        "param": "training_file",
        "message": "The job failed because the training file was deleted",
    }


def test_training_file_deleted_while_it_runs_harms_nothing(desk: Desk) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job()
    look_until(server, lambda: desk.job(job_id).status == "running")
    with desk.store.session() as session:
        row = session.scalars(select(File)).one()
        desk.places.file(row.id).unlink()
        session.delete(row)
    look_until(server, lambda: desk.job(job_id).status == "succeeded")
    desk.check_success(job_id, examples=10, n_epochs=3, batch_size=5, tokens=TOKENS)


# -- states ------------------------------------------------------------------------------------------------------


def test_jobs_queue(desk: Desk) -> None:
    executor = Stepwise()
    server, first, second = by_hand(desk, executor), desk.add_job(), desk.add_job()
    seen: set[tuple[str, str]] = set()

    def done() -> bool:
        seen.add((desk.job(first).status, desk.job(second).status))
        assert len(executor.living) <= 1
        return desk.job(second).status == "succeeded"

    look_until(server, done)
    assert ("running", "queued") in seen
    assert ("running", "running") not in seen
    assert ("succeeded", "running") in seen


def test_pause_and_resume(desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_TEST_STEP_S", "0.03")
    job_id = desk.add_job(n_epochs=20)
    folder = desk.places.job(job_id)
    with serving(desk, real) as server:
        wait_for(lambda: len(desk.rows(Checkpoint, job_id)) >= 2)
        assert desk.change(jobs.pause, job_id) == "paused"
        server.wake()
        wait_for(lambda: desk.job(job_id).stop is None)
        assert not real.alive(folder)
        paused_at = len(desk.events(job_id))
        time.sleep(0.2)
        assert desk.job(job_id).status == "paused"
        assert len(desk.events(job_id)) == paused_at
        assert desk.change(jobs.resume, job_id) == "queued"
        server.wake()
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not (folder / "input").exists())
    desk.check_success(job_id, examples=10, n_epochs=20, batch_size=5, tokens=TOKENS)
    assert desk.messages(job_id).count("The job was paused") == 1


def test_resume_at_once_waits_for_the_end_of_the_process(
    desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_TEST_STEP_S", "0.02")
    job_id = desk.add_job(n_epochs=50)
    with serving(desk, real) as server:
        wait_for(lambda: len(desk.events(job_id)) > 6)
        for _ in range(4):
            desk.change(jobs.pause, job_id)
            server.wake()
            desk.change(jobs.resume, job_id)
            server.wake()
            wait_for(lambda: desk.job(job_id).status == "running")
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not (desk.places.job(job_id) / "input").exists())
    desk.check_success(job_id, examples=10, n_epochs=50, batch_size=5, tokens=TOKENS)


def test_queued_job_can_be_paused(desk: Desk) -> None:
    executor = Stepwise()
    server, job_id = by_hand(desk, executor), desk.add_job()
    server.checker.check_next()
    assert desk.change(jobs.pause, job_id) == "paused"
    for _ in range(3):
        server.look()
    assert (desk.job(job_id).status, executor.starts) == ("paused", 0)
    assert desk.change(jobs.resume, job_id) == "queued"
    look_until(server, lambda: desk.job(job_id).status == "succeeded")
    desk.check_success(job_id, examples=10, n_epochs=3, batch_size=5, tokens=TOKENS)


def test_end_that_meets_a_pause_is_told_after_the_resume(desk: Desk) -> None:
    executor = Stepwise()
    server, job_id = by_hand(desk, executor), desk.add_job(n_epochs=1)
    look_until(server, lambda: desk.job(job_id).status == "running")
    executor.alive(desk.places.job(job_id))  # it trains to its end, and nobody has read that yet
    desk.change(jobs.pause, job_id)
    for _ in range(3):
        server.look()
    assert (desk.job(job_id).status, desk.job(job_id).stop) == ("paused", None)
    desk.change(jobs.resume, job_id)
    look_until(server, lambda: desk.job(job_id).status == "succeeded")
    assert executor.starts == 1
    desk.check_success(job_id, examples=10, n_epochs=1, batch_size=5, tokens=TOKENS)


def test_pause_in_the_moment_of_the_end_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job(n_epochs=1)
    make = server.importer._result_file

    def paused_meanwhile(job: str) -> bytes:
        if desk.job(job).status == "running" and "The job was paused" not in desk.messages(job):
            desk.change(jobs.pause, job)
        return make(job)

    monkeypatch.setattr(server.importer, "_result_file", paused_meanwhile)
    look_until(server, lambda: desk.job(job_id).status == "paused" and desk.job(job_id).stop is None)
    desk.change(jobs.resume, job_id)
    look_until(server, lambda: desk.job(job_id).status == "succeeded")
    desk.check_success(job_id, examples=10, n_epochs=1, batch_size=5, tokens=TOKENS)


def test_cancel_kills_the_process(desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_TEST_STEP_S", "0.05")
    job_id = desk.add_job(n_epochs=50)
    folder = desk.places.job(job_id)
    with serving(desk, real) as server:
        wait_for(lambda: len(desk.rows(Checkpoint, job_id)) >= 1)
        assert desk.change(jobs.cancel, job_id) == "cancelled"
        server.wake()
        wait_for(lambda: desk.job(job_id).stop is None)
        assert not real.alive(folder)
    job = desk.job(job_id)
    assert (job.status, job.finished_at, job.fine_tuned_model) == ("cancelled", None, None)
    assert desk.messages(job_id)[-1] == "The job was cancelled"
    assert not (folder / "train").exists()
    for model in desk.rows(Model, job_id):  # its checkpoints stay usable
        assert (desk.places.absolute(model.folder) / "served.json").is_file()


@pytest.mark.parametrize("state", ["validating_files", "queued", "paused"])
def test_cancel_without_a_process(desk: Desk, state: str) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job()
    if state != "validating_files":
        server.checker.check_next()
    if state == "paused":
        desk.change(jobs.pause, job_id)
    assert desk.job(job_id).status == state
    assert desk.change(jobs.cancel, job_id) == "cancelled"
    for _ in range(2):
        server.checker.check_next()
        server.look()
    assert (desk.job(job_id).status, desk.job(job_id).stop) == ("cancelled", None)


# -- deaths of the process ---------------------------------------------------------------------------------------


def test_process_that_dies_once_is_started_again(
    desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_TEST_CRASH", "step-3")
    job_id = desk.add_job()
    with serving(desk, real):
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not (desk.places.job(job_id) / "input").exists())
    desk.check_success(job_id, examples=10, n_epochs=3, batch_size=5, tokens=TOKENS)
    warnings = [event.message for event in desk.events(job_id) if event.level == "warn"]
    assert warnings == ["The training process ended unexpectedly; it is started again from its last checkpoint"]


def test_process_that_dies_three_times_fails_the_job(
    desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_TEST_CRASH", "start")
    job_id = desk.add_job()
    with serving(desk, real):
        wait_for(lambda: desk.job(job_id).status == "failed")
    job = desk.job(job_id)
    assert job.error == {
        "code": "server_error",
        "param": None,
        "message": "The training process ended 3 times without finishing a new step. "
        "Its last words: RuntimeError: the adapter cable is unplugged",
    }
    log = (desk.places.job(job_id) / "trainer.log").read_text()
    assert log.count("Traceback") == 3
    assert not (desk.places.job(job_id) / "input").exists()


def test_process_that_gives_up_fails_the_job(desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_TEST_CRASH", "failed")
    job_id = desk.add_job()
    with serving(desk, real):
        wait_for(lambda: desk.job(job_id).status == "failed")
    assert desk.job(job_id).error == {
        "code": "insufficient_resources",
        "param": None,
        "message": "Not enough memory. Buy some.",
    }
    assert desk.events(job_id)[-1].level == "error"


# -- deaths of the server ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """No Exception: the server catches none of it, as it catches no SIGKILL."""


WATCHED = {module.__file__ for module in (supervisor, job_import, job_folder, jobs)}


def kill_at(number: int, action: Callable[[], None]) -> bool:
    """Run `action`, killed before the `number`-th different statement of the watched modules; False if it has fewer."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) >= number:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("process", ["outlives", "dies"])
def test_server_killed_between_any_two_statements(tmp_path: Path, process: str) -> None:
    number, kills = 1, 0
    while True:
        desk = open_desk(tmp_path / str(number))
        executor, job_id = Stepwise(), desk.add_job(n_epochs=4)

        def until_done(desk: Desk = desk, executor: Stepwise = executor, job_id: str = job_id) -> None:
            server = by_hand(desk, executor)
            server._sweep()
            look_until(server, lambda: desk.job(job_id).status == "succeeded" and not server._lingering)

        killed = kill_at(number, until_done)
        if process == "dies":
            executor.living.clear()
        until_done()
        desk.check_success(job_id, examples=10, n_epochs=4, batch_size=5, tokens=TOKENS)
        desk.store.close()
        if not killed:
            break
        kills, number = kills + 1, number + 3
    assert kills > 50


def test_server_that_restarts_adopts_a_living_process(
    desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_TEST_STEP_S", "0.02")
    job_id = desk.add_job(n_epochs=15)
    first = by_hand(desk, real)
    first.checker.check_next()
    first.look()
    pid = wait_for((desk.places.job(job_id) / "lock").read_text)
    del first  # no goodbye
    other = LocalExecutor("contract_process")
    with serving(desk, other):
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not (desk.places.job(job_id) / "input").exists())
    assert (desk.places.job(job_id) / "lock").read_text() == pid
    desk.check_success(job_id, examples=10, n_epochs=15, batch_size=5, tokens=TOKENS)


def test_job_that_ended_while_no_server_ran_is_told(desk: Desk) -> None:
    executor = Stepwise()
    server, job_id = by_hand(desk, executor), desk.add_job(n_epochs=8)
    look_until(server, lambda: desk.job(job_id).status == "running")
    while executor.alive(desk.places.job(job_id)):
        pass
    server = by_hand(desk, executor)
    look_until(server, lambda: desk.job(job_id).status == "succeeded", most=2)
    assert executor.starts == 1
    desk.check_success(job_id, examples=10, n_epochs=8, batch_size=5, tokens=TOKENS)


def test_shutdown_stops_the_process_and_the_next_start_goes_on(
    desk: Desk, real: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_TEST_STEP_S", "0.02")
    job_id = desk.add_job(n_epochs=15)
    with serving(desk, real):
        wait_for(lambda: len(desk.rows(Checkpoint, job_id)) >= 1)
    assert desk.job(job_id).status == "running"
    assert not real.alive(desk.places.job(job_id))
    assert desk.messages(job_id)[-1].startswith(("Step ", "Checkpoint created"))
    with serving(desk, real):
        wait_for(lambda: desk.job(job_id).status == "succeeded")
        wait_for(lambda: not (desk.places.job(job_id) / "input").exists())
    desk.check_success(job_id, examples=10, n_epochs=15, batch_size=5, tokens=TOKENS)
    assert [event for event in desk.events(job_id) if event.level == "warn"] == []


# -- parts -------------------------------------------------------------------------------------------------------


def test_process_is_seen_from_its_first_moment(tmp_path: Path, real: LocalExecutor) -> None:
    """Another server, started just after the one that began the process was killed, must not begin a second one."""
    folder = prepared(tmp_path)
    os.environ["AFINA_TEST_STEP_S"] = "30"
    try:
        real.start(folder)
        other = LocalExecutor("contract_process")
        assert other.alive(folder)
        other.start(folder)
        assert other._children == {}
        pid = int(wait_for(lambda: (folder / "lock").read_text()))
        assert os.getpgid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == executor_module.NICENESS
        other.kill(folder)
        wait_for(lambda: not real.alive(folder))
        wait_for(lambda: not other.alive(folder))
    finally:
        del os.environ["AFINA_TEST_STEP_S"]
    assert not Path(f"/proc/{pid}").exists(), "a zombie is left"


def prepared(folder: Path) -> Path:
    (folder / "training.jsonl").write_text(chat_lines(10))
    numbers = {"n_epochs": 3, "batch_size": 5, "learning_rate_multiplier": 1.0}
    spec = {"training_file": str(folder / "training.jsonl"), "hyperparameters": numbers}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def test_process_outlives_a_killed_starter(tmp_path: Path, real: LocalExecutor) -> None:
    folder = prepared(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from afina.server.executor import LocalExecutor\n"
        "LocalExecutor('contract_process').start(Path(sys.argv[1])); print('started', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "AFINA_TEST_STEP_S": "0.2"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        starter.send_signal(signal.SIGKILL)
    assert real.alive(folder)
    wait_for(lambda: not real.alive(folder))
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["kind"] == "finished"


def test_process_gets_no_secrets() -> None:
    environment = {
        "OPENAI_API_KEY": "a",
        "afina_api_key": "b",
        "AFINA_DATABASE_URL": "c",
        "HF_TOKEN": "d",
        "PATH": "e",
    }
    assert trainer_environment(environment) == {"HF_TOKEN": "d", "PATH": "e"}


def test_log_reader_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    reader = LogReader(path)
    assert reader.read() == ([], 0)
    path.write_bytes(b'{"key":"a","loss":NaN}\n{"key":"b"')
    lines, offset = reader.read()
    assert lines == [{"key": "a", "loss": None}]
    reader.advance(offset)
    assert reader.read() == ([], offset)
    with path.open("ab") as file:
        file.write(b'}\nrubbish\n{"key":"c","pa{"key":"d"}\n')
    lines, offset = reader.read()
    assert [line["key"] for line in lines] == ["b", "d"]
    assert offset == path.stat().st_size


def test_messages_of_a_step() -> None:
    line: dict[str, Any] = {"step": 299, "total_steps": 300, "train_loss": 0.0031}
    assert job_import.step_message(line) == "Step 299/300: training loss=0.00"
    line |= {"valid_loss": 0.2688, "full_valid_loss": 0.4}
    assert job_import.step_message(line) == (
        "Step 299/300: training loss=0.00, validation loss=0.27, full validation loss=0.40"
    )


def test_lines_become_events_with_warnings_and_an_estimate(desk: Desk) -> None:
    server, job_id = by_hand(desk, Stepwise()), desk.add_job(n_epochs=1, batch_size=1)
    look_until(server, lambda: desk.job(job_id).status == "running")
    totals = {"total_steps": 10, "steps_per_epoch": 10, "tokens_per_epoch": 7}
    lines: list[dict[str, Any]] = [
        {"key": "started", "kind": "started", "at": 1000, **totals, "warnings": ["2 of 10 are\x00 cut."]},
        *({"key": f"step-{s}", "kind": "step", "at": 1000 + 5 * s, "step": s, "total_steps": 10, "train_loss": 1.0}
          for s in (1, 2, 3)),
        {"key": "step-4", "kind": "step", "at": "soon"},
    ]  # fmt: skip
    folder = desk.places.job(job_id)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    watched = server._watch(desk.job(job_id))
    for _ in range(2):
        server._tell(desk.job(job_id), watched)
        watched.followed.reader.offset = 0  # as a server that begins to read again
    told = desk.events(job_id)[-5:]
    assert [(event.level, event.type, event.message) for event in told] == [
        ("info", "message", "Fine-tuning job started"),
        ("warn", "message", "2 of 10 are  cut."),
        ("info", "metrics", "Step 1/10: training loss=1.00"),
        ("info", "metrics", "Step 2/10: training loss=1.00"),
        ("info", "metrics", "Step 3/10: training loss=1.00"),
    ]
    assert [event.created_at for event in told] == [1000, 1000, 1005, 1010, 1015]
    assert told[-1].data == {"step": 3, "train_loss": 1.0, "total_steps": 10}
    assert desk.job(job_id).estimated_finish == 1015 + 7 * 5


def test_result_file_is_base64_of_rounded_numbers() -> None:
    steps = [
        {"step": 1, "train_loss": 3.6326531, "train_mean_token_accuracy": 0.5},
        {"step": 2, "train_loss": 0.0000001, "train_mean_token_accuracy": 1.0, "valid_loss": 0.125,
         "valid_mean_token_accuracy": 0.75},
        {"step": 3, "train_loss": None, "train_mean_token_accuracy": float("nan")},
    ]  # fmt: skip
    assert base64.b64decode(results.result_file(steps)).decode() == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
        "1,3.63265,0.5,,\n2,0.0,1.0,0.125,0.75\n3,,,,\n"
    )


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(1, 25, 1), (10, 10, 1), (33, 3, 1), (34, 3, 1), (749, 3, 1), (750, 3, 2), (5000, 3, 10), (8333, 3, 17),
     (8334, 2, 17), (20000, 1, 40), (1_000_000, 1, 256)],
)  # fmt: skip
def test_automatic_numbers(examples: int, epochs: int, batch: int) -> None:
    assert (auto_epochs(examples), auto_batch_size(examples)) == (epochs, batch)
    asked = {"beta": "auto", "n_epochs": "auto", "batch_size": 7, "learning_rate_multiplier": "auto"}
    assert resolve(asked, examples) == {
        "beta": 0.1,
        "n_epochs": epochs,
        "batch_size": 7,
        "learning_rate_multiplier": 1.0,
    }
