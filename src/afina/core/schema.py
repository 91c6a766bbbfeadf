"""Output schemas: shorthand -> JSON Schema, what can be guaranteed, checking and reading of values.

Comes in: the recipe's `task.output` (shorthand, a JSON Schema, or a Pydantic model's). Goes out: one
normalised JSON Schema in which every keyword can be enforced while the model writes. A keyword that
cannot is refused by name: a guarantee that silently skips a rule is worse than none (vllm#53975).

The order of properties is the order in which they are written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from afina.core.errors import SchemaError

Schema = dict[str, Any]

ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly"}
ENFORCED = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
FORMATS = {"date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "hostname"}
SHORTHAND = re.compile(r"^(text|bool|int|number)(?:\((.*)\))?$")
RANGE = re.compile(r"^\s*(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)\s*$")
SHORTHAND_HELP = (
    "a list of labels, [[a, b]] for several labels at once, text, text(200), bool, int, int(0..10), "
    "number(0..1), or a mapping of fields"
)


@dataclass(frozen=True)
class Field:
    """A leaf of the schema that is predicted and scored on its own.

    path: dotted, "f1.polaridade"; "" when the whole answer is one value.
    labels: the values of an enum or boolean, in schema order; None for open values.
    multi: the value is an array of `labels`.
    """

    path: str
    schema: Schema
    labels: tuple[Any, ...] | None
    multi: bool = False

    @property
    def keys(self) -> list[str]:
        return self.path.split(".") if self.path else []


def without_annotations(schema: Schema) -> Schema:
    """The rules of a normalised schema alone: without titles, descriptions, examples."""
    kept = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    if "properties" in kept:
        kept["properties"] = {name: without_annotations(inner) for name, inner in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = without_annotations(kept["items"])
    if "anyOf" in kept:
        kept["anyOf"] = [without_annotations(branch) for branch in kept["anyOf"]]
    return kept


# -- shorthand --------------------------------------------------------------------------------


def from_shorthand(value: Any, where: str = "task.output") -> Schema:
    """Expand the recipe's shorthand. Raises SchemaError naming the place and what was wanted."""
    if isinstance(value, Mapping):
        if not value:
            raise SchemaError(f"{where}: found an empty mapping, expected at least one field.")
        properties, required = {}, []
        for key, inner in value.items():
            name = str(key).removesuffix("?")
            if not name or "." in name:
                raise SchemaError(f"{where}: field name {key!r} may not be empty or contain a dot. Rename it.")
            properties[name] = from_shorthand(inner, f"{where}.{name}")
            if not str(key).endswith("?"):
                required.append(name)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if isinstance(value, list | tuple):
        if len(value) == 1 and isinstance(value[0], list | tuple):
            return {"type": "array", "items": _enum(list(value[0]), where), "uniqueItems": True}
        return _enum(list(value), where)
    if isinstance(value, str) and (match := SHORTHAND.match(value.strip())):
        return _scalar(match[1], match[2], where)
    raise SchemaError(f"{where}: found {value!r}, expected {SHORTHAND_HELP}.")


def _enum(labels: list[Any], where: str) -> Schema:
    if not labels:
        raise SchemaError(f"{where}: found an empty list of labels, expected at least one.")
    for label in labels:
        if isinstance(label, bool) and True not in labels[:0]:
            raise SchemaError(
                f'{where}: YAML read a label as {label!r}. Put the labels in quotes ("yes", "no", "on"), '
                "or write `bool` for true and false."
            )
        if not isinstance(label, str | int | float):
            raise SchemaError(f"{where}: label {label!r} is no text or number. {SHORTHAND_HELP}.")
    if len(set(labels)) != len(labels):
        raise SchemaError(f"{where}: a label stands twice in {labels!r}. Remove one.")
    return {"enum": labels}


def _scalar(kind: str, argument: str | None, where: str) -> Schema:
    if kind == "bool" and argument is None:
        return {"type": "boolean"}
    if kind == "text":
        if argument is None:
            return {"type": "string"}
        if argument.strip().isdigit():
            return {"type": "string", "maxLength": int(argument)}
        raise SchemaError(f"{where}: found text({argument}), expected a length in characters, as in text(200).")
    if kind in ("int", "number"):
        schema: Schema = {"type": "integer" if kind == "int" else "number"}
        if argument is None:
            return schema
        if match := RANGE.match(argument):
            read = int if kind == "int" else float
            try:
                return {**schema, "minimum": read(match[1]), "maximum": read(match[2])}
            except ValueError:
                pass
        raise SchemaError(f"{where}: found {kind}({argument}), expected a range, as in {kind}(0..10).")
    raise SchemaError(f"{where}: found {kind}({argument}), expected {SHORTHAND_HELP}.")


