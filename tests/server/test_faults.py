"""A real server, a real trainer, and kills.

Three kills in the ordinary run; AFINA_FAULTS=20 for twenty. Every job ends as succeeded, with each event once, and its
models answer. The base is a small model with nano's tokenizer: what is tested is the processes, and their files. That a
kill changes no weight of nano is tested in test_job_process.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from job_material import BASE, chat_lines, wait_for
from small_model import small_model
from warm_process import Starter, Warm

pytestmark = pytest.mark.slow
KEY = "sk-afina-faults"
FAULTS = int(os.environ.get("AFINA_FAULTS", "3"))
STEPS_PER_KILL = 100  # of the job, a few milliseconds each
STARTS_WITHIN_S, ENDS_WITHIN_S = 120.0, 900.0


@dataclass
class Server:
    """`afina serve` as a process that may be killed and started again, on a port that stays."""

    folder: Path
    starter: Starter
    port: int = 0
    process: Warm | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        arguments = ["serve", "--port", str(self.port), "--data-dir", str(self.folder)]
        base = str(self.folder.parent / "base")
        environment = {**os.environ, "AFINA_API_KEY": KEY, "AFINA_BASE_MODEL": base, "OMP_NUM_THREADS": "1"}
        out, log = self.folder.parent / "server.out", self.folder.parent / "server.log"
        out.unlink(missing_ok=True)
        self.process = self.starter.run("afina", *arguments, out=out, errors=log, environment=environment)

        def announced() -> str | None:
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()[-2000:]
            line = out.read_text().partition("\n")[0] if out.exists() else ""
            return line if line.startswith("Afina serves ") else None

        self.port = int(wait_for(announced, STARTS_WITHIN_S).split("127.0.0.1:")[1].split("/")[0])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=60)

    def trainer(self, job_id: str) -> int | None:
        """The number of the job's process, if one lives."""
        try:
            pid = int((self.folder / "jobs" / job_id / "lock").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def steps(self, job_id: str) -> int:
        """All that were taken, those again after a kill included."""
        log = self.folder / "jobs" / job_id / "log.jsonl"
        return log.read_text().count('"kind": "step"') if log.exists() else 0

    def newest_step(self, job_id: str) -> int:
        """A trainer that was killed takes some steps again."""
        log = self.folder / "jobs" / job_id / "log.jsonl"
        return (
            max((int(n) for n in re.findall(r'"key": "step-(\d+)"', log.read_text())), default=0) if log.exists() else 0
        )


@contextlib.contextmanager
def serving(folder: Path, starter: Starter) -> Generator[Server]:
    server = Server(folder, starter)
    server.folder.mkdir()
    small_model(folder.parent / "base")
    server.start()
    yield server
    assert server.process is not None
    if server.process.poll() is None:
        server.stop()
    for job in (server.folder / "jobs").iterdir():  # nothing of a failed test runs on
        send(server.trainer(job.name), signal.SIGKILL)


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture
def server(tmp_path: Path, server_starter: Starter) -> Generator[Server]:
    with serving(tmp_path / "data", server_starter) as server:
        yield server


@pytest.fixture
def sdk(server: Server) -> openai.OpenAI:
    return client(server)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, server_starter: Starter) -> Generator[Server]:
    """One for all tests that let it live."""
    with serving(tmp_path_factory.mktemp("steady") / "data", server_starter) as server:
        yield server


def upload(sdk: openai.OpenAI, content: str) -> str:
    return sdk.files.create(file=("train.jsonl", content.encode()), purpose="fine-tune").id


def until(sdk: openai.OpenAI, job_id: str, *wanted: str, timeout_s: float = ENDS_WITHIN_S) -> Any:
    def found() -> Any:
        try:
            job = sdk.fine_tuning.jobs.retrieve(job_id)
        except (openai.APIConnectionError, openai.InternalServerError):
            return None
        assert job.status not in {"failed", "cancelled"} - set(wanted), job.error
        return job if job.status in wanted else None

    return wait_for(found, timeout_s, 0.1)


def check_events(sdk: openai.OpenAI, job_id: str, total_steps: int, per_epoch: int, warnings: bool = False) -> None:
    """The full list, each event once."""
    events = list(sdk.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]
    if not warnings:
        assert [event.message for event in events if event.level == "warn"] == []
    told = [event for event in events if event.level == "info" and event.message not in STATES]
    steps = [event.data["step"] for event in told if event.type == "metrics"]
    assert steps == list(range(1, total_steps + 1))
    rest = [event.message.split(":")[0] for event in told if event.type != "metrics"]
    checkpoints = [f"Checkpoint created at step {s} with Snapshot ID" for s in range(per_epoch, total_steps, per_epoch)]
    assert rest == [
        "Created fine-tuning job",
        "Validating training file",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        *checkpoints,
        "New fine-tuned model created",
        "The job has successfully completed",
    ]


