"""The main job, top to bottom: recipe -> data -> plan -> training -> evaluation -> report.

Each stage takes a `Run`, does nothing if its result is already there, and leaves files that the next
one reads. The test rows are read by `evaluate` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afina.pipeline.judging import evaluate, write_answers_of
from afina.pipeline.opening import ANSWERS, DEMO_RECIPE, open_run, read, say
from afina.pipeline.planning import plan, settings_of
from afina.pipeline.splits import Encode, encode, prepare, renderer_of
from afina.pipeline.systems import (
    Answerer,
    WithProgress,
    answer_locally,
    answers_of,
    base_chat,
    make_built_in,
    strategy_builder,
)
from afina.pipeline.training import train
from afina.report.card import write_card
from afina.report.html import write_report
from afina.runs import Run, open_recipe

__all__ = [
    "ANSWERS", "DEMO_RECIPE", "Answerer", "Encode", "WithProgress", "answer_locally", "answers_of", "base_chat",
    "encode", "evaluate", "make_built_in", "open_recipe", "open_run", "plan", "prepare", "read", "renderer_of", "run",
    "say", "settings_of", "strategy_builder", "train", "write_answers_of", "write_reports",
]  # fmt: skip


def run(opened: Run) -> dict[str, Any]:
    """Prepare, train, evaluate, report. Returns what report.json holds."""
    prepare(opened)
    if "finetuned" in opened.recipe.compare:
        train(opened)
    result = evaluate(opened)
    write_reports(opened.folder)
    return result


def write_reports(folder: Path, language: str = "en") -> Path:
    """report.html, and the model card beside the weights. Raises RunError if the run was not evaluated."""
    path = write_report(folder, language)
    if (folder / "specialist").is_dir():
        write_card(folder, folder / "specialist")
    return path
