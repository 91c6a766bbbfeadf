"""What the tests of jobs share: a data folder, training files, and a look at what a job left behind."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from afina.server import jobs, names
from afina.server.config import ServerConfig
from afina.server.places import Places
from afina.server.store import Store
from afina.server.tables import Checkpoint, Event, File, Job, Model

HERE = Path(__file__).parent
BASE = "gpt-4o-mini-2024-07-18"


def chat_lines(count: int) -> str:
    """`count` different good lines of a chat file."""
    rows = []
    for i in range(count):
        asked = {"role": "user", "content": f"Polaridade de: o produto {i} {'agradou' if i % 2 else 'quebrou'}"}
        rows.append({"messages": [asked, {"role": "assistant", "content": "positivo" if i % 2 else "negativo"}]})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@dataclass
class Desk:
    """A data folder with its database, and no server."""

    config: ServerConfig
    store: Store
    places: Places

    def add_file(self, content: str, purpose: str = "fine-tune") -> str:
        file_id = names.file_id()
        self.places.file(file_id).write_text(content, encoding="utf-8")
        row = File(
            id=file_id,
            purpose=purpose,
            filename="train.jsonl",
            bytes=len(content.encode()),
            created_at=int(time.time()),
            expires_at=None,
        )
        with self.store.session() as session:
            session.add(row)
        return file_id

    def add_job(self, *, examples: int = 10, n_epochs: int = 3, batch_size: int = 5, model: str = BASE) -> str:
        asked = {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate_multiplier": "auto"}
        new = jobs.NewJob(
            model=model,
            training_file=self.add_file(chat_lines(examples)),
            validation_file=None,
            suffix="Notícias 1",
            seed=7,
            method="supervised",
            asked=asked,
            metadata=None,
        )
        with self.store.session() as session:
            return jobs.create(session, new).id

    def job(self, job_id: str) -> Job:
        with self.store.reading() as session:
            return jobs.find(session, job_id)

    def change(self, change: Callable[..., Job], job_id: str) -> str:
        with self.store.session() as session:
            return change(session, job_id).status

    def events(self, job_id: str) -> list[Event]:
        """Oldest first."""
        with self.store.reading() as session:
            return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))

    def messages(self, job_id: str) -> list[str]:
        return [event.message for event in self.events(job_id)]

    def rows(self, table: type[Any], job_id: str) -> list[Any]:
        """Of Checkpoint or Model, by step."""
        with self.store.reading() as session:
            return list(session.scalars(select(table).where(table.job_id == job_id).order_by(table.step)))

    def check_success(self, job_id: str, *, examples: int, n_epochs: int, batch_size: int, tokens: int) -> None:
        """Everything a job leaves behind is there once, and nothing else is. tokens: of one example."""
        job, folder = self.job(job_id), self.places.job(job_id)
        assert job.status == "succeeded", (job.status, job.error)
        per_epoch = -(-examples // batch_size)
        total = per_epoch * n_epochs
        name = job.fine_tuned_model
        assert name is not None
        assert names.FINE_TUNED.match(name), name
        # 1. Checkpoints and models: the last three epochs, the last one under the job's own name.
        steps = [per_epoch * epoch for epoch in range(max(1, n_epochs - 2), n_epochs + 1)]
        checkpoints, models = self.rows(Checkpoint, job_id), self.rows(Model, job_id)
        assert [row.step for row in checkpoints] == steps
        assert [row.step for row in models] == steps
        assert [row.name for row in checkpoints] == [row.name for row in models]
        assert checkpoints[-1].name == name
        assert [row.name.rsplit(":", 1)[-1] for row in checkpoints[:-1]] == [f"ckpt-step-{s}" for s in steps[:-1]]
        assert [(self.places.absolute(row.folder) / "served.json").is_file() for row in models] == [True] * len(steps)
        # 2. Events: without gap or double, in order.
        known = {row.step: row.name for row in checkpoints}
        told = [event for event in self.events(job_id) if event.level != "warn" and "paused" not in event.key]
        told = [event for event in told if not event.key.startswith("resumed")]
        keys = ["created", "validating", "validated", "started"]
        for step in range(1, total + 1):
            keys.append(f"step-{step}")
            keys += [f"checkpoint-{step}"] if step % per_epoch == 0 and step < total else []
        assert [event.key for event in told] == [*keys, "model", "completed"]
        for step, model in list(known.items())[:-1]:
            message = f"Checkpoint created at step {step} with Snapshot ID: {model}"
            assert [event.message for event in told if event.key == f"checkpoint-{step}"] == [message]
        assert told[-2].message == f"New fine-tuned model created: {name}"
        # 3. The result file, once, with a line for each step.
        with self.store.reading() as session:
            results = list(session.scalars(select(File).where(File.purpose == "fine-tune-results")))
            files = list(session.scalars(select(File.id)))
        assert [row.id for row in results if row.id in job.result_files] == job.result_files
        content = base64.b64decode(self.places.file(job.result_files[0]).read_bytes()).decode()
        assert content.count("\n") == total + 1
        assert sorted(path.name for path in self.places.files.iterdir() if path.is_file()) == sorted(files)
        assert list(self.places.staging.iterdir()) == []
        # 4. Numbers, and what is left in the folder.
        assert job.trained_tokens == examples * tokens * n_epochs
        assert (job.stop, job.error, job.estimated_finish) == (None, None, None)
        assert sorted(path.name for path in (folder / "models").iterdir()) == sorted(f"step-{s}" for s in steps)
        assert not (folder / "train").exists()
        assert not (folder / "input").exists()


def open_desk(folder: Path, **settings: Any) -> Desk:
    config = ServerConfig.model_validate({"data_dir": folder, **settings})
    places = Places(folder)
    places.prepare()
    return Desk(config, Store(config.url_of_database(places.database)), places)


def wait_for(what: Callable[[], Any], timeout_s: float = 20.0, pause_s: float = 0.02) -> Any:
    """The first true value of `what()`."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(pause_s)
    return found
