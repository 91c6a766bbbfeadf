"""Where a job's process runs: started, watched and ended by its folder.

Comes in: a job folder with its spec.json. Goes out: a process, and whether it lives. The supervisor knows only the
`Executor` protocol; `LocalExecutor` keeps processes on this machine, which outlive a killed server. Knows nothing of
databases, models and what a job reports.

Whether a process lives is asked of file locks, which the system frees at its death and at no other time:
- `process.lock` is taken by the server before the process exists, and inherited by it. So there is no moment at which a
  process runs unseen, whenever the server is killed.
- `lock` is taken by the process itself, and its text is the process id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

LOCK = "lock"
INHERITED_LOCK = "process.lock"
TRAINER_LOG = "trainer.log"
NICENESS = 10  # training leaves the processor to those who wait for an answer
# What a trainer has no use for: keys of providers, the server's own, the database's password.
SECRET_SUFFIXES = ("_API_KEY", "_API_KEYS")
SECRET_NAMES = frozenset({"AFINA_API_KEY", "AFINA_DATABASE_URL"})


class Executor(Protocol):
    """One process for each folder; every call may be repeated."""

    def start(self, folder: Path) -> None:
        """Start the folder's process, unless it lives. Raises OSError when the machine refuses."""
        ...

    def alive(self, folder: Path) -> bool: ...

    def stop(self, folder: Path) -> None:
        """Ask it to save and end; returns at once."""
        ...

    def kill(self, folder: Path) -> None:
        """End it without saving; returns at once."""
        ...


class LocalExecutor:
    """Processes of this machine: `python -m MODULE FOLDER`, each in a session of its own, at low priority."""

    def __init__(self, module: str = "afina.server.job_process") -> None:
        self.module = module
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._guard = threading.Lock()

    def start(self, folder: Path) -> None:
        with self._guard:
            self._reap(folder)
            if folder in self._children:
                return
            handle = os.open(folder / INHERITED_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if not _take(handle) or _is_held(folder / LOCK):
                    return
                (folder / LOCK).write_bytes(b"")  # the number of the process before is nobody's now
                self._children[folder] = self._spawn(folder, handle)
            finally:
                os.close(handle)  # the child's copy keeps the lock

    def alive(self, folder: Path) -> bool:
        with self._guard:
            self._reap(folder)
            if folder in self._children:
                return True
        return _is_held(folder / INHERITED_LOCK) or _is_held(folder / LOCK)

    def stop(self, folder: Path) -> None:
        self._signal(folder, signal.SIGTERM)

    def kill(self, folder: Path) -> None:
        self._signal(folder, signal.SIGKILL)

    def _spawn(self, folder: Path, lock: int) -> subprocess.Popen[bytes]:
        with (folder / TRAINER_LOG).open("ab") as log:
            child = subprocess.Popen(
                # -P: nothing is imported from the folder that the server happens to be started in.
                [sys.executable, "-P", "-m", self.module, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=trainer_environment(os.environ),
                pass_fds=(lock,),
                start_new_session=True,  # a signal to the server's terminal or group does not reach it
            )
        with contextlib.suppress(OSError):  # refused, or over already
            os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
        return child

    def _reap(self, folder: Path) -> None:
        child = self._children.get(folder)
        if child is not None and child.poll() is not None:
            del self._children[folder]

    def _signal(self, folder: Path, what: signal.Signals) -> None:
        with self._guard:
            self._reap(folder)
            child = self._children.get(folder)
            pid = child.pid if child is not None else _pid_of(folder)
            if pid is None:
                return  # over, or not yet far enough to have said its number: asked again at the next look
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if what == signal.SIGKILL:
                    os.killpg(pid, what)  # with its workers; it leads the group of its session
                else:
                    os.kill(pid, what)


def trainer_environment(environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The environment without secrets that are not the trainer's. A token of the hub stays: gated models need it."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper() not in SECRET_NAMES and not name.upper().endswith(SECRET_SUFFIXES)
    }


# -- details ---------------------------------------------------------------------------------------


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    """Whether somebody holds the file's lock.

    Looking takes it for a moment, which a process that wants it just then would mistake for a rival. So `lock` is
    looked at only where the inherited lock is free: then no process of ours is starting.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def _pid_of(folder: Path) -> int | None:
    """The number of the folder's process; None if there is none, or it has not said its number yet."""
    if not (_is_held(folder / INHERITED_LOCK) or _is_held(folder / LOCK)):
        return None
    try:
        return int((folder / LOCK).read_text().strip())
    except (OSError, ValueError):
        return None
