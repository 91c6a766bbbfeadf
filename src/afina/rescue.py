"""Save a hosted fine-tune before its last day: ask it, learn its answers, and say how well the copy agrees with it.

Comes in: a hosted model's name, a table of rows, how the model is asked, a local base model. Goes out, in one folder:
`answers.sqlite` (every answer, paid once), `answers.jsonl` (the labelled table made of them), `recipe.yaml`, the usual
run folder `run/`, and `agreement.json`.

The agreement is measured on rows that the student never saw, split by near-duplicate clusters as always: what the
report calls gold is the hosted model's answer there. Gold answers of the old training file are learned from, never
judged by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from afina import pipeline
from afina.core.config import Recipe
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.recipe_file import load_recipe, make_recipe
from afina.core.storage import ensure_folder, write_json, write_jsonl, write_text
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.prepare import prepare as prepare_data
from afina.labelling import ANSWER_COLUMN, ANSWERS, ID_COLUMN, Labelled, Request, label
from afina.pipeline import say
from afina.providers.cache import AnswerCache
from afina.providers.prices import dollars
from afina.runs import open_recipe
from afina.training.hosted import Agree

TABLE, RECIPE, RUN, AGREEMENT = "answers.jsonl", "recipe.yaml", "run", "agreement.json"
FEWEST_ANSWERS = 20  # below, no split into train, validation and test says anything


def rescue(request: Request, agree: Agree, *, overwrite: bool = False) -> dict[str, Any]:
    """Ask, train, compare. What agreement.json holds. A killed call goes on where it stopped, paying nothing twice.

    Raises ProviderError, BudgetError, DataError, RecipeError.
    """
    # 1. The hosted model's answers.
    labelled = label(request, agree)
    _require_answers(request, labelled)
    # 2. A labelled table and a recipe, as if somebody had labelled by hand.
    recipe = _write_recipe(request, labelled)
    # 3. The usual run; its "gold" is the hosted model.
    opened = open_recipe(recipe, overwrite=overwrite)
    report = pipeline.run(opened)
    agreement = _agreement(request, labelled, report)
    write_json(request.output / AGREEMENT, agreement)
    return agreement


def _require_answers(request: Request, labelled: Labelled) -> None:
    if labelled.failed:
        name, reason = next(iter(labelled.failed.items()))
        say(f"{len(labelled.failed)} rows have no usable answer and are left out; the first, row {name}: {reason}")
    if len(labelled.rows) < FEWEST_ANSWERS:
        raise DataError(
            f"{request.inputs}: {len(labelled.rows)} rows have a usable answer of {request.model}, expected at least "
            f"{FEWEST_ANSWERS}. Add rows."
        )


# -- 2. the student's recipe ------------------------------------------------------------------------


def _write_recipe(request: Request, labelled: Labelled) -> Recipe:
    """answers.jsonl (and three tables where there is gold) and recipe.yaml; the recipe, checked."""
    ensure_folder(request.output)
    table = request.output / TABLE
    write_jsonl(table, labelled.rows)
    # The teacher chose its labels: one it used once is its answer, not a slip of a table.
    data: dict[str, Any] = {
        "path": TABLE,
        "format": "jsonl",
        "id_column": ID_COLUMN,
        "columns": labelled.columns,
        "min_examples_per_label": 0,
    }
    raw: dict[str, Any] = {
        **labelled.raw,
        "task": labelled.task,
        "data": data,
        "train": {"base_model": request.base_model},
        "compare": ["majority", "tfidf", "finetuned"],
        "output_dir": str(request.output / RUN),
    }
    path = request.output / RECIPE
    if labelled.gold:
        _write_splits(request, raw, labelled)
        data |= {"path": "train.jsonl", "validation_path": "validation.jsonl", "test_path": "test.jsonl"}
    text = yaml.safe_dump(raw, allow_unicode=True, sort_keys=False, width=110)
    write_text(path, f"# Learns the answers of {request.model}. Written by afina rescue.\n{text}")
    return load_recipe(path, request.overrides)


def _write_splits(request: Request, raw: Mapping[str, Any], labelled: Labelled) -> None:
    """Split the answered rows, and add the gold rows to those that are learned from."""
    whole = make_recipe({**raw, "data": {**raw["data"], "path": str(request.output / TABLE)}}, "rescue")
    task = load_task(whole.task)
    splits = prepare_data(whole, task, request.output / "split").splits
    for name, examples in splits.items():
        rows = [_row(task, example) for example in examples]
        write_jsonl(request.output / f"{name}.jsonl", [*rows, *(labelled.gold if name == "train" else [])])
    say(f"{len(labelled.gold)} gold answers of {request.training_file} are learned from as well")


def _row(task: Task, example: Example) -> dict[str, Any]:
    named = {task.inputs[name]: text for name, text in example.inputs.items()}
    return {ID_COLUMN: example.id, **named, ANSWER_COLUMN: example.output}


# -- 3. agreement -----------------------------------------------------------------------------------


def _agreement(request: Request, labelled: Labelled, report: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the student, under the name that it has here: agreement with the hosted model."""
    cache = AnswerCache(request.output / ANSWERS)
    systems = {
        system["name"]: {
            "strategy": system["strategy"],
            "whole_answer": {"agreement": system["exact_match"], "ci": system["exact_match_ci"]},
            "fields": {name: _measures(entry) for name, entry in system["fields"].items()},
        }
        for system in report["systems"]
    }
    student = next(system for system in systems.values() if system["strategy"] == "finetuned")
    return {
        "version": 1,
        "hosted_model": request.model,
        "provider": request.provider.name,
        "base_model": request.base_model,
        "num_answered": len(labelled.rows),
        "num_failed": len(labelled.failed),
        "num_gold": len(labelled.gold),
        "num_test": report["num_test"],
        "num_test_clusters": report["num_clusters"],
        "asking_cost_usd": cache.spent_usd,
        "student": student,
        "systems": systems,
        "run": str(request.output / RUN),
    }


def _measures(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {"agreement": entry["accuracy"], "ci": entry["accuracy_ci"]}
    for name in ("macro_f1", "mae"):
        if name in entry:
            found |= {name: entry[name], f"{name}_ci": entry[f"{name}_ci"]}
    return found


def agreement_lines(agreement: Mapping[str, Any]) -> list[str]:
    """For the screen: the student's agreement per field, the simpler systems' beside it."""
    count, clusters = agreement["num_test"], agreement["num_test_clusters"]
    lines = [
        f"agreement with {agreement['hosted_model']} on {count} rows that no system learned from "
        f"({clusters} independent); 95 % intervals in brackets",
        "",
    ]
    names = list(agreement["systems"])
    fields = list(agreement["student"]["fields"])
    rows = [["", *names]]
    rows += [[name, *(_score(agreement["systems"][system]["fields"][name]) for system in names)] for name in fields]
    if len(fields) > 1:
        rows.append(["whole answer", *(_score(agreement["systems"][system]["whole_answer"]) for system in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(names) + 1)]
    lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", f"asking cost {dollars(agreement['asking_cost_usd'])}"]
    return lines


def _score(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci"]
    return f"{entry['agreement']:.2f} [{low:.2f}, {high:.2f}]"
