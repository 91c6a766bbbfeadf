"""Where everything lies in the data folder.

Comes in: the folder's path. Goes out: paths, which exist only when their owner has written them. Knows the layout and
nothing of what the files mean.

    afina.db                      unless AFINA_DATABASE_URL names another database
    server.lock                   held by the one server that works here
    files/<file id>               bytes
    files/.incoming/              uploads on their way, and marks of files between disk and database (files.py)
    jobs/<job id>/                of one fine-tuning job
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from afina.core.errors import RunError
from afina.core.storage import ensure_folder
from afina.server.names import random_text


class Places:
    """root: made absolute, so that what is kept in the database survives a change of working directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def prepare(self) -> None:
        """Make the folders. Raises MachineError where that is impossible."""
        new = not self.root.exists()
        for folder in (self.root, self.files, self.staging, self.jobs):
            ensure_folder(folder)
        if new:
            self.root.chmod(0o700)  # training data and weights are their owner's

    @contextmanager
    def held(self) -> Generator[None]:
        """While this process is the one server that works in the folder. Raises RunError when another one does."""
        with self.lock.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                other = file.read(20).decode("ascii", "replace").strip() or "unknown"
                raise RunError(
                    f"{self.root}: another server (process {other}) works in this data folder. Stop it, or choose "
                    "another --data-dir."
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
            yield

    @property
    def database(self) -> Path:
        return self.root / "afina.db"

    @property
    def lock(self) -> Path:
        return self.root / "server.lock"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def staging(self) -> Path:
        return self.files / ".incoming"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def file(self, file_id: str) -> Path:
        return self.files / _one_name(file_id)

    def incoming(self) -> Path:
        """A new path for bytes on their way, on the same disk as `file(...)`; what is left of it is swept at start."""
        return self.staging / f"{random_text(24)}.part"

    def moving(self, file_id: str) -> Path:
        """The mark of a file that is between disk and database."""
        return self.staging / f"{_one_name(file_id)}.moving"

    def job(self, job_id: str) -> Path:
        return self.jobs / _one_name(job_id)

    def relative(self, path: Path) -> str:
        """A path under the data folder, as the database keeps it. Raises ValueError for one outside."""
        return path.resolve().relative_to(self.root).as_posix()

    def absolute(self, relative: str) -> Path:
        return self.root / relative


def _one_name(text: str) -> str:
    """An id is one plain name; anything else would be a bug that leaves the folder."""
    assert text not in ("", ".", ".."), text
    assert not {"/", "\\", "\0"} & set(text), text
    return text
