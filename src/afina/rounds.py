"""Rounds: one table after the other, each learned on top of the model before; and what was forgotten on the way.

Comes in: a recipe with `train.rounds`, local or hosted. Goes out: a run folder with one run inside for each round, and
the forgetting table: after every round, how well its model answers the validation rows of this and of earlier rounds.

What a later round learns must not hold rows that an earlier one is judged by, nor the other way round: near-duplicates
are taken out of the later round, so that adding a round changes nothing of what is done.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina import hosting, pipeline
from afina.core.config import Recipe
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.storage import digest, read_json, require_file, write_json, write_jsonl, write_text
from afina.data.dedupe import find_duplicates
from afina.data.prepare import Prepared, load_prepared
from afina.data.split import SPLITS
from afina.evaluation.runner import WHOLE, run_system
from afina.evaluation.runner import evaluate as evaluate_systems
from afina.pipeline import say
from afina.providers.cache import AnswerCache
from afina.runs import Run, open_recipe
from afina.strategies.finetuned import Manifest, Specialist
from afina.training.adapters import merge
from afina.training.hosted import Agree

RESULT, TABLE = "rounds.json", "forgetting.csv"
RESULT_VERSION = 1
MERGED = "merged"  # a round's model as one plain model, where the next one begins
JUDGED = ("validation", "test")


@dataclass(frozen=True)
class Round:
    """One round under way. number: from 1. model: the hosted name, or the specialist's folder."""

    number: int
    opened: Run
    prepared: Prepared
    model: str


