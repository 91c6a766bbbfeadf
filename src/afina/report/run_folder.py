"""The files of a run folder that a report is made of.

Only `report.json` is required. Any other file may be absent, and is then None; a file that is there
but cannot be read is an error that names it, never a silently shorter report.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from afina.core.errors import RunError
from afina.core.storage import read_json

TRAINED = ("finetuned", "distilled")
STUDENT = "student-"  # what strategies of distilled students begin with


@dataclass(frozen=True)
class RunFiles:
    """The parsed files of one run; None where a file is absent.

    metrics: the readable lines of metrics.jsonl, in order.
    """

    folder: Path
    report: dict[str, Any]
    recipe: dict[str, Any] | None
    data: dict[str, Any] | None
    metrics: list[dict[str, Any]] | None
    plan: dict[str, Any] | None
    environment: dict[str, Any] | None
    examples: list[dict[str, Any]] | None

    @property
    def systems(self) -> list[dict[str, Any]]:
        return self.report["systems"]

    @property
    def specialist(self) -> dict[str, Any]:
        """The system that was trained here, a student after a specialist; else the reference, or the last."""
        for system in self.systems:
            if system.get("strategy") in TRAINED:
                return system
        for system in self.systems:
            if str(system.get("strategy")).startswith(STUDENT):
                return system
        tested = {self.report.get("reference") or test["a"] for test in self.report.get("tests", [])}
        return next((s for s in self.systems if s["name"] in tested), self.systems[-1])

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group name -> its field paths; every field by itself where the report names no groups."""
        named = self.report.get("groups") or {}
        return named or {path: [path] for path in self.specialist["fields"]}

    def answers(self, name: str) -> Iterator[dict[str, Any]]:
        """The recorded answers of one system, in the order of the test; none where they were not kept."""
        path = self.folder / "predictions" / f"{name}.jsonl"
        if path.parent.parent != self.folder or not path.exists():  # a name is no path
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)


def read_run(run_dir: Path) -> RunFiles:
    """Read what is there.

    Raises RunError when report.json is absent or has no systems, or when a file is damaged.
    """
    if not (run_dir / "report.json").exists():
        raise RunError(
            f"{run_dir}: found no report.json, expected a run that was evaluated. First: afina evaluate RECIPE.yaml"
        )
    report = _json(run_dir / "report.json")
    if not isinstance(report, dict) or not report.get("systems"):
        raise RunError(f"{run_dir / 'report.json'}: has no systems, expected at least one. Evaluate again.")
    return RunFiles(
        folder=run_dir,
        report=report,
        recipe=_json(run_dir / "recipe.json"),
        data=_json(run_dir / "data" / "report.json"),
        metrics=_metrics(run_dir / "metrics.jsonl"),
        plan=_json(run_dir / "plan.json"),
        environment=_json(run_dir / "environment.json"),
        examples=_json(run_dir / "examples.json"),
    )


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is damaged ({error}). Delete it, and run the step that writes it again.") from error


def _metrics(path: Path) -> list[dict[str, Any]] | None:
    """A process killed while it wrote leaves half a line; that line is skipped, the rest is good."""
    if not path.exists():
        return None
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def outcome(test: dict[str, Any], alpha: float = 0.05) -> str:
    """What a test supports about its system `a`: "better", "worse" or "none" (no difference shown).

    Judged on the Holm-corrected p where there is one. For errors and times, less is better.
    """
    p = test["p_holm"] if finite(test.get("p_holm")) else test.get("p")
    difference = test.get("difference")
    if not finite(p) or not finite(difference) or p >= alpha or difference == 0:
        return "none"
    less_is_better = any(word in test.get("metric", "") for word in ("ece", "brier", "latency", "error", "loss", "mae"))
    return "better" if (difference > 0) != less_is_better else "worse"
