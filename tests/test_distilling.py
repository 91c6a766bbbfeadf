"""Students of one teacher: what each learns, on the same rows under the same budget, and kills in between."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import POLARITY, afina, news, recipe_text, write_csv
from small_model import small_model
from warm_process import Starter

from afina.core.config import Recipe
from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example
from afina.core.recipe_file import load_recipe, make_recipe
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.examples import read_examples
from afina.distilling import curve_runs, distill
from afina.distilling.checks import check, reasoning_name
from afina.distilling.curve import subset
from afina.distilling.lessons import lesson
from afina.distilling.taught import Taught
from afina.pipeline import open_run
from afina.runs import Run
from afina.strategies.finetuned import Specialist

PARTS = {f: {"texto": f} for f in ("f1", "f2")}
BY_PART = {
    "task__inputs": ["f1", "f2"],
    "task__output": {f: {"polaridade": POLARITY} for f in PARTS},
    "task__parts": PARTS,
    "task__reasoning": "pensamento",
    "data__columns": {},
}
WAIT_S = 120.0


def recipe_of(**changes: Any) -> Recipe:
    return make_recipe(yaml.safe_load(recipe_text(**changes)))


def place(folder: Path, rows: Sequence[Mapping[str, str]], **changes: Any) -> Path:
    """A recipe with its table and a small model in a folder: who learns what is the same for every base."""
    folder.mkdir(exist_ok=True)
    write_csv(folder / "news.csv", rows)
    changes.setdefault("train__base_model", str(small_model(folder / "base")))
    changes.setdefault("output_dir", str(folder / "run"))
    changes.setdefault("task__reasoning", "pensamento")
    changes.setdefault("data__min_examples_per_label", 0)
    changes.setdefault("train__max_length", 256)
    (folder / "recipe.yaml").write_text(recipe_text(**changes), encoding="utf-8")
    return folder / "recipe.yaml"


# -- reasoning by part -------------------------------------------------------------------------------


def part_rows() -> list[dict[str, str]]:
    rows = news(12)
    for row in rows:
        row |= {"why1": f"{row['f1'][:20]} logo", "why2": f"{row['f2'][:20]} portanto"}
    rows[2]["why2"] = " "
    return rows


def test_reasoning_of_each_part_in_its_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "news.csv", part_rows())
    recipe = recipe_of(**{**BY_PART, "data__columns": {"pensamento": {"f1": "why1", "f2": "why2"}}})
    task = load_task(recipe.task)
    found = read_examples(recipe.data, task, path).examples
    assert len(found) == 12
    first, third = found[0], found[2]
    assert dict(first.reasoning) == {"f1": part_rows()[0]["why1"].strip(), "f2": part_rows()[0]["why2"].strip()}
    assert first.rationale("f1") != first.rationale("f2")
    assert third.rationale("f1")
    assert third.rationale("f2") is None
    answers = [task.part_answer(part, first)["pensamento"] for part in task.parts]
    assert answers == [first.reasoning["f1"], first.reasoning["f2"]]


def test_one_column_of_reasoning_serves_all_parts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "news.csv", news(5))
    recipe = recipe_of(**BY_PART)
    found = read_examples(recipe.data, load_task(recipe.task), path).examples
    assert len(found) == 5
    assert [e.rationale("f1") for e in found] == [e.rationale("f2") for e in found] == [
        row["pensamento"].strip() for row in news(5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"pensamento": {"f1": "why1"}}, "one column for each of ['f1', 'f2']"),
        ({"pensamento": {"f1": "why1", "f2": "why2", "f3": "why2"}}, "one column for each of ['f1', 'f2']"),
        ({"pensamento": {"f1": "why1", "f2": "why3"}}, "no column 'why3' (reasoning of part 'f2')"),
        ({"pensamento": "porque"}, "no column 'porque' (task.reasoning)"),
    ],
)
def test_reasoning_columns_that_are_not_there(tmp_path: Path, columns: Any, told: str) -> None:
    path = write_csv(tmp_path / "news.csv", part_rows())
    recipe = recipe_of(**{**BY_PART, "data__columns": columns})
    with pytest.raises(DataError) as caught:
        read_examples(recipe.data, load_task(recipe.task), path)
    assert told in str(caught.value)


# -- what is refused -------------------------------------------------------------------------------

COT = {"strategies": {"cot": {"strategy": "cot"}, "few": {"strategy": "few-shot"}}}
REASON = {"task__reasoning": "pensamento"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "reasoning is learned by reasoning and two-task, but no column of the table is named"),
        ({"distill": {"students": ["two-task"]}}, "reasoning is learned by two-task, but"),
        ({**REASON, "distill": {"min_agreement": 0.5}}, "distill.min_agreement has no effect"),
        ({**REASON, "distill": {"keep_wrong": True}}, "distill.keep_wrong has no effect"),
        ({**REASON, "distill": {"rows": "more.csv"}}, "distill.rows has no effect"),
        ({**REASON, "distill": {"students": ["gold", "mixed"]}}, "the teacher is the table"),
        ({"distill": {"students": ["gold"], "rationale_weight": 2.0}}, "the student two-task, which is not trained"),
        ({**COT, "distill": {"teacher": "few"}}, "few gives no reasoning, but it is learned by reasoning and two-task"),
        ({"distill": {"teacher": "tfidf"}}, "tfidf gives no reasoning"),
        ({"distill": {"teacher": "finetuned"}}, "finetuned gives no reasoning"),
        ({**REASON, "train__rounds": ["news.csv"]}, "train.rounds: students are trained on this machine"),
        ({**COT, "task__output": {"reasoning": ["a", "b"]}, "data__columns": {"reasoning": "x"},
          "distill": {"teacher": "cot"}}, "is called 'reasoning', as a field of the answer is"),
        ({**COT, "task__output": POLARITY, "data__columns": {"": "x"}, "distill": {"teacher": "cot"}},
         "an answer here is a single value"),
    ],
)  # fmt: skip
def test_what_distill_cannot_have_is_told_before_anything(changes: dict[str, Any], told: str) -> None:
    recipe = recipe_of(**changes)
    with pytest.raises(RecipeError) as caught:
        check(recipe, load_task(recipe.task))
    assert told in str(caught.value)


def test_what_distill_can_have() -> None:
    nested = {"vote": {"strategy": "vote", "of": "cot"}, "cot": {"strategy": "cot", "reasoning_field": "porque"}}
    good = [
        {**REASON},
        {"distill": {"students": ["gold", "labels"]}},
        {**COT, "distill": {"teacher": "cot", "keep_wrong": True, "students": ["two-task", "mixed"]}},
        {"strategies": nested, "distill": {"teacher": "vote"}},
        {**REASON, "distill": {"teacher": "finetuned"}},
    ]
    names = []
    for changes in good:
        recipe = recipe_of(**changes)
        check(recipe, load_task(recipe.task))
        names.append(reasoning_name(recipe, load_task(recipe.task)))
    assert names == ["pensamento", "reasoning", "reasoning", "reasoning", "pensamento"]
    recipe = recipe_of(strategies=nested, distill={"teacher": "cot"})
    assert reasoning_name(recipe, load_task(recipe.task)) == "porque"


# -- lessons -----------------------------------------------------------------------------------------


def example(number: int, label: str, cluster: int | None = None) -> Example:
    identity = str(number)
    reasoning = {"": f"porque {number}"}
    where = number if cluster is None else cluster
    return Example(identity, {"texto": f"t{number}"}, {"polaridade": label}, reasoning, number, where)


def taught_rows() -> Taught:
    gold = [example(n, "positivo") for n in range(6)]
    answered = [replace(e, output={"polaridade": "negativo"}) if int(e.id) % 2 else e for e in gold]
    extra = [example(10, "neutro")]
    return Taught("cot", "pensamento", gold, answered, extra, [example(20, "neutro")], {})


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(recipe_of(task__reasoning="pensamento").task)


def test_what_each_student_learns(task: Task) -> None:
    taught = taught_rows()
    made = {kind: lesson(kind, taught, task, 0.5) for kind in ("gold", "labels", "reasoning", "two-task", "mixed")}
    labels = {kind: [e.output["polaridade"] for e in one.rows] for kind, one in made.items()}
    teachers = ["positivo", "negativo"] * 3
    assert labels["gold"] == ["positivo"] * 6
    assert labels["labels"] == labels["reasoning"] == labels["two-task"] == [*teachers, "neutro"]
    assert labels["mixed"] == [*labels["gold"], *teachers, "neutro"]
    assert len({e.id for e in made["mixed"].rows}) == 13
    assert {kind: one.task.reasoning for kind, one in made.items()} == {
        "gold": None, "labels": None, "reasoning": "pensamento", "two-task": None, "mixed": None,
    }  # fmt: skip
    with_text = {kind for kind, one in made.items() if any(e.reasoning for e in one.rows)}
    assert with_text == {"reasoning", "two-task"}
    assert made["two-task"].rationale == ("[pensamento]", 0.5)
    assert [kind for kind, one in made.items() if one.labels_judge] == ["reasoning"]
    # Everybody is judged by the table's answers to the same rows.
    assert all([e.output for e in one.validation] == [{"polaridade": "neutro"}] for one in made.values())


def test_equal_lessons_are_seen_to_be_equal(task: Task) -> None:
    taught = taught_rows()
    agreed = replace(taught, answered=taught.gold, extra=[])
    same = [lesson(kind, agreed, task, 1.0).described() for kind in ("gold", "labels")]
    assert same[0] == same[1]
    assert lesson("gold", taught, task, 1.0).described() != lesson("labels", taught, task, 1.0).described()
    weights = [lesson("two-task", taught, task, weight).described() for weight in (1.0, 2.0)]
    assert weights[0] != weights[1]


# -- learning curve ----------------------------------------------------------------------------------


def test_curve_sets_are_nested_and_hold_whole_clusters() -> None:
    gold = [example(n, "positivo", cluster=n // 3) for n in range(60)]
    taught = replace(taught_rows(), gold=gold, answered=gold)
    sizes = (10, 20, 21, 40)
    sets = {(seed, size): subset(taught, size, seed) for seed in (1, 2) for size in sizes}
    for (_, size), found in sets.items():
        kept = {e.cluster for e in found.gold}
        assert [e.id for e in found.gold] == [e.id for e in found.answered]
        assert found.extra == []
        assert len(found.gold) == 3 * len(kept) == size // 3 * 3
    for seed in (1, 2):
        ids = [{e.id for e in sets[seed, size].gold} for size in sizes]
        assert ids[0] < ids[1] < ids[2] < ids[3]
    assert {e.id for e in sets[1, 10].gold} != {e.id for e in sets[2, 10].gold}
    assert sets[1, 20].gold == subset(taught, 20, 1).gold
    with pytest.raises(DataError, match=r"distill\.curve: 2 rows hold no whole cluster"):
        subset(taught, 2, 1)


# -- the whole, trained ------------------------------------------------------------------------------


def opened(recipe: Path) -> Run:
    return open_run(recipe)


def weights_of(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_students_of_the_table(tmp_path: Path) -> None:
    recipe = place(
        tmp_path / "a", news(40), answer__max_text_tokens=24, train__loss_on="choices",
        distill={"students": ["gold", "labels", "reasoning", "two-task"], "seeds": [1], "curve": [9, 12, 900]},
    )  # fmt: skip
    run = opened(recipe)
    students = {student.kind: student for student in distill(run)}
    folder = run.folder / "students"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert list(students) == [entry["kind"] for entry in report["students"]] == [
        "gold", "labels", "reasoning", "two-task",
    ]  # fmt: skip
    # 1. The same rows, updates and examples in each; the table's labels are its own teacher's.
    assert {student.num_rows for student in students.values()} == {report["rows"]["kept_rows"]}
    assert {(entry["steps"], entry["examples_per_update"]) for entry in report["students"]} == {(2, 4)}
    assert students["labels"].folder == students["gold"].folder
    assert students["two-task"].trained_tokens > students["gold"].trained_tokens
    assert report["rows"]["reasoning"]["cut"] > 0
    # 2. The splits of the recipe; the test rows as they were.
    for kind in ("gold", "reasoning", "two-task"):
        data = students[kind].folder / "data"
        assert (data / "test.jsonl").read_bytes() == (run.data / "test.jsonl").read_bytes()
        ids = {
            name: [json.loads(line)["id"] for line in (data / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "validation")
        }
        wanted = [json.loads(line)["id"] for line in (run.data / "train.jsonl").read_text().splitlines()]
        assert ids["train"] == wanted
        assert not set(ids["train"]) & set(ids["validation"])
    # 3. Specialists: two tasks in training leave no trace in the question.
    loaded = {kind: Specialist.load(students[kind].folder) for kind in ("gold", "reasoning", "two-task")}
    assert loaded["two-task"].manifest.fingerprint == loaded["gold"].manifest.fingerprint
    assert loaded["reasoning"].manifest.fingerprint != loaded["gold"].manifest.fingerprint
    row = {"texto": "O PIB cresceu 2% no ano."}
    answers = {kind: specialist.predict([row])[0] for kind, specialist in loaded.items()}
    assert [bool(answer.reasoning) for answer in answers.values()] == [False, True, False]
    assert all(answer.output["polaridade"] in POLARITY for answer in answers.values())
    # 4. Again: nothing is trained. Another weight: the student of two tasks alone.
    before = weights_of(folder)
    assert len(before) >= 6
    distill(run)
    assert weights_of(folder) == before
    distill(replace(run, recipe=load_recipe(recipe, ["distill.rationale_weight=3"])))
    after = weights_of(folder)
    changed = {path.relative_to(folder).parts[0] for path in before if after.get(path) != before[path]}
    assert changed == {"two-task-1"}
    # 5. The learning curve of the first student.
    points = curve_runs(run)
    assert [(point.num_rows, point.seed) for point in points] == [(9, 1), (12, 1)]
    assert Specialist.load(points[0].folder).manifest.fingerprint == loaded["gold"].manifest.fingerprint


@pytest.mark.slow
def test_a_strategy_as_the_teacher(tmp_path: Path) -> None:
    """nano itself reasons, badly; what counts is which rows are learned by whom."""
    rows = news(46)
    recipe = place(
        tmp_path / "a", rows[:36], task__reasoning=None, strategies={"cot": {"strategy": "cot"}},
        distill={"teacher": "cot", "students": ["gold", "labels", "reasoning", "two-task", "mixed"], "seeds": [1],
                 "keep_wrong": True, "rows": "more.csv"},
    )  # fmt: skip
    write_csv(recipe.parent / "more.csv", [{"f1": row["f1"]} for row in rows[30:]])
    run = opened(recipe)
    students = {student.kind: student for student in distill(run)}
    report = json.loads((run.folder / "students/report.json").read_text(encoding="utf-8"))
    counts = report["rows"]
    train, extra = counts["kept_rows"], counts["kept_extra_rows"]
    assert counts["extra_rows"] == 16
    assert 0 < extra <= 16 - sum(count for why, count in counts["left_out"].items() if "distill.rows" in why)
    assert report["reasoning"] == "reasoning"
    assert {kind: student.num_rows for kind, student in students.items()} == {
        "gold": train, "labels": train + extra, "reasoning": train + extra, "two-task": train + extra,
        "mixed": 2 * train + extra,
    }  # fmt: skip
    assert len({(entry["steps"], entry["examples_per_update"]) for entry in report["students"]}) == 1
    test = {row["inputs"]["texto"] for row in map(json.loads, (run.data / "test.jsonl").read_text().splitlines())}
    learned = {
        row["inputs"]["texto"]
        for row in map(json.loads, (students["labels"].folder / "data/train.jsonl").read_text().splitlines())
    }
    assert len(learned) > train
    assert not learned & test
    # The teacher is not asked again, and its answers are a table of their own.
    labels = run.folder / "students/labels/train.jsonl"
    stamp = labels.stat().st_mtime_ns
    distill(run)
    assert labels.stat().st_mtime_ns == stamp
    assert Specialist.load(students["reasoning"].folder).task.reasoning == "reasoning"


@pytest.mark.slow
def test_killed_it_continues(tmp_path: Path, job_starter: Starter) -> None:
    recipe = place(tmp_path / "a", news(24), distill={"students": ["gold", "two-task"], "seeds": [1]})
    students = tmp_path / "a/run/students"
    said = tmp_path / "said.txt"
    process = job_starter.run("afina", "distill", recipe, out=said, errors=said)
    until = time.monotonic() + WAIT_S
    while not (students / "two-task-1/student.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    assert process.poll() is None, said.read_text(encoding="utf-8")
    process.kill()
    process.wait(WAIT_S)
    first = weights_of(students / "gold-1")
    assert len(first) >= 1
    outcome = afina("distill", recipe)
    assert outcome.code == 0, outcome.err
    assert weights_of(students / "gold-1") == first
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(students.glob("*/student.json"))]
    assert [(note["kind"], note["seed"], note["finished"]) for note in notes] == [
        (kind, 1, True) for kind in ("gold", "two-task")
    ]
    assert "small: 2 students of table" in outcome.out
    assert "student-gold, student-two-task" in outcome.out
    assert len(max(outcome.out.splitlines(), key=len)) <= 100
    again = afina("distill", recipe, "--json")
    assert [entry["kind"] for entry in json.loads(again.out)["students"]] == ["gold", "two-task"]


@pytest.mark.slow
def test_too_few_rows_with_reasoning(tmp_path: Path) -> None:
    rows = news(24)
    for row in rows[4:]:
        row["pensamento"] = ""
    outcome = afina("distill", place(tmp_path / "a", rows))
    assert outcome.code == 2
    assert "training rows are left" in outcome.err
    assert "without reasoning" in outcome.err
    assert "expected at least 8" in outcome.err
    for row in rows:
        row["pensamento"] = ""
    outcome = afina("distill", place(tmp_path / "b", rows))
    assert outcome.code == 2
    assert "no training row has text in the column 'pensamento'" in outcome.err
    assert not (tmp_path / "b/run/students/gold-1").exists()
