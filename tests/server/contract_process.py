"""A small process that keeps the contract of a job's folder, without a model: `python -m contract_process FOLDER`.

A step takes AFINA_TEST_STEP_S seconds. AFINA_TEST_CRASH may say `start` (it dies before its first word), `step-5` (it
dies behind that step, the first time it gets there) or `failed` (it says that the job cannot be done).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

KEPT = 3
TOKENS_PER_EXAMPLE = 7
DECIMALS = 12


class Job:
    """One run over a folder, from where the one before was saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = json.loads((folder / "spec.json").read_text())
        self.lines = Path(self.spec["training_file"]).read_text().count("\n")
        self.per_epoch = math.ceil(self.lines / self.spec["hyperparameters"]["batch_size"])
        self.total = self.per_epoch * self.spec["hyperparameters"]["n_epochs"]
        self.log = folder / "log.jsonl"
        self.keys = set()
        self._mend_log()

    def _mend_log(self) -> None:
        if not self.log.exists():
            return
        raw = self.log.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        with self.log.open("r+b") as file:
            file.truncate(len(whole))
        self.keys = {json.loads(line)["key"] for line in whole.splitlines()}

    def say(self, key: str, kind: str, **values: object) -> None:
        line = json.dumps({"key": key, "kind": kind, "at": int(time.time()), **values}) + "\n"
        with self.log.open("ab") as file:
            file.write(line.encode())
        self.keys.add(key)

    @property
    def saved(self) -> int:
        path = self.folder / "train" / "step"
        return int(path.read_text()) if path.exists() else 0

    def save(self, step: int) -> None:
        (self.folder / "train").mkdir(exist_ok=True)
        staged = self.folder / "train" / "step.part"
        staged.write_text(str(step))
        staged.replace(self.folder / "train" / "step")

    def begin(self) -> None:
        tokens = self.lines * TOKENS_PER_EXAMPLE
        self.say("started", "started", total_steps=self.total, steps_per_epoch=self.per_epoch, tokens_per_epoch=tokens,
                 warnings=[])  # fmt: skip

    def step(self, step: int) -> None:
        values = measures(step)
        self.say(f"step-{step}", "step", step=step, total_steps=self.total, **values)
        if step % self.per_epoch == 0:
            self.write_model(step)
            self.say(f"checkpoint-{step}", "checkpoint", step=step, folder=f"models/step-{step}", metrics=values)
            self.save(step)

    def write_model(self, step: int) -> None:
        models = self.folder / "models"
        final = models / f"step-{step}"
        if not final.exists():
            staged = models / f".step-{step}"
            staged.mkdir(parents=True, exist_ok=True)
            (staged / "served.json").write_text(json.dumps({"style": "chat", "method": "supervised", "base_name": "x"}))
            staged.rename(final)
        for old in sorted(models.glob("step-*"), key=lambda path: int(path.name[5:]))[:-KEPT]:
            shutil.rmtree(old)

    def finish(self) -> None:
        self.say("finished", "finished", trained_tokens=0, step=self.total, folder=f"models/step-{self.total}")


def measures(step: int) -> dict[str, float]:
    return {
        "train_loss": round(3 / (step + 1), DECIMALS),
        "train_mean_token_accuracy": round(1 - 1 / (step + 1), DECIMALS),
    }


def main(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    crash, step_s = os.environ.get("AFINA_TEST_CRASH", ""), float(os.environ.get("AFINA_TEST_STEP_S", "0"))
    if crash == "start":
        raise RuntimeError("the adapter cable is unplugged")
    job = Job(folder)
    if job.keys & {"finished", "failed"}:
        return 0
    if crash == "failed":
        job.say("failed", "failed", code="insufficient_resources", param=None, message="Not enough memory.\nBuy some.")
        return 0
    job.begin()
    for step in range(job.saved + 1, job.total + 1):
        time.sleep(step_s)
        again = f"step-{step}" in job.keys
        job.step(step)
        if crash == f"step-{step}" and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        if asked:
            job.save(step)
            job.say(f"stopped-{step}", "stopped", step=step)
            return 0
    job.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
