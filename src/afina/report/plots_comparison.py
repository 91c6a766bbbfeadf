"""Figures of a comparison: differences from a reference, quality against price, quality against rows.

Comes in: numbers and texts. Goes out: safe markup in the manner of `plots`. It knows no system and no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from afina.report.label_places import Box, place
from afina.report.plots import Axis, axis_label, framed, grid_of, label_rem, svg_line, x_ticks

KINDS = ("first", "second", "third", "fourth")  # of lines: each has its colour, its dash and its marker
HEIGHT_PX = 320  # of a scatter's area, as in the style sheet
WIDE_PX, NARROW_PX = 700, 240  # least width of that area where names fit beside the points, and where numbers must do
LETTER_PX = 6.7  # of a name beside its point, at the size in the style sheet


# -- differences ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """A difference with its interval. said: "better", "worse" or "none"."""

    label: str
    value: float
    text: str
    interval: tuple[float, float] | None
    interval_text: str
    said: str


SIGNS = {"better": "▲", "worse": "▼", "none": "○"}


def forest(rows: Sequence[Gap], axis: Axis) -> Markup:
    """A point with its interval per row, and a line at 0: no difference."""
    grid = Markup("").join(
        svg_line("grid", f"{axis.percent(t)}%", "0", f"{axis.percent(t)}%", "100%") for t in axis.ticks
    )
    zero = f"{axis.percent(0)}%"
    grid += svg_line("zero", zero, "0", zero, "100%")
    body = [_forest_row(row, axis, grid) for row in rows]
    return Markup(
        '<div class="bars forest" style="--label:{}rem">{}'
        '<div class="bar-row bar-axis"><span></span>{}<span></span></div>{}</div>'
    ).format(label_rem([row.label for row in rows]), Markup("").join(body), x_ticks(axis), axis_label(axis))


def _forest_row(row: Gap, axis: Axis, grid: Markup) -> Markup:
    drawn = Markup("")
    if row.interval is not None:
        low, high = (f"{axis.percent(v)}%" for v in row.interval)
        drawn += svg_line("whisker", low, "12", high, "12")
        drawn += svg_line("whisker", low, "8", low, "16") + svg_line("whisker", high, "8", high, "16")
    drawn += Markup('<circle class="gap {}" cx="{}%" cy="12" r="4.5"/>').format(row.said, axis.percent(row.value))
    return Markup(
        '<div class="bar-row"><span class="bar-label">{}</span>'
        '<svg class="bar-area" height="24" aria-hidden="true">{}{}</svg>'
        '<span class="bar-value"><span class="said {}"><i aria-hidden="true">{}</i></span>{} '
        "<small>{}</small></span></div>"
    ).format(row.label, grid, drawn, row.said, SIGNS[row.said], row.text, row.interval_text)


# -- quality against price --------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A system. interval: of y. kind: "front" or "beaten". marked: drawn as a diamond. chosen: with a ring.

    text: the values, for the list under the figure.
    """

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None
    kind: str
    text: str
    marked: bool = False
    chosen: bool = False


def scatter(points: Sequence[Point], x: Axis, y: Axis) -> Markup:
    """Points with the line of those that none beats. Names stand beside them where there is room, else numbers.

    Where a price is 0 on a logarithmic axis, a dotted line parts it from the rest.
    """
    body = grid_of(x, y)
    if x.log and x.has_zero:
        at = f"{(x.percent(0) + x.percent(x.low)) / 2:.1f}%"
        body += svg_line("break", at, "0", at, "100%")
    body += _steps([p for p in points if p.kind == "front"], x, y)
    for point in points:
        if point.interval is not None:
            low, high = (f"{100 - y.percent(v)}%" for v in point.interval)
            body += svg_line("spread", f"{x.percent(point.x)}%", low, f"{x.percent(point.x)}%", high)
    body += Markup("").join(_marker(point, x, y) for point in points)
    body += _tags(points, x, y, [point.label for point in points], WIDE_PX, "wide")
    body += _tags(points, x, y, [str(n) for n in range(1, len(points) + 1)], NARROW_PX, "narrow")
    names = Markup("").join(
        Markup('<li class="{}"><b>{}</b> <small>{}</small></li>').format(p.kind, p.label, p.text) for p in points
    )
    return framed(body, x, y, "scatter") + Markup('<ol class="tags">{}</ol>').format(names)


def _steps(front: Sequence[Point], x: Axis, y: Axis) -> Markup:
    """The best quality that each price buys, as stairs from the cheapest point to the right edge."""
    if not front:
        return Markup("")
    ordered = sorted(front, key=lambda p: (x.percent(p.x), p.y))
    corners: list[tuple[float, float]] = []
    for point in ordered:
        at, height = x.percent(point.x), y.percent(point.y)
        corners += [(at, corners[-1][1] if corners else height), (at, height)]
    corners.append((100.0, corners[-1][1]))
    path = " ".join(f"{10 * at:.1f},{1000 - 10 * height:.1f}" for at, height in corners)
    return Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
        '<polyline class="stairs" points="{}"/></svg>'
    ).format(path)


