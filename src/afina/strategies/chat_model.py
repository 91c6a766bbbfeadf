"""The seam between ways of asking and the models that are asked: structured questions in, checked values out.

A prompt strategy, a debate and a teacher run know only this. What stands behind it is an endpoint elsewhere
(`strategies.endpoint`) or a model on this machine (`strategies.local_chat`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from afina.core.predictor import Usage
from afina.core.schema import Schema

ChatMessage = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True)
class Ask:
    """One question.

    messages: the last one is the user's. schema: normalised, of the answer; None for plain text.
    temperature: 0 for the most likely answer. sample: number of the draw; questions that differ only in it are asked
    anew, equal ones never twice. It has no effect at temperature 0.
    """

    messages: tuple[ChatMessage, ...]
    schema: Schema | None
    temperature: float = 0.0
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason why there is none.

    value: of the schema, in its canonical order; text where there is no schema; None if and only if `error` is set.
    confidence: field path within the value -> probability of the chosen value; empty where the model does not say.
    latency_s: wall seconds of this question, those asked again after an invalid answer included.
    truncated: the question was longer than the model's context: its earliest examples were left out, or its end cut.
    """

    value: Any = None
    error: str | None = None
    confidence: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    latency_s: float = 0.0
    truncated: bool = False


class ChatModel(Protocol):
    """name: as shown in reports. describe: whether it must be told the answer's fields and labels."""

    name: str
    describe: bool

    def ask(self, asks: Sequence[Ask], *, label: str | None = None) -> list[Reply]:
        """A reply each, in order. label: what the progress bar says; None for no bar.

        Raises what concerns all of them (a key, money, the network); a question that fails by itself is an error
        inside its reply.
        """
        ...
