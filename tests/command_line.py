"""Material of the command line's tests: the real `main`, small tables, recipes, a specialist that was not trained."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

ASSETS = Path(str(resources.files("afina"))) / "assets"
NEWS = ASSETS / "noticias" / "noticias.csv"
POLARITY = ["positivo", "negativo", "neutro"]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


def afina(*argv: str | Path) -> Outcome:
    """`afina ARGV...` in this process."""
    from afina.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["afina", *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Outcome(int(code or 0), out.getvalue(), err.getvalue())


def news(num_rows: int) -> list[dict[str, str]]:
    with NEWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:num_rows]


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def recipe_text(**changes: Any) -> str:
    """A small recipe; `group__key=value` replaces a setting of a group."""
    raw: dict[str, Any] = {
        "task": {
            "name": "small",
            "instruction": "Classifique a frase.",
            "inputs": {"texto": "f1"},
            "output": {"polaridade": POLARITY},
        },
        "data": {"path": "news.csv", "id_column": "news_id", "columns": {"polaridade": "f1_polaridade"}},
        "train": {
            "max_steps": 2,
            "max_length": 128,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        "answer": {"max_text_tokens": 12},
        "compare": ["majority"],
        "output_dir": "run",
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            raw[group][name] = value
        else:
            raw[group] = value
    return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False)


def untrained_specialist(folder: Path, **changes: Any) -> Path:
    """A real specialist folder around the embedded model as it is: quick to make, good to damage.

    changes: of the small recipe, whose task it is.
    """
    from afina import __version__
    from afina.core.recipe_file import make_recipe
    from afina.core.task_config import load_task
    from afina.engine.codec import Codec
    from afina.engine.loader import load_tokenizer
    from afina.engine.renderer import Renderer
    from afina.strategies.finetuned import Manifest

    shutil.copytree(ASSETS / "nano", folder, ignore=shutil.ignore_patterns("*.md"))
    task = load_task(make_recipe(yaml.safe_load(recipe_text(**changes))).task)
    renderer = Renderer(task, Codec(load_tokenizer(str(folder))), "completion")
    Manifest(
        task=task.to_json(),
        base_model="afina/nano",
        finetuning_type="full",
        style="completion",
        fingerprint=renderer.fingerprint,
        max_length=256,
        max_text_tokens=16,
        batch_size=4,
        recipe_hash="0" * 16,
        data_hash="0" * 16,
        afina_version=__version__,
        created=datetime.date(2026, 1, 1).isoformat(),
    ).write(folder)
    return folder
