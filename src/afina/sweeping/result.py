"""What a sweep found: sweep.json, the best recipe as a file, a table for the screen.

Comes in: a study, the recipe. Goes out: plain JSON, and best.yaml, whole and ready for `afina train`. Says what the
figures do not: that the lowest of many losses is lower than it would be again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from afina.core.config import Recipe
from afina.core.progress import seconds
from afina.core.recipe_file import PATHS
from afina.core.storage import write_text
from afina.runs import Run
from afina.sweeping.space import described, with_settings
from afina.sweeping.study import Study

REPORT, BEST = "sweep.json", "best.yaml"
REPORT_VERSION = 1
TOP = 5  # trials shown first, and whose spread is told
ENOUGH_FOR_IMPORTANCE = 10  # complete trials
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def make_report(opened: Run, study: Study, rows: Mapping[str, int], stopped: str) -> dict[str, Any]:
    """What sweep.json holds (docs/sweeps.md). rows: training and validation texts."""
    trials = [_trial(one) for one in study.trials]
    complete = sorted((t for t in trials if t["state"] == "complete"), key=lambda t: (t["value"], t["number"]))
    top = [t["value"] for t in complete[:TOP]]
    enough = stopped != "running" and len(complete) >= ENOUGH_FOR_IMPORTANCE
    return {
        "version": REPORT_VERSION,
        "recipe_hash": opened.recipe.hash,
        "task": opened.task.name,
        "base_model": opened.recipe.train.base_model,
        "unit": f"nats per {'choice' if opened.recipe.train.loss_on == 'choices' else 'completion token'}",
        "seed": opened.recipe.seed,
        "rows": dict(rows),
        **described(opened.recipe.sweep, study.parameters),
        "wanted_trials": opened.recipe.sweep.trials,
        "stopped": stopped,
        "trials": trials,
        "best": complete[0]["number"] if complete else None,
        "top_spread": round(top[-1] - top[0], 6) if len(top) > 1 else None,
        "importance": study.importance() if enough else None,
    }


def _trial(one: Any) -> dict[str, Any]:
    """A trial of Optuna's as plain JSON. Losses that are no number are null."""
    told = one.user_attrs
    losses = [value if math.isfinite(value) else None for _, value in sorted(one.intermediate_values.items())]
    return {
        "number": one.number + 1,
        "state": STATES[one.state.name],
        "parameters": dict(one.params),
        "value": min((loss for loss in losses if loss is not None), default=None),
        "losses": losses,
        **{name: told.get(name) for name in ("best_step", "steps", "total_steps", "seconds", "reason")},
    }


# -- the best recipe --------------------------------------------------------------------------------


def write_best(opened: Run, path: Path, report: Mapping[str, Any]) -> None:
    """The recipe of the best trial; nothing where no trial was completed."""
    if report["best"] is None:
        return
    best = report["trials"][report["best"] - 1]
    recipe = with_settings(opened.recipe, best["parameters"])
    text = yaml.safe_dump(_raw(recipe, path.parent), sort_keys=False, allow_unicode=True, width=100)
    write_text(path, "\n".join(f"# {line}" for line in _origin(opened, report, best)) + "\n" + text)


def _origin(opened: Run, report: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    complete = sum(t["state"] == "complete" for t in report["trials"])
    return [
        f"The recipe {report['task']} with the settings of trial {best['number']}, the best of a sweep's "
        f"{len(report['trials'])} ({complete} completed).",
        f"Varied: {', '.join(report['parameters'])}.",
        f"Validation loss {best['value']:.4f} {report['unit']}, at update {best['best_step']} of "
        f"{best['total_steps']}; the lowest of many is lower than it would be again.",
        f"Train it: afina train {BEST}; judge it on unseen rows: afina run {BEST}",
    ]


def _raw(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What the recipe says, as a file in `folder` says it: paths from there."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    raw.pop("sweep", None)
    if recipe.catalogue is not None:
        raw["data"].pop("path", None)  # the catalogue stands for it
    for place in PATHS:
        _rebase(raw, place, folder)
    output = raw["task"]["output"]
    if isinstance(output, str) and output.endswith(".json"):
        raw["task"]["output"] = _from(output, folder)
    for group, key in ((raw.get("train"), "base_model"), (raw.get("sources"), "dense"), *_models(raw)):
        if group and isinstance(group.get(key), str) and Path(group[key]).expanduser().is_dir():
            group[key] = str(Path(group[key]).expanduser().resolve())  # relative to the current folder until now
    raw["output_dir"] = f"{recipe.run_dir}-best"
    return {name: found for name, found in raw.items() if found != {}}


def _models(raw: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(model, "model") for model in raw.get("models", {}).values()]


def _rebase(node: Any, keys: Sequence[str], folder: Path) -> None:
    """`recipe_file._rebase` the other way round."""
    if not isinstance(node, dict):
        return
    if keys[0] == "*":
        for inner in node.values():
            _rebase(inner, keys[1:], folder)
    elif len(keys) > 1:
        _rebase(node.get(keys[0]), keys[1:], folder)
    elif isinstance(node.get(keys[0]), str):
        node[keys[0]] = _from(node[keys[0]], folder)


def _from(path: str, folder: Path) -> str:
    """A path as it is written in a file of `folder`."""
    whole = os.path.realpath(path)
    try:
        return os.path.relpath(whole, os.path.realpath(folder))
    except ValueError:  # another drive
        return whole


# -- for the screen -----------------------------------------------------------------------------------


def trial_line(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in parameters.items())


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def counted(report: Mapping[str, Any]) -> str:
    """As "20 trials: 12 complete, 7 pruned, 1 failed"."""
    states = [trial["state"] for trial in report["trials"]]
    parts = [f"{states.count(state)} {state}" for state in STATES.values() if state in states]
    return f"{len(states)} trial{'s' * (len(states) != 1)}: {', '.join(parts)}"


def ranked(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The complete trials, best first."""
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    return sorted(complete, key=lambda trial: (trial["value"], trial["number"]))


def caution(report: Mapping[str, Any]) -> list[str]:
    """What the best figure does not say of itself."""
    complete = len(ranked(report))
    said: list[str] = []
    if complete > 1:
        top = min(TOP, complete)
        said.append(
            f"The best {top} of {complete} lie within {report['top_spread']:.4f} nats; among them the order may be "
            "chance."
        )
    said.append(
        f"Each setting was trained once, with seed {report['seed']}, and judged on the same "
        f"{report['rows']['validation']} validation texts; the lowest of many losses is lower than it would be again. "
        "How good it is, unseen rows tell: afina run best.yaml, with comparison.seeds for the luck of the seed."
    )
    return said


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """The best trials as a table, and how far to trust it."""
    keys = list(report["parameters"])
    head = ["trial", "validation loss", *keys, "at update", "time"]
    rows = [
        [
            str(one["number"]),
            f"{one['value']:.4f}",
            *(shown(one["parameters"][key]) for key in keys),
            f"{one['best_step']} of {one['total_steps']}",
            seconds(one["seconds"]),
        ]
        for one in ranked(report)[:TOP]
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    table = [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return [f"{report['task']}, {counted(report)} ({report['unit']})", "", *table, "", *caution(report)]
