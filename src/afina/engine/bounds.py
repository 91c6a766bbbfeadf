"""Schemas as llguidance gets them: no number that a reader of JSON would take for infinite.

26E10371106 is valid JSON, but infinite to its readers; so numbers stay between -1e15 and 1e15, where the grammar writes
no exponents. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afina.core.schema import Schema

LIMIT = 10**15
ANY_NAME = "any_value"
ANY: Schema = {"$ref": f"#/$defs/{ANY_NAME}"}
ANY_VALUE: Schema = {
    "anyOf": [
        {"type": "object", "additionalProperties": ANY},
        {"type": "array", "items": ANY},
        {"type": "string"},
        {"type": "number", "minimum": -LIMIT, "maximum": LIMIT},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": ANY, "$defs": {ANY_NAME: ANY_VALUE}}
# Keywords whose value is a schema, a list of schemas, a mapping to schemas.
SCHEMA, SCHEMAS, NAMED = (
    {"items", "additionalProperties", "additionalItems"},
    {"anyOf", "oneOf", "allOf", "prefixItems"},
    {"properties", "patternProperties", "$defs", "definitions"},
)
SAYING = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "properties", "items", "prefixItems"}


def bounded(schema: Schema, max_items: int | None) -> Schema:
    """A normalised schema (core.schema) without notes, its numbers within bounds.

    max_items: of arrays without maxItems; None for no limit.
    """
    kept = {k: v for k, v in schema.items() if k not in ("title", "description")}
    if "anyOf" in kept:
        return {**kept, "anyOf": [bounded(branch, max_items) for branch in kept["anyOf"]]}
    if kept.get("type") == "array":
        kept["items"] = bounded(kept["items"], max_items)
        if max_items is not None:
            kept.setdefault("maxItems", max(max_items, kept.get("minItems", 0)))
    return _within_bounds(kept) if kept.get("type") in ("integer", "number") else kept


def bounded_anywhere(schema: Mapping[str, Any]) -> Schema:
    """Any JSON Schema with all its numbers within bounds.

    An object that names its properties and does not speak of others has no others. What is no schema stays as it is,
    for llguidance to refuse.
    """
    root = {key: value for key, value in schema.items() if key != "x-guidance"}  # options of llguidance's own
    found = _anywhere(root, closing=True)
    if found is ANY:
        return {**ANY_VALUE, "$defs": {ANY_NAME: ANY_VALUE}}
    definitions = found.get("$defs", {})
    return {**found, "$defs": {**definitions, ANY_NAME: ANY_VALUE}} if isinstance(definitions, dict) else found


def _anywhere(schema: Any, *, closing: bool) -> Any:
    """closing: whether objects without additionalProperties are closed; not where several schemas hold together."""
    if schema is True:
        return ANY
    if not isinstance(schema, Mapping):
        return schema
    if not SAYING & set(schema):
        notes = {"title", "description", "default", "examples"}
        return ANY if set(schema) <= notes else dict(schema)
    closing = closing and "allOf" not in schema
    found = {key: _inside(key, value, closing) for key, value in schema.items()}
    kinds = found.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "object" in kinds or "properties" in found:
        named = "properties" in found or "patternProperties" in found
        if not named:
            found.setdefault("additionalProperties", ANY)
        elif closing:
            found.setdefault("additionalProperties", False)
    if "array" in kinds and "prefixItems" not in found:
        found.setdefault("items", ANY)
    if {"integer", "number"} & {kind for kind in kinds if isinstance(kind, str)} and not {"enum", "const"} & set(found):
        return _within_bounds(found)
    return found


def _inside(key: str, value: Any, closing: bool) -> Any:
    if key in SCHEMA:
        return _anywhere(value, closing=closing)
    if key in SCHEMAS and isinstance(value, list):
        return [_anywhere(one, closing=closing and key != "allOf") for one in value]
    if key in NAMED and isinstance(value, Mapping):
        return {name: _anywhere(one, closing=closing) for name, one in value.items()}
    return value


def _within_bounds(kept: Schema) -> Schema:
    """With both ends, where the schema's own end leaves room for ours."""
    low = kept.get("minimum", kept.get("exclusiveMinimum"))
    high = kept.get("maximum", kept.get("exclusiveMaximum"))
    if low is None and not (isinstance(high, int | float) and high <= -LIMIT):
        kept["minimum"] = -LIMIT
    if high is None and not (isinstance(low, int | float) and low >= LIMIT):
        kept["maximum"] = LIMIT
    return kept
