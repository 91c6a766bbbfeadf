"""The report's figures: inline SVG that follows the page's colours, theme and width.

Comes in: numbers and texts. Goes out: safe markup. Coordinates inside the SVG are percentages and the
ticks are HTML, so a figure is as wide as its box while its text keeps its size: nothing shrinks on a phone.
Colours are the style sheet's; a series always differs by shape or dash as well. Knows nothing of run folders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

Format = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """One bar. value: None where it was not measured. interval: (low, high), dots: further values, in the same unit."""

    label: str
    value: float | None
    text: str
    interval: tuple[float, float] | None = None
    interval_text: str = ""
    highlighted: bool = False
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """One series. kind: "first" (solid) or "second" (dashed, with dots)."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = "first"


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a tick at each of `ticks`.

    log: equal steps are equal factors. has_zero: of a logarithmic axis, zero has a place of its own at the left.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str
    format: Format = field(default=lambda value: f"{value:g}")
    log: bool = False
    has_zero: bool = False

    def percent(self, value: float) -> float:
        """Where a value stands between low (0) and high (100)."""
        if self.log:
            begin = AFTER_ZERO if self.has_zero else 0.0
            if value <= 0:
                return ZERO_AT
            return round(begin + (100 - begin) * math.log(value / self.low) / math.log(self.high / self.low), 3)
        return round(100 * (value - self.low) / ((self.high - self.low) or 1), 3)


