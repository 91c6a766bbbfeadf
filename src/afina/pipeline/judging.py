"""The evaluation stage: every system on the test rows, and what is kept of their answers.

Only here the test rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from afina.core.predictor import Example, Prediction
from afina.core.storage import read_json, write_json, write_jsonl
from afina.core.strategy_config import STUDENT
from afina.data.prepare import Prepared
from afina.evaluation.runner import SystemRun
from afina.evaluation.runner import evaluate as evaluate_systems
from afina.pipeline.splits import prepare
from afina.pipeline.systems import Answerer, answer_locally
from afina.recorded import recorded
from afina.runs import Run, environment
from afina.training.machine import machine


def evaluate(
    opened: Run,
    answerer: Callable[[Run, Prepared], Answerer] | None = None,
    add: Callable[[Run, Prepared, dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every system of `compare` on the test rows; what report.json holds.

    answerer: who asks the systems; `answer_locally` when not given. A system that has answered is not asked again.
    add: what else the report holds.
    """
    path = opened.folder / "report.json"
    if opened.is_done("evaluate", opened.evaluate_key) and path.exists():
        return read_json(path)
    prepared = prepare(opened)
    recipe, test = opened.recipe, prepared.splits["test"]
    answer = (answerer or answer_locally)(opened, prepared)
    systems = [recorded(opened.folder, name, opened.system_key(name), partial(answer, name)) for name in recipe.compare]
    chosen = recipe.comparison
    result = evaluate_systems(
        opened.task,
        test,
        prepared.splits["train"],
        systems,
        recipe.seed,
        reference=chosen.reference,
        priority=chosen.priority,
        machine_usd_per_hour=chosen.machine_usd_per_hour,
        max_text_tokens=recipe.answer.max_text_tokens,
    )
    result = {"version": result.pop("version"), "recipe_hash": recipe.hash, **result}
    if add is not None:
        result |= add(opened, prepared, result)
    write_answers_of(opened, test, systems)
    write_json(opened.folder / "environment.json", environment(opened, machine(recipe.run_dir).to_json()))
    write_json(path, result)
    opened.mark_done("evaluate", opened.evaluate_key)
    return result


def write_answers_of(opened: Run, test: Sequence[Example], systems: Sequence[SystemRun]) -> None:
    """predictions/ of every system, and examples.json for the page: of the specialist, or else of the first student, or
    else of the reference."""
    for system in systems:
        rows = [_prediction_row(e, p) for e, p in zip(test, system.predictions, strict=True)]
        write_jsonl(opened.folder / "predictions" / f"{system.name}.jsonl", rows)
    reference = opened.recipe.comparison.reference or systems[0].name
    wanted = (
        lambda s: s.strategy == "finetuned",
        lambda s: s.strategy.startswith(STUDENT),
        lambda s: reference in (s.name, s.strategy),
    )
    shown = next(s for test_for in wanted for s in systems if test_for(s))
    write_json(
        opened.folder / "examples.json",
        [_shown(e, p) for e, p in zip(test, shown.predictions, strict=True)],
    )


def _prediction_row(example: Example, prediction: Prediction) -> dict[str, Any]:
    row = {
        "id": example.id,
        "output": prediction.output,
        "confidence": dict(prediction.confidence),
        "error": prediction.error,
    }
    said = {"reasoning": dict(prediction.reasoning), "trace": list(prediction.trace)}
    return row | {name: value for name, value in said.items() if value}


def _shown(example: Example, prediction: Prediction) -> dict[str, Any]:
    return {
        **_prediction_row(example, prediction),
        "inputs": dict(example.inputs),
        "gold": example.output,
        "correct": prediction.output == example.output,
    }
