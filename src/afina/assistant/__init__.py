"""A catalogue recipe from end to end: shards, a specialist that recites and cites, an index, an honest comparison.

Comes in: an opened run whose recipe has a catalogue. Goes out: a run folder like any other, which `afina ask` and
`afina serve` answer from. The stages are those of `pipeline`; what a catalogue adds to each stands in its own module.
"""

from __future__ import annotations

from typing import Any

from afina import pipeline
from afina.assistant.indexing import index
from afina.assistant.judging import evaluate
from afina.assistant.training import train
from afina.runs import Run
from afina.training.hosted import Agree

__all__ = ["compare", "evaluate", "index", "train"]


def compare(opened: Run, agree: Agree) -> dict[str, Any]:
    """Prepare, index, train, judge, report. Returns what report.json holds. A killed call goes on where it stopped."""
    pipeline.prepare(opened)
    result = evaluate(opened, agree)
    pipeline.write_reports(opened.folder)
    return result
