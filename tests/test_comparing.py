"""`afina compare` on real news: every kind of system at once, kept, continued, and asked no more.

On a small model: which system asks whom, and what is kept, is the same for every base.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_model import small_model

from afina import comparing, pipeline
from afina.core.recipe_file import make_recipe
from afina.core.task_config import load_task
from afina.recorded import recorded
from afina.runs import Run, open_recipe
from afina.strategies.finetuned import Specialist

NEWS = pipeline.DEMO_RECIPE.parent / "noticias.csv"
NUM_ROWS = 60


def table(place: Path) -> Path:
    """Some news, each with a reasoning that names the label: real text, short."""
    with NEWS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:NUM_ROWS]
    for row in rows:
        row["porque"] = f"A frase soa como algo {row['f1_polaridade']}."
    path = place / "news.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def recipe(place: Path, **changes: Any) -> dict[str, Any]:
    small_model(place / "base")
    return {
        "task": {
            "name": "c",
            "instruction": "Classifique a frase.",
            "inputs": {"texto": "f1"},
            "output": {"polaridade": ["positivo", "negativo", "neutro"]},
            "reasoning": "porque",
        },
        "data": {
            "path": str(table(place)), "id_column": "news_id", "columns": {"polaridade": "f1_polaridade"},
            "test_size": 0.3, "validation_size": 0.2,
        },
        "train": {
            "base_model": str(place / "base"), "max_steps": 4, "max_length": 256, "per_device_train_batch_size": 4,
        },
        "answer": {"max_text_tokens": 12, "draft": False},
        "strategies": {
            "few": {"strategy": "few-shot", "k": 2},
            "cot": {"strategy": "cot"},
            "jury": {"strategy": "vote", "of": "cot", "n": 3},
            "mixed": {"strategy": "vote", "of": ["tfidf", "few", "finetuned"]},
            "debate": {"strategy": "negotiate", "rounds": 1},
            "cheap": {"strategy": "cascade", "first": "finetuned", "then": "tfidf", "max_share": 0.5},
        },
        "distill": {"teacher": "table", "students": ["gold", "two-task"], "seeds": [1, 2], "curve": [12]},
        "compare": [
            "majority", "tfidf", "zero-shot", "finetuned", "few", "cot", "jury", "mixed", "debate", "cheap",
            "student-gold", "student-two-task",
        ],
        "comparison": {"reference": "finetuned", "priority": "cost", "seeds": [42, 7]},
        "output_dir": str(place / "run"),
        **changes,
    }  # fmt: skip


def agree(lines: Sequence[str], cost_usd: float | None) -> None:
    raise AssertionError(f"nothing here costs money: {lines}")


@pytest.mark.slow
def test_every_kind_of_system_in_one_report_that_is_made_once(tmp_path: Path) -> None:
    raw = recipe(tmp_path)
    report = comparing.compare(open_recipe(make_recipe(raw)), agree)
    systems = {system["strategy"] + ":" + system["name"]: system for system in report["systems"]}
    assert len(systems) == len(raw["compare"]) == 12
    assert all(system["valid_rate"] == 1.0 for system in systems.values()), {
        k: s["valid_rate"] for k, s in systems.items()
    }
    by_name = {system["name"]: system for system in report["systems"]}
    assert by_name["specialist"]["seeds"] == [42, 7]
    assert by_name["student-two-task"]["seeds"] == [1, 2]
    assert by_name["cot"]["reasoning_rate"] == by_name["jury"]["reasoning_rate"] == 1.0
    assert by_name["student-gold"]["reasoning_rate"] == 0.0
    assert report["reference"] == "specialist"
    assert {test["b"] for test in report["tests"]} == set(by_name) - {"specialist"}
    assert report["recommendation"]["priority"] == "cost"
    assert [(point["system"], point["seed"]) for point in report["curve"]] == [("student-gold", 1), ("student-gold", 2)]
    rows = [json.loads(line) for line in (tmp_path / "run/predictions/debate.jsonl").read_text().splitlines()]
    assert len(rows) == report["num_test"]
    assert all(len(row["trace"]) >= 2 for row in rows)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in by_name)
    assert Specialist.load(tmp_path / "run/students/two-task-1").task.reasoning is None

    # A system that has answered is not asked again: with one more wanted, only that one is.
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/systems").iterdir()}
    assert len(kept) == 14  # and two points of the curve
    raw["strategies"]["more"] = {"strategy": "few-shot", "k": 1}
    raw["compare"] = [*raw["compare"], "more"]
    again = comparing.evaluate(open_recipe(make_recipe(raw), overwrite=True), agree)
    assert [system["name"] for system in again["systems"]] == [*(s["name"] for s in report["systems"]), "more"]
    for old, new in zip(report["systems"], again["systems"], strict=False):
        assert old["exact_match"] == new["exact_match"], old["name"]
        assert old["latency_p50_s"] == new["latency_p50_s"], f"{old['name']} was asked again"


def test_recorded_answers_are_those_that_were_given(tmp_path: Path) -> None:
    raw = recipe(tmp_path, compare=["tfidf"], comparison={})
    opened = Run(make_recipe(raw), load_task(make_recipe(raw).task), tmp_path / "run")
    prepared = pipeline.prepare(opened, quiet=True)
    answer = pipeline.answer_locally(opened, prepared)
    first = recorded(opened.folder, "tfidf", "key", lambda: answer("tfidf"))
    assert first == recorded(opened.folder, "tfidf", "key", lambda: pytest.fail("asked again"))
    asked: list[str] = []

    def ask() -> Any:
        asked.append("tfidf")
        return first

    recorded(opened.folder, "tfidf", "another key", ask)
    (opened.folder / "systems/tfidf.json").write_text('{"key": "another key", "system"', encoding="utf-8")
    recorded(opened.folder, "tfidf", "another key", ask)  # damaged: asked again, not a traceback
    assert asked == ["tfidf", "tfidf"]
