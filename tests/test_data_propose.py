"""The proposed recipe loads, names the right columns, and prepares its own table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import afina
from afina.core.config import Recipe
from afina.core.errors import DataError
from afina.core.recipe_file import load_recipe
from afina.core.task_config import load_task
from afina.data.prepare import prepare
from afina.data.propose import propose_recipe

EMBEDDED = Path(afina.__file__).parent / "assets/noticias/noticias.csv"


def proposed(path: Path, folder: Path) -> tuple[Recipe, str]:
    text = propose_recipe(path, written_to=folder)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml"), text


def test_news_become_parts_in_portuguese(tmp_path: Path) -> None:
    recipe, text = proposed(EMBEDDED, tmp_path)
    task = load_task(recipe.task)
    assert list(task.inputs) == ["manchete", "f1", "f2", "f3"]
    assert [group.name for group in task.groups] == ["emocao", "polaridade"]
    assert recipe.task.parts == {name: {"texto": name} for name in task.inputs}
    assert recipe.data.id_column == "news_id"
    assert "# reasoning: pensamento" in text
    assert recipe.task.instruction.startswith("Leia")
    assert sum(prepare(recipe, task, tmp_path / "p").report["splits"].values()) >= 240


def test_english_flags_and_awkward_labels(tmp_path: Path) -> None:
    words = "The price of the thing is as high as it was before"
    rows = [f"{words} {i * 7919},{'yes' if i % 2 else 'no'},{i % 3 > 0:d},{i * 13 % 97}" for i in range(60)]
    (tmp_path / "t.csv").write_text("body.text,Answer given,is_new,age\n" + "\n".join(rows) + "\n")
    recipe, text = proposed(tmp_path / "t.csv", tmp_path)
    assert recipe.task.inputs == ["body.text"]
    assert recipe.task.output == {"is_new": "bool", "Answer_given": ["no", "yes"]}
    assert recipe.data.columns == {"is_new": "is_new", "Answer_given": "Answer given"}
    assert f"age: int(0..{max(i * 13 % 97 for i in range(60))})" in text
    assert recipe.task.instruction.startswith("Read")
    load_task(recipe.task)


def test_a_table_without_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(DataError, match="found no column of text to read from; the columns are a"):
        propose_recipe(tmp_path / "t.csv")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "inputs", "output"),
    [
        ("brighter/train.csv", ["text"], {"labels": [["anger", "disgust", "fear", "joy", "sadness", "surprise"]]}),
        ("dirt/tweets_mg_200.csv", ["Text"], {"Classificacao": ["Neutro", "Negativo", "Positivo"]}),
        ("products/industrial_items.json", ["title"], "text"),
        ("products/lf_amazon_raw_500.jsonl", ["user"], "text"),
    ],
)
def test_real_tables(shared_data: Path, tmp_path: Path, name: str, inputs: list[str], output: object) -> None:
    recipe, text = proposed(shared_data / name, tmp_path)
    assert (recipe.task.inputs, recipe.task.output) == (inputs, output)
    assert yaml.safe_load(text)["data"]["path"]
    load_task(recipe.task)
