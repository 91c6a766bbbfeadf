"""The result of a comparison as one table for the screen."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from afina.core.progress import seconds


def result_table(report: dict[str, Any]) -> Table:
    """Systems down, groups of fields across; every score with its 95 % interval."""
    groups = list(report["groups"])
    title = f"{report['task']}: {report['num_test']} unseen rows, 95 % intervals"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("system")
    for group in groups:
        table.add_column(f"{group}\naccuracy", justify="right")
        table.add_column(f"{group}\nmacro-F1", justify="right")
    for name in ("exact\nmatch", "valid", "answers/s", "training"):
        table.add_column(name, justify="right")
    for system in report["systems"]:
        cells = [system["name"]]
        for group in groups:
            scores = system["fields"][group]
            cells.append(_score(scores["accuracy"], scores.get("accuracy_ci")))
            cells.append(_score(scores.get("macro_f1"), scores.get("macro_f1_ci")))
        cells.append(f"{system['exact_match']:.2f}")
        cells.append(f"{system['valid_rate']:.0%}")
        cells.append(f"{system['answers_per_s']:.1f}")
        cells.append(seconds(system["train_seconds"]) if system.get("train_seconds") else "-")
        table.add_row(*cells)
    return table


def _score(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
