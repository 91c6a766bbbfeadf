"""The result of a comparison for the screen: one table of plain text, and the verdict under it.

Comes in: what report.json holds. Goes out: lines of at most 100 characters for up to four systems. It
computes nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from afina.core.progress import seconds, size
from afina.evaluation.verdict import METRICS, percent

WIDTH = 100
NONE = "-"


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """Systems across, measures down; every score with its 95 % interval. Then the verdict, a sentence a line."""
    systems = report["systems"]
    rows: list[list[str]] = [["", *(system["name"] for system in systems)]]
    for group in report["groups"]:
        rows += _group(group, [system["fields"][group] for system in systems])
    rows.append(["whole answer"])
    rows.append(["  exact match", *(_score(system, "exact_match") for system in systems)])
    rows.append(["  valid", *(percent(system["valid_rate"]) for system in systems)])
    rows.append(["cost"])
    rows += [[f"  {label}", *(show(system) for system in systems)] for label, show in COSTS.items()]
    num_test = report["num_test"]
    title = f"{report['task']}: {num_test} unseen row{'s' * (num_test != 1)}; 95 % intervals in brackets"
    return [title, "", *_aligned(rows), "", *verdict_lines(report["verdict"])]


def verdict_lines(verdict: str) -> list[str]:
    """A sentence begins a line; what is longer than the screen goes on indented."""
    lines: list[str] = []
    for sentence in verdict.splitlines():
        lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _group(name: str, entries: list[Mapping[str, Any]]) -> list[list[str]]:
    shown = ("mae", "accuracy") if entries[0]["kind"] == "number" else ("accuracy", "macro_f1")
    rows = [[name]]
    rows += [[f"  {METRICS[m]}", *(_score(e, m) for e in entries)] for m in shown if m in entries[0]]
    if any(_known(entry.get("ece")) for entry in entries):
        rows.append(["  calibration error", *(_number(entry.get("ece")) for entry in entries)])
    return rows


def _known(value: Any) -> bool:
    return value is not None


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def _score(entry: Mapping[str, Any], metric: str) -> str:
    interval = entry.get(f"{metric}_ci")
    value = _number(entry.get(metric))
    return f"{value} [{_number(interval[0])}, {_number(interval[1])}]" if interval and value != NONE else value


def _duration(value: float) -> str:
    if value < 1e-3:
        return "< 1 ms"
    return f"{value * 1000:.0f} ms" if value < 1 else seconds(value)


COSTS: Mapping[str, Any] = {
    "latency p50 / p95": lambda s: f"{_duration(s['latency_p50_s'])} / {_duration(s['latency_p95_s'])}",
    "answers per second": lambda s: f"{s['answers_per_s']:,.1f}" if s["answers_per_s"] < 100 else "> 100",
    "tokens in + out": lambda s: (
        f"{s['prompt_tokens']:.0f} + {s['completion_tokens']:.0f}" if s.get("prompt_tokens") else NONE
    ),
    "peak memory": lambda s: size(s["peak_memory_bytes"]) if s.get("peak_memory_bytes") else NONE,
    "training": lambda s: seconds(s["train_seconds"]) if s.get("train_seconds") else NONE,
}


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns padded to their widest cell; a rule under the names."""
    num_columns = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(num_columns)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return [lines[0], "─" * (sum(widths) + 2 * (num_columns - 1)), *lines[1:]]
