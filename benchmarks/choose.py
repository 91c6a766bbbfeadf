"""Which settings learn most from a small table? Cross-validation on the rows that are not test rows.

    python benchmarks/choose.py recipes/noticias.yaml data.path=noticias.csv --folds 3 --variants rate

The test split is made as `afina run` makes it and never looked at. The other rows are cut into folds of
near-duplicate clusters; every variant trains on the same folds with the same seed, and TF-IDF gets the
same rows. Prints accuracy and macro-F1 per group of fields, pooled over the folds, and keeps them as
JSON under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from afina import pipeline
from afina.core.config import Recipe
from afina.core.predictor import Example
from afina.core.recipe_file import load_recipe, make_recipe
from afina.core.storage import write_json
from afina.core.task_config import load_task
from afina.data.prepare import Prepared
from afina.engine.loader import load_spec
from afina.evaluation.runner import SystemRun, evaluate, run_system
from afina.pipeline.training import adapt_to
from afina.runs import Run, versions
from afina.strategies.classical import TfidfLogistic
from afina.strategies.local import LocalPredictor
from afina.training import local

# What is varied, one family at a time; keys are recipe settings.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "rate": {f"rate {rate:g}": {"train.learning_rate": rate} for rate in (2.5e-4, 5e-4, 1e-3)},
    "loss": {"loss on the completion": {"train.loss_on": "completion"}},
    "tuning": {
        "full": {},
        "LoRA r 16": {"train.finetuning_type": "lora", "train.learning_rate": 2e-3},
        "LoRA r 64": {"train.finetuning_type": "lora", "train.lora_r": 64, "train.learning_rate": 1e-3},
    },
    "parts": {"all in one answer": {"task.parts": None}},
    "epochs": {f"{n} epochs": {"train.num_train_epochs": n} for n in (3, 6, 10)},
    "format": {"json": {}, "compact": {"answer.answer_format": "compact"}},
    "adapt": {"no adaptation": {}},
}


def vary(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some settings replaced."""
    raw = json.loads(json.dumps(recipe.model_dump(mode="json", exclude_unset=True), default=str))
    for key, value in changes.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    return make_recipe(raw)


def folds_of(examples: list[Example], count: int, seed: int) -> list[list[Example]]:
    """Whole clusters dealt into `count` folds."""
    clusters = sorted({e.cluster for e in examples})
    np.random.default_rng(seed).shuffle(clusters)
    of = {cluster: n % count for n, cluster in enumerate(clusters)}
    return [[e for e in examples if of[e.cluster] == n] for n in range(count)]


def answers(recipe: Recipe, folder: Path, train: list[Example], validation: list[Example], test: list[Example]) -> Any:
    """A specialist trained on `train`, stopped by `validation`, asked `test`."""
    opened = Run(recipe, load_task(recipe.task), folder)
    settings, train_set = pipeline.settings_of(opened, Prepared({"train": train}, {}))
    renderer = pipeline.renderer_of(opened)
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    splits = Prepared({"train": train, "validation": validation, "test": test}, {})
    if recipe.train.adapt is not None:
        adapt_to(opened, loaded, settings, renderer, splits)
    validation_set = pipeline.encode(renderer, validation, recipe.train.max_length)
    result = local.train(loaded, settings, train_set, validation_set, opened.training, recipe.seed)
    predictor = LocalPredictor(
        "x",
        loaded.model,
        loaded.tokenizer,
        opened.task,
        style=renderer.style,
        answer_format=renderer.answer_format,
    )
    return predictor.predict([e.inputs for e in test]), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=["rate"], choices=sorted(VARIANTS))
    parser.add_argument("--adapt", nargs=2, metavar=("PATH", "COLUMN"), help="unlabelled text for the adapt variant")
    args = parser.parse_intermixed_args()
    recipe = load_recipe(args.recipe, args.overrides)
    if args.adapt:
        adapt = {"path": args.adapt[0], "column": args.adapt[1]}
        VARIANTS["adapt"] |= {
            "adapted": {"train.adapt": adapt},
            "adapted, 8 epochs": {"train.adapt": {**adapt, "num_train_epochs": 8}},
        }

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepared = pipeline.prepare(Run(recipe, load_task(recipe.task), root))
        rows = prepared.splits["train"] + prepared.splits["validation"]
        folds = folds_of(rows, args.folds, recipe.seed)
        chosen = {n: c for family in args.variants for n, c in VARIANTS[family].items()}
        found: dict[str, list[Any]] = {name: [] for name in ["TF-IDF", *chosen]}
        began = dict.fromkeys(found, 0.0)
        steps: dict[str, list[str]] = {name: [] for name in found}
        held: list[Example] = []
        for n, test in enumerate(folds):
            rest = [e for m, fold in enumerate(folds) if m != n for e in fold]
            stop = {e.cluster for e in rest[:: max(2, 8)]}
            validation = [e for e in rest if e.cluster in stop]
            train = [e for e in rest if e.cluster not in stop]
            held += test
            task = load_task(recipe.task)
            found["TF-IDF"] += run_system(
                TfidfLogistic(task, train, validation, recipe.seed), test, "tfidf", num_timed=0
            ).predictions
            for variant, changes in chosen.items():
                start = time.perf_counter()
                folder = root / f"{n}-{variant}"
                predictions, result = answers(vary(recipe, changes), folder, train, validation, test)
                shutil.rmtree(folder)
                found[variant] += predictions
                began[variant] += time.perf_counter() - start
                steps[variant].append(f"{result.best_step}/{result.steps}")
        systems = [
            SystemRun(name, "finetuned" if name in chosen else "tfidf", None, p, 1.0) for name, p in found.items()
        ]
        report = evaluate(load_task(recipe.task), held, [], systems, recipe.seed)

    print(f"{recipe.task.name}: {len(held)} rows in {args.folds} folds, test rows not read")
    table = []
    for system in report["systems"]:
        row = {
            "variant": system["name"],
            "seconds": round(began[system["name"]], 1),
            "best_steps": steps[system["name"]],
            "tokens": round(sum(p.usage.completion_tokens for p in found[system["name"]]) / len(held), 1),
        }
        for group in report["groups"]:
            row[group] = {m: round(system["fields"][group][m], 3) for m in ("accuracy", "macro_f1")}
        table.append(row)
        scores = "  ".join(f"{g} {row[g]['accuracy']:.3f} F1 {row[g]['macro_f1']:.3f}" for g in report["groups"])
        spent = f"{row['seconds']:.0f} s  best {' '.join(row['best_steps'])}  {row['tokens']:g} answer tokens"
        print(f"{system['name']:<22}{scores}  {spent}", flush=True)
    date = time.strftime("%Y-%m-%d")
    place = Path(__file__).parent / "results" / f"choose-{recipe.task.name}-{'-'.join(args.variants)}.json"
    write_json(
        place, {"benchmark": "choose", "date": date, "versions": versions(), "rows": table, "ratios": {}, "targets": {}}
    )


if __name__ == "__main__":
    main()
