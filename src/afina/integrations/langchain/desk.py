"""One specialist and the one thread that asks it: who comes while it works waits, and is then answered together.

Comes in: rows of inputs, from any thread or event loop. Goes out: a future of their predictions. A single thread,
because a model answers one batch at a time anyway, and every further thread would bring threads of torch with it.
Knows nothing of LangChain.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from afina.core.errors import ModelError
from afina.core.predictor import Inputs, Prediction
from afina.strategies.finetuned import MANIFEST, Specialist

Answered = Future[list[Prediction]]


class Desk:
    """Takes rows to be answered, in order of arrival.

    Rows that wait are answered in one batch of up to the specialist's `batch_size`; more where one call brings more.
    """

    def __init__(self, specialist: Specialist) -> None:
        self.specialist = specialist
        self._waiting: deque[tuple[list[Inputs], Answered]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="afina-specialist")

    def submit(self, rows: Sequence[Inputs]) -> Answered:
        """A future of one prediction per row, in order. A future cancelled before its turn costs nothing."""
        answered: Answered = Future()
        self._waiting.append((list(rows), answered))
        self._thread.submit(self._answer_next)
        return answered

    def _answer_next(self) -> None:
        """Answer the one whose turn it is, and whoever waits behind and fits into the batch."""
        chosen: list[tuple[list[Inputs], Answered]] = []
        rows: list[Inputs] = []
        limit = self.specialist.predictor.batch_size
        while self._waiting and (not rows or len(rows) + len(self._waiting[0][0]) <= limit):
            theirs, answered = self._waiting.popleft()
            if answered.set_running_or_notify_cancel():
                chosen.append((theirs, answered))
                rows += theirs
        try:
            predictions = self.specialist.predict(rows) if rows else []
        except BaseException as error:  # whoever asked is told; this thread goes on with the next
            for _, answered in chosen:
                answered.set_exception(error)
            return
        at = 0
        for theirs, answered in chosen:
            answered.set_result(predictions[at : at + len(theirs)])
            at += len(theirs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Desk:
        """Copies of a chat model share the desk, and so the weights."""
        return self


_open: WeakValueDictionary[tuple[Any, ...], Desk] = WeakValueDictionary()
_opening = threading.Lock()


def desk_for(run: str | Path | Specialist, batch_size: int | None = None) -> Desk:
    """The desk of a run folder, a specialist folder or a loaded specialist; the same one while any user of it lives.

    batch_size: rows answered together; None: as the specialist's manifest says.
    Raises RunError or ModelError as `Specialist.load` does, ModelError for a batch_size beside a loaded specialist.
    """
    with _opening:
        if isinstance(run, Specialist):
            if batch_size is not None:
                raise ModelError(
                    f"batch_size is {batch_size}, but the specialist is loaded already, with "
                    f"{run.predictor.batch_size}. Give it to Specialist.load, or name the run's folder here."
                )
            key: tuple[Any, ...] = (id(run),)  # a desk keeps its specialist alive, so no other has its id meanwhile
        else:
            folder = Path(run).resolve()
            folder = folder / "specialist" if (folder / "specialist" / MANIFEST).exists() else folder
            manifest = folder / MANIFEST
            key = (folder, manifest.stat().st_mtime_ns if manifest.exists() else 0, batch_size)
        desk = _open.get(key)
        if desk is None:
            desk = Desk(run if isinstance(run, Specialist) else Specialist.load(run, batch_size=batch_size))
            _open[key] = desk
        return desk