def train_rounds(recipe: Recipe, agree: Agree, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and judge every round. What rounds.json holds. A killed call goes on where it stopped."""
    paths = recipe.train.rounds or []
    for path in paths:
        require_file(path, "a table")
    whole = open_recipe(recipe, overwrite=overwrite)
    whole.claim()
    done: list[Round] = []
    cells: list[dict[str, Any]] = _kept(whole.folder)
    for number, path in enumerate(paths, 1):
        say(f"round {number} of {len(paths)}: {path.name}")
        opened = open_recipe(_round_recipe(recipe, number, path, done), overwrite=overwrite)
        prepared = hosting.prepare(opened) if recipe.train.provider else pipeline.prepare(opened)
        prepared = _keep_apart(opened, prepared, done, recipe.data.near_duplicate_threshold)
        model = hosting.train(opened, agree).model if recipe.train.provider else str(pipeline.train(opened))
        done.append(Round(number, opened, prepared, model))
        cells = _judge(recipe, done, cells, agree)
        _write(whole.folder, recipe, done, cells)
    return read_json(whole.folder / RESULT)


def _round_recipe(recipe: Recipe, number: int, path: Path, done: Sequence[Round]) -> Recipe:
    """The recipe of one round: its table, its folder, and the model before as the base."""
    train: dict[str, Any] = {"rounds": None}
    if done and recipe.train.provider:
        train["base_model"] = done[-1].model
        if recipe.train.max_cost_usd is not None:
            spent = _trained_usd(done) + AnswerCache(recipe.run_dir / hosting.ANSWERS).spent_usd
            train["max_cost_usd"] = max(0.0, recipe.train.max_cost_usd - spent)
    elif done:
        train |= _local_base(Path(done[-1].model))
    folder = recipe.run_dir / f"round-{number}"
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"path": path}),
            "train": recipe.train.model_copy(update=train),
            "output_dir": folder,
        }
    )


def _trained_usd(done: Sequence[Round]) -> float:
    """What the training of these rounds cost, where it is known."""
    results = [hosting.trained(one.opened) for one in done]
    return sum(result.cost_usd or 0.0 for result in results if result is not None)


def _local_base(specialist: Path) -> dict[str, Any]:
    """Settings that make a specialist the base of the next round, asked in the same style."""
    style = Manifest.read(specialist).style
    if not (specialist / "adapter_config.json").exists():
        return {"base_model": str(specialist), "revision": None, "chat_template": style}
    merged = specialist.parent / MERGED
    if not (merged / "done.json").exists():
        found = merge(specialist, "cpu")
        found.model.save_pretrained(str(merged))
        found.tokenizer.save_pretrained(str(merged))
        write_json(merged / "done.json", {"of": str(specialist)})
    return {"base_model": str(merged), "revision": None, "chat_template": style}


# -- rows that two rounds share ---------------------------------------------------------------------


def _keep_apart(opened: Run, prepared: Prepared, done: Sequence[Round], threshold: float) -> Prepared:
    """Take out of this round what earlier rounds are judged by, and what they have learned of its own judges."""
    if not done or "rounds" in prepared.report:
        return prepared
    earlier = [(name, e) for one in done for name in SPLITS for e in one.prepared.splits[name]]
    new = [(name, e) for name in SPLITS for e in prepared.splits[name]]
    clusters = find_duplicates([e for _, e in (*earlier, *new)], opened.task, threshold).clusters
    judged = {c for (name, _), c in zip(earlier, clusters, strict=False) if name in JUDGED}
    learned = {c for (name, _), c in zip(earlier, clusters, strict=False) if name not in JUDGED}
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for (name, example), cluster in zip(new, clusters[len(earlier) :], strict=True):
        if cluster not in (learned if name in JUDGED else judged):
            splits[name].append(example)
    removed = {name: len(prepared.splits[name]) - len(splits[name]) for name in SPLITS}
    if empty := [name for name in ("train", "validation") if not splits[name]]:
        raise DataError(
            f"{opened.recipe.data.path}: the split {empty[0]} has no examples that an earlier round does not share "
            f"({removed} were near-duplicates). Name a table with other rows, or leave the round out."
        )
    if any(removed.values()):
        say(f"near-duplicates of earlier rounds left out: {removed}")
    report = {**prepared.report, "splits": {n: len(e) for n, e in splits.items()}, "rounds": {"removed": removed}}
    (opened.data / "report.json").unlink()
    for name, examples in splits.items():
        write_jsonl(opened.data / f"{name}.jsonl", (vars(example) for example in examples))
    write_json(opened.data / "report.json", report)
    return load_prepared(opened.data)


# -- the forgetting table ---------------------------------------------------------------------------


def _judge(recipe: Recipe, done: Sequence[Round], cells: list[dict[str, Any]], agree: Agree) -> list[dict[str, Any]]:
    """The last round's model on the validation rows of every round so far; what is known is not asked again."""
    last = done[-1]
    known = {cell["key"]: cell for cell in cells}
    specialist: Any = None
    found: list[dict[str, Any]] = []
    for other in done:
        asked = [other.opened.data_key, len(other.prepared.splits["validation"])]
        key = digest([last.opened.recipe.hash, last.opened.data_key, last.model, asked])
        if key not in known:
            specialist = specialist or _predictor(recipe, done)
            rows = other.prepared.splits["validation"]
            if recipe.train.provider:
                hosting.agree_to_ask(specialist, rows, agree)
            system = run_system(specialist, rows, "finetuned", num_timed=0)
            train = other.prepared.splits["train"]
            report = evaluate_systems(last.opened.task, rows, train, [system], last.opened.recipe.seed)
            known[key] = {
                "key": key,
                "after_round": last.number,
                "rows_of_round": other.number,
                "num_rows": len(rows),
                "scores": _scores(report),
            }
        found.append(known[key])
    return [*(cell for cell in cells if cell["after_round"] < last.number), *found]


def _predictor(recipe: Recipe, done: Sequence[Round]) -> Any:
    last = done[-1]
    if recipe.train.provider is None:
        return Specialist.load(last.model, batch_size=recipe.answer.batch_size)
    answers = recipe.run_dir / hosting.ANSWERS
    return hosting.predictor(recipe, last.opened.task, "specialist", last.model, answers, _trained_usd(done))


def _scores(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group of fields -> its measure (accuracy, or the error of an open number), value and 95 % interval.

    Free text is judged by chrF, under the name "answer".
    """
    system = report["systems"][0]
    if text := system.get("text"):
        return {WHOLE: {"metric": "chrf", "value": text["chrf"], "ci": text["chrf_ci"]}}
    scores: dict[str, dict[str, Any]] = {}
    for group in report["groups"]:
        entry = system["fields"][group]
        metric = "mae" if entry["kind"] == "number" and "mae" in entry else "accuracy"
        scores[group] = {"metric": metric, "value": entry[metric], "ci": entry[f"{metric}_ci"]}
    if len(scores) > 1:
        scores["whole answer"] = {"metric": "accuracy", "value": system["exact_match"], "ci": system["exact_match_ci"]}
    return scores


def _kept(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(read_json(folder / RESULT)["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(folder: Path, recipe: Recipe, done: Sequence[Round], cells: Sequence[Mapping[str, Any]]) -> None:
    rounds = [
        {
            "round": one.number,
            "table": str(one.opened.recipe.data.path),
            "base_model": one.opened.recipe.train.base_model,
            "model": one.model,
            "rows": {name: len(examples) for name, examples in one.prepared.splits.items()},
        }
        for one in done
    ]
    write_json(
        folder / RESULT, {"version": RESULT_VERSION, "task": recipe.task.name, "rounds": rounds, "cells": list(cells)}
    )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["field", "metric", "after_round", "rows_of_round", "num_rows", "value", "ci_low", "ci_high"])
    for cell in cells:
        for field, score in cell["scores"].items():
            place = [cell["after_round"], cell["rows_of_round"], cell["num_rows"]]
            writer.writerow([field, score["metric"], *place, score["value"], *score["ci"]])
    write_text(folder / TABLE, text.getvalue())


def forgetting_lines(result: Mapping[str, Any]) -> list[str]:
    """The table for the screen: a block per field, a row per model, a column per round's validation rows."""
    numbers = [one["round"] for one in result["rounds"]]
    cells = {(cell["after_round"], cell["rows_of_round"]): cell for cell in result["cells"]}
    lines = ["validation rows of each round, answered after each round; 95 % intervals in brackets"]
    for field, score in result["cells"][-1]["scores"].items():
        lines += ["", f"{field} ({score['metric']})"]
        lines.append("  " + "".ljust(15) + "".join(f"rows of round {number}".ljust(22) for number in numbers).rstrip())
        for after in numbers:
            row = [_cell(cells.get((after, number)), field) for number in numbers]
            lines.append("  " + f"after round {after}".ljust(15) + "".join(text.ljust(22) for text in row).rstrip())
    return lines


def _cell(cell: Mapping[str, Any] | None, field: str) -> str:
    if cell is None:
        return "-"
    score = cell["scores"][field]
    return f"{score['value']:.2f} [{score['ci'][0]:.2f}, {score['ci'][1]:.2f}]"