def nice_axis(low: float, high: float, label: str, format: Format, count: int = 5) -> Axis:
    """An axis that holds [low, high] and ends on round ticks (steps of 1, 2 or 5 times a power of ten)."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1))
    return Axis(ticks[0], ticks[-1], ticks, label, format)


def snug_axis(low: float, high: float, label: str, format: Format, count: int = 6) -> Axis:
    """An axis from exactly `low` to `high`, round ticks inside: for steps, where space past the end says nothing."""
    nice = nice_axis(low, high, label, format, count)
    return Axis(low, high if high > low else low + 1, tuple(t for t in nice.ticks if low <= t <= high), label, format)


def price_axis(values: Sequence[float], label: str, format: Format) -> Axis:
    """An axis for costs or times: from 0, or logarithmic where they span a factor of ten or more.

    values: none negative, at least one above 0.
    """
    above = [value for value in values if value > 0]
    if max(above) < 10 * min(above):
        return nice_axis(0.0, max(above), label, format, 4)
    low, high = math.floor(math.log10(min(above)) + 1e-9), math.ceil(math.log10(max(above)) - 1e-9)
    step = math.ceil((high - low) / 5)
    has_zero = min(values) <= 0
    ticks = tuple(float(f"1e{power}") for power in range(low, high + 1, step))
    return Axis(10.0**low, 10.0**high, ((0.0,) if has_zero else ()) + ticks, label, format, True, has_zero)


def count_axis(values: Sequence[float], label: str, format: Format) -> Axis:
    """A logarithmic axis with a tick at each of a few counts; linear where they are alike."""
    ticks = tuple(sorted(set(values)))
    if len(ticks) < 2 or ticks[0] <= 0:
        return nice_axis(0, max(ticks), label, format)
    edge = (ticks[-1] / ticks[0]) ** 0.04
    return Axis(ticks[0] / edge, ticks[-1] * edge, ticks, label, format, True)


ZERO_AT, AFTER_ZERO = 4.0, 12.0  # percent of a logarithmic axis with a zero
LAST_AT = 96.0  # percent of an axis; ticks beyond it are kept on a narrow page
UNIT_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in `count` answers (Wilson 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def bars(rows: Sequence[Bar], axis: Axis) -> Markup:
    """Horizontal bars, one per row, each with its label, value and interval in text beside it."""
    grid = Markup("").join(
        svg_line("grid", f"{axis.percent(t)}%", "0", f"{axis.percent(t)}%", "100%") for t in axis.ticks
    )
    body = [_bar_row(row, axis, grid) for row in rows]
    return Markup(
        '<div class="bars" style="--label:{}rem">{}'
        '<div class="bar-row bar-axis"><span></span>{}<span></span></div>{}</div>'
    ).format(label_rem([row.label for row in rows]), Markup("").join(body), x_ticks(axis), axis_label(axis))


def label_rem(labels: Sequence[str]) -> float:
    """Width of a column that holds the labels on one line, within reason."""
    return round(min(12.0, max(7.0, 0.43 * max(map(len, labels), default=0) + 1.1)), 1)


def _bar_row(row: Bar, axis: Axis, grid: Markup) -> Markup:
    drawn = Markup("")
    if row.value is not None:
        drawn += Markup('<rect class="bar" x="0" y="7" width="{}%" height="14" rx="1.5"/>').format(
            max(0, axis.percent(row.value))
        )
    if row.interval is not None:
        low, high = (f"{axis.percent(v)}%" for v in row.interval)
        for kind in ("whisker halo", "whisker"):
            drawn += svg_line(kind, low, "14", high, "14")
            drawn += svg_line(kind, low, "10", low, "18") + svg_line(kind, high, "10", high, "18")
    for value in row.dots:
        drawn += Markup('<circle class="seed" cx="{}%" cy="25" r="2.5"/>').format(axis.percent(value))
    return Markup(
        '<div class="bar-row{}"><span class="bar-label">{}</span>'
        '<svg class="bar-area" height="28" aria-hidden="true">{}{}</svg>'
        '<span class="bar-value">{} <small>{}</small></span></div>'
    ).format(Markup(" on") if row.highlighted else "", row.label, grid, drawn, row.text, row.interval_text)


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, mark: tuple[float, str] | None = None) -> Markup:
    """Lines over a common x; `mark` is a labelled vertical line. Every line needs a point."""
    body = grid_of(x, y)
    if mark:
        at = x.percent(mark[0])
        body += svg_line("mark", f"{at}%", "0", f"{at}%", "100%")
        # Past the middle the label stands to the left of its line, so that it stays inside.
        body += Markup('<text class="mark-label" x="{}%" y="13" dx="{}" text-anchor="{}">{}</text>').format(
            at, -6 if at > 50 else 6, "end" if at > 50 else "start", mark[1]
        )
    for line in lines:
        body += _path(line, x, y)
        if line.kind == "second" or len(line.points) == 1:
            for px, py in line.points:
                body += Markup('<circle class="dot {}" cx="{}%" cy="{}%" r="3.5"/>').format(
                    line.kind, x.percent(px), 100 - y.percent(py)
                )
    keys = Markup("").join(
        Markup(
            '<span class="key"><svg width="30" height="12" aria-hidden="true">'
            '<line class="path {}" x1="0" y1="6" x2="30" y2="6"/>{}</svg>{}</span>'
        ).format(
            line.kind,
            Markup('<circle class="dot second" cx="15" cy="6" r="3.5"/>') if line.kind == "second" else "",
            line.label,
        )
        for line in lines
    )
    legend = Markup('<div class="legend">{}</div>').format(keys) if len(lines) > 1 else Markup("")
    return legend + framed(body, x, y, "tall")


def _path(line: Line, x: Axis, y: Axis) -> Markup:
    """A stretched inner SVG, because path coordinates cannot be percentages; the stroke keeps its width."""
    points = " ".join(f"{10 * x.percent(px):.1f},{1000 - 10 * y.percent(py):.1f}" for px, py in line.points)
    return Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
        '<polyline class="path {}" points="{}"/></svg>'
    ).format(line.kind, points)


def reliability(
    bins: Sequence[dict[str, Any]], accuracy: Axis, confidence: Axis, counts: str, format: Format
) -> Markup:
    """Accuracy against confidence with Wilson intervals, and under it how many answers each bin holds.

    bins: {"low", "high", "confidence", "accuracy", "count"}, empty bins allowed.
    """
    full = [b for b in bins if b["count"]]
    body = grid_of(confidence, accuracy)
    body += svg_line("diagonal", "0", "100%", "100%", "0")
    for b in full:
        at, (low, high) = confidence.percent(b["confidence"]), wilson(b["accuracy"], b["count"])
        body += svg_line(
            "whisker", f"{at}%", f"{100 - accuracy.percent(low)}%", f"{at}%", f"{100 - accuracy.percent(high)}%"
        )
        body += Markup('<circle class="dot first" cx="{}%" cy="{}%" r="4.5"><title>{}</title></circle>').format(
            at, 100 - accuracy.percent(b["accuracy"]), f"n = {b['count']}"
        )
    top = max((b["count"] for b in full), default=1)
    histogram = Markup("")
    for b in full:
        left, right = confidence.percent(b["low"]), confidence.percent(b["high"])
        height = round(70 * b["count"] / top, 2)  # the upper 30 % is room for the figures
        histogram += Markup('<rect class="bar" x="{}%" y="{}%" width="{}%" height="{}%"/>').format(
            left + 0.3, 100 - height, right - left - 0.6, height
        )
        histogram += Markup('<text class="count" x="{}%" y="{}%" dy="-3" text-anchor="middle">{}</text>').format(
            round((left + right) / 2, 3), 100 - height, format(b["count"])
        )
    empty = Axis(0, 1, (), counts)
    bare = Axis(confidence.low, confidence.high, (), "")
    return framed(body, bare, accuracy, "square") + framed(histogram, confidence, empty, "low")


def quantiles(values: Sequence[tuple[str, float]], limit: tuple[str, float] | None, axis: Axis) -> Markup:
    """Named points of a distribution on one line, and the limit that they are held against."""
    body = Markup("").join(
        svg_line("grid", f"{axis.percent(t)}%", "0", f"{axis.percent(t)}%", "100%") for t in axis.ticks
    )
    numbers = [v for _, v in values]
    body += svg_line("range", f"{axis.percent(min(numbers))}%", "50%", f"{axis.percent(max(numbers))}%", "50%")
    for name, value in values:
        body += Markup('<circle class="dot first" cx="{}%" cy="50%" r="5"><title>{}</title></circle>').format(
            axis.percent(value), f"{name}: {axis.format(value)}"
        )
    if limit:
        at = axis.percent(limit[1])
        body += svg_line("mark", f"{at}%", "0", f"{at}%", "100%")
        body += Markup('<text class="mark-label" x="{}%" y="12" dx="{}" text-anchor="{}">{}</text>').format(
            at, -6 if at > 50 else 6, "end" if at > 50 else "start", limit[0]
        )
    svg = Markup('<svg class="strip" height="60" aria-hidden="true">{}</svg>').format(body)
    return Markup('<div class="strip-box">{}{}{}</div>').format(svg, x_ticks(axis), axis_label(axis))


def framed(body: Markup, x: Axis, y: Axis, shape: str) -> Markup:
    y_ticks = Markup("").join(
        Markup('<span style="top:{}%">{}</span>').format(round(100 - y.percent(t), 3), y.format(t)) for t in y.ticks
    )
    return Markup(
        '<div class="frame {}"><span class="y-label"><span>{}</span></span>'
        '<div class="y-ticks" aria-hidden="true">{}</div><svg class="area" aria-hidden="true">{}</svg>{}{}</div>'
    ).format(shape, y.label, y_ticks, body, x_ticks(x), axis_label(x))


def grid_of(x: Axis, y: Axis) -> Markup:
    across = (svg_line("grid", "0", f"{100 - y.percent(t)}%", "100%", f"{100 - y.percent(t)}%") for t in y.ticks)
    down = (svg_line("grid", f"{x.percent(t)}%", "0", f"{x.percent(t)}%", "100%") for t in x.ticks)
    return Markup("").join(across) + Markup("").join(down)


def x_ticks(axis: Axis) -> Markup:
    ticks = (
        Markup('<span{} style="left:{}%">{}</span>').format(
            Markup(' class="last"') if axis.percent(t) > LAST_AT else "", axis.percent(t), axis.format(t)
        )
        for t in axis.ticks
    )
    return (
        Markup('<div class="x-ticks" aria-hidden="true">{}</div>').format(Markup("").join(ticks))
        if axis.ticks
        else Markup("")
    )


def axis_label(axis: Axis) -> Markup:
    return Markup('<div class="x-label">{}</div>').format(axis.label) if axis.label else Markup("")


def svg_line(kind: str, x1: str, y1: str, x2: str, y2: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*map(escape, (kind, x1, y1, x2, y2)))
