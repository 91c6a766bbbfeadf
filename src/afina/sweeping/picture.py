"""sweep.svg: the figures of a sweep as one picture, for slides and readmes.

Comes in: a title and panels. Goes out: an SVG that stands by itself, follows a dark theme, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import escape

from afina.sweeping.panels import Mark, Panel

WIDTH, HEIGHT = 460, 300  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 34, 50  # around its area
TITLE = 44  # height above the panels
STYLE = """
svg { background: var(--paper); color: var(--ink);
  --paper: #fff; --ink: #1a1d21; --quiet: #5b636c; --grid: #e4e7ea; --first: #0072b2; --second: #d55e00; }
@media (prefers-color-scheme: dark) { svg {
  --paper: #14171b; --ink: #e6e9ec; --quiet: #9ba5b0; --grid: #2a3038; --first: #56b4e9; --second: #e69f00; } }
.paper { fill: var(--paper); }
text { font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif; fill: var(--ink); }
.title { font-size: 17px; font-weight: 600; } .name { font-weight: 600; } .tick, .label { fill: var(--quiet); }
.grid { stroke: var(--grid); } .axis { stroke: var(--quiet); }
.trial { stroke-width: 1.5; } .complete, .best { fill: var(--first); stroke: var(--paper); }
.pruned { fill: var(--paper); stroke: var(--second); stroke-width: 2; }
.ring { fill: none; stroke: var(--ink); } .so-far { fill: none; stroke: var(--ink); stroke-dasharray: 6 4; }
"""


def picture(title: str, panels: Sequence[Panel]) -> str:
    """All panels, two in a row."""
    rows = -(-len(panels) // 2)
    wide, high = 2 * WIDTH, TITLE + rows * HEIGHT + 26
    body = [f'<text class="title" x="20" y="29">{escape(title)}</text>']
    for index, panel in enumerate(panels):
        left, top = (index % 2) * WIDTH, TITLE + (index // 2) * HEIGHT
        body.append(f'<g transform="translate({left} {top})">{_panel(panel)}</g>')
    body.append(_legend(20, high - 10))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(body)}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_at(value: float) -> float:
        return round(LEFT + across * panel.x.percent(value) / 100, 1)

    def y_at(value: float) -> float:
        return round(TOP + down * (1 - panel.y.percent(value) / 100), 1)

    bottom, right = TOP + down, LEFT + across
    body = [f'<text class="name" x="{LEFT}" y="20">{escape(panel.title)}</text>']
    for tick in panel.y.ticks:
        body.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y_at(tick)}" y2="{y_at(tick)}"/>')
        body.append(_text("tick", LEFT - 7, y_at(tick) + 4, panel.y.format(tick), "end"))
    body += [_text("tick", x_at(tick), bottom + 17, panel.x.format(tick), "middle") for tick in panel.x.ticks]
    body.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP} V{bottom} H{right}"/>')
    body.append(_text("label", LEFT + across / 2, bottom + 37, panel.x.label, "middle"))
    middle = TOP + down / 2
    body.append(
        f'<text class="label" text-anchor="middle" transform="translate(15 {middle}) rotate(-90)">'
        f"{escape(panel.y.label)}</text>"
    )
    for kind, points in panel.lines:
        placed = " ".join(f"{x_at(px)},{y_at(py)}" for px, py in points)
        body.append(f'<polyline class="{kind}" points="{placed}"/>')
    body += [_mark(mark, x_at(mark.x), y_at(mark.y)) for mark in sorted(panel.marks, key=lambda m: m.kind == "best")]
    return "".join(body)


def _mark(mark: Mark, x: float, y: float) -> str:
    title = f"<title>{escape(mark.text)}</title>"
    if mark.beyond:
        return f'<path class="trial {mark.kind}" transform="translate({x} {y})" d="M-5 6 L0 -3 L5 6 Z">{title}</path>'
    ring = f'<circle class="trial ring" cx="{x}" cy="{y}" r="8"/>' if mark.kind == "best" else ""
    return f'{ring}<circle class="trial {mark.kind}" cx="{x}" cy="{y}" r="4.5">{title}</circle>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(x: float, y: float) -> str:
    body, at = "", x
    for kind, name in (("best", "best"), ("complete", "complete"), ("pruned", "ended early (pruned)")):
        body += _mark(Mark(0, 0, kind, name), at + 8, y - 4)
        body += _text("label", at + 22, y, name, "start")
        at += 40 + 6.6 * len(name)
    return f'{body}<path class="so-far" d="M{at} {y - 4} h28"/>{_text("label", at + 36, y, "best so far", "start")}'
