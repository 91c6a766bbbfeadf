"""Teachers' answers as tables: what is asked, what is kept, what is counted, and what a kill leaves."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import POLARITY, afina, news, write_csv
from faulty_server import Call, Says, answer, faulty_server

from afina.core.config import DataConfig
from afina.core.errors import AfinaError, DataError
from afina.core.predictor import Example, Inputs, Prediction, Usage
from afina.core.recipe_file import make_recipe
from afina.core.storage import file_digest, read_json, read_jsonl
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.dedupe import character_shingles, example_texts, jaccard, word_shingles
from afina.data.examples import InputRow
from afina.data.prepare import prepare
from afina.providers.budget import Budget, BudgetError
from afina.strategies.classical import TfidfLogistic
from afina.teaching import LabelReport, LabelSettings, label, read_labels
from afina.teaching.answers import Meter
from afina.teaching.columns import name_columns
from afina.teaching.filters import REASONS, near_test
from afina.teaching.report import report_lines
from afina.teaching.source import read_source

EMOTIONS = ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"]
WAIT_S = 120
ROOT = Path(__file__).resolve().parent.parent


def make_task(**changes: Any) -> Task:
    raw = {
        "name": "frase",
        "instruction": "Classifique a frase.",
        "inputs": {"texto": "f1"},
        "output": {"polaridade": POLARITY, "emocao": EMOTIONS},
        **changes,
    }
    return load_task(make_recipe({"task": raw, "data": {"path": "x.csv"}}).task)


TASK = make_task()
NEWS_TASK = make_task(
    inputs=["f1", "f2", "f3"],
    output={f: {"polaridade": POLARITY, "emocao": EMOTIONS} for f in ("f1", "f2", "f3")},
    parts={f: {"texto": f} for f in ("f1", "f2", "f3")},
)


def examples(start: int, stop: int, task: Task = TASK) -> list[Example]:
    """News items with their gold answers."""
    found = []
    for row in news(stop)[start:]:
        fields = {f: {"polaridade": row[f"{f}_polaridade"], "emocao": row[f"{f}_emocao"]} for f in ("f1", "f2", "f3")}
        output = fields if task.part_inputs else fields["f1"]
        found.append(Example(row["news_id"], {n: row[c] for n, c in task.inputs.items()}, output))
    return found


@pytest.fixture(scope="module")
def teacher() -> TfidfLogistic:
    """A real teacher: trained on 60 news items, right often and not always."""
    return TfidfLogistic(TASK, examples(0, 60), [], 1)


class Scripted:
    """A teacher that says what it is told, row by row; it counts what it is asked."""

    name = "scripted"

    def __init__(self, answer: Callable[[Inputs], Prediction]) -> None:
        self.answer, self.asked = answer, Counter[str]()

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        self.asked.update("|".join(row.values()) for row in inputs)
        return [self.answer(row) for row in inputs]


def adds_up(report: LabelReport, num_rows: int, output: Path) -> None:
    """Every row is in exactly one place, and the files say the same as the counts."""
    rows = report.counts["rows"]
    left_out = report.counts["left_out"]
    assert list(left_out) == list(REASONS)
    assert rows["read"] == num_rows == rows["kept"] + sum(left_out.values())
    assert sum(report.counts["failed"].values()) == left_out["failed"]
    labels = read_jsonl(output)
    rejected = read_jsonl(output.with_suffix(".rejected.jsonl"))
    assert len(labels) == rows["kept"] == len(report.examples)
    assert Counter(row["why"] for row in rejected) == Counter({k: v for k, v in left_out.items() if v})
    assert all(row["reason"] for row in rejected)
    assert read_json(output.with_suffix(".report.json")) == json.loads(json.dumps(report.counts))
    assert report.counts["labels_digest"] == file_digest(output)


# -- filters -----------------------------------------------------------------------------------------


def test_only_answers_that_reach_the_gold_label_are_kept(teacher: TfidfLogistic, tmp_path: Path) -> None:
    rows = examples(60, 160)
    said = teacher.predict([row.inputs for row in rows])
    right = [row.id for row, answer in zip(rows, said, strict=True) if answer.output == row.output]
    assert 5 <= len(right) <= 95  # else the test shows nothing
    report = label(TASK, teacher, rows, tmp_path / "labels.jsonl")
    assert [row["id"] for row in read_jsonl(tmp_path / "labels.jsonl")] == right
    assert report.counts["left_out"]["disagrees_with_gold"] == 100 - len(right)
    assert report.counts["gold"] == {"rows": 100, "compared": 100, "agreeing": len(right)}
    adds_up(report, 100, tmp_path / "labels.jsonl")
    reason = read_jsonl(tmp_path / "labels.rejected.jsonl")[0]["reason"]
    assert ", the table says " in reason

    everything = label(TASK, teacher, rows, tmp_path / "all.jsonl", LabelSettings(keep_wrong=True))
    assert [example.id for example in everything.examples] == [row.id for row in rows]
    assert [e.output for e in everything.examples] == [answer.output for answer in said]
    assert everything.counts["gold"]["agreeing"] == len(right)  # still told
    adds_up(everything, 100, tmp_path / "all.jsonl")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.95])
def test_rows_of_which_the_teacher_is_not_sure_are_left_out(
    teacher: TfidfLogistic, tmp_path: Path, place: float
) -> None:
    rows = [InputRow(e.id, dict(e.inputs), None) for e in examples(60, 160)]
    sure = [min(a.confidence.values()) for a in teacher.predict([row.inputs for row in rows])]
    least = round(sorted(sure)[int(100 * place)], 6)
    expected = [row.id for row, value in zip(rows, sure, strict=True) if value >= least]
    assert 100 * (1 - place) - 2 <= len(expected) <= 100 * (1 - place) + 2
    output = tmp_path / "labels.jsonl"
    report = label(TASK, teacher, rows, output, LabelSettings(min_agreement=least))
    kept = read_jsonl(output)
    assert [row["id"] for row in kept] == expected
    assert [row["agreement"] for row in kept] == pytest.approx([v for v in sure if v >= least], abs=1e-6)
    assert all(row["agreement"] == min(row["confidence"].values()) for row in kept)
    assert report.counts["left_out"]["low_agreement"] == 100 - len(expected)
    assert report.counts["gold"] == {"rows": 0, "compared": 0, "agreeing": 0}
    adds_up(report, 100, output)


def vary(text: str, draw: random.Random, num_words: int) -> str:
    words = text.split()
    for _ in range(num_words):
        words[draw.randrange(len(words))] = draw.choice(["hoje", "ontem", "sempre", "nunca", "talvez"])
    return " ".join(words)


@pytest.mark.parametrize("task", [TASK, NEWS_TASK], ids=["one question", "parts"])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_rows_near_to_test_rows_are_found_as_by_comparing_each_with_each(task: Task, threshold: float) -> None:
    draw = random.Random(7)
    test = examples(200, 240, task)
    short = [
        replace(one, id=f"s{one.id}", inputs={n: " ".join(t.split()[:5]) for n, t in one.inputs.items()})
        for one in test[:15]
    ]
    test += short
    rows = examples(0, 40, task)
    for one in test:
        times = draw.choice([0, 1, 2, 4, 8])
        inputs = {name: vary(text, draw, times) for name, text in one.inputs.items()}
        rows.append(Example(f"near-{one.id}", inputs))

    def alike(a: str, b: str) -> bool:
        cuts = [(cut(a), cut(b)) for cut in (word_shingles, character_shingles)]
        return a == b or any(jaccard(x, y) >= threshold for x, y in cuts if x and y)

    texts = [text for example in test for text in example_texts(example, task)]
    brute = [any(alike(a, b) for a in example_texts(row, task) for b in texts) for row in rows]
    found = near_test(rows, task, test, threshold)
    assert [one is not None for one in found] == brute
    assert 10 <= sum(brute) <= 75
    assert len(rows) == 95


def test_rows_near_to_test_rows_are_not_asked_about(tmp_path: Path) -> None:
    test = examples(0, 5)
    rows = examples(0, 30)
    teacher = Scripted(lambda row: Prediction({"polaridade": "neutro", "emocao": "neutro"}))
    output = tmp_path / "labels.jsonl"
    report = label(TASK, teacher, rows, output, LabelSettings(keep_wrong=True), test=test)
    assert report.counts["left_out"]["near_duplicate_of_test"] == 5
    assert not set(teacher.asked) & {e.inputs["texto"] for e in test}
    assert len(teacher.asked) == 25
    adds_up(report, 30, output)
    assert read_jsonl(tmp_path / "labels.rejected.jsonl")[0]["reason"] == "near-duplicate of the test row '1'"


def test_equal_rows_are_asked_once_and_all_answered(tmp_path: Path) -> None:
    rows = [InputRow(str(n), {"texto": f"frase {n % 7}"}, None) for n in range(70)]
    rows.append(InputRow("70", {"texto": ""}, "line 71: f1 is empty"))
    teacher = Scripted(
        lambda row: Prediction({"polaridade": POLARITY[int(row["texto"][-1]) % 3], "emocao": "medo"}, usage=Usage(5, 2))
    )
    report = label(TASK, teacher, rows, tmp_path / "labels.jsonl", LabelSettings(rows_at_once=3))
    assert teacher.asked == Counter({f"frase {n}": 1 for n in range(7)})
    assert report.counts["asked"]["questions"] == 7
    assert report.counts["asked"]["repeated"] == 63
    assert report.counts["tokens"] == {"prompt": 35, "completion": 14}
    assert [e.output["polaridade"] for e in report.examples] == [POLARITY[n % 7 % 3] for n in range(70)]
    assert report.counts["left_out"]["unreadable"] == 1
    adds_up(report, 71, tmp_path / "labels.jsonl")


def test_failures_are_counted_by_kind_and_never_kept(tmp_path: Path) -> None:
    good = {"polaridade": "neutro", "emocao": "medo"}
    said = {
        "a": Prediction(good, reasoning={"": "porque sim"}, usage=Usage(10, 5, requests=1, cost_usd=0.01)),
        "b": Prediction(error="the answer was cut off after 512 tokens", usage=Usage(10, 512, requests=1)),
        "c": Prediction(error="the answer is no JSON: 'talvez'", usage=Usage(10, 5, requests=3)),
        "d": Prediction({"polaridade": "ótimo", "emocao": "medo"}, usage=Usage(10, 5, requests=1)),
        "e": Prediction({"polaridade": "neutro"}),
        "f": Prediction(error="something else"),
        "g": Prediction(good, usage=Usage(10, 5, requests=2, repairs=1)),
    }
    rows = [InputRow(key, {"texto": key}, None) for key in said]
    output = tmp_path / "labels.jsonl"
    report = label(TASK, Scripted(lambda row: said[row["texto"]]), rows, output, fewest_requests=1)
    assert report.counts["failed"] == {"not of the schema": 2, "cut off": 1, "no JSON": 1, "other": 1}
    assert [e.id for e in report.examples] == ["a", "g"]
    assert report.counts["requests"] == {"sent_or_cached": 8, "repaired": 1, "from_cache": 8, "retried": 2}
    assert report.counts["cost_usd"] == pytest.approx(0.01)
    adds_up(report, 7, output)
    lines = "\n".join(report_lines(report.counts))
    assert "2 of 7 rows are labelled by scripted" in lines
    assert "5 without a valid answer (2 × not of the schema, 1 × cut off, 1 × no JSON, 1 × other)" in lines


def test_no_row_kept_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    rows = [InputRow(str(n), {"texto": f"t{n}"}, None) for n in range(4)]
    output = tmp_path / "labels.jsonl"
    teacher = Scripted(lambda row: Prediction(error="the model refused"))
    with pytest.raises(DataError, match=r"none of the 4 rows is kept: 4 × failed.*labels.rejected.jsonl says why"):
        label(TASK, teacher, rows, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.rejected.jsonl", "labels.report.json"]
    with pytest.raises(DataError):
        label(TASK, teacher, rows, output)
    assert set(teacher.asked.values()) == {2}  # nothing worth keeping was kept: asked again
    assert label(TASK, teacher, rows, output, LabelSettings(may_be_empty=True)).examples == []


def test_agreement_of_a_teacher_that_states_none_is_an_error_told_early(tmp_path: Path) -> None:
    rows = [InputRow(str(n), {"texto": f"t{n}"}, None) for n in range(50)]
    teacher = Scripted(lambda row: Prediction({"polaridade": "neutro", "emocao": "medo"}))
    with pytest.raises(AfinaError, match=r"scripted states no confidence, so --min-agreement 0.5 has no effect"):
        label(TASK, teacher, rows, tmp_path / "labels.jsonl", LabelSettings(min_agreement=0.5, rows_at_once=10))
    assert sum(teacher.asked.values()) == 10
    label(TASK, teacher, rows, tmp_path / "labels.jsonl", LabelSettings(rows_at_once=10))
    assert set(teacher.asked.values()) == {1}  # the ten were kept
    with pytest.raises(AfinaError, match="expected a share between 0 and 1"):
        LabelSettings(min_agreement=1.5)


def test_half_a_character_and_blank_answers_do_not_reach_the_table(tmp_path: Path) -> None:
    task = make_task(output={"polaridade": POLARITY, "nota": "text"})
    notes = {"a": "bom \ud83d", "b": "   ", "c": " claro ", "d": "null"}
    teacher = Scripted(lambda row: Prediction({"polaridade": "neutro", "nota": notes[row["texto"]]}))
    rows = [InputRow(key, {"texto": key}, None) for key in notes]
    output = tmp_path / "labels.jsonl"
    report = label(task, teacher, rows, output)
    assert [(e.id, e.output["nota"]) for e in report.examples] == [("c", "claro"), ("d", "null")]
    assert report.counts["left_out"]["unwritable"] == 2
    adds_up(report, 4, output)


# -- the table is what the recipe reads ----------------------------------------------------------------


def reads(task_raw: dict[str, Any], data: dict[str, Any], output: Path, settings: Sequence[str] = ()) -> list[Example]:
    """The examples that `afina prepare data.path=OUTPUT` finds, through a real recipe file."""
    from afina.core.recipe_file import load_recipe

    recipe_path = output.with_name("recipe.yaml")
    raw = {"task": task_raw, "data": {"path": "somewhere.csv", "min_examples_per_label": 0, **data}}
    recipe_path.write_text(yaml.safe_dump(raw, allow_unicode=True))
    recipe = load_recipe(recipe_path, settings)
    splits = prepare(recipe, load_task(recipe.task), output.parent / "prepared").splits
    return sorted((e for split in splits.values() for e in split), key=lambda e: e.line)


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flat": ({"output": {"polaridade": POLARITY, "emocao": EMOTIONS}}, {}),
    "nested, as inputs": (
        {"inputs": ["f1", "f2"], "output": {f: {"polaridade": POLARITY, "forte": "bool"} for f in ("f1", "f2")}},
        {},
    ),
    "named by the recipe": (
        {"output": {"a": {"polaridade": POLARITY}, "n": "int(0..5)"}},
        {"columns": {"a.polaridade": "f1_polaridade", "n": "nota"}, "id_column": "news_id", "format": "csv"},
    ),
    "labels mapped": ({"output": {"emocao": EMOTIONS}}, {"labels": {"*": {"Felicidade": "alegria"}}}),
    "one value": ({"output": POLARITY}, {}),
    "one value, named": ({"output": POLARITY}, {"columns": {"": "sentimento"}}),
    "whole answer in a column": ({"output": {"x": {"y": POLARITY}, "t": "text"}}, {"columns": {"": "resposta"}}),
    "free text": ({"output": "text"}, {}),
    "several labels": ({"output": {"emocoes": [EMOTIONS]}}, {}),
    "several labels in 0/1 columns": (
        {"output": {"emocoes": [["raiva", "medo"]]}},
        {"columns": {"emocoes": {"raiva": "anger", "medo": "fear"}}},
    ),
    "optional": (
        {
            "output": {
                "type": "object",
                "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer"}},
                "required": ["a"],
            }
        },
        {},
    ),
    "names that are ours": (
        {
            "inputs": ["teacher", "agreement"],
            "output": {"confidence": POLARITY, "id": "int(0..9)", "reasoning": "text"},
        },
        {},
    ),
    "names of another format": ({"inputs": ["instruction"], "output": POLARITY}, {}),
}
VALUES: dict[str, Callable[[random.Random], Any]] = {
    "flat": lambda d: {"polaridade": d.choice(POLARITY), "emocao": d.choice(EMOTIONS)},
    "nested, as inputs": lambda d: {
        f: {"polaridade": d.choice(POLARITY), "forte": d.random() < 0.5} for f in ("f1", "f2")
    },
    "named by the recipe": lambda d: {"a": {"polaridade": d.choice(POLARITY)}, "n": d.randint(0, 5)},
    "labels mapped": lambda d: {"emocao": d.choice(EMOTIONS)},
    "one value": lambda d: d.choice(POLARITY),
    "one value, named": lambda d: d.choice(POLARITY),
    "whole answer in a column": lambda d: {"x": {"y": d.choice(POLARITY)}, "t": f'"{d.random()}"\n, não'},
    "free text": lambda d: f'{{"uma": "resposta"}}, {d.random()}\n- item',
    "several labels": lambda d: {"emocoes": [e for e in EMOTIONS if d.random() < 0.3]},
    "several labels in 0/1 columns": lambda d: {"emocoes": [e for e in ("raiva", "medo") if d.random() < 0.5]},
    "optional": lambda d: {"a": d.choice(["x", "y"]), **({"b": 3} if d.random() < 0.5 else {})},
    "names that are ours": lambda d: {"confidence": d.choice(POLARITY), "id": d.randint(0, 9), "reasoning": "um texto"},
    "names of another format": lambda d: d.choice(POLARITY),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_table_is_read_as_the_answers_that_were_given(shape: str, tmp_path: Path) -> None:
    raw, data = SHAPES[shape]
    raw = {"name": "t", "instruction": "Responda.", "inputs": ["f1"], **raw}
    task = make_task(**raw)
    draw = random.Random(3)
    sentences = news(30)
    rows = [
        InputRow(f"r{n}", {name: f"{one['f1']} {one['f2']} {name}" for name in task.inputs}, None)
        for n, one in enumerate(sentences)
    ]
    given: list[Any] = []

    def answer(row: Inputs) -> Prediction:
        given.append(VALUES[shape](draw))
        return Prediction(given[-1], {field.path: 0.75 for field in task.fields})

    output = tmp_path / "labels.jsonl"
    config = DataConfig(path=tmp_path / "somewhere.csv", **data)
    report = label(task, Scripted(answer), rows, output, data=config)
    assert [e.output for e in report.examples] == given
    assert [e.output for e in read_labels(output, task, config)] == given
    settings = report.counts["read_with"]
    settings += ["data.format=auto"] if "format" in data else []
    found = reads(raw, data, output, settings)
    assert [e.output for e in found] == given
    assert [dict(e.inputs) for e in found] == [row.inputs for row in rows]
    assert len(found) == 30
    if "id_column" in data:
        assert [e.id for e in found] == [row.id for row in rows]


def test_reasoning_has_a_column_for_each_part(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "name": "t",
        "instruction": "Responda.",
        "inputs": ["f1", "f2"],
        "output": {f: {"polaridade": POLARITY} for f in ("f1", "f2")},
        "parts": {f: {"texto": f} for f in ("f1", "f2")},
        "reasoning": "pensamento",
    }
    task = make_task(**raw)
    rows = [InputRow(e.id, {f: e.inputs[f] for f in ("f1", "f2")}, None) for e in examples(0, 30, NEWS_TASK)]
    said = {"f1": {"polaridade": "neutro"}, "f2": {"polaridade": "positivo"}}
    teacher = Scripted(
        lambda row: Prediction(said, reasoning={f: f"Sobre {f}: {row[f][:20].strip()}" for f in ("f1", "f2")})
    )
    output = tmp_path / "labels.jsonl"
    report = label(task, teacher, rows, output)
    first = read_jsonl(output)[0]
    assert first["pensamento_f1"] == f"Sobre f1: {rows[0].inputs['f1'][:20].strip()}"
    assert report.counts["read_with"][1] == "data.columns.pensamento={f1: pensamento_f1, f2: pensamento_f2}"
    found = reads(raw, {}, output, report.counts["read_with"])
    assert [e.reasoning for e in found] == [e.reasoning for e in report.examples]
    assert found[0].rationale("f2") == f"Sobre f2: {rows[0].inputs['f2'][:20].strip()}"
    # A recipe that names the columns needs no more settings.
    columns = {"pensamento": {"f1": "r1", "f2": "r2"}}
    again = label(task, teacher, rows, tmp_path / "b.jsonl", data=DataConfig(path=tmp_path / "s.csv", columns=columns))
    assert again.counts["read_with"] == [f"data.path={tmp_path / 'b.jsonl'}"]
    found = reads(raw, {"columns": columns}, tmp_path / "b.jsonl", again.counts["read_with"])
    assert found[3].reasoning == again.examples[3].reasoning


def test_reasoning_of_a_whole_answer_has_one_column(tmp_path: Path) -> None:
    rows = [InputRow(e.id, dict(e.inputs), None) for e in examples(0, 30)]
    said = Prediction({"polaridade": "neutro", "emocao": "medo"}, reasoning={"": "Porque é factual."})
    report = label(TASK, Scripted(lambda row: said), rows, tmp_path / "labels.jsonl")
    assert [row["reasoning"] for row in read_jsonl(tmp_path / "labels.jsonl")] == ["Porque é factual."] * 30
    task = replace(TASK, reasoning="pensamento")
    report = label(task, Scripted(lambda row: said), rows, tmp_path / "b.jsonl")
    assert [row["pensamento"] for row in read_jsonl(tmp_path / "b.jsonl")] == ["Porque é factual."] * 30
    assert report.examples[0].rationale("") == "Porque é factual."
    silent = Scripted(lambda row: replace(said, reasoning={}))
    report = label(task, silent, rows, tmp_path / "c.jsonl")
    assert report.counts["read_with"] == [f"data.path={tmp_path / 'c.jsonl'}", "task.reasoning=null"]


def test_an_input_named_as_the_answer_is_refused(tmp_path: Path) -> None:
    task = make_task(inputs=["polaridade"], output={"polaridade": POLARITY})
    with pytest.raises(DataError, match=r"the column 'polaridade' is an input.*data.columns: \{polaridade: COLUMN\}"):
        name_columns(task, tmp_path / "labels.jsonl")


def test_traces_of_debates_are_kept_beside_the_labels(tmp_path: Path) -> None:
    trace = ({"role": "generator", "value": {"polaridade": "neutro"}}, {"role": "discriminator", "agrees": True})
    said = Prediction({"polaridade": "neutro", "emocao": "medo"}, trace=trace)
    rows = [InputRow("a", {"texto": "x"}, None), InputRow("b", {"texto": "y"}, None)]
    report = label(TASK, Scripted(lambda row: said), rows, tmp_path / "labels.jsonl")
    assert read_jsonl(tmp_path / "labels.traces.jsonl") == [{"id": n, "trace": list(trace)} for n in "ab"]
    assert report.counts["files"]["traces"] == "labels.traces.jsonl"


# -- tables that are labelled --------------------------------------------------------------------------


def test_gold_is_found_where_the_table_has_the_columns(tmp_path: Path) -> None:
    data = DataConfig(
        path=tmp_path / "t.csv", id_column="news_id", columns={"polaridade": "f1_polaridade", "emocao": "f1_emocao"}
    )
    rows = news(10)
    rows[3]["f1_polaridade"] = "ótimo"
    rows[4]["f1_emocao"] = ""
    rows[5]["f1"] = " "
    rows[6]["news_id"] = rows[2]["news_id"]
    source = read_source(write_csv(tmp_path / "t.csv", rows), TASK, data)
    assert source.has_gold
    kinds = [type(row).__name__ for row in source.rows]
    assert kinds == ["Example"] * 3 + ["InputRow"] * 4 + ["Example"] * 3
    problems = [row.problem for row in source.rows if isinstance(row, InputRow)]
    assert problems[:2] == [None, None]
    assert "texto is empty" in str(problems[2])
    assert "already stands in line 4" in str(problems[3])
    assert source.gold_problems == {"unknown label": 1, "missing label": 1}
    assert len(read_source(tmp_path / "t.csv", TASK, data, limit=4).rows) == 4

    plain = write_csv(tmp_path / "plain.csv", [{"f1": row["f1"]} for row in rows])
    source = read_source(plain, TASK, data)
    assert not source.has_gold
    assert [row.id for row in source.rows][:2] == ["2", "3"]
    assert "the line number is the id" in source.notes[-1]
    half = write_csv(tmp_path / "half.csv", [{"f1": row["f1"], "f1_emocao": "medo"} for row in rows])
    with pytest.raises(DataError, match=r"no column 'f1_polaridade'(.|\n)*pass --keep-wrong"):
        read_source(half, TASK, data)
    assert len(read_source(half, TASK, data, use_gold=False).rows) == 10
    lenient = read_source(half, TASK, data, need_gold=False)
    assert not lenient.has_gold
    assert "gold is not looked at: " in lenient.notes[-1]
    with pytest.raises(DataError, match="no column 'f1'"):
        read_source(write_csv(tmp_path / "other.csv", [{"x": "1"}]), TASK, data)


# -- kills, caps, repetition ---------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_teaching import TASK, examples
from afina.strategies.classical import TfidfLogistic
from afina.teaching import LabelSettings, label

class Slow:
    name = "tfidf"
    def __init__(self):
        self.inner = TfidfLogistic(TASK, examples(0, 60), [], 1)
    def predict(self, inputs):
        time.sleep({pause})
        return self.inner.predict(inputs)

label(TASK, Slow(), examples(60, 160), Path({output!r}), LabelSettings(keep_wrong=True, rows_at_once=4))
"""


