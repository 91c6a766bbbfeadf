"""The recipe's groups models, strategies, distill and comparison: what is refused, by name and with the way out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from afina.core.errors import RecipeError
from afina.core.recipe_file import load_recipe, make_recipe, recipe_json_schema
from afina.runs import Run, load_task
from afina.strategies.build import built_in_under, models_under

RECIPE: dict[str, Any] = {
    "task": {"name": "t", "instruction": "i", "inputs": ["x"], "output": {"label": ["a", "b"]}},
    "data": {"path": "x.csv"},
    "models": {"teacher": {"provider": "http://127.0.0.1:8000/v1", "model": "m"}},
    "strategies": {
        "few": {"strategy": "few-shot", "model": "teacher"},
        "cot": {"strategy": "cot", "model": "teacher"},
        "jury": {"strategy": "vote", "of": "cot", "n": 3},
        "mixed": {"strategy": "vote", "of": ["few", "cot", "tfidf"]},
        "debate": {"strategy": "negotiate", "generator": "teacher", "discriminator": "base"},
        "cheap": {"strategy": "cascade", "first": "finetuned", "then": "jury", "accuracy": 0.9},
    },
    "distill": {"teacher": "jury"},
    "compare": ["majority", "finetuned", "few", "jury", "mixed", "debate", "cheap", "student-two-task"],
}


def changed(**changes: Any) -> dict[str, Any]:
    """RECIPE with `group__key=value` changes."""
    raw = copy.deepcopy(RECIPE)
    for key, value in changes.items():
        *groups, last = key.split("__")
        node = raw
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return raw


REFUSED = {
    "unknown model": ({"strategies__few__model": "teachr"}, "Did you mean 'teacher'?"),
    "unknown strategy": ({"strategies__jury__of": "cott"}, "Did you mean 'cot'?"),
    "a circle": (
        {"strategies__mixed__of": ["few", "cheap"], "strategies__cheap__then": "mixed"},
        "mixed -> cheap -> mixed",
    ),
    "itself": ({"strategies__mixed__of": ["few", "mixed"]}, "mixed -> mixed"),
    "unknown key": ({"strategies__few__kk": 2}, "Did you mean strategies.few.k?"),
    "unknown key of a model": ({"models__teacher__modl": "m"}, "Did you mean models.teacher.model?"),
    "no kind": ({"strategies__new": {"model": "teacher"}}, "has no strategy"),
    "unknown kind": ({"strategies__few__strategy": "shot"}, "expected 'zero-shot'"),
    "no such system": ({"compare": ["finetnd"]}, "Did you mean 'finetuned'?"),
    "student that is not trained": ({"compare": ["student-mixed"]}, "student-gold"),
    "reference that is not compared": ({"comparison__reference": "tfidf"}, "comparison.reference is not compared"),
    "unknown teacher": ({"distill__teacher": "jurry"}, "Did you mean 'jury'?"),
    "name that is taken": ({"strategies__tfidf": {"strategy": "cot"}}, "'tfidf' is taken"),
    "name with a path": ({"strategies__../x": {"strategy": "cot"}}, "no name"),
    "no example shown": ({"strategies__few__k": 0}, "k is 0"),
    "examples in zero-shot": (
        {"strategies__few__strategy": "zero-shot", "strategies__few__k": 2},
        "Write strategy: few",
    ),
    "a vote of what answers the same": ({"strategies__jury__of": "tfidf"}, "answers the same each time"),
    "one voter": ({"strategies__mixed__of": ["cot"]}, "two voters at least"),
    "n of several voters": ({"strategies__mixed__n": 3}, "n has no effect"),
    "no aim": ({"strategies__cheap__accuracy": None}, "one of accuracy and max_share"),
    "two aims": ({"strategies__cheap__max_share": 0.2}, "one of accuracy and max_share"),
    "key of a local model": ({"models__teacher__revision": "main"}, "revision is of a model on this machine"),
    "key of a hosted model": ({"models__small": {"model": "afina/nano", "batch": True}}, "batch is of a model at"),
    "a seed twice": ({"distill__seeds": [1, 1]}, "stands twice"),
    "a system twice": ({"compare": ["tfidf", "tfidf"]}, "stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        make_recipe(changed(**changes))
    assert said in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value), str(caught.value)


def test_the_recipe_is_read_and_its_names_resolve() -> None:
    recipe = make_recipe(RECIPE)
    assert models_under(recipe, "cheap") == {"teacher"}
    assert models_under(recipe, "debate") == {"teacher", "base"}
    assert built_in_under(recipe, "cheap") == {"finetuned"}
    assert built_in_under(recipe, "mixed") == {"tfidf"}
    assert built_in_under(recipe, "debate") == {"zero-shot"}
    assert "models" in recipe_json_schema()["properties"]


def test_prices_of_a_model_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(models__teacher__prices="prices.yaml")))
    assert load_recipe(path).models["teacher"].prices == tmp_path / "prices.yaml"


def test_a_key_changes_with_what_decides_the_answers_and_with_nothing_else() -> None:
    def key(name: str, **changes: Any) -> str:
        recipe = make_recipe(changed(**changes))
        return Run(recipe, load_task(recipe.task), Path("x")).system_key(name)

    for name in ("few", "jury", "cheap", "debate"):
        assert key(name) != key(name, models__teacher__model="other"), name
        assert key(name) == key(name, models__teacher__concurrency=2), name
        assert key(name) == key(name, comparison__max_cost_usd=3.0), name
    assert key("cheap") != key("cheap", strategies__cot__k=2)
    assert key("few") == key("few", strategies__cot__k=2)
    assert key("student-two-task") != key("student-two-task", distill__rationale_weight=0.5)
    assert make_recipe(RECIPE).hash == make_recipe(changed(models__teacher__concurrency=2)).hash
    assert make_recipe(RECIPE).hash != make_recipe(changed(strategies__cot__k=2)).hash
