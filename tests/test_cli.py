"""The command line: helps with examples, no torch before it is needed, screens a person can read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import NEWS, afina, news, recipe_text, write_csv

from afina import __version__
from afina.cli.table import WIDTH, result_lines
from afina.core import schema as schemas
from afina.core.config import Config, Recipe
from afina.core.predictor import Example, Prediction
from afina.core.recipe_file import known_keys, load_recipe
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.evaluation.runner import SystemRun, evaluate
from afina.pipeline import DEMO_RECIPE

ROOT = Path(__file__).resolve().parent.parent
VERBS = ["init", "schema", "plan", "prepare", "train", "evaluate", "compare", "run", "predict", "report", "demo"]
VERBS += ["doctor", "index", "ask", "chat", "sweep", "push", "label", "distill", "serve", "rescue"]
GROUPS = {"keys": ["create", "list", "revoke"], "jobs": ["list", "show", "events", "cancel", "pause", "resume"]}
HEAVY = ("torch", "transformers", "peft", "polars", "sklearn", "scipy", "matplotlib", "numpy")


# -- help ----------------------------------------------------------------------------------------


def test_help_names_every_verb() -> None:
    outcome = afina("--help")
    assert outcome.code == 0
    listed = re.findall(r"^  (\w+)  ", outcome.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == [*VERBS, *GROUPS]
    assert "..." not in outcome.out.partition("Commands:")[2]  # each fits on its line


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_names_its_verbs(group: str) -> None:
    outcome = afina(group, "--help")
    assert outcome.code == 0
    assert re.findall(r"^  (\w+)  ", outcome.out.partition("Commands:")[2], re.MULTILINE) == GROUPS[group]


@pytest.mark.parametrize("verb", [*VERBS, *(f"{group} {verb}" for group in GROUPS for verb in GROUPS[group])])
def test_help_of_a_verb_shows_an_example(verb: str) -> None:
    outcome = afina(*verb.split(), "--help")
    assert outcome.code == 0
    assert f"Example: afina {verb}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= WIDTH


def test_the_examples_of_the_helps_are_complete() -> None:
    """Every option in an example is one of the verb's, and every override one of the recipe's keys."""
    seen = 0
    for verb in VERBS:
        text = afina(verb, "--help").out
        for word in " ".join(text.partition("Example: ")[2].split()).split():
            if word.startswith("--"):
                seen += 1
                assert f"{word} " in text.partition("Example:")[0]
            elif "=" in word:
                seen += 1
                assert word.partition("=")[0] in known_keys()
    assert seen == 21


def test_nothing_and_version() -> None:
    assert "Usage: afina" in afina().out + afina().err
    assert afina("--version").out == f"afina {__version__}\n"


@pytest.mark.parametrize("argv", [["runn"], ["run"], ["run", "r.yaml", "--banana"], ["predict", "x"]])
def test_wrong_usage_is_the_users(argv: list[str]) -> None:
    outcome = afina(*argv)
    assert outcome.code == 2
    assert "Usage: afina" in outcome.err
    assert "Error: " in outcome.err


def test_our_own_bug_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("impossible")

    monkeypatch.setattr("afina.core.recipe_file.recipe_json_schema", broken)
    outcome = afina("schema")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "this is a bug of ours, not of your input: RuntimeError('impossible')" in outcome.err


def test_interrupted_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("afina.core.recipe_file.recipe_json_schema", interrupted)
    outcome = afina("schema")
    assert outcome.code == 130
    assert "interrupted. The same command continues" in outcome.err


@pytest.mark.parametrize("code", ["import afina", "import sys; sys.argv = ['afina', '--help']\nmain()"])
def test_no_heavy_import_before_it_is_needed(code: str) -> None:
    script = (
        "import sys\nfrom contextlib import suppress\n"
        f"{'from afina.cli import main' if 'main' in code else ''}\n"
        f"with suppress(SystemExit):\n    {code.replace(chr(10), chr(10) + '    ')}\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: []\n")


# -- recipes -------------------------------------------------------------------------------------


def test_every_shipped_recipe_loads() -> None:
    recipes = [*sorted((ROOT / "recipes").glob("*.yaml")), DEMO_RECIPE]
    assert len(recipes) >= 5
    for path in recipes:
        recipe = load_recipe(path)
        assert load_task(recipe.task).fields
        baselines = {"nearest", "sources"} if recipe.catalogue is not None else {"majority", "tfidf"}
        assert set(recipe.compare) >= {*baselines, "zero-shot", "finetuned"}


def _objects(node: Any) -> list[dict[str, Any]]:
    """Every mapping in a JSON value, itself included."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return ([node] if isinstance(node, dict) else []) + [found for value in inner for found in _objects(value)]


def test_schema_is_a_json_schema_of_the_recipe() -> None:
    found = json.loads(afina("schema").out)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(found["properties"]) == list(Recipe.model_fields)
    references = [node["$ref"] for node in _objects(found) if isinstance(node.get("$ref"), str)]
    assert len(references) >= 5
    assert all(ref.startswith("#/$defs/") and ref.removeprefix("#/$defs/") in found["$defs"] for ref in references)
    groups = [found, *found["$defs"].values()]
    names = ("config", "task_config", "train_config", "strategy_config", "catalogue_config")
    modules = {f"afina.core.{name}" for name in names}
    of_recipes = [group for group in Config.__subclasses__() if group.__module__ in modules]
    assert {group.__module__ for group in of_recipes} == modules
    assert len(groups) == len(of_recipes)
    assert all(group["additionalProperties"] is False for group in groups)
    types = {t for node in _objects(found) for t in [node.get("type")] if isinstance(t, str)}
    assert types <= {"object", "array", "string", "number", "integer", "boolean", "null"}


