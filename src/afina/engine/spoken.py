"""Answers as text, without a tokenizer: what a model should say for a value, and what a said text means.

For whoever else speaks to a model: training files of a hosted provider, other engines, bills. `say` writes
the walk of a gold value, `read` follows a text through the walk; `describe` tells a model that was not
tuned what is wanted. The formats are `json` and `compact` (docs/formats.md). Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from afina.core.errors import DataError
from afina.core.schema import Schema, canonical, dumps, labels_of, problems
from afina.engine.grammar import OPENINGS, READING, Choice, Forced, Open, is_opaque, walk
from afina.engine.spelling import END, LIST, OBJECT, SPACE, AnswerFormat, spell

SHOWN = 40  # characters of a faulty text that an error quotes


def say(schema: Schema, value: Any, answer_format: AnswerFormat) -> str:
    """What the model should say for a value; `value` in its canonical order.

    The compact text goes without the space before its first value.
    """
    said, answer = "", None
    events = walk(schema, value)
    try:
        while True:
            event = events.send(answer)
            answer = None
            if isinstance(event, Forced):
                said += event.said(answer_format)
            elif isinstance(event, Choice):
                assert event.gold is not None, "a gold answer decides everything"
                said += event.said(answer_format)[event.gold]
                answer = event.gold if event.structural else None
            else:
                assert event.gold is not None, "a gold answer decides everything"
                said += event.gold
    except StopIteration:
        return said.removeprefix(SPACE)


def read(schema: Schema, text: str, answer_format: AnswerFormat) -> Any:
    """The value that a said text means; white space around the text does not count. Inverse of `say`.

    Raises DataError for a text that is no answer: where, what was found, what was wanted.
    """
    value = _read_json(text) if answer_format == "json" else _read_compact(schema, text)
    if found := problems(value, schema):
        raise DataError(f"the answer {_quoted(text)} is not of the schema: {found}.")
    return canonical(value, schema)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_keys_once)


def _read_json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the answer {_quoted(text)} is no valid JSON: {error}.") from error


def _read_compact(schema: Schema, text: str) -> Any:
    """Follow the text through the walk, writing the JSON that it means."""
    rest = text.strip()
    if rest and not rest.startswith(END):
        rest = SPACE + rest
    written, answer = "", None
    events = walk(schema, READING)
    try:
        while True:
            event = events.send(answer)
            answer = None
            if isinstance(event, Open):
                piece, width = _open_value(event, rest)
            elif isinstance(event, Forced):
                piece, width = event.text, len(event.spoken)
                if not rest.startswith(event.spoken):
                    raise _unexpected(rest, [event.spoken], "the answer")
            else:
                chosen = next((i for i, word in enumerate(event.spoken) if rest.startswith(word)), None)
                if chosen is None:
                    raise _unexpected(rest, event.spoken, repr(event.path or "answer"))
                piece, width = event.options[chosen], len(event.spoken[chosen])
                answer = chosen if event.structural else None
            written += piece
            rest = rest[width:]
    except StopIteration:
        pass
    if rest:
        raise DataError(f"the answer {_quoted(text)} goes on after its end with {_quoted(rest)}.")
    return _read_json(written)


def _open_value(event: Open, rest: str) -> tuple[str, int]:
    """The open value that `rest` begins with, and its length."""
    try:
        _, end = _DECODER.raw_decode(event.opened + rest)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{event.path or 'answer'!r}: found {_quoted(rest)}, expected the JSON text of {event.schema}: {error}."
        ) from error
    width = end - len(event.opened)
    return rest[:width], width


def _unexpected(rest: str, wanted: list[str] | tuple[str, ...], where: str) -> DataError:
    found = _quoted(rest) if rest else "the end"
    shown = ", ".join(repr(word) for word in wanted[:12]) + (", …" if len(wanted) > 12 else "")
    return DataError(f"{where}: found {found}, expected one of {shown}.")


# -- what is wanted, in words -------------------------------------------------------------------


def describe(schema: Schema, answer_format: AnswerFormat = "json") -> str:
    """The answer's format for a prompt."""
    if answer_format == "json":
        return f"JSON: {_describe_json(schema)}"
    lines = list(_describe_compact(schema, ""))
    rules = ["Answer in one line with these values only, in this order, separated by spaces:", *lines]
    whole = "\n".join(lines)
    if "(optional)" in whole:
        rules.append(
            "Where an optional value may stand, first write the name of the next value that is there, "
            f"or {END} if there is none."
        )
    if "(list)" in whole:
        rules.append(f"A list ends with {END} where another item could follow.")
    return "\n".join(rules)


