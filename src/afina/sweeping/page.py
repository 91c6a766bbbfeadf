"""sweep.html: one self-contained page in the manner of the report, and sweep.svg, its picture.

Comes in: what sweep.json holds. Goes out: two files beside it, with no script and no reference to anything outside
themselves. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import afina.report
from afina.core.progress import seconds
from afina.core.storage import write_text
from afina.report import plots
from afina.sweeping import panels
from afina.sweeping.panels import Mark, Panel
from afina.sweeping.picture import picture
from afina.sweeping.result import caution, counted, ranked, shown

PAGE, PICTURE = "sweep.html", "sweep.svg"
STYLE = Path(str(afina.report.__file__)).parent / "templates" / "report.css"
STOPPED = {
    "trials": "",
    "running": "The sweep has not ended.",
    "timeout": "Stopped by sweep.timeout_minutes; the same command goes on.",
    "exhausted": "Every combination was tried, so it ended early.",
}


def write_page(folder: Path, report: Mapping[str, Any]) -> Path:
    """sweep.html and sweep.svg in `folder`. A complete trial is needed. Returns the page's path."""
    found = [panels.history(report), *panels.slices(report)]
    write_text(folder / PICTURE, picture(f"{report['task']}, {counted(report)}", found))
    write_text(folder / PAGE, render(report))
    return folder / PAGE


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("afina.sweeping"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(shown=shown, seconds=seconds)
    return environment.get_template("sweep.html.jinja").render(
        report=report,
        best=next(trial for trial in report["trials"] if trial["number"] == report["best"]),
        order=[*ranked(report), *(trial for trial in report["trials"] if trial["state"] != "complete")],
        counted=counted(report),
        caution=caution(report),
        stopped=STOPPED[report["stopped"]],
        beyond=panels.num_beyond(report),
        history=drawn(panels.history(report)),
        courses=drawn(panels.courses(report)),
        slices=[(panel.title, drawn(panel)) for panel in panels.slices(report)],
        importance=_importance(report),
        style=Markup(STYLE.read_text(encoding="utf-8")),  # ours, and no user text reaches it
    )


def drawn(panel: Panel) -> Markup:
    """A panel as wide as its box, its text as large as the page's."""
    body = plots.grid_of(panel.x, panel.y)
    for kind, points in panel.lines:
        if len(points) > 1:
            body += _line(kind, points, panel)
        elif points and kind != "so-far":
            body += _dot(Mark(points[0][0], points[0][1], kind, ""), panel)
    for mark in sorted(panel.marks, key=lambda one: one.kind == "best"):
        body += _dot(mark, panel)
    return plots.framed(body, panel.x, panel.y, "tall")


def _line(kind: str, points: tuple[tuple[float, float], ...], panel: Panel) -> Markup:
    placed = " ".join(f"{10 * panel.x.percent(px):.1f},{1000 - 10 * panel.y.percent(py):.1f}" for px, py in points)
    return Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
        '<polyline class="course {}" points="{}"/></svg>'
    ).format(kind, placed)


def _dot(mark: Mark, panel: Panel) -> Markup:
    """A disc for a complete trial, a ring for a pruned one, a disc in a ring for the best; an arrow's head above the
    axis. A shape of its own each, for readers of every colour vision."""
    x, y = f"{panel.x.percent(mark.x)}%", f"{round(100 - panel.y.percent(mark.y), 3)}%"
    title = Markup("<title>{}</title>").format(mark.text)
    if mark.beyond:
        return Markup(
            '<svg x="{}" y="{}" overflow="visible"><path class="trial {}" d="M-5 6 L0 -3 L5 6 Z">{}</path></svg>'
        ).format(x, y, mark.kind, title)
    ring = Markup('<circle class="trial ring" cx="{}" cy="{}" r="8"/>').format(x, y)
    return (ring if mark.kind == "best" else Markup("")) + Markup(
        '<circle class="trial {}" cx="{}" cy="{}" r="4.5">{}</circle>'
    ).format(mark.kind, x, y, title)


def _importance(report: Mapping[str, Any]) -> Markup | None:
    if not report["importance"]:
        return None
    rows = [plots.Bar(key, share, f"{100 * share:.0f} %") for key, share in report["importance"].items()]
    axis = plots.Axis(0, 1, plots.UNIT_TICKS, "share of the losses' variance", lambda value: f"{100 * value:.0f} %")
    return plots.bars(rows, axis)
