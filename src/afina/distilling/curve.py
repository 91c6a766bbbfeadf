"""The learning curve: the first kind of student, trained on ever more rows.

Comes in: an opened run. Goes out: for each number of rows and each seed a specialist. Smaller sets are part of larger
ones, and near-duplicates stay together, so that a point is what a table of that size would have given. Each is trained
as the recipe says for so many rows. How good they are is not known here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from afina import pipeline
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.distilling.lessons import lesson
from afina.distilling.student import Budget, train_student
from afina.distilling.taught import Taught, teach
from afina.distilling.teacher import nobody_agrees
from afina.runs import Run
from afina.training.hosted import Agree

FOLDER = "curve"


class CurvePoint(NamedTuple):
    """num_rows: trained on. folder: `Specialist.load` takes it."""

    num_rows: int
    seed: int
    folder: Path


def curve_runs(opened: Run, agree: Agree = nobody_agrees) -> list[CurvePoint]:
    """Train what is not trained yet. In the order of rows, then seeds; empty without distill.curve.

    A number above that of the rows there are is left out, and said. Raises as `distill`.
    """
    config = opened.recipe.distill
    if not config.curve:
        return []
    prepared = pipeline.prepare(opened)
    taught = teach(opened, prepared, agree)
    sizes = [size for size in sorted(config.curve) if size <= len(taught.answered)]
    if len(sizes) < len(config.curve):
        beyond = [size for size in sorted(config.curve) if size not in sizes]
        pipeline.say(f"curve: {beyond} left out, for there are {len(taught.answered)} training rows")
    kind, found = config.students[0], list[CurvePoint]()
    for size in sizes:
        for seed in config.seeds:
            rows = subset(taught, size, seed)
            folder = opened.folder / "students" / FOLDER / f"{kind}-{size}-{seed}"
            pipeline.say(f"curve: {kind}, {len(rows.answered)} rows, seed {seed}")
            made = lesson(kind, rows, opened.task, config.rationale_weight)
            student = train_student(opened, prepared, made, seed, Budget(), folder)
            found.append(CurvePoint(len(rows.answered), seed, student.folder))
    return found


def subset(taught: Taught, size: int, seed: int) -> Taught:
    """At most `size` of the training rows: the first clusters of an order that the seed decides, whole.

    Of rows that only the teacher labelled there are none: the curve is over the rows of the table.
    Raises DataError where the first cluster alone is larger.
    """
    kept = _first_clusters(taught.gold, size, random.Random(seed))
    if not kept:
        raise DataError(
            f"distill.curve: {size} rows hold no whole cluster of near-duplicates of this table. Name a larger number."
        )
    gold, answered = ([e for e in rows if e.cluster in kept] for rows in (taught.gold, taught.answered))
    return replace(taught, gold=gold, answered=answered, extra=[])


def _first_clusters(examples: Sequence[Example], size: int, draw: random.Random) -> set[int]:
    """The longest beginning of the shuffled clusters that holds at most `size` examples."""
    sizes: dict[int, int] = {}
    for example in examples:
        sizes[example.cluster] = sizes.get(example.cluster, 0) + 1
    order = sorted(sizes)
    draw.shuffle(order)
    kept, count = set[int](), 0
    for cluster in order:
        count += sizes[cluster]
        if count > size:
            break
        kept.add(cluster)
    return kept
