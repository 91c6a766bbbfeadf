"""A Python process without its imports: forked from one that has made them, with no thread started.

Half of a small job's time, and nearly all of a server's start, is importing torch and transformers. Run as a script
this is the parent: a line `{"start": [module, argument, ...], "out": path, "errors": path, "environment": {...}}` forks
a child that is `python -m module argument ...`; `{"poll": pid}` and `{"wait": pid}` answer with its exit code. Tests of
how a process starts use a cold one.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

JOB = "afina.server.job_process"
IMPORTS = {
    "job": ("afina.training.dpo_trainer", "afina.training.job", "afina.distilling", "afina.sweeping"),
    "server": ("afina.server.app", "uvicorn"),
}


class Starter:
    """The parent that has imported everything. kind: of IMPORTS."""

    def __init__(self, kind: str = "job") -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str | Path, errors: Path) -> Warm:
        """A job's process. errors: a file for what it prints before it has a log of its own."""
        return self.run(JOB, *arguments, out=errors, errors=errors)

    def run(
        self, module: str, *arguments: str | Path, out: Path, errors: Path, environment: Mapping[str, str] | None = None
    ) -> Warm:
        """`python -m module argument ...`. out, errors: files that it appends to. environment: all of it, the parent's
        when not given; what the imports have read of it is the parent's in any case."""
        start = [module, *map(str, arguments)]
        there = None if environment is None else dict(environment)
        return Warm(self, self.ask(start=start, out=str(out), errors=str(errors), environment=there), errors)

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Warm:
    """A started process, used as `subprocess.Popen` is."""

    starter: Starter
    pid: int
    errors: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.starter.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self.starter.ask(wait=self.pid, timeout_s=timeout)
        assert self.returncode is not None, f"it did not end in {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return "", self.errors.read_text(encoding="utf-8")

    def send_signal(self, how: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


# -- the parent ----------------------------------------------------------------------------------------


def _serve(kind: str) -> None:
    from afina.engine.hub import no_telemetry

    no_telemetry()
    for module in IMPORTS[kind]:
        __import__(module)
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer: int | None = _fork(question)
        else:
            answer = _exit_code(question.get("poll") or question["wait"], question.get("timeout_s", 0))
        print(json.dumps(answer), flush=True)


def _fork(question: Mapping[str, Any]) -> int:
    pid = os.fork()
    return pid or _become(question)


def _become(question: Mapping[str, Any]) -> NoReturn:
    code = 1
    try:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        streams = [(os.devnull, os.O_RDONLY), (question["out"], append), (question["errors"], append)]
        for number, (path, how) in enumerate(streams):
            os.dup2(os.open(path, how, 0o644), number)
        if question["environment"] is not None:
            os.environ.clear()
            os.environ.update(question["environment"])
        module, *arguments = question["start"]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(pid: int, timeout_s: float | None) -> int | None:
    """As `subprocess` counts; None if it has not ended in time."""
    deadline = time.monotonic() + (timeout_s or 0)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if timeout_s is not None and time.monotonic() >= deadline:
            return None
        time.sleep(0.005)


if __name__ == "__main__":
    _serve(sys.argv[1])
