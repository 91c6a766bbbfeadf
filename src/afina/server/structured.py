"""What an answer must look like: a request's `response_format` and tools -> the engine's shape.

Comes in: the JSON of `response_format` (chat) or `text.format` (responses), and the calls that are allowed. Goes out:
one shape that the engine keeps to while it writes, checked against the model's tokenizer. Knows nothing of messages but
that `json_object` wants them to speak of JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from afina.core.chat import Message
from afina.core.errors import SchemaError
from afina.engine.codec import Codec
from afina.engine.shapes import JsonObject, JsonSchema, Shape, Text, ToolCalls, check_shape
from afina.server.errors import ApiError, bad_request, not_served
from afina.server.fields import Fields, missing, string_too_long, too_deep, wrong_pattern
from afina.server.strict_schema import RANGES, STRUCTURE, BrokenRuleError, check, check_size
from afina.server.tools import NAME, Calling, refused_tool

MOST_NAME, MOST_REASON = 64, 500


@dataclass(frozen=True)
class Format:
    """A response format that was read and, if strict, checked. param: where its schema stands in the request."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool = False
    param: str = "response_format"
    description: str | None = None


def chat_format(value: Any, *, ft: bool) -> Format:
    """Of `response_format`. ft: the model is a fine-tuned one."""
    if value is None:
        return Format()
    fields = Fields(value, "response_format")
    kind = fields.one_of("type", ("json_object", "json_schema", "text"))
    if kind == "json_schema":
        inner = Fields(fields.mapping("json_schema"), "response_format.json_schema")
        fields.done()
        return _schema(inner, "response_format", ft=ft, wanted=False)
    fields.done()
    return Format(kind)


def text_format(value: Any, *, ft: bool) -> Format:
    """Of `text.format`, in which the schema stands beside the type."""
    if value is None:
        return Format(param="text.format")
    fields = Fields(value, "text.format")
    kind = fields.one_of("type", ("json_object", "json_schema", "text"))
    if kind == "json_schema":
        return _schema(fields, "text.format.schema", ft=ft, wanted=True)
    fields.done()
    return Format(kind, param="text.format")


def _schema(fields: Fields, param: str, *, ft: bool, wanted: bool) -> Format:
    """wanted: the schema may not be absent."""
    name = fields.text("name")
    at = fields.name("name")
    if not NAME.match(name):
        raise wrong_pattern(at, NAME.pattern)
    if len(name) > MOST_NAME:
        raise string_too_long(at, MOST_NAME, len(name))
    description = fields.text("description", None, nullable=True)
    strict = fields.flag("strict", None) is True
    schema = fields.mapping("schema", None)
    fields.done()
    if schema is None:
        if strict or wanted:
            raise missing(fields.name("schema"))
        return Format("json_object", name, param=param)
    too_deep(schema, fields.name("schema"))
    try:
        if strict:
            check(schema, fine_tuned=ft)
        check_size(schema)
    except BrokenRuleError as broken:
        raise refused_format(name, str(broken), param) from None
    return Format("json_schema", name, schema, strict, param, description)


def refused_format(name: str, why: str, param: str) -> ApiError:
    return bad_request(f"Invalid schema for response_format '{name}': {why}", param)


def check_json_is_named(texts: Iterable[str | None], *, param: str = "messages") -> None:
    """`json_object` without a word of JSON makes a model write white space for ever; the contract refuses it."""
    if not any("json" in (text or "").lower() for text in texts):
        where = "response_format" if param == "messages" else "text.format"
        raise bad_request(
            f"'{param}' must contain the word 'json' in some form, to use '{where}' of type 'json_object'.", param
        )


def shape_of(wanted: Format, calls: Calling, messages: tuple[Message, ...], codec: Codec) -> Shape:
    """The shape of the answer. Raises ApiError where the model cannot be held to it."""
    if wanted.kind == "json_object" and not calls.required:
        check_json_is_named((m.content for m in messages), param="messages" if wanted.param[0] == "r" else "input")
    if calls.tools:
        if wanted.kind != "text" and not calls.required:
            raise not_served(
                "Together with 'tools', a format of JSON (the answer would be one or the other; set 'tool_choice' to "
                "'none', 'required' or a function)",
                wanted.param.partition(".")[0],
            )
        return _calls_shape(calls, codec)
    if wanted.kind == "json_object":
        return JsonObject()
    if wanted.kind == "text" or wanted.schema is None:
        return Text()
    return _schema_shape(wanted, codec)


def _calls_shape(calls: Calling, codec: Codec) -> Shape:
    shape = ToolCalls(calls.tools, calls.required, calls.only, calls.parallel)
    why = _refusal(shape, codec)
    if why is None:
        return shape
    for tool, param in zip(calls.tools, calls.params, strict=True):
        alone = _refusal(ToolCalls((tool,), True, tool.name, False), codec)
        if alone is not None:
            raise refused_tool(tool.name, alone, param)
    raise bad_request(f"The tools cannot be used together: {why}", "tools", "invalid_value")


def _schema_shape(wanted: Format, codec: Codec) -> Shape:
    assert wanted.schema is not None
    shape = JsonSchema(wanted.schema, wanted.strict)
    why = _refusal(shape, codec)
    if why is None:
        return shape
    if not wanted.strict:  # no guarantee was asked for: what can be kept of the schema is
        looser = JsonSchema(cast(dict[str, Any], loosened(wanted.schema)), False)
        if _refusal(looser, codec) is None:
            return looser
    raise refused_format(wanted.name, why, wanted.param)


def _refusal(shape: Shape, codec: Codec) -> str | None:
    try:
        check_shape(shape, codec)
    except SchemaError as error:
        # llguidance's words go on with its state, or with a trace.
        return str(error).partition("\n")[0][:MOST_REASON]
    except ValueError:  # llguidance's, for numbers that it has no room for
        return "a number in it is too large."
    return None


def loosened(schema: Any) -> Any:
    """A schema with only the keywords that a grammar can hold; `oneOf` becomes `anyOf`, a lone `allOf` its content."""
    if not isinstance(schema, dict):
        return schema
    found = dict(cast(dict[str, Any], schema))
    alone = found.pop("allOf", None)
    if isinstance(alone, list) and len(cast(list[Any], alone)) == 1 and isinstance(alone[0], dict):
        found = {**cast(dict[str, Any], alone[0]), **found}
    if "oneOf" in found and "anyOf" not in found:
        found["anyOf"] = found.pop("oneOf")
    kept = {key: value for key, value in found.items() if key in STRUCTURE or key in RANGES}
    for group in ("properties", "$defs", "definitions"):
        if isinstance(kept.get(group), dict):
            kept[group] = {name: loosened(inner) for name, inner in kept[group].items()}
    if isinstance(kept.get("anyOf"), list):
        kept["anyOf"] = [loosened(inner) for inner in kept["anyOf"]]
    if "items" in kept:
        kept["items"] = loosened(kept["items"])
    if isinstance(kept.get("properties"), dict):
        kept["additionalProperties"] = False
    return kept
