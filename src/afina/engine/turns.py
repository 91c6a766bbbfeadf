"""A conversation as turns of plain text: the same text in training and in serving, whatever the template.

Comes in: messages and tools (core/chat.py). Goes out: turns of three roles, system, user and assistant. Tools, calls
and results are written in our own plain-text way, so that every model can be taught them:

    tools        at the end of the system's text, one JSON object a line
    calls        the assistant's text {"tool_calls":[{"name":"f","arguments":{...}}]}; text beside calls is left out
    a result     a user's turn that begins "Result of f:"

Knows nothing of templates or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afina.core.chat import Conversation, Message, Tool, ToolCall
from afina.core.schema import dumps

TurnRole = Literal["system", "user", "assistant"]
TOOLS = (
    "You can call the functions below. To call, answer with nothing but "
    '{"tool_calls":[{"name":"the function\'s name","arguments":{its arguments}}]}. Results follow in the next turn.'
)


@dataclass(frozen=True)
class Part:
    """learned: by a training on this conversation."""

    text: str
    learned: bool = False


@dataclass(frozen=True)
class Turn:
    """What one side says. Several parts only where turns were joined of which not all are learned."""

    role: TurnRole
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    def stripped(self, left: bool, right: bool) -> Turn:
        """Without white space at its ends, as many templates have it."""
        parts = list(self.parts)
        if left:
            parts[0] = Part(parts[0].text.lstrip(), parts[0].learned)
        if right:
            parts[-1] = Part(parts[-1].text.rstrip(), parts[-1].learned)
        return Turn(self.role, tuple(parts))


def turns_of(conversation: Conversation) -> list[Turn]:
    """The turns in order, tools in the first of them."""
    turns: list[Turn] = []
    called: dict[str, str] = {}
    answering = False  # the turn before is one of results
    for message in conversation.messages:
        called |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            result = _turn("user", _result(message, called))
            if answering:
                turns[-1] = joined(turns[-1], result)
            else:
                turns.append(result)
        elif message.role == "assistant":
            turns.append(_turn("assistant", _said(message, conversation.tools), learned=bool(message.weight)))
        else:
            named = f"{message.name}: " if message.name else ""
            turns.append(_turn(message.role, named + (message.content or "")))
        answering = message.role == "tool"
    if not conversation.tools:
        return turns
    tools = _turn("system", tools_text(conversation.tools))
    if turns and turns[0].role == "system":
        return [joined(turns[0], tools), *turns[1:]]
    return [tools, *turns]


def joined(first: Turn, second: Turn) -> Turn:
    """Two turns of one role as one; the role is the second's."""
    parts = [*first.parts]
    for part in (Part("\n\n", first.parts[-1].learned and second.parts[0].learned), *second.parts):
        if parts[-1].learned == part.learned:
            parts[-1] = Part(parts[-1].text + part.text, part.learned)
        else:
            parts.append(part)
    return Turn(second.role, tuple(parts))


def tools_text(tools: Sequence[Tool]) -> str:
    """The tools as the system's text shows them."""
    return "\n".join([TOOLS, *(_tool(tool) for tool in tools)])


def calls_text(calls: Sequence[ToolCall], tools: Sequence[Tool] = ()) -> str:
    """Calls as the assistant writes them, arguments in the order of the function's schema."""
    orders = {tool.name: list((tool.parameters or {}).get("properties") or {}) for tool in tools}
    shown = [f'{{"name":{dumps(call.name)},"arguments":{_arguments(call, orders)}}}' for call in calls]
    return '{"tool_calls":[' + ",".join(shown) + "]}"


def _turn(role: TurnRole, text: str, *, learned: bool = False) -> Turn:
    # Half a surrogate pair, which JSON can say, is no character.
    return Turn(role, (Part(text.encode("utf-8", "replace").decode(), learned),))


def _said(message: Message, tools: Sequence[Tool]) -> str:
    return calls_text(message.tool_calls, tools) if message.tool_calls else message.content or ""


def _result(message: Message, called: dict[str, str]) -> str:
    name = message.name or called.get(message.tool_call_id or "", "")
    return f"Result of {name}:\n{message.content or ''}" if name else f"Result:\n{message.content or ''}"


def _tool(tool: Tool) -> str:
    shown: dict[str, Any] = {"name": tool.name}
    if tool.description:
        shown["description"] = tool.description
    return dumps(shown | {"parameters": tool.parameters or {"type": "object", "properties": {}}})


def _arguments(call: ToolCall, orders: dict[str, list[str]]) -> str:
    try:
        value = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments
    if isinstance(value, dict):
        order = [key for key in orders.get(call.name, ()) if key in value]
        value = {key: value[key] for key in [*order, *(key for key in value if key not in order)]}
    return dumps(value)
