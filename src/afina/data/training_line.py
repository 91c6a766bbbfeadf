"""One line of a fine-tuning file -> what is learned from it: the rules of the fine-tuning API, one by one.

Comes in: the bytes of a line. Goes out: a Conversation, a Preference or a Completion; or LineError with the first
thing that is wrong. Nothing else is raised, whatever the bytes. Knows nothing of files, line numbers and jobs.

What the API accepts and we cannot learn (images, audio) is refused, never dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from afina.core.chat import Completion, Conversation, Message, Preference, Role, Tool, ToolCall

Format = Literal["fine-tune-chat", "fine-tune-preference", "fine-tune-completion"]
Example = Conversation | Preference | Completion

ROLES = ("system", "developer", "user", "assistant", "tool", "function")  # the last is deprecated, with functions
MAX_DEPTH = 100  # of nested values; deeper ones are an attack, or no training data
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
SURROGATE = re.compile("[\ud800-\udfff]")
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class LineError(Exception):
    """What is wrong with a line, to be read behind 'Example 100, '."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises LineError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = "UTF-16" if raw.startswith(UTF16) else f"no UTF-8 (byte {error.start + 1})"
        raise LineError(f"is {what}, expected UTF-8 text") from error
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise LineError(f"is no valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise LineError("is nested too deeply") from error
    except ValueError as error:
        raise LineError(f"is no usable JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise LineError(f"is {_kind(value)}, expected a JSON object")
    _require_sane(value, look_at_texts=b"\\ud" in raw or b"\\uD" in raw)
    return value


def format_of(value: Mapping[str, Any]) -> Format | None:
    """The format that the keys of a line speak of; None if of none."""
    if "messages" in value:
        return "fine-tune-chat"
    if "preferred_output" in value or "non_preferred_output" in value:
        return "fine-tune-preference"
    if "prompt" in value or "completion" in value:
        return "fine-tune-completion"
    return None


def parse_example(value: Mapping[str, Any], expected: Format) -> Example:
    """What is learned from a line's object. Raises LineError."""
    return PARSERS[expected](value)


# -- the three kinds of line -----------------------------------------------------------------------


def _chat(value: Mapping[str, Any]) -> Conversation:
    _known(value, ("messages", "tools", "parallel_tool_calls", "functions"), "")
    conversation = _conversation(value, "")
    messages = conversation.messages
    if not any(message.role == "assistant" for message in messages):
        raise LineError("has no message of the assistant; there is nothing to learn from")
    if messages[-1].role != "assistant":
        raise LineError(f"ends with a message of the role '{messages[-1].role}'; the last one must be the assistant's")
    return conversation


def _preference(value: Mapping[str, Any]) -> Preference:
    _known(value, ("input", "preferred_output", "non_preferred_output"), "")
    asked = value.get("input")
    if not isinstance(asked, dict):
        raise LineError(f"'input' is {_kind(asked)}, expected an object with 'messages'")
    _known(asked, ("messages", "tools", "parallel_tool_calls"), "input ")
    conversation = _conversation(asked, "input ")
    if any(message.role == "assistant" for message in conversation.messages):
        raise LineError("'input' holds a message of the assistant; only one turn is supported")
    return Preference(conversation, _output(value, "preferred_output"), _output(value, "non_preferred_output"))


def _output(value: Mapping[str, Any], key: str) -> Message:
    messages = value.get(key)
    if not isinstance(messages, list) or len(messages) != 1:
        raise LineError(f"'{key}' is {_kind(messages)}, expected a list with one message of the assistant")
    message = _message(messages[0], f"{key} message 1")
    if message.role != "assistant":
        raise LineError(f"'{key}' holds a message of the role '{message.role}', expected the assistant's")
    if message.tool_calls or message.content is None:
        raise LineError(f"'{key}' holds no text; only text is supported")
    return message


def _completion(value: Mapping[str, Any]) -> Completion:
    _known(value, ("prompt", "completion"), "")
    for key in ("prompt", "completion"):
        if not isinstance(value.get(key), str):
            raise LineError(f"'{key}' is {_kind(value.get(key, ABSENT))}, expected text")
    return Completion(value["prompt"], value["completion"])


PARSERS: Mapping[Format, Callable[[Mapping[str, Any]], Example]] = {
    "fine-tune-chat": _chat,
    "fine-tune-preference": _preference,
    "fine-tune-completion": _completion,
}


# -- messages --------------------------------------------------------------------------------------


def _conversation(value: Mapping[str, Any], where: str) -> Conversation:
    messages = value.get("messages", ABSENT)
    if not isinstance(messages, list) or not messages:
        raise LineError(f"{where}'messages' is {_kind(messages)}, expected a list with at least one message")
    parallel = value.get("parallel_tool_calls", ABSENT)
    if parallel is not ABSENT and not isinstance(parallel, bool):
        raise LineError(f"{where}'parallel_tool_calls' is {_kind(parallel)}, expected true or false")
    tools = value.get("tools")
    functions = value.get("functions")
    declared = (*_tools(tools, f"{where}tools"), *_functions(functions, f"{where}functions"))
    return Conversation(
        tuple(_message(message, f"{where}message {number}") for number, message in enumerate(messages, 1)), declared
    )


KEYS = {
    "assistant": ("content", "name", "weight", "tool_calls", "function_call", "refusal", "audio", "annotations"),
    "tool": ("content", "name", "tool_call_id"),
}
EMPTY_ONLY = ("refusal", "audio", "annotations")  # an answer of the API that was saved whole has them, empty


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise LineError(f"{where} is {_kind(value)}, expected an object")
    if "role" not in value:
        raise LineError(f"{where} Discriminator 'role' is missing in value")
    role = value["role"]
    if not isinstance(role, str) or role not in ROLES:
        expected = ", ".join(f"'{name}'" for name in ROLES[:-1])
        raise LineError(f"{where} 'role' is {_quote(role)}, expected one of {expected}")
    if role != "assistant" and "weight" in value:
        raise LineError(f"{where} has a 'weight', which only messages of the assistant may have")
    _known(value, ("role", *KEYS.get(role, ("content", "name"))), where + " ")
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        raise LineError(f"{where} 'name' is {_kind(name)}, expected text")
    if role == "assistant":
        return _assistant(value, name, where)
    content = _content(value.get("content", ABSENT), where)
    if role == "tool" and not isinstance(value.get("tool_call_id"), str):
        raise LineError(f"{where} 'tool_call_id' is {_kind(value.get('tool_call_id', ABSENT))}, expected text")
    if role == "function" and name is None:
        raise LineError(f"{where} 'name' is missing: which function answers?")
    known: dict[str, Role] = {"developer": "system", "function": "tool", "system": "system", "user": "user"}
    return Message(known.get(role, "tool"), content, name=name, tool_call_id=value.get("tool_call_id"))


def _assistant(value: Mapping[str, Any], name: str | None, where: str) -> Message:
    for key in EMPTY_ONLY:
        if value.get(key):
            raise LineError(f"{where} '{key}' is not empty; only text and tool calls can be learned")
    weight = value.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int) or weight not in (0, 1):
        raise LineError(f"{where} 'weight' is {_quote(weight)}, expected the integer 0 or 1")
    calls = _calls(value.get("tool_calls"), where)
    if value.get("function_call") is not None:
        calls = (*calls, _call_of(value["function_call"], "", f"{where} function_call"))
    content = value.get("content", ABSENT)
    if content in (ABSENT, None) and calls:
        return Message("assistant", None, name=name, tool_calls=calls, weight=weight)
    if content in (ABSENT, None):
        raise LineError(f"{where} 'content' is {_kind(content)}, which is allowed only beside tool_calls")
    return Message("assistant", _content(content, where), name=name, tool_calls=calls, weight=weight)


def _content(content: Any, where: str) -> str:
    """The text of a message; text parts are joined as they stand."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise LineError(f"{where} 'content' is {_kind(content)}, expected text or a list of text parts")
    texts: list[str] = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict):
            raise LineError(f"{where} part {number} is {_kind(part)}, expected an object")
        if part.get("type") != "text":
            raise LineError(
                f"{where} part {number} has the type {_quote(part.get('type'))}; only 'text' can be learned"
            )
        _known(part, ("type", "text"), f"{where} part {number} ")
        if not isinstance(part.get("text"), str):
            raise LineError(f"{where} part {number} 'text' is {_kind(part.get('text', ABSENT))}, expected text")
        texts.append(part["text"])
    return "".join(texts)


# -- tools -----------------------------------------------------------------------------------------


def _calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list) or not calls:
        raise LineError(f"{where} 'tool_calls' is {_kind(calls)}, expected a list with at least one call")
    found: list[ToolCall] = []
    for number, call in enumerate(calls, 1):
        place = f"{where} tool call {number}"
        if not isinstance(call, dict):
            raise LineError(f"{place} is {_kind(call)}, expected an object")
        _known(call, ("id", "type", "function", "index"), place + " ")
        if not isinstance(call.get("id"), str):
            raise LineError(f"{place} 'id' is {_kind(call.get('id', ABSENT))}, expected text")
        if call.get("type") != "function":
            raise LineError(f"{place} 'type' is {_quote(call.get('type'))}, expected 'function'")
        found.append(_call_of(call.get("function"), call["id"], place))
    return tuple(found)


def _call_of(function: Any, identity: str, where: str) -> ToolCall:
    if not isinstance(function, dict):
        raise LineError(f"{where} 'function' is {_kind(function)}, expected an object with name and arguments")
    _known(function, ("name", "arguments"), where + " ")
    name, arguments = _function_name(function, where), function.get("arguments")
    if not isinstance(arguments, str):
        raise LineError(f"{where} 'arguments' is {_kind(arguments)}, expected JSON text")
    try:
        value = parse_object(arguments.encode("utf-8", "surrogatepass"))
    except LineError as error:
        raise LineError(f"{where} 'arguments' {error}") from error
    assert isinstance(value, dict), "parse_object returns objects only"
    return ToolCall(identity, name, arguments)


def _tools(tools: Any, where: str) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise LineError(f"{where} is {_kind(tools)}, expected a list")
    found: list[Any] = []
    for number, tool in enumerate(tools):
        place = f"{where}[{number}]"
        if not isinstance(tool, dict):
            raise LineError(f"{place} is {_kind(tool)}, expected an object")
        _known(tool, ("type", "function"), place + " ")
        if tool.get("type") != "function":
            raise LineError(f"{place} 'type' is {_quote(tool.get('type'))}, expected 'function'")
        found.append(tool.get("function"))
    return _functions(found, where)


def _functions(functions: Any, where: str) -> tuple[Tool, ...]:
    if functions is None:
        return ()
    if not isinstance(functions, list):
        raise LineError(f"{where} is {_kind(functions)}, expected a list")
    found: list[Tool] = []
    for number, function in enumerate(functions):
        place = f"{where}[{number}]"
        if not isinstance(function, dict):
            raise LineError(f"{place} is {_kind(function)}, expected an object with a name")
        _known(function, ("name", "description", "parameters", "strict"), place + " ")
        description, parameters, strict = (function.get(key) for key in ("description", "parameters", "strict"))
        if description is not None and not isinstance(description, str):
            raise LineError(f"{place} 'description' is {_kind(description)}, expected text")
        if parameters is not None and not isinstance(parameters, dict):
            raise LineError(f"{place} 'parameters' is {_kind(parameters)}, expected a JSON Schema")
        if strict is not None and not isinstance(strict, bool):
            raise LineError(f"{place} 'strict' is {_kind(strict)}, expected true or false")
        found.append(Tool(_function_name(function, place), description or "", parameters, bool(strict)))
    return tuple(found)


def _function_name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name", ABSENT)
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        found = _quote(name) if isinstance(name, str) else _kind(name)
        raise LineError(f"{where} 'name' is {found}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")
    return name


# -- details ---------------------------------------------------------------------------------------


class _Absent:
    pass


ABSENT = _Absent()


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, list):
        return "an empty list" if not value else f"a list of {len(value)}"
    names = {_Absent: "missing", type(None): "null", str: "text", int: "a number", float: "a number", dict: "an object"}
    return names[type(value)]


def _quote(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return f"'{text[1:-1]}'"[:60] if isinstance(value, str) else text[:60]


def _known(value: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in value:
        if key not in keys:
            raise LineError(f"{where}has the unknown key {_quote(key)}; known here are {', '.join(keys)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_quote(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _require_sane(value: Any, *, look_at_texts: bool) -> None:
    """Raise LineError for values nested too deeply and, if asked, for texts with half a character."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
                if look_at_texts:
                    below += one.keys()
            elif isinstance(one, list):
                below += one
            elif look_at_texts and isinstance(one, str) and SURROGATE.search(one):
                raise LineError(f"holds half a character (a lone surrogate) in {_quote(one)}")
        if not below:
            return
        level = below
    raise LineError(f"is nested more than {MAX_DEPTH} levels deep")