def _describe_json(schema: Schema) -> str:
    labels = labels_of(schema)
    if labels is not None:
        return " | ".join(dumps(label) for label in labels)
    if "anyOf" in schema:
        return " | ".join(_describe_json(branch) for branch in schema["anyOf"])
    if schema["type"] == "object":
        inner = ", ".join(f"{dumps(name)}: {_describe_json(value)}" for name, value in schema["properties"].items())
        return "{" + inner + "}"
    if schema["type"] == "array":
        return f"[{_describe_json(schema['items'])}, ...]"
    return {"string": '"..."', "integer": "0", "number": "0.0"}[schema["type"]]


def _describe_compact(schema: Schema, name: str, note: str = "") -> Iterator[str]:
    """A line for each value that is said, in order."""
    labels = labels_of(schema)
    label = f"{name}{note}: " if name or note else ""
    if labels is not None:
        if len(labels) > 1 or note:
            yield (label + _words(labels)) if len(labels) > 1 else f"{name}{note}"
    elif "anyOf" in schema:
        yield from _describe_union(schema, name, label)
    elif schema["type"] == "object":
        if note:
            yield label.rstrip()
        for key, inner in schema["properties"].items():
            optional = "" if key in schema["required"] else " (optional)"
            yield from _describe_compact(inner, f"{name}.{key}" if name else key, optional)
    elif schema["type"] == "array" and not is_opaque(schema["items"]):
        yield from _describe_list(schema, name, note)
    else:
        yield label + _open_form(schema)


def _words(labels: tuple[Any, ...]) -> str:
    return " | ".join(word.strip() for word in spell(tuple(dumps(label) for label in labels)))


def _open_form(schema: Schema) -> str:
    if schema.get("type") == "string":
        return '"text"'
    if schema.get("type") == "array":
        return _describe_json(schema)
    return _describe_json(schema) + END


def _describe_union(schema: Schema, name: str, label: str) -> Iterator[str]:
    finite = tuple(value for branch in schema["anyOf"] for value in labels_of(branch) or ())
    rest = [branch for branch in schema["anyOf"] if labels_of(branch) is None]
    if any(isinstance(v, int | float) and not isinstance(v, bool) for v in finite) or any(
        branch["type"] in ("integer", "number") for branch in rest
    ):
        yield label + _open_form(schema)
        return
    forms = [_words(finite)] if finite else []
    shown = {"object": f"{OBJECT.strip()}...", "array": f"{LIST.strip()}...", "string": '"text"'}
    yield label + " | ".join([*forms, *(shown[branch["type"]] for branch in rest)])
    for branch in rest:
        if branch["type"] != "string":
            yield f"{name} after {OPENINGS[branch['type']][1].strip()}".strip()
            yield from _describe_compact(branch, name)


def _describe_list(schema: Schema, name: str, note: str) -> Iterator[str]:
    items = schema["items"]
    labels = labels_of(items)
    place = f"{name} (list){note}".strip()
    if labels is not None:
        order = ", each at most once, in this order" if schema.get("uniqueItems") else ""
        yield f"{place}: any of {_words(labels)}{order}"
    elif items["type"] == "string":
        yield f'{place}: "text" for each item'
    else:
        opening = OBJECT if items["type"] == "object" else LIST
        yield f"{place}: {opening.strip()} before each item, which is"
        yield from _describe_compact(items, f"{name}[]")
