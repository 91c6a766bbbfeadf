"""A sweep's figures as plain numbers: what is drawn where, not how.

Comes in: what sweep.json holds. Goes out: `Panel`s, which the page and the picture draw each in its own way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afina.report.plots import Axis, nice_axis, snug_axis
from afina.sweeping.result import shown

FAR = 4  # times the median's distance from the best: losses beyond are drawn at the edge
JITTER = 0.36  # of the place of a category, so that equal settings do not hide each other


@dataclass(frozen=True)
class Mark:
    """A trial in a figure. kind: "complete", "pruned" or "best". beyond: it lies above the axis."""

    x: float
    y: float
    kind: str
    text: str
    beyond: bool = False


@dataclass(frozen=True)
class Panel:
    """marks: single trials. lines: (kind, points), kind as of marks or "so-far"."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = ()
    lines: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()


def measured(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials that have a loss."""
    return [trial for trial in report["trials"] if trial["value"] is not None]


def num_beyond(report: Mapping[str, Any]) -> int:
    top = loss_axis(report).high
    return sum(trial["value"] > top for trial in measured(report))


def loss_axis(report: Mapping[str, Any], values: Sequence[float] = ()) -> Axis:
    """From the best loss up. A hopeless trial would press all others together, so it is drawn at the edge."""
    found = sorted([trial["value"] for trial in measured(report)])
    low, high = found[0], max([*found, *values])
    far = low + FAR * (statistics.median(found) - low)
    return nice_axis(low, min(high, far) if far > low else high, f"validation loss ({report['unit']})", short)


def history(report: Mapping[str, Any]) -> Panel:
    """Each trial's loss in the order of trials, and the best so far."""
    y = loss_axis(report)
    marks = tuple(_mark(report, trial, trial["number"], y) for trial in measured(report))
    so_far: list[tuple[float, float]] = []
    for trial in report["trials"]:
        if trial["state"] == "complete":
            best = min(trial["value"], so_far[-1][1]) if so_far else trial["value"]
            so_far += [(trial["number"], so_far[-1][1])] if so_far else []  # a step, not a slope
            so_far.append((trial["number"], best))
    last = max(2, len(report["trials"]))
    x = snug_axis(1, last, "trial", lambda value: f"{value:.0f}")
    x = Axis(0.5, last + 0.5, tuple(t for t in {1.0, *x.ticks} if t == int(t)), x.label, x.format)
    so_far += [(len(report["trials"]), so_far[-1][1])] if so_far else []
    return Panel("Loss of each trial, and the best so far", x, y, marks, (("so-far", tuple(_under(so_far, y))),))


def courses(report: Mapping[str, Any]) -> Panel:
    """Loss in the course of each trial: who was ended early, and why."""
    y, trials = loss_axis(report), [trial for trial in measured(report) if trial["losses"]]
    first = [trial["losses"][0] for trial in trials if trial["losses"][0] is not None and trial["state"] == "complete"]
    y = loss_axis(report, first) if first else y
    high = max([y.high, *first])
    y = nice_axis(y.low, high, y.label, short)
    lines: list[tuple[str, tuple[tuple[float, float], ...]]] = []
    for trial in sorted(trials, key=lambda one: one["number"] == report["best"]):  # the best on top
        every = trial["steps"] / len(trial["losses"]) if trial["steps"] else 1
        points = [((n + 1) * every, loss) for n, loss in enumerate(trial["losses"]) if loss is not None]
        if points:
            lines.append((_kind(report, trial), tuple(_under(points, y))))
    ends = [points[-1][0] for _, points in lines]
    x = snug_axis(0, max(ends, default=1), "update", lambda value: f"{value:g}")
    return Panel("Loss in the course of each trial", x, y, lines=tuple(lines))


def slices(report: Mapping[str, Any]) -> list[Panel]:
    """For each parameter, the loss of every trial against its value."""
    return [_slice(report, key, told) for key, told in report["parameters"].items()]


def _slice(report: Mapping[str, Any], key: str, told: Mapping[str, Any]) -> Panel:
    y = loss_axis(report)
    if "choices" in told:
        choices = sorted(told["choices"]) if _are_numbers(told["choices"]) else list(told["choices"])
        names = [shown(value) for value in choices]
        ticks = tuple(float(n) for n in range(len(names)))
        x = Axis(-0.5, len(names) - 0.5, ticks, key, lambda value: names[round(value)])
        place = {name: n for n, name in enumerate(names)}
    else:
        x, place = _number_axis(key, told), None

    def at(trial: Mapping[str, Any]) -> float:
        value = trial["parameters"][key]
        # The golden ratio spreads neighbours apart (no random numbers: the picture stays the same).
        return place[shown(value)] + JITTER * (trial["number"] * 0.618034 % 1 - 0.5) if place else float(value)

    marks = tuple(_mark(report, trial, at(trial), y) for trial in measured(report))
    return Panel(f"Loss against {key}", x, y, marks)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _number_axis(key: str, told: Mapping[str, Any]) -> Axis:
    low, high = float(told["low"]), float(told["high"])
    if not told["log"]:
        pad = (high - low) * 0.03
        inside = snug_axis(low, high, key, number)
        return Axis(low - pad, high + pad, inside.ticks, key, number)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5) if low <= float(f"{m}e{p}") <= high]
    tens = [tick for tick in every if f"{tick:e}".startswith("1.0")]
    edge = (high / low) ** 0.03
    return Axis(low / edge, high * edge, tuple(every if len(every) <= 6 or len(tens) < 2 else tens), key, number, True)


def _mark(report: Mapping[str, Any], trial: Mapping[str, Any], x: float, y: Axis) -> Mark:
    text = f"trial {trial['number']}, {trial['state']}: {trial['value']:.4f}"
    return Mark(x, min(trial["value"], y.high), _kind(report, trial), text, trial["value"] > y.high)


def _kind(report: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    return "best" if trial["number"] == report["best"] else str(trial["state"])


def _under(points: Sequence[tuple[float, float]], y: Axis) -> list[tuple[float, float]]:
    return [(px, min(py, y.high)) for px, py in points]


def short(value: float) -> str:
    """A loss as an axis can hold it."""
    return f"{value:.4g}"


def number(value: float) -> str:
    """A setting as an axis can hold it: 5e-4, 0.05, 20."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{value:g}"
