"""The body of a chat completion: every field of the contract, typed and bounded.

Comes in: parsed JSON. Goes out: a checked `ChatBody`. What is not served is refused by name; what is ignored is only
what changes no answer (who asks, how to cache). Knows nothing of models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from afina.server.errors import ApiError, bad_request, no_such_chat_model, not_served
from afina.server.fields import as_text, too_deep
from afina.server.wire import Body

MOST_INT = 2**63 - 1
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]
Choices = Annotated[int, Field(ge=1, le=128)]
Seed = Annotated[int, Field(ge=-(2**63), le=MOST_INT)]
Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]
MOST_METADATA = 16


def _few(raw: Any) -> Any:
    """Counted before its items are looked at: pydantic would describe each of a million wrong ones."""
    if isinstance(raw, dict) and len(raw) > MOST_METADATA:
        context = {"field_type": "Dictionary", "max_length": MOST_METADATA, "actual_length": len(raw)}
        raise PydanticKnownError("too_long", context)
    return raw


Metadata = Annotated[dict[Key, Value], BeforeValidator(_few)]
# Stops at the first item that is no text.
Texts = Annotated[list[str], Field(fail_fast=True)]
# What a client says about itself, and how answers may be cached: nothing that an answer depends on.
Told = Annotated[str, Field(max_length=1000)]


class StreamOptions(Body):
    """include_obfuscation: padding against listeners; optional in the contract, none is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(Body):
    """Fields whose type depends on others (messages, tools, formats) are read where they are used."""

    model: str
    messages: list[Any]
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Choices | None = None
    stop: Any = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Seed | None = None
    response_format: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None

    user: Told | None = None
    safety_identifier: Told | None = None
    prompt_cache_key: Told | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    metadata: Metadata | None = None

    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    reasoning_effort: str | None = None
    modalities: Texts | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None

    @property
    def tokens_asked(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top(self) -> int | None:
        """As `Sampling.top_logprobs` wants it."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Raises ApiError for fields that do not go together or are not served."""
        check_model(self.model)
        check_depth(self.messages, self.tools, self.functions, self.response_format, self.tool_choice)
        self._check_served()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise bad_request(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
                "max_tokens",
                "invalid_parameter_combination",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise only_with("top_logprobs", "logprobs")
        if self.stream_options is not None and not self.stream:
            raise only_with("stream_options", "stream")

    def _check_served(self) -> None:
        for name, what in (
            ("audio", "Audio"),
            ("prediction", "Predicted output"),
            ("web_search_options", "Web search"),
            ("moderation", "Moderation"),
        ):
            if getattr(self, name) is not None:
                raise not_served(f"{what} ('{name}')", name)
        if self.modalities not in (None, ["text"]):
            raise not_served("A modality other than text ('modalities')", "modalities")
        if self.reasoning_effort not in (None, "none"):
            raise not_served("Reasoning before the answer ('reasoning_effort')", "reasoning_effort")
        if self.verbosity not in (None, "medium"):
            raise not_served(f"Verbosity '{self.verbosity}'", "verbosity")
        check_kept(self.store, self.service_tier)


def check_model(model: str) -> None:
    as_text(model, "model")
    if not model:
        raise bad_request("you must provide a model parameter", "model")
    if not model.isprintable() or len(model) > 500:
        raise no_such_chat_model(model[:500])


def check_depth(*values: Any) -> None:
    """Nothing here needs JSON that nests deeply; recursive readers would stumble over it."""
    for value in values:
        too_deep(value, "body")


def check_kept(store: bool | None, service_tier: str | None) -> None:
    if store:
        raise not_served("Keeping answers ('store': true)", "store")
    if service_tier not in (None, "auto", "default"):
        raise not_served(f"Service tier '{service_tier}'", "service_tier")


def only_with(name: str, other: str) -> ApiError:
    return bad_request(f"The '{name}' parameter is only allowed when '{other}' is enabled.", name)
