"""The main job end to end with the embedded model: real training of a few steps, real answers, real kills."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml
from command_line import POLARITY, Outcome, afina, news, recipe_text, write_csv
from pydantic import BaseModel

from afina import Specialist
from afina.core.recipe_file import make_recipe
from afina.core.schema import problems
from afina.core.task_config import load_task

pytestmark = pytest.mark.slow

EMOTIONS = ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"]
SENTENCE = {"polaridade": POLARITY, "emocao": EMOTIONS}
PARTS = {f: {"texto": f} for f in ("f1", "f2", "f3")}
SYSTEMS = ["majority", "tfidf", "zero-shot", "specialist"]
NEWS_RECIPE = {
    "task__inputs": ["f1", "f2", "f3"],
    "task__output": dict.fromkeys(PARTS, SENTENCE),
    "task__parts": PARTS,
    "data__columns": {},
    "data__min_examples_per_label": 0,
    "train__max_steps": 4,
    "train__loss_on": "choices",
    "train__learning_rate": 5e-4,
    "compare": ["majority", "tfidf", "zero-shot", "finetuned"],
}
WAIT_S = 120.0  # for another process to come so far; it takes seconds on a quiet machine


@dataclass(frozen=True)
class Finished:
    """A run that went through, and what it printed."""

    place: Path
    outcome: Outcome

    @property
    def folder(self) -> Path:
        return self.place / "run"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))


def prepare_place(place: Path, rows: Sequence[Mapping[str, str]], **changes: Any) -> Path:
    place.mkdir(exist_ok=True)
    write_csv(place / "news.csv", rows)
    changes.setdefault("output_dir", str(place / "run"))
    (place / "recipe.yaml").write_text(recipe_text(**changes), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The whole job on 40 embedded rows, four systems."""
    place = prepare_place(tmp_path_factory.mktemp("finished"), news(40), **NEWS_RECIPE)
    outcome = afina("run", place / "recipe.yaml")
    assert outcome.code == 0, outcome.err
    return Finished(place, outcome)


# -- the whole job -------------------------------------------------------------------------------


def test_report_json_is_as_documented(finished: Finished) -> None:
    report = finished.report
    assert report["version"] == 1
    assert report["task"] == "small"
    assert report["num_test"] == 8
    assert isinstance(report["verdict"], str)
    recipe = json.loads((finished.folder / "recipe.json").read_text(encoding="utf-8"))
    assert report["recipe_hash"] == recipe["hash"]
    assert [s["name"] for s in report["systems"]] == SYSTEMS
    measures = {
        "name", "strategy", "base_model", "fields", "exact_match", "valid_rate", "latency_p50_s", "latency_p95_s",
        "answers_per_s", "cost_usd", "train_seconds", "peak_memory_bytes",
    }  # fmt: skip
    for system in report["systems"]:
        assert measures <= set(system)
        assert system["valid_rate"] == 1.0
        for path in (f"{f}.{name}" for f in PARTS for name in SENTENCE):
            scores = system["fields"][path]
            assert {"accuracy", "accuracy_ci", "macro_f1", "macro_f1_ci", "ece"} <= set(scores)
            assert scores["accuracy_ci"][0] <= scores["accuracy"] <= scores["accuracy_ci"][1]
    pairs = {(test["a"], test["b"]) for test in report["tests"]}
    assert pairs == {("specialist", other) for other in SYSTEMS[:3]}
    assert all({"field", "metric", "difference", "ci", "p", "p_holm"} <= set(test) for test in report["tests"])


