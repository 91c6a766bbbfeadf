"""A recipe file and `key=value` overrides -> a checked `Recipe`, or one line for everything that is wrong in it.

Comes in: a path, overrides by dotted key. Goes out: a frozen `Recipe`, and the JSON Schema for editors. Knows how YAML
and people err; what settings mean is known by the groups themselves.
"""

from __future__ import annotations

import contextlib
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from afina.core.config import Recipe
from afina.core.config_base import Config
from afina.core.errors import RecipeError
from afina.core.strategy_config import ModelConfig, strategy_keys

# Names that other tools use for the same thing, so that the message can say ours.
ALIASES = {
    "model_name_or_path": "base_model", "model_name": "base_model", "model": "base_model",
    "cutoff_len": "max_length", "sequence_len": "max_length", "max_seq_length": "max_length",
    "num_epochs": "num_train_epochs", "n_epochs": "num_train_epochs", "epochs": "num_train_epochs",
    "micro_batch_size": "per_device_train_batch_size", "batch_size": "per_device_train_batch_size",
    "lora_rank": "lora_r", "rank": "lora_r", "r": "lora_r", "alpha": "lora_alpha", "lora_target": "lora_target_modules",
    "target_modules": "lora_target_modules", "lr": "learning_rate", "sample_packing": "packing",
    "val_size": "validation_size", "val_set_size": "validation_size", "warmup_steps": "warmup_ratio",
    "quantization_bit": "load_in_4bit", "train_on_inputs": "loss_on", "completion_only_loss": "loss_on",
    "dataset": "path", "train_file": "path", "length_grouping": "group_by_length",
}  # fmt: skip


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides, check everything. Paths in it are relative to it;
    paths in an override are relative to the current folder.

    Raises RecipeError (a subclass SchemaError for the output schema).
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such recipe. Write one with: afina init DATA.csv")
    if path.is_dir():
        raise RecipeError(f"{path}: found a folder, expected a recipe (a YAML file). Name the file in it.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8 text, expected a recipe (a YAML file). Name another.") from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{_place(path, error)}: is no valid YAML: {_yaml_problem(error)}. Correct that line; `afina init` writes "
            "a recipe to start from."
        ) from error
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else "a list" if isinstance(raw, list) else "a single value"
        raise RecipeError(
            f"{path}: found {found}, expected the groups task, data and train. Write a recipe with: afina init DATA.csv"
        )
    for place in PATHS:
        _rebase(raw, place, path.parent)
    output = raw.get("task", {}).get("output") if isinstance(raw.get("task"), dict) else None
    if isinstance(output, str) and output.endswith(".json"):
        raw["task"]["output"] = str(path.parent / output)
    for override in overrides:
        _override(raw, override)
    return make_recipe(raw, str(path))


PATHS = (
    ("data", "path"), ("catalogue", "path"), ("data", "validation_path"), ("data", "test_path"),
    ("train", "adapt", "path"), ("train", "prices"), ("train", "rounds"), ("distill", "rows"),
    ("models", "*", "prices"),
)  # fmt: skip


