"""What an answer may be, and who keeps it so while it is written.

Comes in: a shape as a request names it. Goes out: a speaker, which is asked what may come next (`need`) and told what
was chosen (`take`). Structure that is known is a walk (grammar.py), so that what it forces costs no passes; any other
JSON Schema is llguidance's as a whole. A finished answer is valid by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np

from afina.core.chat import Tool
from afina.core.errors import SchemaError
from afina.core.schema import Schema, dumps, normalise
from afina.engine.bounds import ANY_OBJECT
from afina.engine.codec import Codec
from afina.engine.grammar import READING, Choice, Forced, Walk, open_values, walk
from afina.engine.toolcalls import OPENING, FreeText
from afina.engine.writer import Whole, Writer, check_grammar

# A walk of a schema with more places than this, references written out, would take longer than its answer.
WALKED_PLACES, WALKED_OPTIONAL, WALKED_REFERENCES = 3000, 48, 32
MOST_CALLS = 128
UNLIMITED = 1 << 30  # tokens of an open value; an answer's own limit ends it


@dataclass(frozen=True)
class Text:
    """Anything."""


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """A value of a JSON Schema. strict: was asked for by its rules, which are checked elsewhere; held in any case."""

    schema: dict[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class ToolCalls:
    """The text {"tool_calls":[{"name":..,"arguments":{..}}]}, of known functions and with valid arguments.

    required: else it may be free text as well. only: the one function that may be called. parallel: several calls.
    """

    tools: tuple[Tool, ...]
    required: bool
    only: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> list[Tool]:
        return [tool for tool in self.tools if self.only is None or tool.name == self.only]


Shape = Text | JsonObject | JsonSchema | ToolCalls
Ending = Literal["stop", "tool_calls"]


@dataclass(frozen=True)
class Need:
    """What may come next. ids: ascending; None: what `forbidden`, -inf or 0 for each id of the vocabulary, leaves."""

    ids: np.ndarray | None
    forbidden: np.ndarray | None = None


class Speaker(Protocol):
    """One answer while it is written. tokens: so far. ending: why it ends when nothing more is needed."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def ending(self) -> Ending: ...

    def need(self) -> Need | None:
        """Append what is forced, then say what may come next; None at the end. May raise SchemaError."""
        ...

    def take(self, token: int) -> bool:
        """Answer the last need. False if the token only ended something and was not written."""
        ...


def speaker(shape: Shape, codec: Codec, stop_ids: Iterable[int], vocabulary: int, lead: str = "") -> Speaker:
    """Who keeps an answer to its shape. Raises SchemaError.

    stop_ids: tokens that end free text. vocabulary: how many scores the model gives. lead: white space that the
    prompt's format puts before answers; forced where the answer is JSON.
    """
    if isinstance(shape, Text):
        return _Free(codec, stop_ids, vocabulary)
    if isinstance(shape, ToolCalls) and not shape.required:
        return _Either(shape, codec, stop_ids, vocabulary)
    ending: Ending = "tool_calls" if isinstance(shape, ToolCalls) else "stop"
    return _Structured(codec, _after(lead, _walk(shape)), ending)


def check_shape(shape: Shape, codec: Codec) -> None:
    """Build every grammar of a shape once. Raises SchemaError for what cannot be held to."""
    if isinstance(shape, Text):
        return
    schemas: list[Mapping[str, Any]] = []
    if isinstance(shape, JsonObject):
        schemas = [ANY_OBJECT]
    elif isinstance(shape, JsonSchema):
        schemas = [shape.schema]
    else:
        if not shape.callable:
            raise SchemaError(f"there is no function {shape.only!r} among the tools. Name one of them.")
        schemas = [tool.parameters for tool in shape.callable if tool.parameters]
    try:
        for schema in schemas:
            walked = _walked(schema)
            if walked is not None:
                check_grammar(codec, walked)
            writer = Writer(codec, _value(schema), UNLIMITED, max_items=None)
            writer.need()
    except RecursionError:
        raise SchemaError("the schema is nested too deeply. Flatten it.") from None


# -- walks ------------------------------------------------------------------------------------


def _walk(shape: JsonObject | JsonSchema | ToolCalls) -> Walk:
    if isinstance(shape, JsonObject):
        return _whole(ANY_OBJECT)
    return _value(shape.schema) if isinstance(shape, JsonSchema) else _calls(shape)


def _value(schema: Mapping[str, Any]) -> Walk:
    walked = _walked(schema)
    return _whole(schema) if walked is None else walk(walked, READING)


def _whole(schema: Mapping[str, Any], path: str = "") -> Walk:
    yield Whole(path, "json", dict(schema))


def _after(text: str, rest: Walk) -> Walk:
    if text:
        yield Forced(text, text)
    yield from rest


