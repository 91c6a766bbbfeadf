"""A conversation as data: messages, tools, and the two kinds of training line that hold them.

Comes in from a training file or a request that was checked already; goes out to whoever renders it. Knows nothing of
JSON bodies, templates or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: the JSON Schema of its arguments; None for no arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Message:
    """One turn. A developer's message has the role system, a function's the role tool.

    content: None only where there are tool_calls. weight: 0 for an assistant's message that is not learned.
    """

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    weight: int = 1


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools they may use. In training every assistant message with weight 1 is learned."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Preference:
    """For DPO: the answer to `asked` that is preferred, and the one that is not; each one assistant message."""

    asked: Conversation
    preferred: Message
    non_preferred: Message


@dataclass(frozen=True)
class Completion:
    """For models without turns: a text and what follows it."""

    prompt: str
    completion: str
