"""A job's process without its imports: forked from one that has made them, with no thread started.

Half of a small job's time is importing torch and transformers. Run as a script this is the parent: a line
`{"start": [argument, ...], "errors": path}` forks a child that is `python -m afina.server.job_process argument ...`;
`{"poll": pid}` and `{"wait": pid}` answer with its exit code. Tests of how a process starts use a cold one.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MODULE = "afina.server.job_process"


class Starter:
    """The parent that has imported everything."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str | Path, errors: Path) -> Warm:
        """errors: a file for what it prints before it has a log of its own."""
        return Warm(self, self.ask(start=[str(one) for one in arguments], errors=str(errors)), errors)

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

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


# -- the parent ----------------------------------------------------------------------------------------


def _serve() -> None:
    from afina.engine.hub import no_telemetry

    no_telemetry()
    import afina.training.dpo_trainer
    import afina.training.job  # noqa: F401

    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer: int | None = _fork(question["start"], question["errors"])
        else:
            answer = _exit_code(question.get("poll") or question["wait"], question.get("timeout_s", 0))
        print(json.dumps(answer), flush=True)


def _fork(arguments: list[str], errors: str) -> int:
    pid = os.fork()
    return pid or _become(arguments, errors)


def _become(arguments: list[str], errors: str) -> NoReturn:
    code = 1
    try:
        for number, (path, how) in enumerate([(os.devnull, os.O_RDONLY), *[(errors, os.O_WRONLY | os.O_CREAT)] * 2]):
            os.dup2(os.open(path, how, 0o644), number)
        sys.argv = [MODULE, *arguments]
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
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
    _serve()