def test_init_makes_a_recipe_that_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = afina("init", NEWS, "--output", "recipe.yaml")
    assert made.code == 0
    assert made.out == "Wrote recipe.yaml. Read it, correct it, then: afina plan recipe.yaml\n"
    prepared = afina("prepare", "recipe.yaml", "output_dir=run")
    assert prepared.code == 0, prepared.err
    assert "260 rows read (csv, UTF-8), 260 usable, 0 rejected" in prepared.out
    assert prepared.out.endswith("Prepared: run/data\n")


# -- screens -------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "news.csv", news(30))
    (tmp_path / "recipe.yaml").write_text(recipe_text(), encoding="utf-8")
    return tmp_path


def test_prepare_tells_the_same_twice_and_as_json(here: Path) -> None:
    first, again = afina("prepare", "recipe.yaml"), afina("prepare", "recipe.yaml")
    assert first.code == 0
    assert first.out == again.out
    assert first.out.count("30 rows read") == 1
    assert "30 rows read" not in first.err
    report = json.loads(afina("prepare", "recipe.yaml", "--json").out)
    assert report["splits"] == {"train": 21, "validation": 3, "test": 6}
    assert "  positivo " in first.out


def test_plan_fits_the_screen_and_writes_nothing(here: Path) -> None:
    outcome = afina("plan", "recipe.yaml", "train.lora_r=4", "train.load_in_4bit=false")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    starts = ["base model", "parameters", "  trainable", "steps", "time, estimated", "memory, estimated", "formula"]
    assert [s for s in starts if any(line.startswith(s) for line in lines)] == starts
    assert lines[-1].split() == ["fits", "yes"]
    assert (
        len({line.index(line[26:].lstrip()) for line in lines if line[:26].strip() in ("steps", "disk", "fits")}) == 1
    )
    assert sorted(p.name for p in here.iterdir()) == ["news.csv", "recipe.yaml"]


def test_doctor_tells_what_there_is() -> None:
    outcome = afina("doctor")
    assert outcome.code == 0
    for word in ("CPU", "memory", "disk", "GPU", "bf16", "4/8 bit", "fits about", "libraries", f"afina {__version__}"):
        assert word in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 120  # the processor's name may be long
    found = json.loads(afina("doctor", "--json").out)
    assert found["cores"] >= 1
    assert found["versions"]["afina"] == __version__


def report_of(names: list[tuple[str, str]]) -> dict[str, Any]:
    output = schemas.normalise(schemas.from_shorthand({"polaridade": ["a", "b"], "nota": "number(0..10)"}))
    task = Task("noticias", "i", {"x": "x"}, output)
    test = [Example(str(n), {"x": ""}, {"polaridade": "ab"[n % 2], "nota": float(n % 7)}) for n in range(40)]
    answers = [Prediction(e.output, {"polaridade": 0.9}) if int(e.id) % 3 else Prediction(error="e") for e in test]
    return evaluate(task, test, test, [SystemRun(n, s, None, answers, 0.5, 12.0, 2 << 30) for n, s in names], seed=1)


def test_the_result_fits_100_columns_with_four_systems() -> None:
    names = [("majority", "majority"), ("tfidf", "tfidf"), ("zero-shot", "zero-shot"), ("specialist", "finetuned")]
    lines = result_lines(report_of(names))
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "noticias: 40 unseen rows; 95 % intervals in brackets"
    assert lines[2].split() == [name for name, _ in names]
    text = "\n".join(lines)
    for label in ("accuracy", "macro-F1", "calibration error", "mean absolute error", "exact match", "training"):
        assert f"\n  {label} " in text
    valid = next(line for line in lines if line.startswith("  valid "))
    assert valid.split() == ["valid", *["65", "%"] * 4]
    assert text.index("exact match") < text.index("65 % of 40 answers are valid.")
    columns = {line.index("0.65 [") for line in lines if line.startswith(("  accuracy", "  exact match"))}
    assert len(columns) == 1


# -- the README ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "README.pt-BR.md"])
def test_commands_of_the_readme_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [line.partition("#")[0].split() for block in blocks for line in block.splitlines() if line.strip()]
    used = [words for words in commands if words[0] == "afina"]
    assert len(used) >= 4
    for words in used:
        help_text = afina(words[1], "--help").out
        for option in (word for word in words[2:] if word.startswith("-")):
            assert re.search(rf"(^|[ ,]){re.escape(option)}\b", help_text, re.MULTILINE), (words, option)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in commands if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_recipe_of_the_readme_loads(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    path = tmp_path / "recipe.yaml"
    path.write_text(blocks[0], encoding="utf-8")
    assert len(load_task(load_recipe(path).task).parts) == 3
    # The second one is the groups that are added to a recipe for a comparison; in both languages.
    task = blocks[0].partition("compare:")[0]
    for name in ("README.md", "README.pt-BR.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        added = next(block for block in found if block.startswith("models:"))
        path.write_text(task + added, encoding="utf-8")
        assert len(load_recipe(path).strategies) == 4, name
