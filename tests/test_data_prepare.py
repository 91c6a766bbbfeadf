"""Rows -> examples -> clusters -> splits: nothing lost in silence, nothing alike on both sides."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from afina.core.config import Recipe
from afina.core.errors import DataError, RunError
from afina.core.predictor import Example
from afina.core.recipe_file import make_recipe
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.data.dedupe import (
    character_shingles,
    find_duplicates,
    jaccard,
    lsh_bands,
    normalise_text,
    word_shingles,
)
from afina.data.examples import read_examples, read_inputs
from afina.data.prepare import Prepared, load_prepared, prepare, summary_lines
from afina.data.split import group_labels, split_by_cluster

POLARITY = ["positivo", "negativo", "neutro"]
EMOTION = ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"]
EKMAN = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
WORDS = [
    "casa",
    "rio",
    "juros",
    "banco",
    "alta",
    "queda",
    "preço",
    "governo",
    "safra",
    "soja",
    "dólar",
    "bolsa",
    "lucro",
]
PARTS = {f: {"texto": f} for f in ("f1", "f2", "f3")}
NEWS = {
    "inputs": ["f1", "f2", "f3"],
    "output": {f: {"polaridade": POLARITY, "emocao": EMOTION} for f in ("f1", "f2", "f3")},
    "parts": PARTS,
    "reasoning": "pensamento",
}


def recipe_of(
    path: Path, task: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **data: Any
) -> Recipe:
    simple = {"inputs": ["text"], "output": {"label": ["a", "b"]}}
    raw = {"task": {"instruction": "Classifique.", **(task or simple)}, "data": {"path": path, **data}}
    return make_recipe(raw | ({"train": train} if train else {}))


def run(folder: Path, recipe: Recipe, **kwargs: Any) -> Prepared:
    return prepare(recipe, load_task(recipe.task), folder / "prepared", **kwargs)


def sentence(rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(words))


def table(folder: Path, rows: list[dict[str, Any]], name: str = "rows.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"text": sentence(rng), "label": "ab"[i % 2]} for i in range(count)]


def refusal(folder: Path, recipe: Recipe, **kwargs: Any) -> str:
    """The message, after checking that nothing was written."""
    with pytest.raises(DataError) as caught:
        run(folder, recipe, **kwargs)
    assert not (folder / "prepared").exists()
    return str(caught.value)


# -- examples ----------------------------------------------------------------------------------


def test_every_unusable_row_has_line_and_reason(tmp_path: Path) -> None:
    rows = [{"id": i, **row} for i, row in enumerate(rows_of(20), 1)]
    rows[3]["text"] = "  "
    rows[5]["label"] = "c"
    rows[7]["label"] = ""
    rows[9]["id"] = 1
    rows[11]["id"] = ""
    recipe = recipe_of(table(tmp_path, rows), id_column="id", max_rejected=0.5)
    found = read_examples(recipe.data, load_task(recipe.task), recipe.data.path)
    assert len(found.examples) == 15
    assert [(r.line, r.kind, r.reason) for r in found.rejected] == [
        (5, "empty input", "text is empty"),
        (7, "unknown label", "'label' is 'c', expected one of ['a', 'b']"),
        (9, "missing label", "'label' is empty, expected one of ['a', 'b']"),
        (11, "duplicate id", "the id '1' already stands in line 2"),
        (13, "empty id", "'id' is empty, expected the row's id"),
    ]


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path) -> None:
    rows = rows_of(20)
    for i in (2, 4, 6):
        rows[i]["label"] = "c"
    text = refusal(tmp_path, recipe_of(table(tmp_path, rows)))
    assert "3 of 20 rows (15.0%) cannot be used, data.max_rejected allows 10%: 3 × unknown label." in text
    assert "line 4: 'label' is 'c', expected one of ['a', 'b']" in text
    assert "data.labels, or allow it with data.max_rejected: 0.16" in text
    for row in rows:
        row["label"] = "c"
    assert "none is usable" in refusal(tmp_path, recipe_of(table(tmp_path, rows), max_rejected=1))


def test_missing_columns_name_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, rows_of(10))
    text = refusal(tmp_path, recipe_of(path, {"inputs": ["texto"], "output": {"label": ["a", "b"]}}))
    assert "no column 'texto' (task input 'texto'). The columns are ['text', 'label']." in text
    assert "The nearest is 'text': if it is meant, write task.inputs: {texto: text}." in text
    text = refusal(tmp_path, recipe_of(path, {"inputs": ["text"], "output": {"labels": ["a", "b"]}}))
    assert "no column 'labels' (answer field 'labels')" in text
    assert "write data.columns: {labels: label}." in text
    assert "no column 'key' (each row's id)" in refusal(tmp_path, recipe_of(path, id_column="key"))
    text = refusal(tmp_path, recipe_of(path, columns={"lable": "label"}))
    assert "'lable' is no field of the answer" in text
    assert "Did you mean 'label'?" in text
    text = refusal(tmp_path, recipe_of(path, labels={"lable": {"A": "a"}}))
    assert (
        "data.labels: 'lable' is no field of the answer, so it has no effect. Expected one of ['*', 'label']." in text
    )


def test_labels_are_mapped_by_path_last_name_and_star(tmp_path: Path) -> None:
    rows = [
        {"text": f"texto número {i}", "x_sentimento": s, "y_sentimento": "Ruim"}
        for i, s in enumerate(["BOM", "bom ", "a"])
    ]
    task = {"inputs": ["text"], "output": {"x": {"sentimento": ["a", "b"]}, "y": {"sentimento": ["a", "b"]}}}
    labels = {"*": {"Ruim": "a"}, "sentimento": {"Bom": "b"}, "y.sentimento": {"ruim": "b"}}
    recipe = recipe_of(table(tmp_path, rows), task, labels=labels)
    found = read_examples(recipe.data, load_task(recipe.task), recipe.data.path)
    assert [e.output["x"]["sentimento"] for e in found.examples] == ["b", "b", "a"]
    assert {e.output["y"]["sentimento"] for e in found.examples} == {"b"}


def test_optional_numbers_lists_and_indicators(tmp_path: Path) -> None:
    rows = [
        {"text": "um", "nota": "3", "tags": "x; Y", "bem": "sim", "p": "1", "q": "0"},
        {"text": "dois", "nota": "", "tags": "[]", "bem": "não", "p": "0.0", "q": "0"},
        {"text": "três", "nota": "99", "tags": "x", "bem": "sim", "p": "1", "q": "1"},
        {"text": "quatro", "nota": "4", "tags": "z", "bem": "sim", "p": "1", "q": "2"},
        {"text": "cinco", "nota": "4", "tags": "x", "bem": "sim", "p": "1", "q": "2"},
    ]
    output = {"nota?": "int(0..10)", "tags": [["x", "y"]], "bem": "bool", "pq": [["p", "q"]]}
    recipe = recipe_of(
        table(tmp_path, rows), {"inputs": ["text"], "output": output},
        columns={"pq": {"p": "p", "q": "q"}}, list_separator=";", max_rejected=0.9,
    )  # fmt: skip
    found = read_examples(recipe.data, load_task(recipe.task), recipe.data.path)
    assert [e.output for e in found.examples] == [
        {"nota": 3, "tags": ["x", "y"], "bem": True, "pq": ["p"]},
        {"tags": [], "bem": False, "pq": []},
    ]
    reasons = [r.reason for r in found.rejected]
    assert len(reasons) == 3
    assert "'nota' is 99" in reasons[0]
    assert "'z', expected one of ['x', 'y']" in reasons[1]
    assert reasons[2] == "'q' is '2', expected 0 or 1"


def test_free_text_chat_and_nested_json(tmp_path: Path) -> None:
    chat = [
        {"messages": [{"role": "user", "content": f"pergunta {i}"}, {"role": "assistant", "content": '{"label": "A"}'}]}
        for i in range(3)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chat)))
    labelled = recipe_of(tmp_path / "chat.jsonl", {"inputs": ["user"], "output": {"label": ["a", "b"]}})
    found = read_examples(labelled.data, load_task(labelled.task), labelled.data.path)
    assert [e.output for e in found.examples] == [{"label": "a"}] * 3
    free = recipe_of(tmp_path / "chat.jsonl", {"inputs": ["user"], "output": "text"})
    found = read_examples(free.data, load_task(free.task), free.data.path)
    assert [e.output for e in found.examples] == ['{"label": "A"}'] * 3
    nested = [{"doc": {"body": f"texto {i}"}, "f1": {"polaridade": "neutro"}} for i in range(3)]
    (tmp_path / "n.json").write_text(json.dumps(nested))
    recipe = recipe_of(tmp_path / "n.json", {"inputs": {"t": "doc.body"}, "output": {"f1": {"polaridade": POLARITY}}})
    found = read_examples(recipe.data, load_task(recipe.task), recipe.data.path)
    assert [(e.inputs["t"], e.output) for e in found.examples][2] == ("texto 2", {"f1": {"polaridade": "neutro"}})


def test_rows_to_be_answered_are_never_left_out(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,text\n7,um\n7,"a\nb"\nragged\n,\n9,fim\n', encoding="utf-8")
    task = load_task(recipe_of(tmp_path / "in.csv").task)
    rows = read_inputs(tmp_path / "in.csv", task, "id")
    assert [(r.id, r.inputs["text"], r.problem) for r in rows] == [
        ("7", "um", None),
        ("7", "a\nb", None),
        ("5", "", "line 5: found 1 cell, expected 2"),
        ("6", "", None),
        ("9", "fim", None),
    ]


# -- duplicates --------------------------------------------------------------------------------


def clusters_of(texts: list[str], threshold: float = 0.8) -> list[int]:
    task = Task("t", "i", {"text": "text"}, {"enum": ["a", "b"]})
    examples = [Example(str(i), {"text": text}, "a", line=i) for i, text in enumerate(texts)]
    return find_duplicates(examples, task, threshold).clusters


def test_normalising_keeps_what_carries_meaning() -> None:
    assert normalise_text("  Olá,   MUNDO!!\u200b ﬁm 10% 😂") == "olá mundo fim 10 😂"
    assert normalise_text("?!") == "?!"


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.4, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands, rows = lsh_bands(threshold)
        assert bands * rows <= 128
        assert (1 - threshold**rows) ** bands <= 1e-3


def test_clusters_agree_with_comparing_every_pair() -> None:
    """Brute force over all pairs is the reference; texts of 3 to 40 words with a few edits each."""
    rng = random.Random(3)
    texts: list[str] = []
    for _ in range(60):
        words = sentence(rng, rng.randrange(3, 40)).split()
        for _ in range(3):
            edited = list(words)
            for _ in range(rng.randrange(3)):
                edited[rng.randrange(len(edited))] = rng.choice(WORDS)
            texts.append(" ".join(edited))
    found = clusters_of(texts)
    plain = [normalise_text(text) for text in texts]
    parents = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            alike = max(jaccard(cut(plain[i]), cut(plain[j])) for cut in (word_shingles, character_shingles))
            if alike >= 0.8:
                old, new = parents[i], parents[j]
                parents = [new if parent == old else parent for parent in parents]
    pairs = {(i, j) for i in range(len(texts)) for j in range(i) if parents[i] == parents[j]}
    assert len(pairs) > 30
    assert {(i, j) for i in range(len(texts)) for j in range(i) if found[i] == found[j]} == pairs


def test_parts_that_are_alike_bring_examples_together() -> None:
    recipe = recipe_of(Path("x"), {k: v for k, v in NEWS.items() if k != "reasoning"})
    rng = random.Random(0)
    inputs = [{f: sentence(rng) for f in PARTS} for _ in range(4)]
    inputs[2]["f3"] = inputs[0]["f1"].upper() + "!"
    examples = [Example(str(i), given, {}, line=i) for i, given in enumerate(inputs)]
    assert find_duplicates(examples, load_task(recipe.task), 0.8).clusters == [0, 1, 0, 2]


def test_conflicting_labels_are_named(tmp_path: Path) -> None:
    rows = rows_of(30)
    rows[20] = {"text": rows[3]["text"].upper(), "label": "a"}
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows)))
    assert prepared.report["duplicates"]["exact_duplicates"] == 1
    assert [[row["line"] for row in g] for g in prepared.report["duplicates"]["conflicts"]] == [[5, 22]]
    assert any(
        "stand more than once with different labels, as line 5 and line 22" in s for s in summary_lines(prepared.report)
    )


# -- splitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_near_duplicate_never_crosses_the_split(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = rows_of(60, seed)
    planted = rng.sample(range(60), 10)
    copies = []
    for i in planted:
        words = rows[i]["text"].split()
        copies.append({"text": " ".join([*words, "hoje"]).capitalize() + ".", "label": rows[i]["label"]})
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows + copies)))
    place = {e.line: name for name, examples in prepared.splits.items() for e in examples}
    assert len(place) == 70
    for offset, i in enumerate(planted):
        assert place[i + 2] == place[62 + offset]
    assert prepared.report["duplicates"]["near_duplicates"] == 10
    assert prepared.report["leakage"]["pairs"] == 0


def multilabel(count: int) -> tuple[list[Example], Task]:
    rng = random.Random(1)
    task = load_task(recipe_of(Path("x"), {"inputs": ["text"], "output": {"e": [EKMAN], "p": POLARITY}}).task)
    weights = (0.3, 0.03, 0.05, 0.25, 0.15, 0.08)
    examples = [
        Example(
            str(i), {"text": str(i)}, line=i, cluster=i // 2 if i % 5 else count + i,
            output={
                "e": [k for k, w in zip(EKMAN, weights, strict=True) if rng.random() < w],
                "p": rng.choice(POLARITY),
            },
        )
        for i in range(count)
    ]  # fmt: skip
    return examples, task


def test_stratification_of_several_fields_and_labels() -> None:
    examples, task = multilabel(1000)
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    splits = split_by_cluster(examples, task, shares, seed=1)
    assert sum(map(len, splits.values())) == 1000
    clusters = {name: {e.cluster for e in part} for name, part in splits.items()}
    assert not clusters["train"] & clusters["test"]
    assert not clusters["train"] & clusters["validation"]
    assert not clusters["validation"] & clusters["test"]
    for name, share in shares.items():
        assert len(splits[name]) == pytest.approx(1000 * share, abs=12)  # clusters of two cannot fit every share
        for group in task.groups:
            for label in group.fields[0].labels or ():
                total = sum(label in set(group_labels(group, e)) for e in examples)
                here = sum(label in set(group_labels(group, e)) for e in splits[name])
                assert here == pytest.approx(total * share, abs=3), (name, group.name, label, total)


def test_the_split_is_deterministic_in_its_seed() -> None:
    examples, task = multilabel(300)
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    once, again, other = (split_by_cluster(examples, task, shares, seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_tiny_tables_fill_every_split_or_say_why_not(tmp_path: Path) -> None:
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows_of(6))))
    assert min(prepared.report["splits"].values()) >= 1
    other = tmp_path / "other"
    other.mkdir()
    recipe = recipe_of(table(other, rows_of(2)), min_examples_per_label=0)
    text = refusal(other, recipe)
    assert "found 2 usable rows in 2 near-duplicate clusters, expected at least 3" in text


def test_all_rows_duplicates(tmp_path: Path) -> None:
    rows = [{"text": "o dólar subiu" + "!" * i, "label": "ab"[i % 2]} for i in range(12)]
    text = refusal(tmp_path, recipe_of(table(tmp_path, rows)))
    assert "all 12 usable rows are near-duplicates of one another" in text


def test_a_label_with_one_example(tmp_path: Path) -> None:
    rows = rows_of(20)
    rows[6]["label"] = "c"
    task = {"inputs": ["text"], "output": {"label": ["a", "b", "c", "d"]}}
    text = refusal(tmp_path, recipe_of(table(tmp_path, rows), task))
    assert "the label 'c' of 'label' stands in 1 example (line 8), expected at least 2" in text
    assert (
        "data.labels, remove it from task.output, add examples, or allow it with data.min_examples_per_label: 0" in text
    )
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows), task, min_examples_per_label=0))
    assert "label: no example has d; the model cannot learn it" in prepared.report["notes"]
    assert prepared.report["labels"]["label"]["d"] == {"train": 0, "validation": 0, "test": 0}


def test_near_duplicates_of_a_given_test_file_leave_train(tmp_path: Path) -> None:
    rows, test, validation = rows_of(40), rows_of(8, seed=9), rows_of(6, seed=8)
    rows[4]["text"] = test[2]["text"].upper()
    rows[5]["text"] = validation[1]["text"] + " hoje"
    validation[3]["text"] = test[0]["text"]
    recipe = recipe_of(
        table(tmp_path, rows),
        test_path=table(tmp_path, test, "test.csv"),
        validation_path=table(tmp_path, validation, "validation.csv"),
    )
    prepared = run(tmp_path, recipe)
    assert prepared.report["splits"] == {"train": 38, "validation": 5, "test": 8}
    assert prepared.report["rejected"] == {"leak into test": 2, "leak into validation": 1}
    assert prepared.report["leakage"] == prepared.report["leakage"] | {"pairs": 0, "removed": 3}
    lines = [json.loads(line) for line in (tmp_path / "prepared/rejected.jsonl").open()]
    assert {(row["source"], row["line"]) for row in lines} == {("rows.csv", 6), ("rows.csv", 7), ("validation.csv", 5)}
    assert all(e.id.startswith("test:") for e in prepared.splits["test"])


# -- length, files -----------------------------------------------------------------------------


def words_in(example: Example) -> int:
    return len(example.inputs["text"].split())


def test_examples_that_are_too_long(tmp_path: Path) -> None:
    rows = rows_of(30)
    rows[10]["text"] = sentence(random.Random(5), 50)
    path = table(tmp_path, rows)
    train = {"max_length": 20}
    text = refusal(tmp_path, recipe_of(path, train=train), token_lengths=words_in)
    assert (
        "1 example is longer than train.max_length 20: rows.csv:12 (50 tokens). Choose one: train.max_length: 50"
        in text
    )
    assert "data.on_too_long: truncate" in text
    assert "data.on_too_long: drop" in text
    cut = run(tmp_path, recipe_of(path, train=train, on_too_long="truncate"), token_lengths=words_in)
    assert (cut.report["lengths"]["above"], cut.report["rows"]["usable"]) == (1, 30)
    dropped = run(tmp_path, recipe_of(path, train=train, on_too_long="drop"), token_lengths=words_in)
    assert (dropped.report["rows"], dropped.report["rejected"]) == (
        {"read": 30, "usable": 29, "rejected": 1},
        {"too long": 1},
    )
    lengths = dropped.report["lengths"]
    assert [lengths[k] for k in ("min", "p50", "p90", "p99", "max")] == [12, 12, 12, 50, 50]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows_of(40))), token_lengths=words_in)
    folder = tmp_path / "prepared"
    assert sorted(p.name for p in folder.iterdir()) == [
        "rejected.jsonl", "report.json", "test.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip
    again = load_prepared(folder)
    assert again.splits == prepared.splits
    assert again.report == json.loads(json.dumps(prepared.report))
    (folder / "test.jsonl").write_text("")
    with pytest.raises(RunError, match="Run: afina prepare"):
        load_prepared(folder)
    with pytest.raises(RunError, match="holds no complete prepared data"):
        load_prepared(tmp_path)


def test_nothing_is_silent_on_screen(tmp_path: Path) -> None:
    rows = rows_of(40)
    rows[3]["label"], rows[8]["label"], rows[9]["text"] = "c", "d", ""
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows)), token_lengths=words_in)
    lines = "\n".join(summary_lines(prepared.report))
    assert "40 rows read (csv, UTF-8), 37 usable, 3 rejected" in lines
    assert "2 × unknown label (first: rows.csv:5, 'label' is 'c', expected one of ['a', 'b'])" in lines
    assert "1 × empty input (first: rows.csv:11, text is empty)" in lines
    assert "tokens of an example: min 12" in lines


# -- real tables -------------------------------------------------------------------------------


def accounted(prepared: Prepared) -> None:
    rows = prepared.report["rows"]
    assert rows["usable"] + rows["rejected"] == rows["read"]
    assert sum(prepared.report["rejected"].values()) == rows["rejected"]
    assert prepared.report["leakage"]["pairs"] == 0


def test_embedded_news(tmp_path: Path) -> None:
    import afina

    path = Path(afina.__file__).parent / "assets/noticias/noticias.csv"
    prepared = run(tmp_path, recipe_of(path, NEWS, id_column="news_id"))
    accounted(prepared)
    assert prepared.report["rows"]["usable"] >= 240
    assert list(prepared.report["labels"]) == ["polaridade", "emocao"]
    assert all(e.reasoning for e in prepared.splits["train"])


@pytest.mark.shared
def test_real_news(shared_data: Path, tmp_path: Path) -> None:
    prepared = run(tmp_path, recipe_of(shared_data / "noticias/noticias.csv", NEWS, id_column="news_id"))
    accounted(prepared)
    assert prepared.report["rows"] == {"read": 220, "usable": 219, "rejected": 1}
    assert prepared.report["first_rejected"]["empty input"]["reason"] == "f3 is empty"
    assert prepared.report["splits"]["test"] == pytest.approx(44, abs=2)


@pytest.mark.shared
def test_real_multilabel(shared_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        shared_data / "brighter/train.csv", {"inputs": ["text"], "output": {"emotions": [EKMAN]}},
        id_column="id", columns={"emotions": {k: k for k in EKMAN}}, test_path=shared_data / "brighter/dev.csv",
    )  # fmt: skip
    prepared = run(tmp_path, recipe)
    accounted(prepared)
    assert prepared.report["rows"] == {"read": 2426, "usable": 2426, "rejected": 0}
    assert prepared.report["labels"]["emotions"]["(none)"]["test"] == 46


@pytest.mark.shared
def test_real_subtitles_with_dirt(shared_data: Path, tmp_path: Path) -> None:
    task = {"inputs": ["text"], "output": {"emotion": [list("12345678")]}}
    prepared = run(tmp_path, recipe_of(shared_data / "xed_br/raw.tsv", task, header=["text", "emotion"]))
    accounted(prepared)
    assert prepared.report["rejected"] == {"wrong number of cells": 230}
    assert prepared.report["duplicates"]["exact_duplicates"] > 400
    assert len((tmp_path / "prepared/rejected.jsonl").read_text().splitlines()) == 230


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "task", "data", "usable", "rejected"),
    [
        (
            "dirt/tweets_mg_200.csv", {"inputs": ["Text"], "output": ["Neutro", "Positivo", "Negativo"]},
            {"columns": {"": "Classificacao"}}, 162, {},
        ),
        (
            "dirt/magazines_200.json.gz", {"inputs": ["title"], "output": "text"},
            {"columns": {"": "description"}}, 200, {},
        ),
        (
            "products/industrial_items.json", {"inputs": ["title"], "output": "text"},
            {"columns": {"": "description"}, "id_column": "key"}, 3457, {"missing label": 229},
        ),
    ],
)  # fmt: skip
def test_real_dirty_tables(
    shared_data: Path, tmp_path: Path, name: str, task: dict[str, Any], data: dict[str, Any], usable: int, rejected: Any
) -> None:
    prepared = run(tmp_path, recipe_of(shared_data / name, task, **data))
    accounted(prepared)
    assert (prepared.report["rows"]["usable"], prepared.report["rejected"]) == (usable, rejected)


@pytest.mark.shared
def test_texts_and_labels_in_two_files(shared_data: Path, tmp_path: Path) -> None:
    """tweetsentbr keeps a text and its label in the same line of two files."""
    texts, labels = (
        (shared_data / f"tweetsentbr/train_{kind}.txt").read_text(encoding="utf-8").split("\n")
        for kind in ("text", "labels")
    )
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    task = {"inputs": ["text"], "output": {"label": ["negativo", "neutro", "positivo"]}}
    mapping = {"label": {"0": "negativo", "1": "neutro", "2": "positivo"}}
    prepared = run(tmp_path, recipe_of(table(tmp_path, rows), task, labels=mapping))
    accounted(prepared)
    assert prepared.report["rows"] == {"read": 1839, "usable": 1839, "rejected": 0}
