"""Processes that work on pieces of a long job: results as they come, memory bounded, nobody left behind.

Comes in: a function and its arguments, one at a time. Goes out: results, in the order in which they are finished. A
process ends with the one that started it, however that ended. This module imports nothing heavy: it is the first that a
new process loads, and what polars may use is decided before polars is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from afina.core.errors import MachineError

A = TypeVar("A")
R = TypeVar("R")
MAX_PROCESSES = 4  # each takes some 150 MB; more would not be fed by one that unpacks


def num_processes() -> int:
    """As many as there are cores for this process, at most MAX_PROCESSES."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_PROCESSES, cores)


class Workers:
    """A few processes, begun when they are first needed; a context that ends them."""

    def __init__(self, processes: int | None = None) -> None:
        self.processes = num_processes() if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *what: object) -> None:
        self.rest()

    def rest(self) -> None:
        """End the processes, and give their memory back, until there is work again."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
        """The results for all arguments. A single one is done here: a process takes longer to begin.

        Arguments are taken one more than there are processes ahead. An exception of the function is raised here; the
        arguments not yet begun are then left. Raises MachineError when a process ends by itself.
        """
        coming = iter(arguments)
        first = list(islice(coming, 2))
        if self.processes < 2 or len(first) < 2:
            for argument in chain(first, coming):
                yield function(argument)
            return
        waiting: set[Future[R]] = set()
        try:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_begin)
            for argument in chain(first, coming):
                waiting.add(self._pool.submit(function, argument))
                if len(waiting) > self.processes:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise MachineError(
                "a process of the catalogue's preparation ended by itself; too little memory is the usual cause. What "
                "is done is kept: the same call continues. (A script calls it below: if __name__ == '__main__':)"
            ) from error


def _begin() -> None:
    """In the new process: one thread, no interruption from the keyboard, and an end with the parent."""
    os.environ["POLARS_MAX_THREADS"] = "1"
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child only"
    parent.join()
    os._exit(1)