# -- normalising and refusing -------------------------------------------------------------------


def normalise(schema: Any, where: str = "output") -> Schema:
    """A JSON Schema without references, in which every keyword is enforced.

    Raises SchemaError that names the first keyword, type or format that cannot be.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{where}: found {type(schema).__name__}, expected a JSON Schema object.")
    definitions = {**schema.get("$defs", {}), **schema.get("definitions", {})}
    body = {k: v for k, v in schema.items() if k not in ("$defs", "definitions")}
    return _normalise(body, where, definitions, ())


def _normalise(schema: Mapping[str, Any], where: str, definitions: Mapping[str, Any], seen: tuple[str, ...]) -> Schema:
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{where}: found {schema!r}, expected a JSON Schema object with a type.")
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        if name not in definitions:
            raise SchemaError(f"{where}: $ref {schema['$ref']!r} points to nothing under $defs.")
        if name in seen:
            raise SchemaError(f"{where}: $ref {name!r} contains itself; recursive schemas cannot be guaranteed to end.")
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return _normalise({**definitions[name], **rest}, where, definitions, (*seen, name))
    if "allOf" in schema and len(schema["allOf"]) == 1:
        rest = {k: v for k, v in schema.items() if k != "allOf"}
        return _normalise({**schema["allOf"][0], **rest}, where, definitions, seen)
    if "oneOf" in schema and "discriminator" not in schema and "anyOf" not in schema:
        schema = {**{k: v for k, v in schema.items() if k != "oneOf"}, "anyOf": schema["oneOf"]}
    kept = {k: schema[k] for k in ("title", "description") if k in schema}
    if "const" in schema:
        schema = {**{k: v for k, v in schema.items() if k != "const"}, "enum": [schema["const"]]}
    if "enum" in schema:
        return {**_normalise_enum(schema, where), **kept}
    if "anyOf" in schema:
        return {**_normalise_union(schema, where, definitions, seen), **kept}
    kinds = schema.get("type")
    if isinstance(kinds, list):
        rest = {k: v for k, v in schema.items() if k != "type"}
        branches = [{"type": k, **{n: v for n, v in rest.items() if n in ENFORCED.get(k, set())}} for k in kinds]
        _refuse_unknown(rest, set().union(*(ENFORCED.get(k, set()) for k in kinds)), where)
        return {**_normalise_union({"anyOf": branches}, where, definitions, seen), **kept}
    if kinds is None and "properties" in schema:
        kinds = "object"
    if kinds not in ENFORCED:
        raise SchemaError(f"{where}: type is {kinds!r}, expected one of {sorted(ENFORCED)}, or an enum.")
    _refuse_unknown({k: v for k, v in schema.items() if k != "type"}, ENFORCED[kinds], where)
    if kinds == "object":
        return {**_normalise_object(schema, where, definitions, seen), **kept}
    if kinds == "array":
        return {**_normalise_array(schema, where, definitions, seen), **kept}
    return {**_normalise_scalar(schema, kinds, where), **kept}


def _refuse_unknown(schema: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for keyword in schema:
        if keyword not in allowed and keyword not in ANNOTATIONS:
            raise SchemaError(
                f"{where}: the schema keyword {keyword!r} cannot be enforced here, and Afina never ignores one. "
                f"Remove it, or express it with {sorted(allowed) or 'enum'}."
            )


def _normalise_enum(schema: Mapping[str, Any], where: str) -> Schema:
    _refuse_unknown({k: v for k, v in schema.items() if k not in ("enum", "type")}, set(), where)
    values = list(schema["enum"])
    if not values:
        raise SchemaError(f"{where}: enum is empty, expected at least one value.")
    if any(isinstance(v, dict | list) for v in values):
        raise SchemaError(
            f"{where}: an enum value is an object or array; only text, numbers, booleans and null can be."
        )
    texts = [json.dumps(v, ensure_ascii=False) for v in values]
    if len(set(texts)) != len(texts):
        raise SchemaError(f"{where}: a value stands twice in the enum {values!r}. Remove one.")
    return {"enum": values}


def _normalise_union(
    schema: Mapping[str, Any], where: str, definitions: Mapping[str, Any], seen: tuple[str, ...]
) -> Schema:
    _refuse_unknown({k: v for k, v in schema.items() if k != "anyOf"}, set(), where)
    branches = [_normalise(b, f"{where}.anyOf[{i}]", definitions, seen) for i, b in enumerate(schema["anyOf"])]
    flat: list[Schema] = []
    for branch in branches:
        flat += branch.get("anyOf", [branch])
    if len(flat) == 1:
        return flat[0]
    if all("enum" in b or b.get("type") in ("null", "boolean") for b in flat):
        values: list[Any] = []
        for branch in flat:
            inner = branch.get("enum") or ([None] if branch["type"] == "null" else [True, False])
            values += [v for v in inner if json.dumps(v) not in {json.dumps(x) for x in values}]
        return {"enum": values}
    starts: dict[str, int] = {}
    for index, branch in enumerate(flat):
        for start in _first_characters(branch):
            if start in starts:
                raise SchemaError(
                    f"{where}: two branches of anyOf ({starts[start]} and {index}) begin alike, so the choice between "
                    "them cannot be enforced as it is written. Merge them, or make one a field of its own."
                )
            starts[start] = index
    return {"anyOf": flat}


def _first_characters(schema: Schema) -> set[str]:
    if "enum" in schema:
        return {json.dumps(v, ensure_ascii=False)[0] for v in schema["enum"]}
    kind = schema["type"]
    return {"object": {"{"}, "array": {"["}, "string": {'"'}, "boolean": {"t", "f"}, "null": {"n"}}.get(
        kind, set("-0123456789")
    )


def _normalise_object(
    schema: Mapping[str, Any], where: str, definitions: Mapping[str, Any], seen: tuple[str, ...]
) -> Schema:
    properties = schema.get("properties")
    if not properties:
        raise SchemaError(
            f"{where}: an object without properties; free-form objects cannot be scored. Name its fields."
        )
    if schema.get("additionalProperties") not in (None, False):
        raise SchemaError(f"{where}: the schema keyword 'additionalProperties' may only be false. Name every field.")
    required = list(schema.get("required", []))
    for name in required:
        if name not in properties:
            raise SchemaError(f"{where}: {name!r} is required but is not among the properties {list(properties)}.")
    return {
        "type": "object",
        "properties": {
            name: _normalise(inner, f"{where}.{name}", definitions, seen) for name, inner in properties.items()
        },
        "required": [name for name in properties if name in required],
        "additionalProperties": False,
    }


def _normalise_array(
    schema: Mapping[str, Any], where: str, definitions: Mapping[str, Any], seen: tuple[str, ...]
) -> Schema:
    if "items" not in schema:
        raise SchemaError(f"{where}: an array without items. Say what its items are.")
    items = _normalise(schema["items"], f"{where}.items", definitions, seen)
    low, high = _count(schema, "minItems", where), _count(schema, "maxItems", where)
    result: Schema = {"type": "array", "items": items}
    if schema.get("uniqueItems"):
        if not all(isinstance(v, str) for v in items.get("enum", [0])):
            raise SchemaError(
                f"{where}: the schema keyword 'uniqueItems' can be enforced only for an enum of texts. Remove it."
            )
        result["uniqueItems"] = True
        high = min(high if high is not None else len(items["enum"]), len(items["enum"]))
    if low is not None and high is not None and low > high:
        raise SchemaError(f"{where}: minItems {low} is above maxItems {high}.")
    return result | ({"minItems": low} if low else {}) | ({"maxItems": high} if high is not None else {})


def _count(schema: Mapping[str, Any], key: str, where: str) -> int | None:
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaError(f"{where}: {key} is {value!r}, expected a whole number of at least 0.")
    return value


def _normalise_scalar(schema: Mapping[str, Any], kind: str, where: str) -> Schema:
    result: Schema = {"type": kind} | {k: schema[k] for k in ENFORCED[kind] if k in schema}
    if kind == "string":
        if "format" in result and result["format"] not in FORMATS:
            raise SchemaError(f"{where}: format {result['format']!r} cannot be enforced; known: {sorted(FORMATS)}.")
        low, high = _count(schema, "minLength", where), _count(schema, "maxLength", where)
        if low is not None and high is not None and low > high:
            raise SchemaError(f"{where}: minLength {low} is above maxLength {high}.")
        if "pattern" in result:
            try:
                re.compile(result["pattern"])
            except re.error as error:
                raise SchemaError(
                    f"{where}: pattern {result['pattern']!r} is no regular expression: {error}."
                ) from error
    for low_key in ("minimum", "exclusiveMinimum"):
        for high_key in ("maximum", "exclusiveMaximum"):
            if low_key in result and high_key in result:
                low, high = result[low_key], result[high_key]
                if low > high or (low == high and "exclusive" in low_key + high_key):
                    raise SchemaError(f"{where}: no number lies between {low_key} {low} and {high_key} {high}.")
    return result


# -- reading -----------------------------------------------------------------------------------


def integer_range(schema: Schema, at_most: int = 64) -> list[int] | None:
    """The values of a small closed integer range, else None: those are chosen like labels."""
    if schema.get("type") != "integer":
        return None
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None or high is None:
        return None
    first = int(-(-low // 1)) + (1 if "minimum" not in schema and low == int(low) else 0)
    last = int(high // 1) - (1 if "maximum" not in schema and high == int(high) else 0)
    return list(range(first, last + 1)) if 0 < last - first + 1 <= at_most else None


def labels_of(schema: Schema) -> tuple[Any, ...] | None:
    """The finite values of a schema, in order, or None."""
    if "enum" in schema:
        return tuple(schema["enum"])
    if schema.get("type") == "boolean":
        return (True, False)
    if schema.get("type") == "null":
        return (None,)
    values = integer_range(schema)
    return tuple(values) if values else None


def fields(schema: Schema, path: str = "") -> Iterator[Field]:
    """The leaves that are scored, in the order in which they are written."""
    if schema.get("type") == "object":
        for name, inner in schema["properties"].items():
            yield from fields(inner, f"{path}.{name}" if path else name)
    elif schema.get("type") == "array" and labels_of(schema["items"]) is not None:
        yield Field(path, schema, labels_of(schema["items"]), multi=True)
    else:
        yield Field(path, schema, labels_of(schema))


def get(value: Any, path: str) -> Any:
    """The value at a dotted path; None where an optional field is absent."""
    for key in path.split(".") if path else []:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def assign(target: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, creating the objects on the way."""
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value


