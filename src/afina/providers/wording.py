"""A task's question and answer as chat messages: what a hosted model is trained on, and asked with.

Comes in: a task, a part of it, an example. Goes out: messages and texts. The words are those of `engine.renderer`; the
instruction is the system's message, the named inputs are the user's, and a test says that joined they are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs
from afina.core.schema import Schema, dumps
from afina.core.task import Part, Task

MESSAGES = list[dict[str, str]]
# Keywords that fine-tuned hosted models do not take in a strict schema.
NOT_HOSTED = {
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minItems", "maxItems", "uniqueItems",
}  # fmt: skip


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
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the answer is no JSON: {text[:80]!r}") from error
    value = _without_nulls(value, part.schema)
    if (problem := schemas.problems(value, part.schema)) is not None:
        raise DataError(f"the answer does not fit the schema: {problem}")
    return schemas.canonical(value, part.schema)


def response_format(task: Task, part: Part) -> dict[str, Any] | None:
    """What holds a hosted model to the part's schema; None for plain text and answers that are no object."""
    if task.free_text or part.schema.get("type") != "object":
        return None
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": _strict(part.schema)},
    }


# -- details ---------------------------------------------------------------------------------------


def _strict(schema: Schema) -> Schema:
    """The schema as strict mode wants it: every key required, optional ones may be null; no limits."""
    found = {key: value for key, value in schema.items() if key not in NOT_HOSTED}
    if "anyOf" in found:
        found["anyOf"] = [_strict(branch) for branch in found["anyOf"]]
    if found.get("type") == "array":
        found["items"] = _strict(found["items"])
    if found.get("type") == "object":
        required = set(found.get("required", []))
        properties = {key: _strict(inner) for key, inner in found["properties"].items()}
        found["properties"] = {
            k: v if k in required else {"anyOf": [v, {"type": "null"}]} for k, v in properties.items()
        }
        found |= {"required": list(properties), "additionalProperties": False}
    return found


def _without_nulls(value: Any, schema: Schema) -> Any:
    """Null stands for an absent optional field where strict mode had to ask for it."""
    if not isinstance(value, dict) or schema.get("type") != "object":
        return value
    properties: Mapping[str, Any] = schema["properties"]
    required = set(schema.get("required", []))
    return {
        key: _without_nulls(inner, properties.get(key, {}))
        for key, inner in value.items()
        if inner is not None or key in required or key not in properties
    }


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
