"""Does every answer that a specialist can give fit the schema that someone wants? The first difference, if any.

Both sides are normalised JSON Schemas (`core.schema`). Stricter than validation needs: a field that the wanted schema
does not name would be dropped in silence, so it is a difference, too.
"""

from __future__ import annotations

from typing import Any

from afina.core.schema import Schema, problems

AT_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
AT_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
SAME = ("pattern", "format", "uniqueItems")


def mismatch(answer: Schema, wanted: Schema, where: str = "") -> str | None:
    """Why answers of schema `answer` do not all fit `wanted`, or None if they do."""
    place = repr(where) if where else "the answer"
    labels = _labels(answer)
    if labels is not None:
        strange = next((label for label in labels if problems(label, wanted)), None)
        if strange is None and not (None in labels and problems(None, wanted)):
            return None
        return f"{place} may be {strange!r}, but {_in_words(wanted)} is wanted"
    if "anyOf" in answer:
        return next((found for branch in answer["anyOf"] if (found := mismatch(branch, wanted, where))), None)
    if "anyOf" in wanted:
        found = [mismatch(answer, branch, where) for branch in wanted["anyOf"]]
        return None if None in found else found[0]
    kind = answer["type"]
    if wanted.get("type") != kind and (kind, wanted.get("type")) != ("integer", "number"):
        return f"{place} is {_in_words(answer)}, but {_in_words(wanted)} is wanted"
    if kind == "object":
        return _object_mismatch(answer, wanted, where, place)
    for keyword in (*AT_LEAST, *AT_MOST, *SAME):
        if keyword in wanted and not _as_tight(keyword, answer.get(keyword), wanted[keyword]):
            return f"{place} has {keyword} {answer.get(keyword, 'not set')}, but {wanted[keyword]} is wanted"
    return mismatch(answer["items"], wanted["items"], f"{where}[]") if kind == "array" else None


def _object_mismatch(answer: Schema, wanted: Schema, where: str, place: str) -> str | None:
    for name in wanted["required"]:
        if name not in answer["required"]:
            known = "is not always there" if name in answer["properties"] else "is unknown to the specialist"
            return f"{place} needs the field {name!r}, which {known}"
    for name, inner in answer["properties"].items():
        path = f"{where}.{name}" if where else name
        if name not in wanted["properties"]:
            return f"{place} has the field {path!r}, which the wanted schema does not name"
        if found := mismatch(inner, wanted["properties"][name], path):
            return found
    return None


def _labels(schema: Schema) -> list[Any] | None:
    """The values of a schema that has few, or None."""
    return schema.get("enum") or {"boolean": [True, False], "null": [None]}.get(schema.get("type", ""))


def _as_tight(keyword: str, ours: Any, theirs: Any) -> bool:
    if ours is None or keyword in SAME:
        return ours == theirs
    return ours >= theirs if keyword in AT_LEAST else ours <= theirs


def _in_words(schema: Schema) -> str:
    if "enum" in schema:
        return f"one of {schema['enum']}"
    return " or ".join(_in_words(branch) for branch in schema["anyOf"]) if "anyOf" in schema else str(schema["type"])