def test_killed_in_the_middle_it_continues_to_the_same_table(teacher: TfidfLogistic, tmp_path: Path) -> None:
    output = tmp_path / "labels.jsonl"
    partial = tmp_path / ".labels.jsonl.partial.jsonl"
    code = CHILD.format(tests=str(ROOT / "tests"), pause=0.05, output=str(output))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + WAIT_S
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 14):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    with partial.open("ab") as file:
        file.write(b'{"output": {"polarid')  # half a line, as a kill may leave

    asked: list[int] = []

    class Counted:
        name = "tfidf"

        def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
            asked.append(len(inputs))
            return teacher.predict(inputs)

    settings = LabelSettings(keep_wrong=True, rows_at_once=4)
    report = label(TASK, Counted(), examples(60, 160), output, settings)
    assert 12 <= report.counts["continued"] < 100
    assert sum(asked) == 100 - report.counts["continued"]
    whole = label(TASK, Counted(), examples(60, 160), tmp_path / "whole.jsonl", settings)
    assert whole.counts["continued"] == 0
    assert file_digest(output) == file_digest(tmp_path / "whole.jsonl")
    assert file_digest(tmp_path / "labels.rejected.jsonl") == file_digest(tmp_path / "whole.rejected.jsonl")
    assert not partial.exists()
    adds_up(report, 100, output)


