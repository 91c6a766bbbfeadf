"""A specialist as a LangChain chat model: `prompt | llm | parser` with the prompt and the parser that a chain has.

Comes in: messages, of which `prompt_text` reads the task's inputs. Goes out: the answer's JSON (or free text) as a
message, with confidences, what was read, and token counts. Knows nothing of tools and conversations; those are for a
chat model behind `afina serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from afina.core.errors import SchemaError
from afina.core.schema import Schema, normalise
from afina.core.task import Task
from afina.integrations.langchain.desk import Desk, desk_for
from afina.integrations.langchain.matching import mismatch
from afina.integrations.langchain.message import Reply
from afina.integrations.langchain.prompt_text import PromptError, checked, read_inputs, text_of
from afina.strategies.finetuned import Specialist

METHODS = ("json_schema", "json_mode", "function_calling")


class ChatAfina(BaseChatModel):
    """A specialist behind LangChain's chat interface.

    >>> llm = ChatAfina(run="runs/noticias")                                       # doctest: +SKIP
    >>> chain = prompt | llm | PydanticOutputParser(pydantic_object=Noticia)       # doctest: +SKIP

    The human message is read for the task's inputs: lines `name: text`, or a JSON object of them; for a task with one
    input, else the whole message. The prompt's own words are passed over; `response_metadata["inputs"]` is what was
    read. Beside it stand `confidence` (field path -> probability in [0, 1]), `probabilities`, `reasoning`, `truncated`
    and `latency_s`. The answer is made in one go, and `stream` hands it out in pieces afterwards. It is the most
    probable one, so temperature, stop words and the like are refused. A message that cannot be read: PromptError.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    run: str | Path | Specialist = Field(description="A run folder, a specialist folder, or a loaded Specialist.")
    batch_size: int | None = Field(default=None, ge=1, description="Messages answered together; None: the manifest's.")
    read: Callable[[str], Mapping[str, str]] | None = Field(
        default=None, exclude=True, description="From a message's text to the inputs, instead of the rules above."
    )
    include_reasoning: bool = Field(default=False, description="Write the reasoning field into the answer's JSON.")
    streaming: bool = Field(default=False, description="LangChain's: invoke hands out pieces to callbacks, too.")

    _desk: Desk = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Raises RunError (no specialist there) or ModelError (damaged, or made under another prompt)."""
        self._desk = desk_for(self.run, self.batch_size)

    @property
    def task(self) -> Task:
        return self._desk.specialist.task

    @property
    def _llm_type(self) -> str:
        return "afina"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Also the key of LangChain's caches, so another training of the same recipe must differ in it."""
        manifest = self._desk.specialist.manifest
        names = ("base_model", "fingerprint", "recipe_hash", "data_hash", "created")
        return {
            "task": self.task.name,
            **{name: getattr(manifest, name) for name in names},
            "include_reasoning": self.include_reasoning,
            "read": repr(self.read) if self.read else None,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "afina"
        params.setdefault("ls_model_name", self.task.name)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """By the specialist's own tokenizer; nothing is downloaded."""
        tokenizer = self._desk.specialist.predictor.renderer.codec.tokenizer
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    # -- answers ----------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._reply(messages, stop, kwargs).result()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return (await self._areply(messages, stop, kwargs)).result()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._reply(messages, stop, kwargs).chunks()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in (await self._areply(messages, stop, kwargs)).chunks():
            yield chunk

    def _reply(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> Reply:
        inputs, with_reasoning = self._asked(messages, stop, kwargs)
        return Reply(self.task, inputs, self._desk.submit([inputs]).result()[0], with_reasoning)

    async def _areply(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> Reply:
        inputs, with_reasoning = self._asked(messages, stop, kwargs)
        predictions = await asyncio.wrap_future(self._desk.submit([inputs]))
        return Reply(self.task, inputs, predictions[0], with_reasoning)

    def _asked(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, str], bool]:
        """The inputs, and whether the reasoning is to be written. Raises PromptError."""
        unused = [
            *(["stop"] if stop else []),
            *(name for name in kwargs if name not in ("include_reasoning", "stream")),
        ]
        if unused:
            raise PromptError(
                f"{unused[0]!r} has no effect on a specialist: it writes the most probable answer of its schema, "
                "whole. Remove it."
            )
        text = text_of(messages)
        inputs = read_inputs(text, self.task) if self.read is None else checked(self.read(text), self.task)
        return inputs, bool(kwargs.get("include_reasoning", self.include_reasoning))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[AIMessage]:
        """As many threads as rows are answered together, unless the config says otherwise; they wait at one desk."""
        together = self._desk.specialist.predictor.batch_size
        configs = config if isinstance(config, list) else [config or {}] * len(inputs)
        wide: list[RunnableConfig] = [{"max_concurrency": together, **one} for one in configs]
        return super().batch(inputs, wide, return_exceptions=return_exceptions, **kwargs)

    # -- structured output ------------------------------------------------------------------------

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"the specialist {self.task.name!r} answers one task and calls no tools. Use with_structured_output for "
            "objects; for tools, serve a chat model with `afina serve` and use langchain-openai."
        )

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers as objects of a Pydantic class, or as dictionaries for a JSON Schema or TypedDict.

        The specialist keeps to its own schema whatever is asked, so every answer that it can give must fit `schema`;
        method and strict make no difference. Where `schema` has the task's reasoning field, the object has it, too.
        include_raw: a dictionary of raw (the message, with confidences), parsed and parsing_error.
        Raises SchemaError, which names the first difference.
        """
        if kwargs or method not in METHODS:
            found = next(iter(kwargs), f"method={method}")
            raise SchemaError(f"with_structured_output: {found!r} is unknown, expected a method of {list(METHODS)}.")
        llm = self.bind(
            include_reasoning=self._fits(_json_schema(schema)),
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        )
        wanted: Any = schema
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)  # of pydantic 1, too
        parser: Any = PydanticOutputParser(pydantic_object=wanted) if is_class else JsonOutputParser()
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _fits(self, wanted: Schema) -> bool:
        """Whether the reasoning is wanted, too. Raises SchemaError if the answers are not what is wanted."""
        task = self.task
        if task.free_text or task.output.get("type") != "object":
            kind = "free text" if task.free_text else "one value, not an object"
            raise SchemaError(f"the specialist {task.name!r} answers with {kind}. Use llm | parser.")
        found = mismatch(task.output, wanted)
        if found is None:
            return False
        if task.reasoning and mismatch(_with_reasoning(task), wanted) is None:
            return True
        raise SchemaError(
            f"the specialist {task.name!r} cannot answer in this schema: {found}. It answers with the schema that it "
            "was trained with. Change this one, or train with this one: task.output takes module:PydanticClass, too."
        )


def _json_schema(schema: dict[str, Any] | type) -> Schema:
    """The wanted schema, normalised. Raises SchemaError for what cannot be guaranteed, and so not be compared."""
    plain = isinstance(schema, dict) and ("properties" in schema or "$ref" in schema)
    return normalise(schema if plain else convert_to_json_schema(schema), "schema")


def _with_reasoning(task: Task) -> Schema:
    """The schema of whole answers with the reasoning in them."""
    if not task.part_inputs:
        return task.parts[0].schema
    return {**task.output, "properties": {part.key: part.schema for part in task.parts}}
