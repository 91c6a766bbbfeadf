"""The body of a response: every field of the contract, and its `input` items as messages.

Comes in: parsed JSON. Goes out: a checked `ResponseBody`, messages, and the calls that are allowed. What is not served
(kept responses, conversations, background, built-in tools) is refused by name. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from afina.core.chat import Message, Tool, ToolCall
from afina.server.chat_body import Count, Metadata, Share, Temperature, Texts, Told, check_depth, check_model, only_with
from afina.server.errors import bad_request, not_served
from afina.server.fields import Fields, array_too_long, as_list, as_text, empty_array, missing, wrong_type, wrong_value
from afina.server.messages import arguments
from afina.server.tools import MOST_TOOLS, Calling, allowed, check_names, function, named
from afina.server.wire import Body

LOGPROBS = "message.output_text.logprobs"
# Of things that no answer here can hold: asking for them is asking for nothing.
HARMLESS = {
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
}
NOT_TEXT = {"input_image": "Image input", "input_audio": "Audio input", "input_file": "File input"}
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


class TextOptions(Body):
    format: Any = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = None


class ResponseBody(Body):
    model: str
    input: Any = None
    instructions: str | None = None
    text: TextOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Texts | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    # auto: a conversation that does not fit may lose its beginning. Here it is refused, never cut in silence.
    truncation: Literal["auto", "disabled"] | None = None

    user: Told | None = None
    safety_identifier: Told | None = None
    prompt_cache_key: Told | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    reasoning: Any = None
    max_tool_calls: int | None = None
    context_management: Any = None
    moderation: Any = None
    access_programs: Any = None
    background_options: Any = None
    image: Any = None

    @property
    def top(self) -> int | None:
        """As `Sampling.top_logprobs` wants it: log-probabilities are sent only when they are included."""
        return (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or []) else None

    def check(self) -> None:
        """Raises ApiError for fields that do not go together or are not served."""
        check_model(self.model)
        check_depth(self.input, self.tools, self.tool_choice, self.text.format if self.text else None)
        if self.instructions is not None:
            as_text(self.instructions, "instructions")
        self._check_served()
        if self.stream_options is not None and not self.stream:
            raise only_with("stream_options", "stream")
        for i, name in enumerate(self.include or []):
            if name not in HARMLESS and name != LOGPROBS:
                raise wrong_value(f"include[{i}]", name, sorted({*HARMLESS, LOGPROBS}))

    def _check_served(self) -> None:
        for name, what in (
            ("previous_response_id", "Going on from a kept response"),
            ("conversation", "Kept conversations"),
            ("prompt", "Kept prompts"),
            ("context_management", "Context management"),
            ("moderation", "Moderation"),
            ("max_tool_calls", "A limit of built-in tool calls"),
            ("access_programs", "Access programs"),
            ("background_options", "Background options"),
            ("image", "Image options"),
        ):
            if getattr(self, name) is not None:
                raise not_served(f"{what} ('{name}')", name)
        if self.background:
            raise not_served("Answering in the background ('background': true)", "background")
        if self.store:
            raise not_served("Keeping responses ('store': true)", "store")
        if self.service_tier not in (None, "auto", "default"):
            raise not_served(f"Service tier '{self.service_tier}'", "service_tier")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise not_served(f"Verbosity '{self.text.verbosity}'", "text.verbosity")
        self._check_reasoning()

    def _check_reasoning(self) -> None:
        if self.reasoning is None:
            return
        if not isinstance(self.reasoning, dict):
            raise wrong_type("reasoning", "an object", self.reasoning)
        asked = cast(dict[str, Any], self.reasoning)
        if any(value is not None and (key, value) != ("effort", "none") for key, value in asked.items()):
            raise not_served("Reasoning before the answer ('reasoning')", "reasoning")


# -- input ------------------------------------------------------------------------------------


def messages_of(body: ResponseBody) -> tuple[Message, ...]:
    """`instructions` as a system message, then the input. Raises ApiError that names the place."""
    before = () if body.instructions is None else (Message("system", body.instructions),)
    if body.input is None:
        raise missing("input")
    if isinstance(body.input, str):
        return (*before, Message("user", as_text(body.input, "input")))
    if not isinstance(body.input, list):
        raise wrong_type("input", "one of a string or array of items", body.input)
    items = as_list(body.input, "input")
    if not items:
        raise empty_array("input")
    messages: list[Message] = []
    for i, item in enumerate(items):
        _add(messages, item, f"input[{i}]")
    _check_outputs(messages)
    return (*before, *_turns(messages))


def _turns(messages: list[Message]) -> list[Message]:
    """Calls that follow each other are one turn, as they were when they were answered."""
    turns: list[Message] = []
    for is_calls, several in groupby(messages, lambda message: bool(message.tool_calls)):
        if is_calls:
            turns.append(Message("assistant", None, tool_calls=tuple(call for m in several for call in m.tool_calls)))
        else:
            turns += several
    return turns


def _add(messages: list[Message], value: Any, at: str) -> None:
    fields = Fields(value, at)
    kind = fields.text("type", "message", nullable=True) or "message"
    fields.ignore("id", "status", "phase")
    if kind == "message":
        messages.append(_message(fields))
    elif kind == "function_call":
        call = ToolCall(fields.text("call_id"), fields.text("name"), arguments(fields))
        fields.ignore("parsed_arguments")
        for key in ("namespace", "caller", "async"):
            fields.refuse(key, lambda param: not_served("This part of a function call", param))
        messages.append(Message("assistant", None, tool_calls=(call,)))
    elif kind == "function_call_output":
        called = fields.text("call_id")
        output = _text(fields, "output")
        fields.ignore("name")
        for key in ("namespace", "caller"):
            fields.refuse(key, lambda param: not_served("This part of a function call's output", param))
        messages.append(Message("tool", output, tool_call_id=called))
    else:
        raise not_served(f"An input item of the type '{kind[:60]}'", fields.name("type"))
    fields.done()


def _message(fields: Fields) -> Message:
    role = fields.one_of("role", ("user", "assistant", "system", "developer"))
    text = _text(fields, "content")
    return Message("system" if role == "developer" else role, text)


def _text(fields: Fields, key: str) -> str:
    """A text, or the texts of parts one after the other."""
    at = fields.name(key)
    value = fields.take(key)
    if isinstance(value, str):
        return as_text(value, at)
    if not isinstance(value, list):
        raise wrong_type(at, "one of a string or array of objects", value)
    return "".join(_part(part, f"{at}[{i}]") for i, part in enumerate(cast(list[Any], value)))


def _part(value: Any, at: str) -> str:
    fields = Fields(value, at)
    kind = fields.one_of("type", (*TEXT_PARTS, *NOT_TEXT))
    if kind in NOT_TEXT:
        raise not_served(f"{NOT_TEXT[kind]} ('{kind}')", fields.name("type"))
    text = fields.text(TEXT_PARTS[kind])
    fields.ignore("annotations", "logprobs", "parsed", "prompt_cache_breakpoint")
    fields.done()
    return text


def _check_outputs(messages: list[Message]) -> None:
    called = {call.id for message in messages for call in message.tool_calls}
    answered = {message.tool_call_id for message in messages if message.role == "tool"}
    for call_id in sorted(filter(None, answered - called)):
        raise bad_request(f"No tool call found for function call output with call_id {call_id}.", "input")
    for call_id in sorted(called - answered):
        raise bad_request(f"No tool output found for function call {call_id}.", "input")


# -- tools ------------------------------------------------------------------------------------


def tools_of(body: ResponseBody, *, ft: bool) -> list[Tool]:
    """The functions of a request; a built-in tool is refused by name."""
    if body.tools is None:
        return []
    items = as_list(body.tools, "tools")
    if len(items) > MOST_TOOLS:
        raise array_too_long("tools", MOST_TOOLS, len(items))
    tools = [_tool(item, f"tools[{i}]", ft) for i, item in enumerate(items)]
    check_names(tools, "tools")
    return tools


def calling_of(body: ResponseBody, tools: list[Tool]) -> Calling:
    """Which calls the answer may hold."""
    if not tools:
        if body.tool_choice not in (None, "auto", "none"):
            raise bad_request("Tool choices other than 'auto' and 'none' need 'tools'.", "tool_choice")
        return Calling()
    params = tuple(f"tools[{i}].parameters" for i in range(len(tools)))
    everything = Calling(tuple(tools), parallel=body.parallel_tool_calls is not False, params=params)
    return _chosen(everything, "auto" if body.tool_choice is None else body.tool_choice)


def _tool(value: Any, at: str, ft: bool) -> Tool:
    fields = Fields(value, at)
    kind = fields.text("type")
    if kind != "function":
        raise not_served(f"The tool '{kind[:60]}'", fields.name("type"))
    for key in ("allowed_callers", "async", "defer_loading", "output_schema"):
        if fields.take(key, None) not in (None, False, ["direct"]):
            raise not_served(f"'{key}' of a function", fields.name(key))
    return function(fields, ft=ft, strict_if_possible=True)


def _chosen(everything: Calling, choice: Any) -> Calling:
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise wrong_value("tool_choice", choice, ("none", "auto", "required"))
        return Calling() if choice == "none" else replace(everything, required=choice == "required")
    fields = Fields(choice, "tool_choice")
    kind = fields.text("type")
    if kind == "function":
        name = fields.text("name")
        fields.done()
        return named(everything, name, "tool_choice")
    if kind != "allowed_tools":
        raise not_served(f"The tool choice '{kind[:60]}'", "tool_choice.type")
    mode = fields.one_of("mode", ("auto", "required"))
    names = fields.each("tools", _allowed_name)
    fields.done()
    return allowed(everything, names, mode, "tool_choice.tools")


def _allowed_name(value: Any, at: str) -> str:
    fields = Fields(value, at)
    if fields.text("type") != "function":
        raise not_served("A tool that is no function", fields.name("type"))
    return fields.text("name")