class Paid:
    """A teacher whose every answer costs 1 cent, kept where it is paid: under a real budget."""

    name = "paid"

    def __init__(self, cap_usd: float, kept: dict[str, Prediction]) -> None:
        self.budget = Budget(cap_usd, 0.01 * len(kept))
        self.kept = kept
        self.calls = 0

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        for row in inputs:
            if row["texto"] not in self.kept:
                self.budget.reserve(0.01, "the next answer")
                self.calls += 1
                self.budget.settle(0.01, 0.01)
                usage = Usage(10, 2, cost_usd=0.01, requests=1)
                self.kept[row["texto"]] = Prediction({"polaridade": "neutro", "emocao": "medo"}, usage=usage)
        return [self.kept[row["texto"]] for row in inputs]


def test_a_reached_cap_says_how_far_it_came_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    rows = [InputRow(str(n), {"texto": f"frase {n}"}, None) for n in range(40)]
    output = tmp_path / "labels.jsonl"
    kept: dict[str, Prediction] = {}
    settings = LabelSettings(rows_at_once=8)

    def run(cap_usd: float) -> tuple[Paid, LabelReport]:
        teacher = Paid(cap_usd, kept)
        meter = Meter(lambda: teacher.budget.spent_usd, lambda: len(kept))
        return teacher, label(TASK, teacher, rows, output, settings, meter=meter, fewest_requests=1)

    with pytest.raises(BudgetError, match=r"passes max_cost_usd 0.21(.|\n)*16 of 40 rows are answered, \$0.2\d paid"):
        run(0.215)
    assert not output.exists()
    assert len(kept) == 21
    teacher, report = run(1.0)
    assert teacher.calls == 19  # nothing was paid twice
    assert report.counts["continued"] == 16
    assert report.counts["spent_usd"] == pytest.approx(0.19)
    assert report.counts["cost_usd"] == pytest.approx(0.40)
    adds_up(report, 40, output)
    output.unlink()
    teacher, report = run(0.40)
    assert teacher.calls == 0
    assert report.counts["requests"]["from_cache"] == 40
    assert report.counts["spent_usd"] == 0


