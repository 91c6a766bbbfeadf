"""OpenAI's rules for strict schemas: what a schema must say, and how large it may be.

Comes in: a schema from response_format or from a tool. Goes out: nothing, or `BrokenRuleError` with the sentence that
clients know. Knows nothing of requests or of what the engine can write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from afina.server.fields import MOST_DEPTH, depth_of

Schema = dict[str, Any]
Context = tuple[str, ...]

MOST_PROPERTIES, MOST_DEPTH_OF_OBJECTS, MOST_ENUM_VALUES, MOST_CHARACTERS = 5000, 10, 1000, 120_000
# Of any schema, strict or not: what compiles within seconds. The contract names no such limits.
MOST_PLACES, MOST_TEXT, MOST_PATTERNS, MOST_PATTERN_CHARACTERS = 50_000, 300_000, 100, 10_000

TOLERATED = {"title", "default", "$schema", "description", "examples", "$id", "$comment", "deprecated"}
STRUCTURE = {
    "type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "$ref", "$defs",
    "definitions",
}  # fmt: skip
# Kept for a base model, refused for a fine-tuned one, as the platform does.
RANGES = {
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minItems", "maxItems",
}  # fmt: skip
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


class BrokenRuleError(Exception):
    """A rule that the schema breaks, as the sentence that follows `Invalid schema for ...: `."""


def check(schema: Schema, *, fine_tuned: bool) -> None:
    """Raises BrokenRuleError for a schema that strict mode refuses. fine_tuned: the model's name begins with `ft:`."""
    if depth_of(schema) > MOST_DEPTH:
        raise BrokenRuleError(f"Expected at most {MOST_DEPTH_OF_OBJECTS} levels of nesting, but found more.")
    if schema.get("type") != "object":
        found = schema.get("type")
        raise BrokenRuleError(f"""schema must be a JSON Schema of 'type: "object"', got 'type: "{found}"'.""")
    _Check(schema, STRUCTURE | TOLERATED | (set() if fine_tuned else RANGES)).run()


def check_size(schema: Schema) -> None:
    """Raises BrokenRuleError for a schema of any kind that is too large to be held to, or that allows nothing."""
    places = characters = patterns = pattern_characters = 0
    rest: list[Any] = [schema]
    while rest and places <= MOST_PLACES:
        found = rest.pop()
        places += 1
        if isinstance(found, str):
            characters += len(found)
        elif isinstance(found, list):
            rest += cast(list[Any], found)[: MOST_PLACES + 1]
        elif isinstance(found, dict):
            at = cast(Schema, found)
            if at.get("type") == []:
                raise BrokenRuleError("'type' is an empty array, so no value fits the schema.")
            rest += at.values()
            characters += sum(map(len, at))
            named = at.get("patternProperties")
            written = [*cast(Schema, named)] if isinstance(named, dict) else []
            written += [at["pattern"]] if isinstance(at.get("pattern"), str) else []
            patterns += len(written)
            pattern_characters += sum(map(len, written))
    for count, most, what in (
        (places, MOST_PLACES, "values"),
        (characters, MOST_TEXT, "characters"),
        (patterns, MOST_PATTERNS, "patterns"),
        (pattern_characters, MOST_PATTERN_CHARACTERS, "characters in patterns"),
    ):
        if count > most:
            raise BrokenRuleError(f"Expected at most {most} {what} in the whole schema, but found more.")


