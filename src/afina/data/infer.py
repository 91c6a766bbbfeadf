"""What answers a model gave -> the schema they have in common, and each answer as a value of it.

Comes in: texts. Goes out: `Shape`: the JSON Schema of objects of one shape, labels, or plain text. Few repeated texts
are labels (the border is that of `data.propose`); what is no such object is no answer of the shape, and has value None.
Knows nothing of tasks and models.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afina.core import schema as schemas
from afina.core.schema import Schema
from afina.data.propose import MOST_LABELS

LEAST_OF_ONE_SHAPE = 0.8  # share of the answers; below, they are free text
LONGEST_LABEL = 40  # characters
MOST_DEPTH = 4  # of objects in objects


@dataclass(frozen=True)
class Shape:
    """output: what a recipe's task.output says: a JSON Schema, a list of labels, or "text".

    values: of every answer, in order; None for one that does not fit.
    """

    output: Any
    values: list[Any]

    @property
    def is_object(self) -> bool:
        return isinstance(self.output, dict)


def infer_shape(texts: Sequence[str]) -> Shape:
    """The shape of these answers."""
    objects = [read_object(text) for text in texts]
    shapes = Counter(_signature(value) for value in objects if value is not None)
    if shapes:
        signature, count = shapes.most_common(1)[0]
        alike = [v if v is not None and _signature(v) == signature else None for v in objects]
        if count >= LEAST_OF_ONE_SHAPE * len(texts):
            found = [value for value in alike if value is not None]
            schema = _object_schema(found)
            fits = [value if value is not None and _fits(value, schema) else None for value in alike]
            return Shape(schema, fits)
    stripped = [text.strip() for text in texts]
    if labels := _labels(stripped):
        return Shape(labels, stripped)
    return Shape("text", [text or None for text in stripped])


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object of an answer, also in a code fence or with Python's single quotes; None if it is none."""
    text = text.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    if not text.startswith("{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if _is_usable(value) else None
    return None


def _is_usable(value: Any, depth: int = 0) -> bool:
    """An object whose names our schemas can have, and whose values are JSON."""
    if not isinstance(value, dict) or not value or depth >= MOST_DEPTH:
        return False
    for key, inner in value.items():
        if not isinstance(key, str) or not key or "." in key:
            return False
        if isinstance(inner, dict):
            if not _is_usable(inner, depth + 1):
                return False
        elif isinstance(inner, list):
            if not all(isinstance(one, str | int | float | bool) for one in inner):
                return False
        elif not (inner is None or isinstance(inner, str | int | float | bool)):
            return False
    return True


def _signature(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Names and kinds of values, whatever their order. null fits any kind of single value."""
    return tuple(
        sorted((key, _signature(v) if isinstance(v, dict) else isinstance(v, list)) for key, v in value.items())
    )


def _object_schema(values: Sequence[Mapping[str, Any]]) -> Schema:
    """In the order of the first value."""
    properties = {key: _schema([value[key] for value in values]) for key in values[0]}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _schema(values: Sequence[Any]) -> Schema:
    if isinstance(values[0], dict):
        return _object_schema(values)
    if isinstance(values[0], list):
        return _array_schema(values)
    present = [value for value in values if value is not None]
    schema = _scalar_schema(present)
    if len(present) == len(values):
        return schema
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    return {"anyOf": [schema, {"type": "null"}]} if present else {"type": "null"}


def _scalar_schema(values: Sequence[Any]) -> Schema:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return {"type": "boolean"}
    if kinds == {int}:
        return {"type": "integer", "minimum": min(values), "maximum": max(values)}
    if kinds <= {int, float}:
        return {"type": "number", "minimum": min(values), "maximum": max(values)}
    if kinds == {str}:
        labels = _labels(values)
        return {"enum": labels} if labels else {"type": "string"}
    distinct = list({schemas.dumps(value): value for value in values}.values())
    # Of several kinds: as they are if they are few; else what is no text does not fit.
    return {"enum": distinct} if 0 < len(distinct) <= MOST_LABELS else {"type": "string"}


def _array_schema(values: Sequence[list[Any]]) -> Schema:
    items = [item for value in values for item in value]
    labels = _labels(items) if items and all(isinstance(item, str) for item in items) else None
    if labels and all(len(set(value)) == len(value) for value in values):
        return {"type": "array", "items": {"enum": labels}, "uniqueItems": True}
    return {"type": "array", "items": _scalar_schema(items) if items else {"type": "string"}}


def _labels(texts: Sequence[str]) -> list[str] | None:
    """The distinct texts, most frequent first, if they are few and short; else None."""
    counts = Counter(texts)
    few = len(counts) <= min(MOST_LABELS, max(2, len(texts) // 4))
    if not few or "" in counts or max(map(len, counts)) > LONGEST_LABEL:
        return None
    return [label for label, _ in counts.most_common()]


def _fits(value: Any, schema: Schema) -> bool:
    return schemas.problems(value, schema) is None
