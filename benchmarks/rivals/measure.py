"""One rival in its own process: ready, warm, timed; what it found as one line of JSON.

Comes in: a rival's name, a subject's folder, batch sizes. Goes out: latencies, answers, passes, tokens, memory. It
knows nothing of the other rivals; `answer.py` starts it and compares.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from afina.core.schema import problems
from rivals.answering import ANSWERERS, Answerer, Written, schema_of
from rivals.specialist import Row, load_subject

MIN_CALLS = 3  # timed ones, however slow


class PassCounter:
    """Counts the forward passes of a model by its first decoder layer, whoever calls it."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.model.layers[0].register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def chunks(rows: Sequence[Row], batch: int) -> Iterator[list[Row]]:
    """Full batches, in order; rows repeated only where there are fewer than one batch."""
    usable = max(1, len(rows) // batch) * batch
    cycled = itertools.islice(itertools.cycle(rows), usable)
    while chunk := list(itertools.islice(cycled, batch)):
        yield chunk


def timed(answer: Answerer, rows: Sequence[Row], batch: int, seconds: float) -> tuple[list[float], list[Written]]:
    """Seconds of each call, and all that was written; stops after `seconds`, but not before MIN_CALLS calls."""
    times: list[float] = []
    written: list[Written] = []
    for chunk in chunks(rows, batch):
        if sum(times) >= seconds and len(times) >= MIN_CALLS:
            break
        began = time.perf_counter()
        made = answer(chunk)
        times.append(time.perf_counter() - began)
        written += made
    return times, written


def measure(name: str, folder: Path, batches: Sequence[int], num_rows: int, seconds: float) -> dict[str, Any]:
    """What one rival did: {"batches": {batch size: {...}}, "load_s", "dtype"}. Seconds, tokens, bytes."""
    subject = load_subject(folder)
    began = time.perf_counter()
    answer, model = ANSWERERS[name](folder)
    load_s = time.perf_counter() - began
    counter = PassCounter(model)
    schema = schema_of(folder)
    found: dict[str, Any] = {}
    for batch in batches:
        for chunk in itertools.islice(chunks(subject.warm_up, batch), 2 if batch == 1 else 1):
            answer(chunk)
        counter.count = 0
        times, written = timed(answer, subject.rows[:num_rows], batch, seconds)
        found[str(batch)] = {
            "times_s": times,
            "answers": [one.output for one in written],
            "valid": [one.output is not None and problems(one.output, schema) is None for one in written],
            "tokens": sum(one.num_tokens for one in written) / len(written),
            "passes": counter.count / len(times),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"batches": found, "load_s": load_s, "dtype": dtype, "threads": torch.get_num_threads()}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival", choices=sorted(ANSWERERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(argv)
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batches = [int(b) for b in args.batch.split(",")]
    try:
        found = measure(args.rival, args.folder, batches, args.rows, args.seconds)
    except ModuleNotFoundError as error:
        sys.exit(f"not installed: {error.name}")
    print(json.dumps(found))