def send(pid: int | None, sign: signal.Signals) -> None:
    """A signal to a process, unless none is named or it has ended."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


STATES = {"The job was paused", "The job was resumed", "The job was cancelled"}


def check_usable(sdk: openai.OpenAI, job: Any) -> None:
    """The model and its checkpoints answer; the result file is whole; nothing is there twice."""
    names = [one.fine_tuned_model_checkpoint for one in sdk.fine_tuning.jobs.checkpoints.list(job.id)]
    assert names[0] == job.fine_tuned_model
    for name in names:
        answer = sdk.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Polaridade de: o produto 3 agradou"}], max_tokens=8
        )
        assert answer.model == name
        assert answer.choices[0].finish_reason in ("stop", "length")
    assert sum(model.id.startswith("ft:") for model in sdk.models.list()) == len(names)
    assert [file.id for file in sdk.files.list(purpose="fine-tune-results")] == job.result_files


# -- kills -------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_it_succeeds(server: Server, sdk: openai.OpenAI) -> None:
    """Of each kind of kill there are random steps and ends of epochs, at which models and checkpoints are written."""
    chance = random.Random(20261122 + FAULTS)
    batch, epochs = 4, 6 if FAULTS <= 3 else 50
    per_epoch = max(10, STEPS_PER_KILL * FAULTS // epochs)
    file_id = upload(sdk, chat_lines(batch * per_epoch))
    asked: Any = {"n_epochs": epochs, "batch_size": batch}
    job_id = sdk.fine_tuning.jobs.create(model=BASE, training_file=file_id, hyperparameters=asked, suffix="kill").id
    done: list[str] = []
    for number in range(FAULTS):
        victim = ("server", "trainer", "both")[number % 3]
        # Three deaths of the trainer without a step between them are a failure by design.
        at = server.newest_step(job_id) + chance.randint(1, STEPS_PER_KILL // 4)
        if number % 2:
            at += -at % per_epoch
        wait_for(lambda at=at: server.newest_step(job_id) >= at, ENDS_WITHIN_S, 0.001)
        time.sleep(chance.random() * 0.05)
        if victim in ("server", "both"):
            server.kill()
        trainer = server.trainer(job_id)
        if victim in ("trainer", "both"):
            send(trainer, signal.SIGKILL)
        else:  # it goes on alone, but not to the end
            time.sleep(chance.random() * 0.1)
            send(trainer, signal.SIGSTOP)
        if victim != "trainer":
            time.sleep(chance.random() * 0.3)
            server.start()
        if victim == "server":
            send(trainer, signal.SIGCONT)
        done.append(victim)
        if sdk.fine_tuning.jobs.retrieve(job_id).status == "succeeded":
            break
    job = until(sdk, job_id, "succeeded")
    assert len(done) == FAULTS, f"the job was over after {done}"
    check_events(sdk, job_id, per_epoch * epochs, per_epoch, warnings=True)
    check_usable(sdk, job)
    assert job.trained_tokens % epochs == 0
    wait_for(lambda: not (server.folder / "jobs" / job_id / "train").exists())
    assert sorted(path.name for path in (server.folder / "jobs" / job_id / "models").iterdir()) == sorted(
        f"step-{per_epoch * epoch}" for epoch in range(epochs - 2, epochs + 1)
    )


def test_shutdown_and_start_go_on_without_a_warning(server: Server, sdk: openai.OpenAI) -> None:
    file_id = upload(sdk, chat_lines(20))
    asked: Any = {"n_epochs": 4, "batch_size": 2}
    job_id = sdk.fine_tuning.jobs.create(model=BASE, training_file=file_id, hyperparameters=asked).id
    wait_for(lambda: server.steps(job_id) > 3, ENDS_WITHIN_S)
    assert server.stop() == 0
    wait_for(lambda: server.trainer(job_id) is None, 60)
    assert '"kind": "stopped"' in (server.folder / "jobs" / job_id / "log.jsonl").read_text()
    server.start()
    assert sdk.fine_tuning.jobs.retrieve(job_id).status == "running"
    job = until(sdk, job_id, "succeeded")
    check_events(sdk, job_id, 40, 10)
    check_usable(sdk, job)


# -- states of real jobs -----------------------------------------------------------------------------------------


def test_real_job_pauses_resumes_cancels_and_chains(steady: Server) -> None:
    server, sdk = steady, client(steady)
    file_id = upload(sdk, chat_lines(20))
    asked: Any = {"n_epochs": 3, "batch_size": 2}
    first = sdk.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file_id, hyperparameters=asked).id
    queued = sdk.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file_id, hyperparameters=asked).id
    # 1. One at a time.
    wait_for(lambda: server.steps(first) > 2, ENDS_WITHIN_S)
    assert sdk.fine_tuning.jobs.retrieve(queued).status == "queued"
    # 2. A pause frees the place within seconds; the other job starts.
    assert sdk.fine_tuning.jobs.pause(first).status == "paused"
    wait_for(lambda: server.trainer(first) is None, 20)
    until(sdk, queued, "running", timeout_s=20)
    # 3. A cancelled job ends within seconds.
    wait_for(lambda: server.steps(queued) > 0, ENDS_WITHIN_S)
    assert sdk.fine_tuning.jobs.cancel(queued).status == "cancelled"
    wait_for(lambda: server.trainer(queued) is None, 5)
    # 4. The paused one goes on where it was.
    steps = server.steps(first)
    assert sdk.fine_tuning.jobs.resume(first).status == "queued"
    job = until(sdk, first, "succeeded")
    assert server.steps(first) < steps + 31, "it began anew"
    check_events(sdk, first, 30, 10)
    # 5. A second round on the first model, with its own base in the name.
    second = sdk.fine_tuning.jobs.create(
        model=job.fine_tuned_model,
        training_file=file_id,
        hyperparameters={"n_epochs": 1, "batch_size": 8},
        suffix="two",
    )
    done = until(sdk, second.id, "succeeded")
    assert done.fine_tuned_model.startswith(f"ft:{BASE}:afina:two:")
    answer = sdk.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Bom dia"}], max_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4


def preference_lines(count: int) -> str:
    rows = []
    for i in range(count):
        asked = [{"role": "user", "content": f"Polaridade de: o produto {i} agradou"}]
        good, bad = ({"role": "assistant", "content": text} for text in ("positivo", "negativo"))
        rows.append({"input": {"messages": asked}, "preferred_output": [good], "non_preferred_output": [bad]})
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_preferences_and_completions_train_and_answer(steady: Server) -> None:
    sdk = client(steady)
    numbers: Any = {"n_epochs": 1, "batch_size": 5, "beta": 0.2}
    preferences = sdk.fine_tuning.jobs.create(
        model="gpt-4.1-nano",
        training_file=upload(sdk, preference_lines(10)),
        method={"type": "dpo", "dpo": {"hyperparameters": numbers}},
    )
    lines = "".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n" for i in range(10))
    completions = sdk.fine_tuning.jobs.create(
        model="davinci-002", training_file=upload(sdk, lines), hyperparameters={"n_epochs": 1, "batch_size": 5}
    )
    done = until(sdk, preferences.id, "succeeded")
    check_events(sdk, preferences.id, 2, 2)
    assert done.method.dpo.hyperparameters.beta == 0.2
    checkpoint = sdk.fine_tuning.jobs.checkpoints.list(preferences.id).data[0]
    assert checkpoint.to_dict()["metrics"]["type"] == "dpo"  # type: ignore[index]
    chat = sdk.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Bom dia"}], max_tokens=4
    )
    assert chat.model == done.fine_tuned_model
    told = until(sdk, completions.id, "succeeded")
    answer = sdk.completions.create(model=told.fine_tuned_model, prompt="3 + 1 =", max_tokens=4)
    assert answer.model == told.fine_tuned_model


def test_bad_files_fail_over_the_wire(steady: Server) -> None:
    sdk = client(steady)
    lines = chat_lines(120).splitlines()
    row = json.loads(lines[99])
    del row["messages"][1]["role"]
    lines[99] = json.dumps(row)
    wanted = {
        chat_lines(7): "Training file has 7 example(s), but must have at least 10 examples",
        "\n".join(lines): "The job failed due to an invalid training file. Invalid file format. Example 100, message 2 "
        "Discriminator 'role' is missing in value",
    }
    for content, message in wanted.items():
        job_id = sdk.fine_tuning.jobs.create(model=BASE, training_file=upload(sdk, content)).id
        job = until(sdk, job_id, "failed", timeout_s=30)
        assert job.error.message == message
        assert next(iter(sdk.fine_tuning.jobs.list_events(job_id))).message == message
    # Deleted while it waits in the queue.
    busy = sdk.fine_tuning.jobs.create(model=BASE, training_file=upload(sdk, chat_lines(10))).id
    file_id = upload(sdk, chat_lines(10))
    job_id = sdk.fine_tuning.jobs.create(model=BASE, training_file=file_id).id
    until(sdk, job_id, "queued", timeout_s=30)
    assert sdk.files.delete(file_id).deleted
    sdk.fine_tuning.jobs.cancel(busy)
    assert until(sdk, job_id, "failed", timeout_s=60).error.code == "deleted_training_file"
    assert httpx.get(f"{steady.url}/files/{file_id}", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404
