"""Answers as typed Python objects: a Pydantic model made from a task's output schema."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, create_model

from afina.core.schema import Schema


class Answer(BaseModel):
    """Base of every answer object: the task's fields, and how sure the model is of each."""

    model_config = ConfigDict(populate_by_name=True, protected_namespaces=())
    _confidence: Mapping[str, float] = PrivateAttr(default_factory=dict)

    @property
    def confidence(self) -> Mapping[str, float]:
        """Field path -> probability in [0, 1] of the chosen value, calibrated on validation."""
        return self._confidence

    def to_output(self) -> dict[str, Any]:
        """The answer as plain JSON values, absent optional fields left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def answer_model(schema: Schema, name: str) -> type[Answer]:
    """A Pydantic model for an object schema; other schemas become its one field, `value`."""
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
    model = _object(schema, _class_name(name), Answer)
    assert issubclass(model, Answer)
    return model


def _object(schema: Schema, name: str, base: type[BaseModel]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for key, inner in schema["properties"].items():
        kind = _annotation(inner, name + _class_name(key))
        attribute = _identifier(key)
        alias = key if attribute != key else None
        if key in schema["required"]:
            fields[attribute] = (kind, Field(alias=alias))
        else:
            fields[attribute] = (Optional[kind], Field(default=None, alias=alias))  # noqa: UP045
    return create_model(name, __base__=base, **fields)


def _annotation(schema: Schema, name: str) -> Any:
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if "anyOf" in schema:
        return Union[tuple(_annotation(branch, f"{name}{i}") for i, branch in enumerate(schema["anyOf"]))]  # noqa: UP007
    kind = schema["type"]
    if kind == "object":
        return _object(schema, name, BaseModel)
    if kind == "array":
        item: Any = _annotation(schema["items"], name)
        return Annotated[list[item], Field(min_length=schema.get("minItems"), max_length=schema.get("maxItems"))]
    if kind == "string":
        return Annotated[str, Field(min_length=schema.get("minLength"), max_length=schema.get("maxLength"))]
    if kind in ("integer", "number"):
        names = {"minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt", "exclusiveMaximum": "lt"}
        limits = Field(**{names[key]: schema[key] for key in names if key in schema})
        return Annotated[int, limits] if kind == "integer" else Annotated[float, limits]
    return {"boolean": bool, "null": type(None)}[kind]


def _class_name(text: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"\W+|_", text) if part) or "Answer"


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key)
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or hasattr(BaseModel, name):
        name = f"field_{name.lstrip('_')}"
    return name