def test_files_of_the_run(finished: Finished) -> None:
    folder = finished.folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert finished.report["verdict"].split(".")[0] in page
    output = make_recipe(yaml.safe_load((finished.place / "recipe.yaml").read_text(encoding="utf-8"))).task
    schema = load_task(output).output
    for name in SYSTEMS:
        lines = (folder / "predictions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 8
        for line in lines:
            row = json.loads(line)
            assert list(row) == ["id", "output", "confidence", "error"]
            assert problems(row["output"], schema) is None
    steps = [json.loads(line).get("step") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4
    assert (folder / "specialist" / "README.md").exists()
    assert not list(folder.glob("**/*.tmp"))


def test_results_go_to_stdout_and_notes_to_stderr(finished: Finished) -> None:
    out, err = finished.outcome.out, finished.outcome.err
    assert out.startswith("small: 8 unseen rows")
    assert f"Report:     {finished.folder / 'report.html'}" in out
    assert "base model" in err
    assert "rows read" in err
    assert "base model" not in out.replace("the base model zero-shot", "")


def test_the_same_command_again_does_nothing(finished: Finished) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    assert len(stamps) >= 9
    again = afina("run", finished.place / "recipe.yaml")
    assert (again.code, again.out) == (0, finished.outcome.out)
    assert "steps" not in again.err
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    as_json = afina("run", finished.place / "recipe.yaml", "--json")
    assert json.loads(as_json.out) == finished.report


def test_report_can_be_written_again_in_portuguese(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("training"))
    outcome = afina("report", tmp_path / "run", "--language", "pt")
    assert outcome.out == f"Report: {tmp_path / 'run' / 'report.html'}\n"
    assert 'lang="pt' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_another_comparison_keeps_the_training(finished: Finished, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(finished.place, place)
    recipe = recipe_text(**{**NEWS_RECIPE, "compare": ["majority", "finetuned"], "output_dir": str(place / "run")})
    (place / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (finished.place / "news.csv").touch()
    weights = (place / "run/specialist/model.safetensors").stat().st_mtime_ns
    assert afina("run", place / "recipe.yaml").code == 2
    outcome = afina("run", place / "recipe.yaml", f"data.path={finished.place / 'news.csv'}", "--yes")
    assert outcome.code == 0, outcome.err
    assert (place / "run/specialist/model.safetensors").stat().st_mtime_ns == weights
    assert not (place / "run/predictions/tfidf.jsonl").exists()


# -- kills ---------------------------------------------------------------------------------------


def start(*argv: str | Path, at: Path) -> subprocess.Popen[str]:
    """`afina ARGV...` as a process of its own."""
    command = [sys.executable, "-m", "afina", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(command, cwd=at, env=environment, stderr=subprocess.PIPE, text=True)


def stop_when(process: subprocess.Popen[str], ready: Callable[[], bool], sign: signal.Signals) -> str:
    """Signal the process as soon as it has come so far; what it said on standard error."""
    deadline = time.monotonic() + WAIT_S
    while not ready():
        assert process.poll() is None, f"it ended by itself: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.005)
    process.send_signal(sign)
    return process.communicate(timeout=WAIT_S)[1]


def test_a_killed_run_continues_to_the_end(tmp_path: Path) -> None:
    steps = 16
    recipe: dict[str, Any] = {**NEWS_RECIPE, "train__max_steps": steps, "train__eval_steps": 2, "train__lora_r": 4}
    recipe |= {"compare": ["majority", "finetuned"], "train__logging_steps": 1}
    place = prepare_place(tmp_path / "killed", news(40), **recipe)
    checkpoints = place / "run/training/checkpoints"
    process = start("run", "recipe.yaml", at=place)
    stop_when(process, lambda: (checkpoints / "checkpoint-2").exists(), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (place / "run/specialist").exists()
    outcome = afina("run", place / "recipe.yaml", f"data.path={place / 'news.csv'}")
    assert outcome.code == 2  # the path is another text, so the recipe is another: never mixed in silence
    here = Path.cwd()
    os.chdir(place)
    try:
        outcome = afina("run", "recipe.yaml")
    finally:
        os.chdir(here)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, steps + 1))
    assert (place / "run/report.html").exists()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_predict_continues_to_the_same_answers(
    finished: Finished, tmp_path: Path, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "new.csv", news(60))
    argv = ("predict", finished.folder, "-i", "new.csv", "--id-column", "news_id", "--batch-size", "2", "-o")
    partial = tmp_path / ".stopped.jsonl.partial.jsonl"
    process = start(*argv, "stopped.jsonl", at=tmp_path)
    said = stop_when(process, lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 9, sign)
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sign]
    assert "Traceback" not in said
    assert ("interrupted. The same command continues" in said) == (sign == signal.SIGINT)
    assert not (tmp_path / "stopped.jsonl").exists()
    continued = afina(*argv, "stopped.jsonl")
    assert continued.code == 0, continued.err
    assert "continuing after " in continued.err
    assert "continuing after 0" not in continued.err
    assert afina(*argv, "whole.jsonl").code == 0
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


# -- predict -------------------------------------------------------------------------------------


def write_inputs(path: Path) -> list[str]:
    """Ordinary rows, an empty one, one of 20,000 characters, and in text files one that cannot be read. Their ids."""
    rows = [{"key": r["news_id"], "f1": r["f1"], "f2": r["f2"], "f3": r["f3"]} for r in news(5)]
    rows.insert(1, {"key": "empty", "f1": "", "f2": "", "f3": ""})
    rows.insert(3, {"key": "long", "f1": "muito " * 3334, "f2": '</s><|user|>{"f1":', "f3": "\u2028 😀"})
    ids = [row["key"] for row in rows]
    if path.suffix == ".parquet":
        polars.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".csv":
        write_csv(path, rows)
        lines = path.read_text(encoding="utf-8").split("\n")
        lines.insert(3, "too,few")
        path.write_text("\n".join(lines), encoding="utf-8")
        ids.insert(2, "4")  # its line stands for its id
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join([*lines[:2], '{"key": ', *lines[2:]]) + "\n", encoding="utf-8")
        ids.insert(2, "3")
    return ids


def read_answers(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = polars.read_parquet(path).to_dicts()
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    return [
        {
            "id": row["id"],
            "output": json.loads(row["output"]) if row["output"] else None,
            "confidence": json.loads(row["confidence"]) if row["confidence"] else {},
            "error": row["error"] or None,
        }
        for row in rows
    ]


@pytest.mark.parametrize("suffixes", [(".csv", ".jsonl"), (".jsonl", ".parquet"), (".parquet", ".csv")])
def test_predict_gives_one_row_for_every_row(finished: Finished, tmp_path: Path, suffixes: tuple[str, str]) -> None:
    source, output = tmp_path / f"in{suffixes[0]}", tmp_path / "new" / f"out{suffixes[1]}"
    ids = write_inputs(source)
    outcome = afina("predict", finished.folder, "-i", source, "-o", output, "--id-column", "key")
    assert outcome.code == 0, outcome.err
    answers = read_answers(output)
    assert [row["id"] for row in answers] == ids
    failed = [row for row in answers if row["error"]]
    assert len(failed) == (suffixes[0] != ".parquet")
    assert all(row["output"] is None and "line" in row["error"] for row in failed)
    schema = load_task(make_recipe(yaml.safe_load(recipe_text(**NEWS_RECIPE))).task).output
    for row in answers:
        if not row["error"]:
            assert problems(row["output"], schema) is None
            assert sorted(row["confidence"]) == sorted(f"{f}.{name}" for f in PARTS for name in SENTENCE)
            assert all(0 <= value <= 1 for value in row["confidence"].values())
    errors = ", 1 of them with an error (`error` says why)" if failed else ""
    assert outcome.out == f"{len(ids)} rows answered{errors}: {output}\n"


def test_a_specialist_in_python(finished: Finished) -> None:
    specialist = Specialist.load(finished.folder)
    answer: Any = specialist(f1="O PIB cresceu 2%.", f2="A inflação preocupa.", f3="O IBGE divulga amanhã.")
    assert isinstance(answer, BaseModel)
    assert answer.f1.polaridade in POLARITY
    assert answer.f3.emocao in EMOTIONS
    assert 0 < answer.confidence["f2.polaridade"] <= 1
    assert answer.to_output()["f1"] == {"polaridade": answer.f1.polaridade, "emocao": answer.f1.emocao}
    with pytest.raises(TypeError, match="expected the inputs"):
        specialist(f1="só uma")


# -- other tasks and trainings -------------------------------------------------------------------


def trained(place: Path, rows: Sequence[Mapping[str, str]], verb: str = "train", **changes: Any) -> Specialist:
    prepare_place(place, rows, **changes)
    outcome = afina(verb, place / "recipe.yaml")
    assert outcome.code == 0, outcome.err
    return Specialist.load(place / "run")


def test_free_text(tmp_path: Path) -> None:
    specialist = trained(
        tmp_path, news(24), "run", task__output="text", data__columns={"": "manchete"},
        compare=["nearest", "zero-shot", "finetuned"],
    )  # fmt: skip
    answer: Any = specialist(texto="O PIB cresceu 2% no ano.")
    assert isinstance(answer.value, str)
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert [s["valid_rate"] for s in report["systems"]] == [1.0, 1.0, 1.0]


def test_several_labels_at_once(tmp_path: Path) -> None:
    rows = [
        {"text": r["f1"], "labels": ", ".join(sorted({r["f1_emocao"], r["f2_emocao"]} & set(EMOTIONS[:5])))}
        for r in news(40)
    ]
    specialist = trained(
        tmp_path, rows, "run", task__inputs={"texto": "text"}, task__output={"emocoes": [EMOTIONS[:5]]},
        data__columns={"emocoes": "labels"}, data__id_column=None, data__min_examples_per_label=0,
        data__max_rejected=0.5, compare=["majority", "tfidf", "zero-shot", "finetuned"],
    )  # fmt: skip
    answer: Any = specialist(texto="Que dia feliz!")
    assert set(answer.emocoes) <= set(EMOTIONS[:5])
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert [s["valid_rate"] for s in report["systems"]] == [1.0] * 4


def test_reasoning_before_the_labels(tmp_path: Path) -> None:
    specialist = trained(tmp_path, news(24), task__reasoning="pensamento", task__output=dict(SENTENCE),
                         data__columns={"polaridade": "f1_polaridade", "emocao": "f1_emocao"},
                         data__min_examples_per_label=0, train__max_length=256)  # fmt: skip
    answer: Any = specialist(texto="O PIB cresceu 2% no ano.")
    assert list(answer.to_output()) == ["polaridade", "emocao"]


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({"train__lora_r": 4}, "none"),
        ({"train__lora_r": 4, "train__load_in_4bit": True, "train__optim": "paged_adamw_32bit"}, "4bit"),
        ({"train__lora_r": 4, "train__use_dora": True, "train__use_rslora": True}, "none"),
    ],
    ids=["lora", "qlora", "dora-rslora"],
)
def test_adapters_answer(tmp_path: Path, settings: dict[str, Any], held: str) -> None:
    specialist = trained(tmp_path, news(24), **settings)
    assert (tmp_path / "run/specialist/adapter_model.safetensors").exists()
    base = json.loads((tmp_path / "run/specialist/base.json").read_text(encoding="utf-8"))
    assert base["quantisation"] == held
    answer: Any = specialist(texto="O PIB cresceu 2% no ano.")
    assert answer.polaridade in POLARITY
    written = afina("predict", tmp_path / "run", "-i", tmp_path / "news.csv", "-o", tmp_path / "answers.jsonl")
    assert written.code == 0, written.err
    assert all(row["output"]["polaridade"] in POLARITY for row in read_answers(tmp_path / "answers.jsonl"))


def test_adapted_to_unlabelled_text_first(tmp_path: Path) -> None:
    write_csv(tmp_path / "texts.csv", [{"texto": r["f2"]} for r in news(40)])
    adapt = {"path": str(tmp_path / "texts.csv"), "column": "texto", "num_train_epochs": 1}
    specialist = trained(tmp_path, news(24), train__adapt=adapt)
    answer: Any = specialist(texto="O PIB cresceu 2% no ano.")
    assert answer.polaridade in POLARITY


def test_the_chat_template(tmp_path: Path) -> None:
    specialist = trained(tmp_path, news(24), train__chat_template="chat")
    assert specialist.manifest.style == "chat"
    answer: Any = specialist(texto="O PIB cresceu 2% no ano.")
    assert answer.polaridade in POLARITY
