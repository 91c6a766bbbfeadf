"""The one thread that uses models, and who may change a model meanwhile.

Comes in: batchers (batching.py) and pieces of other work with their models. Goes out: nothing but calls. All batchers
are stepped in turn, so adapters over one base take turns as well; a model that is being changed is passed over.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from afina.core.errors import MachineError

if TYPE_CHECKING:
    from afina.engine.batching import Batcher

log = logging.getLogger("afina.engine")
LOOK_AGAIN_S = 0.005


class ModelLock:
    """Who may use or change a model's weights. The stepping thread asks with `try_use`, and steps aside for those who
    wait to change something; these use it as a context."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0

    def try_use(self) -> bool:
        return not self._wanted and self._lock.acquire(blocking=False)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._wanted += 1
        self._lock.acquire()
        self._wanted -= 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class InferenceThread:
    """The one thread that uses models: steps all batchers in turn, and does other work with them in between."""

    def __init__(self) -> None:
        self._batchers: list[Batcher] = []
        self._work: deque[tuple[Batcher, Callable[[], Any], Future[Any]]] = deque()
        self._awake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="afina-inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the running pass; what runs or waits is told that the server stops. May be called twice."""
        self._stopping = True
        self._awake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def attach(self, batcher: Batcher) -> None:
        """Step this one as well, from now on."""
        if batcher not in self._batchers:
            self._batchers = [*self._batchers, batcher]
        batcher.on_work = self._awake.set
        self._awake.set()

    def detach(self, batcher: Batcher) -> None:
        """Step this one no more. It should not be busy."""
        self._batchers = [one for one in self._batchers if one is not batcher]

    def call(self, batcher: Batcher, work: Callable[[], Any]) -> Future[Any]:
        """Have something done between two passes, with the batcher's model at rest."""
        future: Future[Any] = Future()
        if self._stopping:
            future.set_exception(MachineError("the server is stopping."))
        else:
            self._work.append((batcher, work, future))
            self._awake.set()
        return future

    def _run(self) -> None:
        while not self._stopping:
            self._awake.clear()
            if not self._round():
                # Also looks in now and then for a model whose lock was taken.
                self._awake.wait(LOOK_AGAIN_S if self._pending() else None)
        error = MachineError("the server is stopping.")
        for batcher in self._batchers:
            batcher.fail(error)
        while self._work:
            self._work.popleft()[2].set_exception(error)

    def _pending(self) -> bool:
        return bool(self._work) or any(batcher.busy for batcher in self._batchers)

    def _round(self) -> bool:
        """One step of each batcher, and one piece of other work. Whether anything was done."""
        done = False
        for batcher in self._batchers:
            if batcher.busy and batcher.lock.try_use():
                try:
                    done = batcher.step() or done
                except Exception as error:  # a bug of ours; the thread must live
                    log.exception("a batch failed")
                    batcher.fail(error)
                finally:
                    batcher.lock.release()
        return self._do_work() or done

    def _do_work(self) -> bool:
        for _ in range(len(self._work)):
            batcher, work, future = self._work.popleft()
            if not batcher.lock.try_use():
                self._work.append((batcher, work, future))
                continue
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            finally:
                batcher.lock.release()
            return True
        return False
