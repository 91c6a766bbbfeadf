"""The tools of a request, and which calls its answer may hold.

Comes in: the JSON of `tools`, `tool_choice`, and of the deprecated `functions` and `function_call`. Goes out:
`core.chat` tools whose schemas keep the contract's rules, and a `Calling`. Knows nothing of messages or of what the
engine can write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from afina.core.chat import Tool
from afina.server.errors import ApiError, bad_request, not_served
from afina.server.fields import (
    Fields,
    array_too_long,
    as_list,
    empty_array,
    string_too_long,
    too_deep,
    unknown,
    wrong_pattern,
    wrong_type,
    wrong_value,
)
from afina.server.strict_schema import BrokenRuleError, check, check_size

NAME = re.compile(r"^[a-zA-Z0-9_-]+$")
MOST_TOOLS, MOST_NAME = 128, 64
EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Calling:
    """Which calls an answer may hold.

    tools: those that are shown and may be called; none of them when calls are forbidden.
    required: the answer is calls, not text. only: the one function that is called. old: asked for with the deprecated
    `functions`, so the answer is a `function_call`. params: where each tool's schema stands, for refusals.
    """

    tools: tuple[Tool, ...] = ()
    required: bool = False
    only: str | None = None
    parallel: bool = True
    old: bool = False
    params: tuple[str, ...] = ()


def calling(tools: Any, choice: Any, parallel: bool | None, functions: Any, old_choice: Any, *, ft: bool) -> Calling:
    """What a request says about tools. ft: the model is a fine-tuned one, with the shorter list of schema keywords."""
    if functions is not None or old_choice is not None:
        if tools is not None or choice is not None:
            raise bad_request("'functions' cannot be used together with 'tools'.", "functions")
        return _old_calling(functions, old_choice, ft)
    if tools is None:
        for name, value in (("tool_choice", choice), ("parallel_tool_calls", parallel)):
            if value is not None and value != "none":
                message = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
                raise bad_request(message, name)
        return Calling()
    listed = _several("tools", as_list(tools, "tools"))
    read = [tool(item, f"tools[{i}]", ft=ft) for i, item in enumerate(listed)]
    check_names(read, "tools")
    params = tuple(f"tools[{i}].function.parameters" for i in range(len(read)))
    everything = Calling(tuple(read), parallel=parallel is not False, params=params)
    return chosen(everything, "auto" if choice is None else choice)


def _several(param: str, items: list[Any]) -> list[Any]:
    if not items:
        raise empty_array(param)
    if len(items) > MOST_TOOLS:
        raise array_too_long(param, MOST_TOOLS, len(items))
    return items


def tool(value: Any, at: str, *, ft: bool) -> Tool:
    fields = Fields(value, at)
    if fields.one_of("type", ("function", "custom")) == "custom":
        raise not_served("A custom tool", fields.name("type"))
    found = function(Fields(fields.mapping("function"), fields.name("function")), ft=ft)
    fields.done()
    return found


def function(fields: Fields, *, ft: bool, strict_if_possible: bool = False) -> Tool:
    """One function's definition, whose schema is checked when it is strict. Refuses what is left of `fields`.

    strict_if_possible: a function that does not say is strict if its schema allows it.
    """
    name = fields.text("name")
    if not NAME.match(name):
        raise wrong_pattern(fields.name("name"), NAME.pattern)
    if len(name) > MOST_NAME:
        raise string_too_long(fields.name("name"), MOST_NAME, len(name))
    description = fields.text("description", "", nullable=True) or ""
    strict = fields.flag("strict", None)
    parameters = fields.take("parameters", None)
    param = fields.name("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong_type(param, "an object", parameters)
    too_deep(parameters, param)
    fields.done()
    why = _broken_rule(parameters or EMPTY, True, ft) if strict or strict_if_possible else None
    if strict is None and strict_if_possible:
        strict, why = why is None, None
    why = why or _broken_rule(parameters or EMPTY, False, ft)
    if why is not None:
        raise refused_tool(name, why, param)
    return Tool(name, description, parameters or None, strict is True)


def _broken_rule(parameters: dict[str, Any], strict: bool, ft: bool) -> str | None:
    if parameters.get("type") != "object":
        return f"""schema must be a JSON Schema of 'type: "object"', got 'type: "{parameters.get("type")}"'."""
    try:
        if strict:
            check(parameters, fine_tuned=ft)
        check_size(parameters)
    except BrokenRuleError as broken:
        return str(broken)
    return None


def refused_tool(name: str, why: str, param: str) -> ApiError:
    return bad_request(f"Invalid schema for function '{name}': {why}", param, "invalid_function_parameters")


def check_names(tools: list[Tool], param: str) -> None:
    seen: set[str] = set()
    for one in tools:
        if one.name in seen:
            raise bad_request(f"Invalid '{param}': the function '{one.name}' is defined twice.", param, "invalid_value")
        seen.add(one.name)


def chosen(all_of_them: Calling, choice: Any) -> Calling:
    """The calls that a `tool_choice` leaves."""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise wrong_value("tool_choice", choice, ("none", "auto", "required"))
        return Calling() if choice == "none" else replace(all_of_them, required=choice == "required")
    fields = Fields(choice, "tool_choice")
    kind: Literal["function", "allowed_tools", "custom"]
    kind = fields.one_of("type", ("function", "allowed_tools", "custom"))
    if kind == "custom":
        raise not_served("A custom tool", "tool_choice.type")
    if kind == "function":
        inner = Fields(fields.mapping("function"), "tool_choice.function")
        name = inner.text("name")
        inner.done()
        fields.done()
        return named(all_of_them, name, "tool_choice")
    inner = Fields(fields.mapping("allowed_tools"), "tool_choice.allowed_tools")
    fields.done()
    mode = inner.one_of("mode", ("auto", "required"))
    names = inner.each("tools", _allowed_name)
    inner.done()
    return allowed(all_of_them, names, mode, "tool_choice.allowed_tools.tools")


def _allowed_name(value: Any, at: str) -> str:
    fields = Fields(value, at)
    fields.one_of("type", ("function",))
    return Fields(fields.mapping("function"), f"{at}.function").text("name")


def named(all_of_them: Calling, name: str, param: str) -> Calling:
    if all(one.name != name for one in all_of_them.tools):
        known = param.partition(".")[0]
        raise bad_request(f"Tool choice '{name}' not found in 'tools' parameter.", known)
    return replace(all_of_them, required=True, only=name)


def allowed(all_of_them: Calling, names: list[str], mode: str, param: str) -> Calling:
    if not names:
        raise empty_array(param)
    for name in dict.fromkeys(names):
        named(all_of_them, name, "tool_choice")
    kept = [(t, p) for t, p in zip(all_of_them.tools, all_of_them.params, strict=True) if t.name in names]
    tools, params = tuple(t for t, _ in kept), tuple(p for _, p in kept)
    return replace(all_of_them, tools=tools, params=params, required=mode == "required")


def _old_calling(functions: Any, choice: Any, ft: bool) -> Calling:
    """The deprecated way: `functions` and `function_call`, one call an answer."""
    if functions is None:
        raise bad_request(
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified.",
            "function_call",
        )
    listed = _several("functions", as_list(functions, "functions"))
    read: list[Tool] = []
    for i, item in enumerate(listed):
        fields = Fields(item, f"functions[{i}]")
        if isinstance(item, dict) and "strict" in item:
            raise unknown(fields.name("strict"))
        read.append(function(fields, ft=ft))
    check_names(read, "functions")
    params = tuple(f"functions[{i}].parameters" for i in range(len(read)))
    everything = Calling(tuple(read), parallel=False, old=True, params=params)
    if choice is None or choice == "auto":
        return everything
    if choice == "none":
        return Calling(old=True)
    if isinstance(choice, str):
        raise wrong_value("function_call", choice, ("none", "auto"))
    fields = Fields(choice, "function_call")
    name = fields.text("name")
    fields.done()
    if all(one.name != name for one in read):
        raise bad_request(
            f"Invalid value for 'function_call': no function named '{name}' was specified.", "function_call"
        )
    return replace(everything, required=True, only=name)
