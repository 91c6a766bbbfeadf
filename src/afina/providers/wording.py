"""A task's question and answer as chat messages: what a hosted model is trained on, and asked with.

Comes in: a task, a part of it, an example; or any schema. Goes out: messages and texts. The words are those of
`engine.renderer`; the instruction is the system's message, the named inputs are the user's, and a test says that joined
they are the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs
from afina.core.schema import Schema, dumps
from afina.core.task import Part, Task

KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
MESSAGES = list[dict[str, str]]
ONLY = "answer"  # the field that stands for an answer that is no object
# Keywords that fine-tuned hosted models do not take in a strict schema.
NOT_HOSTED = {
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minItems", "maxItems", "uniqueItems",
}  # fmt: skip
SOME_HOSTED = {"uniqueItems"}  # of them, what no provider takes


def question(task: Task, part: Part, inputs: Inputs) -> MESSAGES:
    """The messages that ask one part of a task."""
    shown = "\n".join(f"{name}: {text}" for name, text in part.shown(inputs))
    return [{"role": "system", "content": task.instruction}, {"role": "user", "content": shown}]


def answer_text(task: Task, part: Part, example: Example) -> str | None:
    """What the model should answer: JSON, or plain text; None if the example has no label for this part."""
    gold = task.part_answer(part, example)
    if gold is None or task.free_text:
        return gold
    return dumps(gold)


def training_lines(task: Task, examples: Sequence[Example]) -> list[dict[str, MESSAGES]]:
    """Every part of every labelled example, as a line of a fine-tuning file."""
    lines: list[dict[str, MESSAGES]] = []
    for example in examples:
        for part in task.parts:
            answer = answer_text(task, part, example)
            if answer is not None:
                asked = question(task, part, example.inputs)
                lines.append({"messages": [*asked, {"role": "assistant", "content": answer}]})
    return lines


def parse_answer(task: Task, part: Part, text: str) -> Any:
    """The value that an answer's text means. Raises DataError for a text that is no valid answer."""
    if task.free_text:
        return text.strip()
    try:
        value = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the answer is no JSON: {text[:80]!r}") from error
    value = without_nulls(value, part.schema)
    if (problem := schemas.problems(value, part.schema)) is not None:
        raise DataError(f"the answer does not fit the schema: {problem}")
    return schemas.canonical(value, part.schema)


def response_format(task: Task, part: Part) -> dict[str, Any] | None:
    """What holds a hosted model to the part's schema; None for plain text and answers that are no object."""
    if task.free_text or part.schema.get("type") != "object":
        return None
    return schema_format(part.schema)


def schema_format(schema: Schema, *, limits: bool = False) -> dict[str, Any]:
    """What holds a model to any schema; an answer that is no object comes as the one field of one.

    limits: of numbers, lengths and the like as well, which fine-tuned models and some providers do not take.
    """
    strict = _strict(as_object(schema), SOME_HOSTED if limits else NOT_HOSTED)
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": strict}}


def without_limits(strict: Schema) -> Schema:
    """A schema of `schema_format` without its limits."""
    return _strict(strict, NOT_HOSTED)


def as_object(schema: Schema) -> Schema:
    """The schema itself if it is an object's, else an object of one field: providers hold only objects to a schema."""
    if schema.get("type") == "object":
        return schema
    return {"type": "object", "properties": {ONLY: schema}, "required": [ONLY], "additionalProperties": False}


def with_schema(messages: Sequence[Mapping[str, str]], schema: Schema) -> MESSAGES:
    """The messages with a line more that says the schema, in the system's message or else before the first question."""
    line = f"Answer with one JSON object that fits this JSON Schema, and with nothing else: {dumps(schema)}"
    found = [dict(message) for message in messages]
    first = next((message for message in found if message["role"] in ("system", "user")), None)
    if first is None:
        return [{"role": "user", "content": line}, *found]
    texts = [first["content"], line] if first["role"] == "system" else [line, first["content"]]
    first["content"] = "\n\n".join(texts)
    return found


def without_nulls(value: Any, schema: Schema) -> Any:
    """Null stands for an absent optional field where strict mode had to ask for it."""
    if isinstance(value, list) and schema.get("type") == "array":
        return [without_nulls(item, schema["items"]) for item in value]
    if not isinstance(value, dict) or schema.get("type") != "object":
        return value
    properties: Mapping[str, Any] = schema["properties"]
    required = set(schema.get("required", []))
    return {
        key: without_nulls(inner, properties.get(key, {}))
        for key, inner in value.items()
        if inner is not None or key in required or key not in properties
    }


# -- details ---------------------------------------------------------------------------------------


def _strict(schema: Schema, dropped: Collection[str]) -> Schema:
    """The schema as strict mode wants it: every key required, optional ones may be null; without `dropped` keywords."""
    if (values := schemas.integer_range(schema)) is not None:  # a range that every provider keeps
        return {"type": "integer", "enum": values}
    found = {key: value for key, value in schema.items() if key not in dropped}
    if "enum" in found and "type" not in found and (kinds := {type(value) for value in found["enum"]}) <= set(KINDS):
        names = sorted(KINDS[kind] for kind in kinds)
        found["type"] = names[0] if len(names) == 1 else names
    if "anyOf" in found:
        found["anyOf"] = [_strict(branch, dropped) for branch in found["anyOf"]]
    if found.get("type") == "array":
        found["items"] = _strict(found["items"], dropped)
    if found.get("type") == "object":
        required = set(found.get("required", []))
        properties = {key: _strict(inner, dropped) for key, inner in found["properties"].items()}
        found["properties"] = {
            k: v if k in required else {"anyOf": [v, {"type": "null"}]} for k, v in properties.items()
        }
        found |= {"required": list(properties), "additionalProperties": False}
    return found


def no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