def test_what_was_made_of_the_same_is_given_back(teacher: TfidfLogistic, tmp_path: Path) -> None:
    output = tmp_path / "labels.jsonl"
    rows = examples(60, 100)
    reuse = LabelSettings(reuse=True)
    first = label(TASK, teacher, rows, output, reuse)
    silent = Scripted(lambda row: pytest.fail("asked again"))
    silent.name = "tfidf"
    again = label(TASK, silent, rows, output, reuse)
    assert again == LabelReport(first.examples, json.loads(json.dumps(first.counts)))
    with pytest.raises(DataError, match="exists already"):
        label(TASK, teacher, rows[1:], output, reuse)
    output.write_text(output.read_text() + "\n")
    with pytest.raises(DataError, match="exists already"):
        label(TASK, silent, rows, output, reuse)


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "labels.jsonl"
    rows = [InputRow("a", {"texto": "x"}, None)]
    inner = Scripted(lambda row: Prediction({"polaridade": "neutro", "emocao": "medo"}))

    def answer(row: Inputs) -> Prediction:
        with pytest.raises(AfinaError, match="another process is writing this output"):
            label(TASK, inner, rows, output)
        return inner.answer(row)

    label(TASK, Scripted(answer), rows, output)
    assert not inner.asked


# -- the command ---------------------------------------------------------------------------------------


def recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of 80 news items, and 60 more to be labelled, with gold and without."""
    write_csv(folder / "news.csv", news(80))
    write_csv(folder / "more.csv", news(140)[80:])
    write_csv(folder / "plain.csv", [{"f1": row["f1"]} for row in news(140)[70:]])
    raw: dict[str, Any] = {
        "task": {
            "name": "frase",
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
        "output_dir": str(folder / "run"),
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            raw[group][name] = value
        else:
            raw[group] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def agree_to_nothing(lines: Sequence[str], cost_usd: float | None) -> None:
    pytest.fail(f"asked about a price: {lines}")


def label_table(folder: Path, source: str = "more.csv", **changes: Any) -> LabelReport:
    from afina.teaching.job import Request, label_file

    values: dict[str, Any] = {
        "source": folder / source,
        "teacher": "tfidf",
        "output": folder / "labels.jsonl",
        "recipe": folder / "recipe.yaml",
        **changes,
    }
    return label_file(Request(**values), agree_to_nothing)


def test_a_table_is_labelled_by_a_built_in_teacher(tmp_path: Path) -> None:
    recipe(tmp_path)
    report = label_table(tmp_path)
    assert report.counts["gold"]["compared"] == 60
    assert 0 < report.counts["rows"]["kept"] < 60
    adds_up(report, 60, tmp_path / "labels.jsonl")
    assert not (tmp_path / "run").exists()  # the run folder is nobody's yet
    # The recipe reads the labels without a further setting, and prepares them for real.
    from afina.core.recipe_file import load_recipe

    read = load_recipe(tmp_path / "recipe.yaml", report.counts["read_with"])
    made = prepare(read, load_task(read.task), tmp_path / "prepared")
    assert made.report["rows"]["usable"] == report.counts["rows"]["kept"]
    assert made.report["rows"]["rejected"] == 0


def test_the_recipes_test_rows_are_kept_apart(tmp_path: Path) -> None:
    from afina.core.recipe_file import load_recipe

    path = recipe(tmp_path)
    read = load_recipe(path)
    task = load_task(read.task)
    test = prepare(read, task, tmp_path / "prepared").splits["test"]
    texts = {row["f1"] for row in news(140)[70:]}
    held = sum(e.inputs["texto"] in texts for e in test)
    report = label_table(tmp_path, "plain.csv")
    assert report.counts["left_out"]["near_duplicate_of_test"] == held > 0
    assert report.counts["test_rows"] == len(test)
    assert not {e.inputs["texto"] for e in report.examples} & {e.inputs["texto"] for e in test}
    adds_up(report, 70, tmp_path / "labels.jsonl")


def test_what_label_refuses(tmp_path: Path) -> None:
    path = recipe(tmp_path, strategies={"sabio": {"strategy": "cot"}})
    (tmp_path / "old.jsonl").write_text("mine")
    write_csv(tmp_path / "other.csv", [{"a": "1"}])
    (tmp_path / "empty.csv").write_text("")
    before = sorted(p.name for p in tmp_path.rglob("*"))

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(AfinaError, match=words) as caught:
            label_table(tmp_path, **changes)
        assert caught.value.exit_code == 2

    refused("'sabia', which is no strategy of the recipe: sabio, majority.* Did you mean 'sabio'", teacher="sabia")
    refused("no such recipe", recipe=tmp_path / "no.yaml")
    refused(r"old.jsonl: exists already.*--yes", output=tmp_path / "old.jsonl")
    refused("is the input itself", source="old.jsonl", output=tmp_path / "old.jsonl", overwrite=True)
    refused("written as .jsonl", output=tmp_path / "labels.csv")
    refused("no.csv: no such file", source="no.csv")
    refused("other.csv: no column 'f1'", source="other.csv")
    refused("empty.csv: the file is empty", source="empty.csv")
    refused("--batch has no effect: the teacher tfidf asks no model at a provider", batch=True)
    refused("share between 0 and 1", min_agreement=2.0)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert path.exists()


def test_the_first_table_is_made_by_labelling(tmp_path: Path) -> None:
    """Without any labelled rows: the recipe's table is the one that is to be made."""
    recipe(tmp_path, data__path="labels.jsonl", data__test_path="news.csv")
    with pytest.raises(DataError, match="none of the 0 training examples has an answer"):
        label_table(tmp_path, "plain.csv")  # tfidf has nothing to learn from; the test rows are there
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == []


# -- a teacher at a provider ---------------------------------------------------------------------------

PRICES = {"as_of": "2026-11-01", "source": "a contract", "models": {"sabio-1": {"input": 10.0, "output": 10.0}}}
COST_USD = (1000 + 200) * 10 / 1e6  # of one answer


def paid_recipe(folder: Path, url: str) -> None:
    """A recipe whose teacher reasons at a provider that is paid for."""
    (folder / "prices.yaml").write_text(yaml.safe_dump(PRICES))
    model = {"provider": url, "model": "sabio-1", "prices": "prices.yaml", "concurrency": 2, "max_tokens": 300}
    recipe(
        folder,
        models={"grande": model},
        strategies={"sabio": {"strategy": "cot", "model": "grande", "reasoning_field": "porque"}},
    )


def thoughtful(call: Call) -> Says:
    """Reasons about each text; of one in three it says first what is no label."""
    text = call.body["messages"][1]["content"]
    said = {"porque": f"O texto tem {len(text)} letras.", "polaridade": POLARITY[len(text) % 3]}
    if len(text) % 3 == 0 and len(call.body["messages"]) == 2:
        said["polaridade"] = "ótimo"
    return answer(json.dumps(said, ensure_ascii=False), prompt=1000, completion=200)


def test_a_paid_teacher_is_agreed_to_capped_and_never_asked_twice(tmp_path: Path) -> None:
    from afina.teaching.job import Request, label_file

    agreed: list[tuple[list[str], float | None]] = []
    with faulty_server(thoughtful) as server:
        paid_recipe(tmp_path, server.url)
        values: dict[str, Any] = {
            "source": tmp_path / "plain.csv",
            "teacher": "sabio",
            "recipe": tmp_path / "recipe.yaml",
        }
        values |= {"output": tmp_path / "labels.jsonl"}

        def run(cap_usd: float | None) -> LabelReport:
            return label_file(
                Request(**values, max_cost_usd=cap_usd), lambda lines, usd: agreed.append((list(lines), usd))
            )

        # 1. Nobody agrees: nothing is sent.
        def refuse(lines: Sequence[str], usd: float | None) -> None:
            raise BudgetError("not agreed to")

        with pytest.raises(BudgetError, match="not agreed to"):
            label_file(Request(**values), refuse)
        assert not server.calls
        # 2. The cap is reached in the middle: what was paid is kept.
        with pytest.raises(BudgetError, match=r"passes max_cost_usd 0.5(.|\n)*rows are answered, \$0.4\d paid"):
            run(0.5)
        assert 20 <= len(server.calls) <= 0.5 / COST_USD
        assert not (tmp_path / "labels.jsonl").exists()
        # 3. With a higher one it goes on; no request is sent twice.
        report = run(5.0)
        bodies = Counter(json.dumps(call.body, sort_keys=True) for call in server.calls)
        assert set(bodies.values()) == {1}
        num_calls = len(server.calls)
        # 4. Labelled again from the cache: not one request, the same table.
        before = file_digest(tmp_path / "labels.jsonl")
        values["output"] = tmp_path / "labels.jsonl"
        again = label_file(Request(**values, overwrite=True), lambda lines, usd: None)
        assert len(server.calls) == num_calls
        assert file_digest(tmp_path / "labels.jsonl") == before
    lines, usd = agreed[-1]
    assert "sabio: " in lines[0]
    assert lines[1] == "prices: a contract, 2026-11-01"
    assert usd is not None
    assert usd > 0
    num_asked = report.counts["asked"]["questions"]
    num_retried = sum(len(call.body["messages"]) == 4 for call in server.calls)
    assert num_calls == num_asked + num_retried
    assert 10 <= num_retried < num_asked
    assert report.counts["requests"]["sent_or_cached"] == num_calls
    assert report.counts["requests"]["retried"] == num_retried
    assert report.counts["cost_usd"] == pytest.approx(num_calls * COST_USD)
    assert again.counts["spent_usd"] == 0
    assert again.counts["requests"]["from_cache"] == num_calls
    adds_up(again, 70, tmp_path / "labels.jsonl")
    first = read_jsonl(tmp_path / "labels.jsonl")[0]
    assert first["reasoning"].startswith("O texto tem ")
    assert first["teacher"] == "sabio"
    assert first["agreement"] is None