def _rebase(raw: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    node: Any = raw
    for at, key in enumerate(keys[:-1]):
        if key == "*":
            for inner in node.values() if isinstance(node, dict) else ():
                _rebase(inner, keys[at + 1 :], folder)
            return
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return
    value = node.get(keys[-1])
    if isinstance(value, str):
        node[keys[-1]] = str(folder / value)
    elif isinstance(value, list):
        node[keys[-1]] = [str(folder / one) if isinstance(one, str) else one for one in value]


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand only once: of two, PyYAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    parts = (getattr(error, name, None) for name in ("context", "problem"))
    return ", ".join(part for part in parts if part) or " ".join(str(error).split())


def _override(raw: dict[str, Any], text: str) -> None:
    """Write one KEY=VALUE into the recipe; KEY=null takes the key away, so that its default holds again."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {text!r}: expected KEY=VALUE, as in train.lora_r=32")
    parsed = _override_value(key, value, text)
    node = raw
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(node.setdefault(parent, {}), dict):
            raise RecipeError(
                f"override {text!r}: {parent!r} is a single value in the recipe, not a group of settings."
            )
        node = node[parent]
    if parsed is None:
        node.pop(last, None)
    else:
        node[last] = parsed


def _override_value(key: str, value: str, text: str) -> Any:
    wants_text = _annotation(key) in (str, Path, str | None, Path | None)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        if wants_text:
            return value  # as data.delimiter=|
        raise RecipeError(
            f"override {text!r}: the value is no valid YAML: {_yaml_problem(error)}. Put it in quotes."
        ) from error
    if wants_text and parsed is not None:
        return parsed if isinstance(parsed, str) else value  # as output_dir=2026
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            return float(parsed)  # YAML 1.1 reads 2e-4 as text
    return parsed


def _annotation(key: str) -> Any:
    """The type of a dotted key; None if there is no such key."""
    model: Any = Recipe
    for part in key.split("."):
        info = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Config) else None
        if info is None:
            return None
        inner = [t for t in typing.get_args(info.annotation) if isinstance(t, type) and issubclass(t, Config)]
        model = inner[0] if inner else info.annotation
    return model


def make_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe that is already a mapping. Raises RecipeError with every problem, a line each."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # The branches of a union fail one by one: what each wanted becomes one line.
        problems: dict[str, list[Mapping[str, Any]]] = {}
        for problem in error.errors():
            problems.setdefault(_key(problem), []).append(problem)
        lines = [_explain(key, found) for key, found in problems.items()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


BRANCHES = ("int", "float", "bool", "str", "list[str]", "dict[str,str]")  # pydantic's names in a union's place
EXPECTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false",
    "string_type": "text", "path_type": "a path", "string_too_short": "some text",
    "list_type": "a list, as [a, b]", "too_short": "at least one entry",
    "dict_type": "a mapping, as {name: value}", "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
}  # fmt: skip
LIMITS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def _key(problem: Mapping[str, Any]) -> str:
    place = [str(part) for part in problem["loc"] if part not in BRANCHES]
    if place[:1] == ["strategies"] and len(place) > 2:
        del place[2]  # pydantic names the kind of strategy after the strategy's own name
    return ".".join(part for part in place if not part.startswith(("literal[", "constrained-", "function-")))


def _expected(problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        return context["expected"]
    for name, words in LIMITS.items():
        if name in context:
            return f"{words} {context[name]}"
    message = str(problem["msg"])
    return EXPECTED.get(str(problem["type"])) or message[0].lower() + message[1:]


def _explain(key: str, problems: Sequence[Mapping[str, Any]]) -> str:
    problem, place = problems[0], key.split(".")
    if problem["type"] == "extra_forbidden":
        known = list(known_keys())
        group = [place[0], "*"] if place[0] == "models" else place[:-1]
        siblings = [k for k in known if k.rpartition(".")[0] == ".".join(group)]
        if place[0] == "strategies":
            siblings = [f"{'.'.join(group)}.{k}" for k in strategy_keys(problem["loc"][2])]
        alias = ALIASES.get(place[-1])
        matches = [k for k in known if alias and k.rpartition(".")[2] == alias]
        matches += [k for k in known if k.rpartition(".")[2] == place[-1]]
        named = {k.rpartition(".")[2]: k for k in siblings}
        matches += [named[name] for name in difflib.get_close_matches(place[-1], named, n=1, cutoff=0.6)]
        matches += difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        names = ", ".join(name.rpartition(".")[2] for name in siblings) or "nothing"
        matches = [match.replace("*", place[1]) for match in matches]
        hint = f"Did you mean {matches[0]}?" if matches else f"Known here: {names}."
        return f"unknown key {key}. {hint}"
    if problem["type"] == "union_tag_invalid":
        return f"{key}.strategy: found {problem['ctx']['tag']!r}, expected {problem['ctx']['expected_tags']}."
    if problem["type"] == "union_tag_not_found":
        return f"{key}: has no strategy. Add one: zero-shot, few-shot, cot, vote, negotiate or cascade."
    if problem["type"] == "missing":
        return f"{key} is missing, and it has no default. Add it; `afina schema` describes every key."
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = " or ".join(dict.fromkeys(_expected(one) for one in problems))
    return (
        f"{key}: found {problem.get('input')!r}, expected {expected}. Correct it; `afina schema` describes every key."
    )


ANY_NAME = "*."  # in a dotted key: whatever the user called it


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the recipe."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for inner in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from known_keys(inner, f"{prefix}{name}.{ANY_NAME if inner is ModelConfig else ''}")


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of the recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