class _Check:
    def __init__(self, root: Schema, allowed: set[str]) -> None:
        self.root, self.allowed = root, allowed
        self.properties = self.enum_values = self.characters = 0
        self.levels: dict[int, int] = {}

    def run(self) -> None:
        if "anyOf" in self.root:
            raise BrokenRuleError("In context=(), 'anyOf' is not permitted.")
        self.visit(self.root, ())
        if self.properties > MOST_PROPERTIES:
            raise BrokenRuleError(f"Expected at most {MOST_PROPERTIES} object properties, but found {self.properties}.")
        if self.enum_values > MOST_ENUM_VALUES:
            raise BrokenRuleError(
                f"Expected at most {MOST_ENUM_VALUES} enum values in total, but found {self.enum_values}."
            )
        if self.characters > MOST_CHARACTERS:
            raise BrokenRuleError(
                f"Expected at most {MOST_CHARACTERS} characters in property names, definition names, enum values and "
                f"const values, but found {self.characters}."
            )
        levels = self.levels_of(self.root, set())
        if levels > MOST_DEPTH_OF_OBJECTS:
            raise BrokenRuleError(f"Expected at most {MOST_DEPTH_OF_OBJECTS} levels of nesting, but found {levels}.")

    def visit(self, value: Any, at: Context) -> None:
        """One place of the schema, then those below it."""
        if not isinstance(value, dict):
            raise BrokenRuleError(f"In context={at}, {str(value)[:50]!r} is not a schema.")
        schema = cast(Schema, value)
        for keyword in schema:
            if keyword not in self.allowed:
                raise BrokenRuleError(f"In context={at}, '{keyword}' is not permitted.")
        if "$ref" in schema:
            self._reference(schema, at)
        elif "anyOf" not in schema and "enum" not in schema and "const" not in schema:
            self._types(schema, at)
        self._values(schema, at)
        kinds = schema.get("type")
        if kinds == "object" or (isinstance(kinds, list) and "object" in kinds) or "properties" in schema:
            self._object(schema, at)
        is_array = kinds == "array" or (isinstance(kinds, list) and "array" in kinds)
        if is_array and not isinstance(schema.get("items"), dict):
            raise BrokenRuleError(f"In context={at}, array schema missing items.")
        for inner, place in _below(schema, at):
            self.visit(inner, place)

    def _types(self, schema: Schema, at: Context) -> None:
        if "type" not in schema:
            raise BrokenRuleError(f"In context={at}, schema must have a 'type' key.")
        kinds = schema["type"]
        listed = cast(list[Any], kinds if isinstance(kinds, list) else [kinds])
        for kind in listed:
            if not isinstance(kind, str) or kind not in TYPES:
                raise BrokenRuleError(f"In context={at}, {kind!r} is not valid under any of the given schemas.")
        if not listed:
            raise BrokenRuleError(f"In context={at}, schema must have a 'type' key.")

    def _object(self, schema: Schema, at: Context) -> None:
        if schema.get("additionalProperties") is not False:
            raise BrokenRuleError(
                f"In context={at}, 'additionalProperties' is required to be supplied and to be false."
            )
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise BrokenRuleError(f"In context={at}, 'properties' is not an object.")
        names = cast(dict[str, Any], properties)
        required = schema.get("required", [] if not names else None)
        rule = "'required' is required to be supplied and to be an array including every key in properties."
        listed: list[Any] = cast(list[Any], required) if isinstance(required, list) else []
        present = {one for one in listed if isinstance(one, str)}
        absent = next((name for name in names if name not in present), None)
        if absent is not None or not isinstance(required, list):
            raise BrokenRuleError(f"In context={at}, {rule}" + (f" Missing '{absent}'." if absent is not None else ""))
        extra = next((name for name in listed if not isinstance(name, str) or name not in names), None)
        if extra is not None:
            raise BrokenRuleError(f"In context={at}, {rule} Extra required key '{str(extra)[:100]}' supplied.")
        self.properties += len(names)
        self.characters += sum(map(len, names))

    def _values(self, schema: Schema, at: Context) -> None:
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise BrokenRuleError(f"In context={at}, 'enum' must be an array with at least one value.")
            self.enum_values += len(cast(list[Any], values))
            self.characters += sum(len(v) for v in cast(list[Any], values) if isinstance(v, str))
        if isinstance(schema.get("const"), str):
            self.characters += len(schema["const"])
        for group in ("$defs", "definitions"):
            definitions = schema.get(group)
            if definitions is not None and not isinstance(definitions, dict):
                raise BrokenRuleError(f"In context={at}, '{group}' is not an object.")
            self.characters += sum(map(len, cast(dict[str, Any], definitions or {})))
        branches = schema.get("anyOf", [None])
        if not isinstance(branches, list) or not branches:
            raise BrokenRuleError(f"In context={at}, 'anyOf' must be an array with at least one schema.")

    def _reference(self, schema: Schema, at: Context) -> None:
        beside = [k for k in schema if k != "$ref" and k not in TOLERATED and k not in ("$defs", "definitions")]
        if beside:
            raise BrokenRuleError(f"In context={at}, $ref cannot have keywords {set(beside)}.")
        if resolve(self.root, schema["$ref"]) is None:
            raise BrokenRuleError(
                f"In context={at}, reference can only point to definitions defined at the top level of the schema."
            )

    def levels_of(self, schema: Any, open_places: set[int]) -> int:
        """Levels of objects below and with this one. A recursion counts once: its depth is the answer's, not ours."""
        if not isinstance(schema, dict) or id(schema) in open_places:
            return 0
        known = self.levels.get(id(schema))
        if known is not None:
            return known
        if len(open_places) > MOST_DEPTH:
            raise BrokenRuleError(f"Expected at most {MOST_DEPTH_OF_OBJECTS} levels of nesting, but found more.")
        here = cast(Schema, schema)
        inner = [s for s, place in _below(here, ()) if place[0] not in ("$defs", "definitions")]
        if "$ref" in here:
            inner.append(resolve(self.root, here["$ref"]))
        deepest = max((self.levels_of(s, open_places | {id(schema)}) for s in inner), default=0)
        self.levels[id(schema)] = deepest + ("properties" in here or here.get("type") == "object")
        return self.levels[id(schema)]


def resolve(root: Schema, reference: Any) -> Schema | None:
    """The schema that `#` or `#/$defs/Name` points to; None where it points to nothing."""
    if reference == "#":
        return root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = root
    for key in reference[2:].split("/"):
        name = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return None
        found = cast(Schema, found)[name]
    return cast(Schema, found) if isinstance(found, dict) else None


def _below(schema: Schema, at: Context) -> Iterator[tuple[Any, Context]]:
    for group in ("$defs", "definitions", "properties"):
        for name, inner in cast(dict[str, Any], schema.get(group) or {}).items():
            yield inner, (*at, group, name)
    if "items" in schema:
        yield schema["items"], (*at, "items")
    for i, inner in enumerate(cast(list[Any], schema.get("anyOf") or [])):
        yield inner, (*at, "anyOf", str(i))
