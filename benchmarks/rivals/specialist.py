"""The model that every answering rival loads: a specialist that Afina trained, as one plain folder.

Comes in: a shape and a number type. Goes out: a model folder (full tuning, so no adapter stands in the way of
anybody) and the test rows with their prompts, kept under build/benchmarks/answer/ and made once. Three sentences in,
one JSON of six choices out. It knows nothing of how answers are written or timed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import BUILD, ROOT, say
from shapes import make_shape

from afina import pipeline
from afina.core.config import Recipe
from afina.core.recipe_file import make_recipe
from afina.core.storage import read_json, write_json
from afina.engine.loader import BASE_FILE, load_specialist
from afina.runs import Run, open_recipe
from afina.strategies.finetuned import Specialist

TABLE = ROOT / "src" / "afina" / "assets" / "noticias" / "noticias.csv"
FIELDS = ("f1", "f2", "f3")
SENTENCE = {
    "polaridade": ["positivo", "negativo", "neutro"],
    "emocao": ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"],
}
TASK: dict[str, Any] = {
    "name": "noticias",
    "instruction": "Classifique cada frase da notícia conforme a polaridade e a emoção universal de Ekman.",
    "inputs": list(FIELDS),
    "output": dict.fromkeys(FIELDS, SENTENCE),
}
# Trained past its best validation loss on purpose: a small model that stops there answers nearly every request alike,
# and an answer that is always the same is too easy to guess. The last weights are kept: eval_steps spans the training.
TRAINING: dict[str, dict[str, Any]] = {
    "nano": {"max_steps": 430, "learning_rate": 8e-4},
    "13m": {"max_steps": 430, "learning_rate": 1e-3, "warmup_ratio": 0.1},
    "135m": {"max_steps": 80, "learning_rate": 6e-4, "warmup_ratio": 0.1},
}
# Random weights of this size learn a few rows by heart in minutes, not all of them.
TEST_SIZE = {"nano": 0.25, "13m": 0.25, "135m": 0.75}
ROWS = "rows.json"


@dataclass(frozen=True)
class Row:
    """One request. prompt: the text whose tokens are `prompt_ids`. gold_ids: the gold answer without its end."""

    inputs: dict[str, str]
    prompt: str
    prompt_ids: list[int]
    gold_ids: list[int]
    gold: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is asked. folder: the model, tokenizer and manifest. rows: of the test split; warm_up: of validation."""

    folder: Path
    rows: list[Row]
    warm_up: list[Row]


def recipe_of(shape: str, folder: Path, answer_format: str) -> Recipe:
    """The recipe of a shape's specialist; `folder` is its run folder."""
    base = "afina/nano" if shape == "nano" else str(make_shape(shape, BUILD / "shapes"))
    raw: dict[str, Any] = {
        "task": TASK,
        "data": {"path": str(TABLE), "id_column": "news_id", "test_size": TEST_SIZE[shape], "validation_size": 0.1},
        "train": {
            "base_model": base,
            "chat_template": "completion",
            "finetuning_type": "full",
            "load_in_4bit": False,
            "max_length": 512,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "eval_steps": TRAINING[shape]["max_steps"],
            **TRAINING[shape],
        },
        "compare": ["finetuned"],
        "output_dir": str(folder),
    }
    if answer_format != "json":
        raw["answer"] = {"answer_format": answer_format}
    return make_recipe(raw)


def make_subject(shape: str, dtype: str, answer_format: str = "json") -> Path:
    """The folder of a trained specialist in `dtype` with its rows; trained if it is not there yet."""
    home = BUILD / "answer" / (shape if answer_format == "json" else f"{shape}-{answer_format}")
    place = home / dtype
    opened = open_recipe(recipe_of(shape, home / "run", answer_format), overwrite=True)
    key = {"train": opened.train_key}
    if (place / ROWS).exists() and read_json(place / "key.json") == key:
        return place
    say(f"training the {shape} specialist ({answer_format})")
    trained = pipeline.train(opened)
    staging = home / f".{dtype}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(trained, staging)
    _cast(trained, staging, dtype)
    _write_rows(opened, staging)
    write_json(staging / "key.json", key)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(staging, place)
    return place


def _cast(trained: Path, folder: Path, dtype: str) -> None:
    """The weights in `dtype`, for whoever reads the folder: transformers or Afina."""
    loaded = load_specialist(trained, "cpu", dtype=dtype)
    for old in folder.glob("model*.safetensors*"):  # the drafter keeps its own
        old.unlink()
    loaded.model.config.dtype = getattr(torch, dtype)
    loaded.model.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(str(folder))
    spec = read_json(folder / BASE_FILE)
    write_json(folder / BASE_FILE, {**spec, "dtype": dtype})


def _write_rows(opened: Run, folder: Path) -> None:
    """Prompts from Afina's renderer, checked to be what the tokenizer makes of the same text."""
    splits = pipeline.prepare(opened, quiet=True).splits
    renderer = Specialist.load(folder).predictor.renderer
    tokenizer = renderer.codec.tokenizer
    (part,) = opened.task.parts
    found: dict[str, list[dict[str, Any]]] = {}
    for split in ("test", "validation"):
        for example in splits[split]:
            encoded = renderer.encode(part, example)
            if encoded is None:
                continue
            text = renderer.question(part, part.shown(example.inputs)) + "\n\n"
            ids = list(encoded.input_ids[: encoded.num_prompt])
            assert tokenizer(text)["input_ids"] == ids, f"{example.id}: the rivals would read other tokens"
            answer = list(encoded.input_ids[encoded.num_prompt : -1])
            row = Row(dict(example.inputs), text, ids, answer, dict(example.output))
            found.setdefault(split, []).append(asdict(row))
    write_json(folder / ROWS, found)


def load_subject(folder: Path) -> Subject:
    """What `make_subject` left."""
    raw = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return Subject(folder, [Row(**r) for r in raw["test"]], [Row(**r) for r in raw["validation"]])
