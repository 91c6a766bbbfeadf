"""A run's recipe as others may read it: what decides the result, without where this machine keeps things.

Comes in: the resolved recipe of a run folder. Goes out: a `recipe.yaml` that `afina run` takes once its files are
beside it: files by their names, no keys, no addresses, no folders, and no setting that stands at its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from afina.core.config import Recipe
from afina.core.recipe_file import PATHS
from afina.core.strategy_config import ModelConfig
from afina.engine.hub import NANO

LEFT_OUT = ("api_key_env", "prices", "max_cost_usd", "report_to")  # of this user and machine
NO_ADDRESS = "http://left-out.invalid/v1"  # where the recipe names a server by its address
HEADER = "# What this was made with. Files are named without their folders; put yours beside this recipe.\n"


def published_recipe(resolved: Mapping[str, Any], output_schema: Mapping[str, Any] | None = None) -> str:
    """YAML. resolved: what recipe.json of a run holds. output_schema: the task's own, where the recipe names a file."""
    raw = {key: value for key, value in resolved.items() if key not in ("hash", "output_dir")}
    raw = _without_defaults(Recipe, raw)
    for keys in PATHS:
        _name_only(raw, keys)
    for group in (raw.get("train", {}), raw.get("comparison", {}), *raw.get("models", {}).values()):
        for name in LEFT_OUT:
            group.pop(name, None)
        if "://" in str(group.get("provider", "")):
            group["provider"] = NO_ADDRESS
    for group, key in ((raw.get("train", {}), "base_model"), *((m, "model") for m in raw.get("models", {}).values())):
        if key in group and not group.get("provider"):
            group[key] = public_base(group[key])
    output = raw.get("task", {}).get("output")
    if isinstance(output, str) and output != "text" and output_schema is not None:
        raw["task"]["output"] = dict(output_schema)
    if raw.get("catalogue"):  # it stands for data.path, which would be named twice
        raw.get("data", {}).pop("path", None)
    if raw.get("train", {}).get("rounds"):
        raw.get("data", {}).pop("path", None)
    if not raw.get("data", True):
        raw.pop("data")
    return HEADER + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)


def is_on_hub(base_model: str) -> bool:
    """Whether a base is called as others know it: a Hub id, and no folder here."""
    path = Path(base_model).expanduser()
    return base_model != NANO and base_model.count("/") == 1 and base_model[0] not in "./~" and not path.exists()


def public_base(base_model: str) -> str:
    """The base as others know it; of a local folder its name alone."""
    return base_model if base_model == NANO or is_on_hub(base_model) else file_name(base_model)


def file_name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else Path(path).name


def _without_defaults(model: type[BaseModel], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults: a recipe that names all of them contradicts itself (an adapter's rank, and no
    adapter)."""
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        field = model.model_fields.get(key)
        if field is None:
            continue  # of an earlier version of the recipe
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel) and isinstance(value, Mapping):
            value = _without_defaults(type(default), value)
            if value:
                kept[key] = value
        elif key == "models" and isinstance(value, Mapping):
            kept |= {key: {name: _without_defaults(ModelConfig, one) for name, one in value.items()}} if value else {}
        elif key in ("data", "catalogue", "adapt") and isinstance(value, Mapping):
            kept[key] = _without_defaults(_group(field.annotation), value)
        elif key == "task" or field.is_required() or not _same(value, default):
            kept[key] = {k: v for k, v in value.items() if v is not None} if key == "task" else value
    return kept


def _group(annotation: Any) -> type[BaseModel]:
    """The group's class, of `Group` or `Group | None`."""
    options = getattr(annotation, "__args__", (annotation,))
    return next(one for one in options if isinstance(one, type) and issubclass(one, BaseModel))


def _same(value: Any, default: Any) -> bool:
    return value == to_jsonable_python(default)


def _name_only(raw: Any, keys: tuple[str, ...]) -> None:
    for at, key in enumerate(keys[:-1]):
        if key == "*":
            for inner in raw.values() if isinstance(raw, dict) else ():
                _name_only(inner, keys[at + 1 :])
            return
        raw = raw.get(key) if isinstance(raw, dict) else None
    value = raw.get(keys[-1]) if isinstance(raw, dict) else None
    if isinstance(raw, dict) and isinstance(value, str):
        raw[keys[-1]] = file_name(value)
    elif isinstance(raw, dict) and isinstance(value, list):
        raw[keys[-1]] = [file_name(str(one)) for one in value]