def dumps(value: Any) -> str:
    """The one text of a value: no white space, Unicode kept, keys in the order given."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any, schema: Schema) -> Any:
    """The value with its keys (and unique array items) in the order in which they are written."""
    if schema.get("type") == "object":
        return {k: canonical(value[k], inner) for k, inner in schema["properties"].items() if k in value}
    if schema.get("type") == "array":
        if schema.get("uniqueItems"):
            return [label for label in labels_of(schema["items"]) or () if label in value]
        return [canonical(item, schema["items"]) for item in value]
    if "anyOf" in schema:
        for branch in schema["anyOf"]:
            if not problems(value, branch):
                return canonical(value, branch)
    return value


def problems(value: Any, schema: Schema, where: str = "") -> str | None:
    """None if the value is of the schema, else one line: where, found, wanted."""
    place = where or "answer"
    if "enum" in schema:
        if any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in schema["enum"]):
            return None
        return f"{place!r} is {value!r}, expected one of {schema['enum']}"
    if "anyOf" in schema:
        found = [problems(value, branch, where) for branch in schema["anyOf"]]
        return None if None in found else found[0]
    kind = schema["type"]
    if kind == "object":
        if not isinstance(value, Mapping):
            return f"{place!r} is {value!r}, expected an object"
        for name in schema["required"]:
            if name not in value:
                return f"{place!r} lacks {name!r}"
        for name, inner in value.items():
            if name not in schema["properties"]:
                return f"{place!r} has {name!r}, which the schema does not know"
            if found := problems(inner, schema["properties"][name], f"{where}.{name}" if where else name):
                return found
        return None
    if kind == "array":
        return _array_problems(value, schema, where, place)
    return _scalar_problems(value, schema, kind, place)


def _array_problems(value: Any, schema: Schema, where: str, place: str) -> str | None:
    if not isinstance(value, list):
        return f"{place!r} is {value!r}, expected a list"
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return (
            f"{place!r} has {len(value)} items, expected {schema.get('minItems', 0)} to {schema.get('maxItems', '∞')}"
        )
    if schema.get("uniqueItems") and len({dumps(v) for v in value}) != len(value):
        return f"{place!r} holds an item twice: {value!r}"
    return next((p for i, v in enumerate(value) if (p := problems(v, schema["items"], f"{where}[{i}]"))), None)


def _scalar_problems(value: Any, schema: Schema, kind: str, place: str) -> str | None:
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{place!r} is {value!r}, expected {kind}"
    if kind == "string":
        return _text_problems(str(value), schema, place)
    if kind in ("integer", "number"):
        return _number_problems(cast(float, value), schema, place)
    return None


def _text_problems(value: str, schema: Schema, place: str) -> str | None:
    low, high = schema.get("minLength", 0), schema.get("maxLength", len(value))
    if not low <= len(value) <= high:
        return f"{place!r} has {len(value)} characters, expected {low} to {schema.get('maxLength', 'any number')}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{place!r} is {value!r}, expected a text that matches {schema['pattern']}"
    return None


def _number_problems(value: float, schema: Schema, place: str) -> str | None:
    if not math.isfinite(value):
        return f"{place!r} is {value!r}, expected a finite number"
    low = value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", -math.inf)
    high = value > schema.get("maximum", value) or value >= schema.get("exclusiveMaximum", math.inf)
    if low or high:
        bounds = {k: v for k, v in schema.items() if "imum" in k}
        return f"{place!r} is {value!r}, expected a number within {bounds}"
    return None


def coerce(raw: Any, schema: Schema, labels: Mapping[str, Any] | None = None, separator: str = ",") -> Any:
    """A table cell as a value of the schema: label mapping, then the type's usual spellings.

    raw: text from a CSV, or an already typed value from JSON or Parquet.
    labels: raw text -> label, applied first. Labels match by text, then without regard to case.
    Returns the value unchanged where it cannot be read; `problems` then says what is wrong.
    """
    if isinstance(raw, str):
        raw = raw.strip()
    if labels is not None and not isinstance(raw, list | dict):
        raw = labels.get(str(raw), raw)
    if schema.get("type") == "array":
        if isinstance(raw, str):
            text = raw.strip()
            if text.startswith("["):
                try:
                    raw = json.loads(text)
                except ValueError:
                    return raw
            else:
                raw = [part.strip() for part in text.split(separator) if part.strip()]
        if isinstance(raw, list):
            items = [coerce(item, schema["items"], labels, separator) for item in raw]
            return canonical(items, schema) if all(not problems(i, schema["items"]) for i in items) else items
        return raw
    if isinstance(raw, str) and schema.get("type") in ("object",) and raw.startswith("{"):
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    finite = labels_of(schema)
    if finite is not None and schema.get("type") != "integer":
        return _match_label(raw, finite)
    if isinstance(raw, str) and schema.get("type") in ("integer", "number"):
        try:
            number = float(raw)
            return int(number) if number == int(number) and schema["type"] == "integer" else number
        except (ValueError, OverflowError):
            return raw
    if "anyOf" in schema:
        for branch in schema["anyOf"]:
            value = coerce(raw, branch, labels, separator)
            if not problems(value, branch):
                return value
        return raw
    if schema.get("type") == "integer" and isinstance(raw, float) and raw.is_integer():
        return int(raw)
    if schema.get("type") == "string" and isinstance(raw, int | float) and not isinstance(raw, bool):
        return str(raw)
    return raw


TRUE_TEXTS = {"true", "1", "1.0", "yes", "sim", "verdadeiro", "s", "y", "t"}
FALSE_TEXTS = {"false", "0", "0.0", "no", "não", "nao", "falso", "n", "f"}


def _match_label(raw: Any, finite: tuple[Any, ...]) -> Any:
    for label in finite:
        if raw == label and isinstance(raw, bool) == isinstance(label, bool):
            return label
    text = str(raw).strip().lower()
    for label in finite:
        if label is not None and not isinstance(label, bool) and str(label).lower() == text:
            return label
    if True in finite and text in TRUE_TEXTS:
        return True
    if False in finite and text in FALSE_TEXTS:
        return False
    if None in finite and text in ("", "null", "none"):
        return None
    return raw
