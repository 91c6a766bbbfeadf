"""The recipe's group `task`, and the Task that it describes.

Comes in: the group as it was written. Goes out: checked settings, and a `Task` with a normalised schema.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from afina.core import schema as schemas
from afina.core.config_base import Config
from afina.core.errors import RecipeError, SchemaError
from afina.core.task import Task


class TaskConfig(Config):
    """What is asked."""

    name: str = Field(default="task", description="Short name, used in reports.")
    instruction: str = Field(min_length=1, description="What the model is told before the inputs.")
    inputs: list[str] | dict[str, str] = Field(description="Input columns, or a mapping from input name to column.")
    output: Any = Field(
        description="The answer: shorthand (" + schemas.SHORTHAND_HELP + "), a JSON Schema file, "
        "module:PydanticModel, or text for a free-text answer."
    )
    reasoning: str | None = Field(
        default=None, description="Column with free text that the model writes before the labels."
    )
    parts: dict[str, list[str] | dict[str, str]] | None = Field(
        default=None,
        description="Ask for each top-level answer field by itself: field -> its inputs (a list, or a mapping from "
        "the name shown to the input). Parts with equal schemas share what is learned.",
    )


def load_task(config: TaskConfig) -> Task:
    """The Task of a recipe. Raises SchemaError or RecipeError."""
    inputs = config.inputs if isinstance(config.inputs, dict) else {name: name for name in config.inputs}
    if not inputs:
        raise RecipeError("task.inputs: found an empty list, expected at least one column.")
    if isinstance(config.inputs, list) and len(inputs) != len(config.inputs):
        raise RecipeError(f"task.inputs: an input stands twice in {config.inputs}. Remove one.")
    free_text = config.output == "text"
    output = schemas.normalise(output_schema(config.output))
    if config.reasoning:
        if output.get("type") != "object" and not config.parts:
            raise RecipeError("task.reasoning needs an answer with named fields, so that the labels can follow it.")
        if config.reasoning in output.get("properties", {}):
            raise RecipeError(f"task.reasoning: {config.reasoning!r} is already a field of the answer. Rename one.")
    return Task(
        name=config.name,
        instruction=config.instruction.strip(),
        inputs=inputs,
        output=output,
        reasoning=config.reasoning,
        part_inputs=_parts(config, inputs, output) if config.parts else None,
        free_text=free_text,
    )


def _parts(
    config: TaskConfig, inputs: Mapping[str, str], output: schemas.Schema
) -> dict[str, tuple[tuple[str, str], ...]]:
    parts = config.parts or {}
    known = list(output.get("properties", {}))
    if sorted(parts) != sorted(known) or sorted(output.get("required", [])) != sorted(known):
        raise RecipeError(
            f"task.parts names {sorted(parts)}, but the answer's fields are {sorted(known)}. "
            "Every top-level field needs its part, and none may be optional."
        )
    result = {}
    for key in known:
        asked = parts[key]
        shown = asked if isinstance(asked, dict) else {name: name for name in asked}
        unknown = [source for source in shown.values() if source not in inputs]
        if unknown or not shown:
            raise RecipeError(f"task.parts.{key}: {unknown} is no input of the task. Inputs are {list(inputs)}.")
        result[key] = tuple(shown.items())
        if config.reasoning and output["properties"][key].get("type") != "object":
            raise RecipeError(f"task.reasoning needs named fields in every part; {key!r} is a single value.")
    return result


def output_schema(output: Any) -> schemas.Schema:
    """The JSON Schema that a recipe's `task.output` means, before normalising."""
    if isinstance(output, str) and output.endswith(".json"):
        path = Path(output)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SchemaError(f"task.output: {path}: no such file, expected a JSON Schema.") from error
        except (ValueError, OSError) as error:
            raise SchemaError(f"task.output: {path}: is no valid JSON: {error}") from error
    if isinstance(output, str) and ":" in output and "(" not in output:
        return _pydantic_schema(output)
    if isinstance(output, Mapping) and ("$schema" in output or output.get("type") == "object" or "$defs" in output):
        return dict(output)
    return schemas.from_shorthand(output)


def _pydantic_schema(reference: str) -> schemas.Schema:
    module_name, _, class_name = reference.partition(":")
    sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise SchemaError(
            f"task.output: cannot import {reference!r}: {error}. Expected module:PydanticModel."
        ) from error
    finally:
        sys.path.remove("")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise SchemaError(f"task.output: {reference!r} is {model!r}, expected a Pydantic model.")
    return model.model_json_schema()
