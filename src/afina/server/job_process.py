"""One fine-tuning job in a process of its own: `python -m afina.server.job_process FOLDER`.

Comes in: a job folder with its spec.json. Goes out: log.jsonl, a line for each thing that happened, and models/step-N,
servable folders of the last epochs' ends. Started again after whatever ended it, it continues from its last checkpoint,
to the same weights. SIGTERM: save at the next step and stop. Knows nothing of databases and names of models.

Exit codes: 0 after a last word (finished, failed, stopped); 3 where another process has the folder; 1 for what was not
foreseen, with its stack trace in trainer.log; the supervisor then starts it again.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afina.core.errors import AfinaError, DataError, MachineError, ModelError, RecipeError
from afina.core.storage import explain_write_errors, read_json, write_json
from afina.engine.hub import no_telemetry
from afina.training.checkpoints import complete, staged
from afina.training.watch import TrainingStopped

if TYPE_CHECKING:  # torch takes seconds to import, and a bad spec needs none of it
    from afina.training.job import JobSpec, Ready
    from afina.training.watch import Measure, StepDone, WriteWeights

LOCK_TRIES, LOCK_PAUSE_S = 10, 0.05  # who looks whether the lock is held takes it for a moment
PARTIAL_VALIDATIONS = 20  # of a run, each on one micro-batch
SERVED = "served.json"
LAST_WORDS = {"finished", "failed"}  # keys of lines after which there is nothing to do
# How torch says that memory is used up, where it raises no class of its own.
MEMORY_TEXTS = ("can't allocate memory", "CUDA out of memory", "DefaultCPUAllocator")


class JobError(Exception):
    """The job cannot be done, and the user or the machine is why: what goes into the job's `error`."""

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(message)
        self.code, self.param, self.message = code, param, message


class Interrupted(BaseException):
    """SIGTERM where there is nothing to save yet. No Exception, so that no library takes it for its own."""


# -- the log ---------------------------------------------------------------------------------------


