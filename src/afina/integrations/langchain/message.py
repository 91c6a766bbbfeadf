"""A specialist's prediction as LangChain's messages: whole, or in the pieces of a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from afina.core.errors import ModelError
from afina.core.predictor import Inputs, Prediction
from afina.core.task import Task

JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Reply:
    """What a specialist answered to one message.

    inputs: as they were read from the message. with_reasoning: the JSON has the task's reasoning field, first.
    Raises ModelError if the prediction is none.
    """

    task: Task
    inputs: Inputs
    prediction: Prediction
    with_reasoning: bool

    def __post_init__(self) -> None:
        if self.prediction.error:
            raise ModelError(self.prediction.error)

    def result(self) -> ChatResult:
        """As one message."""
        message = AIMessage(
            content="".join(self._pieces()),
            additional_kwargs=self._additional(),
            response_metadata=self._metadata(),
            usage_metadata=self._usage(),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """The same in pieces: values and signs of the JSON, words of a free text; what was counted comes last."""
        for piece in self._pieces():
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        last = AIMessageChunk(
            content="",
            additional_kwargs=self._additional(),
            response_metadata=self._metadata(),
            usage_metadata=self._usage(),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _pieces(self) -> Iterator[str]:
        if self.task.free_text:
            return iter(re.findall(r"\s*\S+\s*\Z|\s*\S+|\s+\Z", self.prediction.output))
        return JSON.iterencode(self._value())

    def _value(self) -> Any:
        """The answer, with the reasoning where each part of it was written."""
        name, output, said = self.task.reasoning, self.prediction.output, self.prediction.reasoning
        if not self.with_reasoning or name is None:
            return output
        if not self.task.part_inputs:
            return {name: said[""], **output}
        return {part.key: {name: said[part.key], **output[part.key]} for part in self.task.parts}

    def _metadata(self) -> dict[str, Any]:
        prediction = self.prediction
        return {
            "model_provider": "afina",
            "model_name": self.task.name,
            "finish_reason": "stop",
            "confidence": dict(prediction.confidence),
            "probabilities": {path: dict(found) for path, found in prediction.probabilities.items()},
            "inputs": dict(self.inputs),
            "truncated": prediction.truncated,
            "reasoning": dict(prediction.reasoning),
            "latency_s": prediction.latency_s,
        }

    def _additional(self) -> dict[str, Any]:
        """Where LangChain looks for reasoning to make a content block of."""
        text = "\n".join(self.prediction.reasoning.values())
        return {"reasoning_content": text} if text else {}

    def _usage(self) -> UsageMetadata:
        read, written = self.prediction.usage.prompt_tokens, self.prediction.usage.completion_tokens
        return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
