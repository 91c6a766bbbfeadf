"""Strict schemas, formats, messages, tools and the reading of calls: what is decided around a model's writing."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from afina.core.chat import ToolCall
from afina.server.calls import CallReader
from afina.server.chat import joined
from afina.server.errors import ApiError
from afina.server.fields import MOST_DEPTH, depth_of
from afina.server.messages import conversation
from afina.server.strict_schema import RANGES, BrokenRuleError, check
from afina.server.structured import chat_format, loosened, text_format
from afina.server.tools import Calling, calling


def strict_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def refusal_of(schema: Any, *, fine_tuned: bool = False) -> str:
    with pytest.raises(BrokenRuleError) as caught:
        check(schema, fine_tuned=fine_tuned)
    return str(caught.value)


# -- strict schemas ---------------------------------------------------------------------------

TEXT = {"type": "string"}
REFUSED: list[tuple[Any, str]] = [
    (
        {"type": "object", "properties": {}},
        "In context=(), 'additionalProperties' is required to be supplied and to be false.",
    ),
    (
        {"type": "object", "properties": {"x": TEXT}, "additionalProperties": False},
        "In context=(), 'required' is required to be supplied and to be an array including every key in properties. "
        "Missing 'x'.",
    ),
    (
        strict_object(a=TEXT, x={"type": "object", "properties": {}, "additionalProperties": True}),
        "In context=('properties', 'x'), 'additionalProperties' is required to be supplied and to be false.",
    ),
    (
        strict_object(x={"type": "array", "items": {"type": "object", "properties": {"y": TEXT}, "required": []}}),
        "In context=('properties', 'x', 'items'), 'additionalProperties' is required to be supplied and to be false.",
    ),
    (
        {**strict_object(x=TEXT), "required": ["x", "y"]},
        "In context=(), 'required' is required to be supplied and to be an array including every key in properties. "
        "Extra required key 'y' supplied.",
    ),
    ({"type": "array", "items": TEXT}, """schema must be a JSON Schema of 'type: "object"', got 'type: "array"'."""),
    ({}, """schema must be a JSON Schema of 'type: "object"', got 'type: "None"'."""),
    ({**strict_object(), "anyOf": [strict_object()]}, "In context=(), 'anyOf' is not permitted."),
    (strict_object(x={"allOf": [TEXT]}), "In context=('properties', 'x'), 'allOf' is not permitted."),
    (strict_object(x={"oneOf": [TEXT]}), "In context=('properties', 'x'), 'oneOf' is not permitted."),
    (strict_object(x={**TEXT, "not": {}}), "In context=('properties', 'x'), 'not' is not permitted."),
    (strict_object(x={**TEXT, "if": {}}), "In context=('properties', 'x'), 'if' is not permitted."),
    (strict_object(x={**TEXT, "dependentRequired": {}}), "In context=('properties', 'x'), 'dependentRequired' is not"),
    (strict_object(x={}), "In context=('properties', 'x'), schema must have a 'type' key."),
    (strict_object(x={"type": "text"}), "In context=('properties', 'x'), 'text' is not valid under any"),
    (strict_object(x={"type": "array"}), "In context=('properties', 'x'), array schema missing items."),
    (strict_object(x=["string"]), "In context=('properties', 'x'), \"['string']\" is not a schema."),
    (strict_object(x={"enum": []}), "In context=('properties', 'x'), 'enum' must be an array with at least one value."),
    (strict_object(x={"anyOf": []}), "In context=('properties', 'x'), 'anyOf' must be an array with at least one"),
    (strict_object(x={"anyOf": [TEXT, {}]}), "In context=('properties', 'x', 'anyOf', '1'), schema must have a 'type'"),
    (strict_object(x={"$ref": "#/$defs/Gone"}), "In context=('properties', 'x'), reference can only point to"),
    (strict_object(x={"$ref": "http://x"}), "In context=('properties', 'x'), reference can only point to"),
    (
        {**strict_object(x={"$ref": "#/$defs/A"}), "$defs": {"A": {"type": "object"}}},
        "In context=('$defs', 'A'), 'additionalProperties' is required",
    ),
]


def test_each_broken_rule_has_its_sentence() -> None:
    for schema, sentence in REFUSED:
        assert refusal_of(schema).startswith(sentence), schema
    assert len(REFUSED) == 23


def test_ranges_are_refused_for_fine_tuned_models_alone() -> None:
    values: dict[str, Any] = {"pattern": "a", "format": "date"}
    for keyword in sorted(RANGES):
        schema = strict_object(x={**TEXT, keyword: values.get(keyword, 1)})
        check(schema, fine_tuned=False)
        expected = f"In context=('properties', 'x'), '{keyword}' is not permitted."
        assert refusal_of(schema, fine_tuned=True) == expected
    assert len(RANGES) == 11


def test_what_pydantic_and_the_sdk_write_is_strict() -> None:
    from openai.lib._pydantic import to_strict_json_schema

    class Part(BaseModel):
        name: str
        parts: list[Part] | None = None

    class Whole(BaseModel):
        """Documented."""

        first: Part
        second: Part | str
        kind: str = "plain"

    check(to_strict_json_schema(Whole), fine_tuned=True)
    check(to_strict_json_schema(Part), fine_tuned=True)


def test_annotations_are_tolerated() -> None:
    schema = strict_object(x={**TEXT, "title": "X", "default": "a", "description": "d"})
    check({**schema, "$schema": "http://json-schema.org/draft-07/schema#", "title": "T"}, fine_tuned=True)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = strict_object()
    for _ in range(levels - 1):
        schema = strict_object(x=schema)
    return schema


def test_limits_are_exact() -> None:
    check(nested(10), fine_tuned=False)
    assert refusal_of(nested(11)) == "Expected at most 10 levels of nesting, but found 11."
    check(strict_object(**{f"p{i}": TEXT for i in range(5000)}), fine_tuned=False)
    assert "5000 object properties" in refusal_of(strict_object(**{f"p{i}": TEXT for i in range(5001)}))
    check(strict_object(x={"enum": list(range(1000))}), fine_tuned=False)
    assert "1000 enum values" in refusal_of(strict_object(x={"enum": list(range(1001))}))
    check(strict_object(x={"enum": ["a" * 119_999]}), fine_tuned=False)
    assert "120000 characters" in refusal_of(strict_object(x={"enum": ["a" * 120_000]}))


def test_a_recursion_has_no_depth_and_a_trap_no_end() -> None:
    tree = {**strict_object(child={"anyOf": [{"$ref": "#"}, {"type": "null"}]})}
    check(tree, fine_tuned=True)
    deep: Any = TEXT
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    assert "levels of nesting" in refusal_of(strict_object(x=deep))
    # A chain of references, each of which is one level deeper.
    chain = {f"d{i}": strict_object(x={"$ref": f"#/$defs/d{i + 1}"}) for i in range(400)}
    chain["d400"] = strict_object()
    assert "levels of nesting" in refusal_of({**strict_object(x={"$ref": "#/$defs/d0"}), "$defs": chain})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "items", "anyOf", "enum", "$ref", "$defs", "x", "const"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["properties", "required", "$defs", "anyOf", "items", "enum"]), JSON))
def test_no_schema_breaks_the_check(schema: dict[str, Any]) -> None:
    for kind in ("object", "array"):
        with contextlib.suppress(BrokenRuleError):
            check({"type": kind, "additionalProperties": False, **schema}, fine_tuned=True)


def test_depth_is_counted_without_recursion() -> None:
    deep: Any = 1
    for _ in range(50_000):
        deep = [deep]
    assert depth_of(deep) == MOST_DEPTH + 1
    assert depth_of([[], {"a": [1]}]) == 3
    assert depth_of("text") == 0


# -- formats ----------------------------------------------------------------------------------


def refused(call: Any, *arguments: Any, **named: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments, **named)
    assert caught.value.status == 400
    return caught.value


def test_formats_are_read_and_refused_by_name() -> None:
    assert chat_format(None, ft=False).kind == "text"
    assert chat_format({"type": "json_object"}, ft=False).kind == "json_object"
    schema = strict_object(x=TEXT)
    asked = {"type": "json_schema", "json_schema": {"name": "N", "strict": True, "schema": schema}}
    wanted = chat_format(asked, ft=True)
    assert (wanted.kind, wanted.name, wanted.strict, wanted.schema) == ("json_schema", "N", True, schema)
    bad = refused(chat_format, {**asked, "json_schema": {"name": "N", "strict": True, "schema": TEXT}}, ft=False)
    assert bad.message.startswith("Invalid schema for response_format 'N': schema must be a JSON Schema of 'type:")
    assert (bad.param, bad.code) == ("response_format", None)
    error = refused(chat_format, {"type": "yaml"}, ft=False)
    assert (error.param, error.code) == ("response_format.type", "invalid_value")
    error = refused(chat_format, {"type": "json_schema", "json_schema": {"name": "ação", "schema": {}}}, ft=False)
    assert (error.param, error.code) == ("response_format.json_schema.name", "invalid_value")
    error = refused(chat_format, {"type": "json_schema", "json_schema": {"name": "a", "x": 1}}, ft=False)
    assert (error.param, error.code) == ("response_format.json_schema.x", "unknown_parameter")
    error = refused(chat_format, "json", ft=False)
    assert (error.param, error.code) == ("response_format", "invalid_type")
    flat = {"type": "json_schema", "name": "N", "schema": TEXT, "strict": True}
    assert refused(text_format, flat, ft=False).param == "text.format.schema"


def test_a_loose_schema_keeps_what_a_grammar_can_hold() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"oneOf": [TEXT, {"type": "null"}]}, "b": {"allOf": [{"type": "integer", "minimum": 1}]}},
        "patternProperties": {},
        "minProperties": 1,
    }
    assert loosened(schema) == {
        "type": "object",
        "properties": {"a": {"anyOf": [TEXT, {"type": "null"}]}, "b": {"type": "integer", "minimum": 1}},
        "additionalProperties": False,
    }


# -- messages ---------------------------------------------------------------------------------


def test_messages_of_every_role() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    read = conversation(
        [
            {"role": "developer", "content": "d"},
            {"role": "system", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]},
            {"role": "user", "content": "u", "name": "ana"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "r", "tool_call_id": "call_1"},
            {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "{"}},
            {"role": "function", "content": None, "name": "g"},
            {"role": "assistant", "refusal": "no"},
        ]
    )
    assert [message.role for message in read] == [
        "system", "system", "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert (read[1].content, read[2].name, read[7].content) == ("st", "ana", "no")
    assert read[3].tool_calls == (ToolCall("call_1", "f", "{}"),)
    assert (read[6].name, read[6].content) == ("g", "")


USER = {"role": "user", "content": "u"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
BAD_MESSAGES: list[tuple[Any, str | None, str | None]] = [
    ([], "messages", "empty_array"),
    ([1], "messages[0]", "invalid_type"),
    ([{}], "messages[0].role", "missing_required_parameter"),
    ([{"role": "robot", "content": ""}], "messages[0].role", "invalid_value"),
    ([{"role": None, "content": ""}], "messages[0].role", "invalid_type"),
    ([USER, {"role": "user"}], "messages[1].content", "missing_required_parameter"),
    ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": 3}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": []}], "messages[0].content", "empty_array"),
    ([{"role": "user", "content": "\ud800"}], "messages[0].content", "invalid_value"),
    ([{"role": "user", "content": "a", "weight": 1}], "messages[0].weight", "unknown_parameter"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "missing_required_parameter"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type", "unsupported_parameter"),
    ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0].type", "unsupported_parameter"),
    ([{"role": "assistant"}], "messages[0].content", "invalid_type"),
    ([{"role": "assistant", "content": "a", "audio": {"id": "x"}}], "messages[0].audio", "unsupported_parameter"),
    ([{"role": "tool", "content": "a"}], "messages[0].tool_call_id", "missing_required_parameter"),
    ([USER, {"role": "tool", "content": "a", "tool_call_id": "c"}], "messages.[1].role", None),
    ([CALLS], "messages", None),
    ([CALLS, USER], "messages", None),
    ([{"role": "assistant", "tool_calls": []}], "messages[0].tool_calls", "empty_array"),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}],
        "messages[0].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[" * 60_000}}]}],
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
]


def test_bad_messages_are_refused_where_they_are_bad() -> None:
    for messages, param, code in BAD_MESSAGES:
        error = refused(conversation, messages)
        assert (error.param, error.code) == (param, code), messages
    assert len(BAD_MESSAGES) == 24


# -- tools ------------------------------------------------------------------------------------


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": strict_object(a=TEXT), **more}}


def read_calling(
    tools: Any = None, choice: Any = None, parallel: bool | None = None, functions: Any = None, old: Any = None
) -> Calling:
    return calling(tools, choice, parallel, functions, old, ft=False)


def test_tool_choices() -> None:
    tools = [tool("f"), tool("g")]
    auto = read_calling(tools)
    assert ([t.name for t in auto.tools], auto.required, auto.only, auto.parallel) == (["f", "g"], False, None, True)
    assert read_calling(tools, "none").tools == ()
    assert read_calling(tools, "required", False) == Calling(auto.tools, True, None, False, False, auto.params)
    named = read_calling(tools, {"type": "function", "function": {"name": "g"}})
    assert (named.required, named.only) == (True, "g")
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    some = read_calling(tools, {"type": "allowed_tools", "allowed_tools": allowed})
    assert ([t.name for t in some.tools], some.required, some.params) == (
        ["g"],
        True,
        ("tools[1].function.parameters",),
    )
    old = read_calling(functions=[{"name": "f"}], old={"name": "f"})
    assert (old.old, old.only, old.required, old.parallel) == (True, "f", True, False)


def test_bad_tools_are_refused_where_they_are_bad() -> None:
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"tools": []}, "tools", "empty_array"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [tool("f")] * 129}, "tools", "array_above_max_length"),
        ({"tools": [tool("f"), tool("f")]}, "tools", "invalid_value"),
        ({"tools": [tool("ação")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("f" * 65)]}, "tools[0].function.name", "string_above_max_length"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", "invalid_type"),
        ({"tools": [tool("f", parameters=TEXT)]}, "tools[0].function.parameters", "invalid_function_parameters"),
        ({"choice": "auto"}, "tool_choice", None),
        ({"parallel": False}, "parallel_tool_calls", None),
        ({"tools": [tool("f")], "choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tools": [tool("f")], "choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", None),
        ({"tools": [tool("f")], "functions": [{"name": "f"}]}, "functions", None),
        ({"old": "auto"}, "function_call", None),
        ({"functions": [{"name": "f"}], "old": {"name": "g"}}, "function_call", None),
    ]
    for asked, param, code in cases:
        error = refused(read_calling, **asked)
        assert (error.param, error.code) == (param, code), asked
    assert len(cases) == 17
    loose = {"type": "object", "properties": {"a": TEXT}}
    error = refused(read_calling, [tool("x"), tool("f", parameters=loose, strict=True)])
    assert error.message == (
        "Invalid schema for function 'f': In context=(), 'additionalProperties' is required to be supplied and to be "
        "false."
    )
    assert (error.param, error.code) == ("tools[1].function.parameters", "invalid_function_parameters")


# -- reading calls ----------------------------------------------------------------------------


def test_calls_are_read_however_they_are_cut() -> None:
    asked = [("f", {"a": '}{"x', "b": [1, {"c": 2}]}), ('g"h', {}), ("k", {"ç": "\\"})]
    text = '{"tool_calls":[' + ",".join(
        f'{{"name":{json.dumps(name)},"arguments":{json.dumps(arguments)}}}' for name, arguments in asked
    ) + "]}"  # fmt: skip
    for seed in range(200):
        cut, reader, at, pieces = random.Random(seed), CallReader(), 0, []
        while at < len(text):
            end = at + cut.randint(1, 15)
            read = reader.feed(text[at:end])
            assert read.text == ""
            pieces += read.calls
            at = end
        assert reader.end().text == ""
        assert reader.is_calls
        assert joined(pieces) == [(name, json.dumps(arguments)) for name, arguments in asked]


def test_text_that_only_begins_like_calls_is_text() -> None:
    reader = CallReader()
    assert reader.feed('{"tool').text == ""
    assert reader.is_calls is None
    assert reader.feed('box":1}').text == '{"toolbox":1}'
    assert reader.feed("more").text == "more"
    assert CallReader().feed("Olá").text == "Olá"
    short = CallReader()
    assert (short.feed('{"tool_calls"').text, short.end().text) == ("", '{"tool_calls"')


def test_calls_that_were_cut_keep_what_there_is() -> None:
    reader = CallReader()
    read = reader.feed('{"tool_calls":[{"name":"f","arguments":{"a":"b')
    assert joined(list(read.calls)) == [("f", '{"a":"b')]