class JobLog:
    """log.jsonl: lines are appended whole. keys: of all lines so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: set[str] = set()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)  # half a line of a killed process; nobody has read it
        self.keys |= {json.loads(line)["key"] for line in raw[:whole].splitlines()}

    def say(self, key: str, kind: str, **values: Any) -> None:
        """One line. Raises MachineError when the disk is full."""
        line = json.dumps({"key": key, "kind": kind, "at": int(time.time()), **values}, ensure_ascii=False) + "\n"
        with explain_write_errors(self.path):
            rest = line.encode()
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self.keys.add(key)

    def sync(self) -> None:
        """What was said so far outlives a power cut."""
        os.fsync(self._file)


# -- the spec --------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BaseModelSpec(_Strict):
    name: str | None
    folder: str | None


class Hyperparameters(_Strict):
    n_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate_multiplier: float = Field(gt=0, allow_inf_nan=False)
    beta: float = Field(default=0.1, gt=0, le=2)


class Spec(_Strict):
    """spec.json, as the supervisor writes it."""

    job_id: str
    method: Literal["supervised", "dpo"]
    base: BaseModelSpec
    training_file: str
    validation_file: str | None
    hyperparameters: Hyperparameters
    seed: int = Field(ge=0, lt=2**32)
    train: dict[str, Any]
    max_length: int | None = Field(ge=16)
    style: Literal["chat", "completion", "auto"]
    keep_checkpoints: int = Field(default=3, ge=1)


def read_spec(path: Path) -> Spec:
    """Raises JobError for a file that is no spec."""
    try:
        spec = Spec.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise JobError("invalid_job", None, f"The job's {path.name} cannot be used: {problem}") from error
    if (spec.base.name is None) == (spec.base.folder is None):
        raise JobError("invalid_job", None, f"The job's {path.name} cannot be used: base: name or folder, one of them.")
    return spec


def _job_spec(spec: Spec) -> JobSpec:
    numbers, folder = spec.hyperparameters, spec.base.folder
    training = _present(spec.training_file, "training")
    validation = None if spec.validation_file is None else _present(spec.validation_file, "validation")
    no_telemetry()  # before the libraries are imported that would send any
    from afina.training.job import JobSpec

    return JobSpec(
        method=spec.method,
        base_name=spec.base.name,
        base_folder=None if folder is None else Path(folder),
        training_file=training,
        validation_file=validation,
        n_epochs=numbers.n_epochs,
        batch_size=numbers.batch_size,
        learning_rate_multiplier=numbers.learning_rate_multiplier,
        beta=numbers.beta,
        seed=spec.seed,
        train=spec.train,
        max_length=spec.max_length,
        style=spec.style,
    )


def _present(path: str, what: str) -> Path:
    if not Path(path).is_file():
        message = f"The job failed because the {what} file was deleted"
        raise JobError(f"deleted_{what}_file", f"{what}_file", message)
    return Path(path)


# -- while it trains -------------------------------------------------------------------------------


class Follower:
    """Writes down what a training does; the `Watcher` of a job. stop_asked: whether to save and stop."""

    def __init__(self, folder: Path, log: JobLog, spec: Spec, ready: Ready, stop_asked: Callable[[], bool]) -> None:
        self.folder, self.log, self.spec, self.ready, self.stop_asked = folder, log, spec, ready, stop_asked
        self.metrics: dict[str, Any] = {}

    def on_step(self, done: StepDone, measure: Measure) -> bool:
        if not math.isfinite(done.train_loss):
            message = (
                f"The training loss is not a finite number at step {done.step} of {done.total_steps}: the weights have "
                "diverged. Use a lower learning_rate_multiplier."
            )
            raise JobError("training_diverged", "learning_rate_multiplier", message)
        found: dict[str, Any] = {"train_loss": done.train_loss}
        found["train_mean_token_accuracy"] = done.train_mean_token_accuracy
        number, left = divmod(done.step, max(1, done.total_steps // PARTIAL_VALIDATIONS))
        for name, wanted, which in (("valid", not left, number), ("full_valid", done.ends_epoch, None)):
            if wanted and (measured := measure(which)) is not None:
                found[f"{name}_loss"] = measured.loss
                found[f"{name}_mean_token_accuracy"] = measured.mean_token_accuracy
        self.metrics = {"step": done.step, **found}
        self.log.say(f"step-{done.step}", "step", step=done.step, total_steps=done.total_steps, **_finite(found))
        return self.stop_asked()

    def on_epoch(self, done: StepDone, write: WriteWeights) -> None:
        final = self.folder / "models" / f"step-{done.step}"
        if not (final / SERVED).exists():  # written before a kill; the weights would be the same
            with staged(final) as staging:
                write(staging)
                style, root = self.ready.style, self.ready.base.root
                write_json(staging / SERVED, {"style": style, "method": self.spec.method, "base_name": root})
        place = str(final.relative_to(self.folder))
        metrics = _finite(self.metrics)
        self.log.say(f"checkpoint-{done.step}", "checkpoint", step=done.step, folder=place, metrics=metrics)
        self.log.sync()
        _keep_newest(final.parent, self.spec.keep_checkpoints)

    def on_save(self, step: int) -> None:
        self.log.sync()


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without what JSON cannot say; a validation loss may be infinite where the training's is not."""
    return {name: value for name, value in values.items() if not isinstance(value, float) or math.isfinite(value)}


def _keep_newest(models: Path, count: int) -> None:
    """Remove all but the newest servable folders. Renamed first: a kill leaves no half model under a good name."""
    steps = sorted((int(p.name.removeprefix("step-")), p) for p in models.glob("step-*"))
    for step, path in steps[:-count]:
        path.rename(models / f".removing-{step}")
    for doomed in models.glob(".removing-*"):
        shutil.rmtree(doomed, ignore_errors=True)


# -- the process -----------------------------------------------------------------------------------