def test_the_key_stands_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afina.teaching.job import Request, label_file

    monkeypatch.setenv("GEHEIM", "sk-very-secret-0123456789")
    with faulty_server(thoughtful) as server:
        paid_recipe(tmp_path, server.url)
        path = tmp_path / "recipe.yaml"
        request = Request(
            tmp_path / "plain.csv",
            "sabio",
            tmp_path / "labels.jsonl",
            path,
            ["models.grande.api_key_env=GEHEIM"],
            limit=5,
        )
        label_file(request, lambda lines, usd: None)
        assert "very-secret" in server.calls[0].headers["authorization"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert not [path for path in files if b"very-secret" in path.read_bytes()]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_says_what_it_did(tmp_path: Path, as_json: bool) -> None:
    recipe(tmp_path)
    argv = [tmp_path / "more.csv", "--teacher", "tfidf", "-o", tmp_path / "labels.jsonl"]
    argv += ["--recipe", tmp_path / "recipe.yaml", "--limit", "20", "seed=7", *(["--json"] if as_json else [])]
    outcome = afina("label", *argv)
    assert outcome.code == 0, outcome.err
    if as_json:
        assert json.loads(outcome.out)["rows"]["read"] == 20
        return
    assert " of 20 rows are labelled by tfidf" in outcome.out
    assert "with another label than the table's" in outcome.out
    assert f"Labels: {tmp_path / 'labels.jsonl'}" in outcome.out
    assert f"afina run {tmp_path / 'recipe.yaml'} data.path={tmp_path / 'labels.jsonl'}" in outcome.err
    again = afina("label", *argv)
    assert (again.code, again.out) == (2, "")
    assert "exists already. Choose another --output, or pass --yes" in again.err
    assert "Traceback" not in again.err


def test_the_recipe_of_the_documentation_is_one() -> None:
    text = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 1
    assert list(make_recipe(yaml.safe_load(snippets[0])).strategies) == ["cot", "council"]


@pytest.mark.slow
def test_the_specialist_labels_rows_and_a_student_learns_from_them(tmp_path: Path) -> None:
    from afina import pipeline
    from afina.core.recipe_file import load_recipe

    path = recipe(tmp_path, compare=["finetuned"])
    report = label_table(tmp_path, teacher="finetuned", keep_wrong=True)
    assert report.counts["gold"]["compared"] == 60  # told, though none is left out for it
    assert report.counts["rows"]["kept"] == 60
    assert report.counts["asked"]["with_confidence"] == 60
    assert report.counts["forward_passes"] > 0
    assert (tmp_path / "run" / "specialist").is_dir()
    adds_up(report, 60, tmp_path / "labels.jsonl")
    settings = [*report.counts["read_with"], f"output_dir={tmp_path / 'student'}", "data.min_examples_per_label=0"]
    opened = pipeline.open_recipe(load_recipe(path, settings))
    pipeline.prepare(opened, quiet=True)
    assert (pipeline.train(opened) / "afina.json").exists()