def _calls(shape: ToolCalls, begun: str = "") -> Walk:
    """begun: what is written already, a beginning of `forced_opening`."""
    tools = shape.callable
    yield Forced(forced_opening(shape)[len(begun) :])
    for count in range(1, MOST_CALLS + 1):
        tool = tools[0]
        if len(tools) > 1:
            names = tuple(f'{dumps(one.name)[1:]},"arguments":' for one in tools)
            picked = yield Choice("name", names, names, structural=True)
            assert picked is not None, "a structural choice needs its answer"
            tool = tools[picked]
        yield from _arguments(tool)
        again = '},{"name":"' + (_only(tools) if len(tools) == 1 else "")
        if not shape.parallel or count == MOST_CALLS:
            yield Forced("}]}")
            return
        more = yield Choice("", (again, "}]}"), (again, "}]}"), structural=True)
        if more == 1:
            return


def forced_opening(shape: ToolCalls) -> str:
    """How every text of calls begins."""
    return OPENING + ':[{"name":"' + (_only(shape.callable) if len(shape.callable) == 1 else "")


def _only(tools: list[Tool]) -> str:
    return f'{dumps(tools[0].name)[1:]},"arguments":'


def _arguments(tool: Tool) -> Walk:
    parameters = tool.parameters or {}
    if not parameters or parameters.get("properties") == {}:
        yield Forced("{}")
    else:
        yield from _value(parameters)


def _walked(schema: Mapping[str, Any]) -> Schema | None:
    """The schema as a walk takes it; None for one that no walk takes, or only at great length."""
    return _walked_text(dumps(schema))


@lru_cache(maxsize=256)
def _walked_text(text: str) -> Schema | None:
    schema = json.loads(text)
    try:
        if _places(schema, schema, ()) > WALKED_PLACES:
            return None
        walked = normalise(schema)
        list(open_values(walked))
    except (SchemaError, RecursionError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return None
    return walked


def _places(schema: Any, root: Mapping[str, Any], inside: tuple[str, ...]) -> int:
    """How many places a schema has with its references written out; more than WALKED_PLACES for one without end."""
    if isinstance(schema, list):
        total = 0
        for one in schema:
            total += _places(one, root, inside)
            if total > WALKED_PLACES:
                break
        return total
    if not isinstance(schema, Mapping):
        return 1
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rsplit("/", 1)[-1]
        plain = reference in (f"#/$defs/{name}", f"#/definitions/{name}") and not {"~", "%"} & set(name)
        if not plain or name in inside or len(inside) > WALKED_REFERENCES:
            return WALKED_PLACES + 1
        definitions = {**(root.get("$defs") or {}), **(root.get("definitions") or {})}
        return 1 + _places(definitions.get(name), root, (*inside, name))
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if len(properties) - len(required) > WALKED_OPTIONAL:
        return WALKED_PLACES + 1
    total = 1
    for key, value in schema.items():
        if key not in ("$defs", "definitions"):
            parts = list(value.values()) if key == "properties" else value
            total += _places(parts, root, inside)
            if total > WALKED_PLACES:
                break
    return total


# -- speakers ---------------------------------------------------------------------------------


class _Free:
    """Free text, until a token that ends it."""

    ending: Ending = "stop"

    def __init__(self, codec: Codec, stop_ids: Iterable[int], vocabulary: int) -> None:
        self.tokens: list[int] = []
        self._stops = frozenset(stop_ids)
        self.forbidden = codec.forbidden(self._stops, vocabulary)
        self._need = Need(None, self.forbidden)
        self._done = False

    def need(self) -> Need | None:
        return None if self._done else self._need

    def take(self, token: int) -> bool:
        if token in self._stops:
            self._done = True
        else:
            self.tokens.append(token)
        return not self._done


class _Structured:
    """JSON, written by a Writer along a walk."""

    def __init__(self, codec: Codec, events: Walk, ending: Ending) -> None:
        self.ending: Ending = ending
        self._writer = Writer(codec, events, UNLIMITED, max_items=None)

    @property
    def tokens(self) -> list[int]:
        return self._writer.tokens

    def need(self) -> Need | None:
        decision = self._writer.need()
        return None if decision is None else Need(decision.allowed)

    def take(self, token: int) -> bool:
        return self._writer.take(token)


class _Either:
    """Free text, or calls where it begins as they do."""

    def __init__(self, shape: ToolCalls, codec: Codec, stop_ids: Iterable[int], vocabulary: int) -> None:
        self._shape, self._codec = shape, codec
        self._free = _Free(codec, stop_ids, vocabulary)
        self._text: FreeText | None = FreeText(codec, forced_opening(shape), self._free.forbidden)
        self._calls: _Structured | None = None

    @property
    def ending(self) -> Ending:
        return "stop" if self._calls is None else "tool_calls"

    @property
    def tokens(self) -> list[int]:
        return self._free.tokens + ([] if self._calls is None else self._calls.tokens)

    def need(self) -> Need | None:
        if self._calls is not None:
            return self._calls.need()
        need = self._free.need()
        if need is None or self._text is None:
            return need
        return Need(None, self._text.forbidden())

    def take(self, token: int) -> bool:
        if self._calls is not None:
            return self._calls.take(token)
        if not self._free.take(token):
            return False
        if self._text is not None:
            begun = self._text.read(token)
            if begun is not None:
                self._calls = _Structured(self._codec, _calls(self._shape, begun), "tool_calls")
            if not self._text.undecided:
                self._text = None
        return True