def _marker(point: Point, x: Axis, y: Axis) -> Markup:
    shape = Markup('<path d="M0-7 7 0 0 7-7 0z"/>') if point.marked else Markup('<circle r="5"/>')
    ring = Markup('<circle class="ring" r="10"/>') if point.chosen else Markup("")
    return Markup('<svg class="point {}" x="{}%" y="{}%" overflow="visible">{}{}</svg>').format(
        point.kind, x.percent(point.x), round(100 - y.percent(point.y), 3), ring, shape
    )


def _tags(points: Sequence[Point], x: Axis, y: Axis, texts: Sequence[str], width: float, name: str) -> Markup:
    """Texts beside the points, placed for an area of this width; a wider one only moves them apart."""
    anchors = [
        (x.percent(p.x) / 100 * width, (1 - y.percent(p.y) / 100) * HEIGHT_PX, 11.0 if p.chosen else 7.0)
        for p in points
    ]
    sizes = [(LETTER_PX * len(text) + 2, 13.0) for text in texts]
    found: list[Markup] = []
    for point, text, box, (ax, ay, _) in zip(
        points, texts, place(anchors, sizes, width, HEIGHT_PX), anchors, strict=True
    ):
        leader = _leader(box, ax, ay)
        found.append(
            Markup('<svg x="{}%" y="{}%" overflow="visible">{}<text x="{:.0f}" y="{:.0f}"{}>{}</text></svg>').format(
                x.percent(point.x),
                round(100 - y.percent(point.y), 3),
                leader,
                box.x - ax + 1,
                box.y - ay + box.height - 3,
                Markup(' class="strong"') if point.chosen or point.marked else Markup(""),
                text,
            )
        )
    return Markup('<g class="{}">{}</g>').format(name, Markup("").join(found))


def _leader(box: Box, ax: float, ay: float) -> Markup:
    """A thin line from a point to a text that does not stand straight beside it."""
    if box.y <= ay <= box.y + box.height and min(abs(box.x - ax), abs(box.x + box.width - ax)) < 20:
        return Markup("")
    end = box.x if box.x > ax else box.x + box.width
    return svg_line("leader", "0", "0", f"{end - ax:.0f}", f"{box.y + box.height / 2 - ay:.0f}")


# -- quality against rows ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A system's learning curve. means: (x, mean over seeds). seeds: (x, value, interval or None) of each training."""

    label: str
    means: Sequence[tuple[float, float]]
    seeds: Sequence[tuple[float, float, tuple[float, float] | None]]


DODGE_PX = 7  # between trainings with as many rows


def learning_curve(curves: Sequence[Curve], levels: Sequence[tuple[str, float, str]], x: Axis, y: Axis) -> Markup:
    """Curves, each training as a dot with its interval, and labelled horizontal lines.

    levels: (label, value, text). At most four curves differ by colour, dash and marker; more repeat these.
    """
    body = grid_of(x, y)
    for _, value, _ in levels:
        body += svg_line("level", "0", f"{100 - y.percent(value)}%", "100%", f"{100 - y.percent(value)}%")
    for number, curve in enumerate(curves):
        kind = KINDS[number % len(KINDS)]
        body += _curve(curve, kind, x, y, DODGE_PX * (number - (len(curves) - 1) / 2) * 1.5)
    for label, value, text in levels:
        # At the end where the curves are farther away.
        rooms = [min((abs(curve.means[end][1] - value) for curve in curves), default=1.0) for end in (0, -1)]
        side = ("100%", -6, "end") if rooms[1] > rooms[0] else ("0", 6, "start")
        body += Markup('<text class="mark-label" x="{}" y="{}%" dx="{}" dy="-5" text-anchor="{}">{} {}</text>').format(
            side[0], 100 - y.percent(value), *side[1:], label, text
        )
    keys = Markup("").join(
        Markup(
            '<span class="key"><svg width="30" height="12" aria-hidden="true">'
            '<line class="path {0}" x1="0" y1="6" x2="30" y2="6"/><circle class="dot {0}" cx="15" cy="6" r="3.5"/>'
            "</svg>{1}</span>"
        ).format(KINDS[number % len(KINDS)], curve.label)
        for number, curve in enumerate(curves)
    )
    return Markup('<div class="legend">{}</div>').format(keys) + framed(body, x, y, "tall")


def _curve(curve: Curve, kind: str, x: Axis, y: Axis, aside: float) -> Markup:
    points = " ".join(f"{10 * x.percent(px):.1f},{1000 - 10 * y.percent(py):.1f}" for px, py in curve.means)
    drawn = Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
        '<polyline class="path {}" points="{}"/></svg>'
    ).format(kind, points)
    for at in dict.fromkeys(px for px, _, _ in curve.seeds):
        alike = [(value, interval) for px, value, interval in curve.seeds if px == at]
        for number, (value, interval) in enumerate(alike):
            shift = DODGE_PX * (number - (len(alike) - 1) / 2) + aside
            inner = Markup("")
            if interval is not None:
                low, high = (f"{100 - y.percent(v)}%" for v in interval)
                inner += svg_line("spread", "0", low, "0", high)
            inner += Markup('<circle class="dot {}" cx="0" cy="{}%" r="3.5"/>').format(kind, 100 - y.percent(value))
            drawn += Markup(
                '<svg x="{}%" y="0" width="1" height="100%" overflow="visible">'
                '<g transform="translate({:.1f} 0)">{}</g></svg>'
            ).format(x.percent(at), shift, inner)
    return drawn
