"""The messages of a chat request, as the engine knows them.

Comes in: the JSON of `messages`. Goes out: `core.chat` messages. What is no text (images, audio, files) is refused by
name. Knows nothing of templates or tokens.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from afina.core.chat import Message, ToolCall
from afina.server.errors import bad_request, not_served
from afina.server.fields import (
    MOST_DEPTH,
    Fields,
    as_list,
    as_text,
    depth_of,
    empty_array,
    wrong_type,
)

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
MOST_ARGUMENTS = 2**20
NOT_TEXT = {"image_url": "Image input", "input_audio": "Audio input", "file": "File input"}


def conversation(value: Any, at: str = "messages") -> tuple[Message, ...]:
    """Messages of a request. Raises ApiError that names the place."""
    items = as_list(value, at)
    if not items:
        raise empty_array(at)
    messages = [_message(item, f"{at}[{i}]") for i, item in enumerate(items)]
    _check_tool_turns(messages, at)
    return tuple(messages)


def _message(value: Any, at: str) -> Message:
    fields = Fields(value, at)
    role = fields.one_of("role", ROLES)
    if role == "assistant":
        message = _assistant(fields)
    elif role in ("tool", "function"):
        called = fields.text("tool_call_id") if role == "tool" else None
        name = fields.text("name", None) if role == "tool" else fields.text("name")
        message = Message("tool", _content(fields, nullable=role == "function") or "", name, tool_call_id=called)
    else:
        name = fields.text("name", None, nullable=True)
        message = Message("user" if role == "user" else "system", _content(fields), name)
    fields.done()
    return message


def _assistant(fields: Fields) -> Message:
    fields.refuse("audio", lambda param: not_served("Audio of an earlier answer", param))
    fields.ignore("annotations", "parsed")  # an answer's own keys, when it is sent back as it came
    calls = _calls(fields)
    refusal = fields.text("refusal", None, nullable=True)
    content = _content(fields, nullable=True, optional=True)
    if content is None:
        content = refusal
    if content is None and not calls:
        raise wrong_type(fields.name("content"), "one of a string or array of objects", None)
    return Message("assistant", content, fields.text("name", None, nullable=True), tuple(calls))


def _calls(fields: Fields) -> list[ToolCall]:
    old = fields.take("function_call", None)
    given = fields.take("tool_calls", None)
    if given is not None:
        at = fields.name("tool_calls")
        items = as_list(given, at)
        if not items:
            raise empty_array(at)
        return [_call(item, f"{at}[{i}]") for i, item in enumerate(items)]
    if old is None:
        return []
    call = Fields(old, fields.name("function_call"))
    found = ToolCall("", call.text("name"), arguments(call))
    call.done()
    return [found]


def _call(value: Any, at: str) -> ToolCall:
    fields = Fields(value, at)
    if fields.one_of("type", ("function", "custom"), "function") == "custom":
        raise not_served("A custom tool", fields.name("type"))
    fields.ignore("index")
    function = Fields(fields.mapping("function"), fields.name("function"))
    function.ignore("parsed_arguments")
    call = ToolCall(fields.text("id"), function.text("name"), arguments(function))
    function.done()
    fields.done()
    return call


def arguments(fields: Fields) -> str:
    """The JSON text of a call's arguments, which nobody has to have written well; only a trap is refused."""
    text = fields.text("arguments", most=MOST_ARGUMENTS)
    if text.count("[") + text.count("{") > MOST_DEPTH:
        with suppress(ValueError):
            try:
                value = json.loads(text)
            except RecursionError:
                value = None
            if value is None or depth_of(value) > MOST_DEPTH:
                param = fields.name("arguments")
                raise bad_request(
                    f"Invalid '{param}': it nests deeper than {MOST_DEPTH} levels.", param, "invalid_value"
                )
    return text


def _content(fields: Fields, *, nullable: bool = False, optional: bool = False) -> str | None:
    """Text, or the texts of the parts one after the other."""
    at = fields.name("content")
    value = fields.take("content", None) if optional else fields.take("content")
    if value is None and nullable:
        return None
    if isinstance(value, str):
        return as_text(value, at)
    if not isinstance(value, list):
        raise wrong_type(at, "one of a string or array of objects", value)
    parts = as_list(value, at)
    if not parts:
        raise empty_array(at)
    return "".join(_part(part, f"{at}[{i}]") for i, part in enumerate(parts))


def _part(value: Any, at: str) -> str:
    fields = Fields(value, at)
    kind = fields.one_of("type", ("text", "refusal", *NOT_TEXT))
    if kind in NOT_TEXT:
        raise not_served(f"{NOT_TEXT[kind]} ('{kind}')", fields.name("type"))
    text = fields.text(kind)
    fields.ignore("prompt_cache_breakpoint")
    fields.done()
    return text


def _check_tool_turns(messages: list[Message], at: str) -> None:
    """Every call is answered before anything else is said, and nothing is answered that was not called."""
    waiting: dict[str, None] = {}  # a set that keeps the order
    called: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id is not None:
            if message.tool_call_id not in called:
                raise bad_request(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                    f"{at}.[{i}].role",
                )
            waiting.pop(message.tool_call_id, None)
            continue
        if waiting:
            break
        waiting = {call.id: None for call in message.tool_calls if call.id}
        called = set(waiting) if message.role != "tool" else called
    if waiting:
        raise bad_request(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}",
            at,
        )