class Stop:
    """SIGTERM. asked: it came. Within `at_once` it ends what is going on; elsewhere who can save asks for it."""

    def __init__(self) -> None:
        self.asked = self._raises = False
        signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, number: int, frame: Any) -> None:
        self.asked = True
        if self._raises:
            self._raises = False
            raise Interrupted

    @contextmanager
    def at_once(self) -> Generator[None]:
        self._raises = True
        try:
            if self.asked:
                raise Interrupted
            yield
        finally:
            self._raises = False


def main(arguments: list[str]) -> int:
    """The process. Returns its exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m afina.server.job_process FOLDER (a job's folder, with spec.json)", file=sys.stderr)
        return 2
    folder = Path(arguments[0]).absolute()
    stop = Stop()
    if (held_by := _lock(folder / "lock")) is not None:
        print(f"{folder}: process {held_by or 'unknown'} is training this job already.", file=sys.stderr)
        return 3
    _write_into(folder / "trainer.log")
    try:
        log = JobLog(folder / "log.jsonl")
        if not log.keys & LAST_WORDS:
            _work(folder, log, stop)
        if "finished" in log.keys:
            shutil.rmtree(folder / "train", ignore_errors=True)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _work(folder: Path, log: JobLog, stop: Stop) -> None:
    """Train, and say how it ended."""
    try:
        _train(folder, log, stop)
    except (Interrupted, TrainingStopped):
        _say_stopped(folder, log)
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        traceback.print_exc()
        log.say("failed", "failed", code=refused.code, param=refused.param, message=refused.message)
    log.sync()


def _train(folder: Path, log: JobLog, stop: Stop) -> None:
    with stop.at_once():
        spec = read_spec(folder / "spec.json")
        job_spec = _job_spec(spec)
        from afina.training import job

        ready = job.get_ready(job_spec, folder / "train")
    total_steps = ready.settings.total_steps
    log.say(
        "started",
        "started",
        total_steps=total_steps,
        steps_per_epoch=ready.steps_per_epoch,
        tokens_per_epoch=ready.tokens_per_epoch,
        warnings=ready.warnings,
    )
    print("\n".join(ready.settings.notes), flush=True)
    job.train(ready, folder / "train", Follower(folder, log, spec, ready, lambda: stop.asked))
    trained_tokens = ready.tokens_per_epoch * spec.hyperparameters.n_epochs
    place = f"models/step-{total_steps}"
    log.say("finished", "finished", trained_tokens=trained_tokens, step=total_steps, folder=place)


def _say_stopped(folder: Path, log: JobLog) -> None:
    done = complete(folder / "train" / "checkpoints")
    step = done[-1][0] if done else 0
    key, again = f"stopped-{step}", 2
    while key in log.keys:  # a job that is paused twice at a step says so twice
        key, again = f"stopped-{step}-{again}", again + 1
    log.say(key, "stopped", step=step)
    log.sync()


def _refusal(error: Exception) -> JobError | None:
    """What the job's owner is told; None for a bug of ours."""
    text = str(error)
    if isinstance(error, JobError):
        return error
    if isinstance(error, DataError):
        message = f"The job failed due to an invalid training file. {text}"
        return JobError("invalid_training_file", "training_file", message)
    if isinstance(error, MemoryError) or any(words in text for words in MEMORY_TEXTS):
        message = "This machine's memory does not suffice for the training. Use a smaller batch_size or base model."
        return JobError("insufficient_resources", None, message)
    if isinstance(error, MachineError):
        return JobError("insufficient_resources", None, text)
    if isinstance(error, ModelError):
        return JobError("model_not_available", "model", text)
    if isinstance(error, RecipeError):
        return JobError("invalid_configuration", None, text)
    return JobError("server_error", None, text) if isinstance(error, AfinaError) else None


def _lock(path: Path) -> str | None:
    """Hold the lock until this process is dead; None, or the text of the lock that another process holds."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == LOCK_TRIES - 1:
                return os.read(handle, 32).decode(errors="replace").strip()
            time.sleep(LOCK_PAUSE_S)
            continue
        break
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return None


def _write_into(path: Path) -> None:
    """Send what this process prints to a file, whoever started it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(handle, stream.fileno())
    os.close(handle)
    faulthandler.enable()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
