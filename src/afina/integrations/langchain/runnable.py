"""A specialist as a LangChain runnable: a dictionary of inputs in, an answer object with confidences out.

Knows nothing of prompts and messages: the specialist brings its own instruction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, create_model

from afina.core.answer import Answer
from afina.core.errors import ModelError
from afina.core.predictor import Prediction
from afina.core.task import Task
from afina.integrations.langchain.desk import desk_for
from afina.integrations.langchain.prompt_text import PromptError, checked
from afina.strategies.finetuned import Specialist

Given = Mapping[str, Any]


class SpecialistRunnable(Runnable[Given, Answer]):
    """Answers a task inside a chain.

    run: a run folder, a specialist folder, or a loaded `Specialist`, which is then asked through this alone.
    batch_size: rows answered together; None: as the specialist's manifest says.

    The answer has the task's fields and `.confidence` (field path -> probability in [0, 1]). Keys that the task does
    not ask for are left behind, as prompt templates do; a missing one raises PromptError. `batch` and `abatch` answer
    all rows together. However many threads and event loops ask, there is one copy of the model.

    >>> chain = SpecialistRunnable("runs/noticias") | (lambda answer: answer.f1.emocao)  # doctest: +SKIP
    """

    def __init__(self, run: str | Path | Specialist, *, batch_size: int | None = None) -> None:
        """Raises RunError (no specialist there) or ModelError (damaged, or made under another prompt)."""
        self._desk = desk_for(run, batch_size)
        self.name = self.task.name

    @property
    def task(self) -> Task:
        return self._desk.specialist.task

    @property
    def InputType(self) -> Any:  # noqa: N802
        return dict[str, str]

    @property
    def OutputType(self) -> type[Answer]:  # noqa: N802
        return self._desk.specialist.answer_type

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        fields: dict[str, Any] = dict.fromkeys(self.task.inputs, (str, ...))
        return create_model(f"{self.OutputType.__name__}Inputs", **fields)

    def invoke(self, input: Given, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        """One answer. Raises PromptError (inputs) or ModelError (no answer could be made)."""
        _refuse(kwargs)
        return self._call_with_config(lambda given: _first(self._answers([given])), input, config)

    async def ainvoke(self, input: Given, config: RunnableConfig | None = None, **kwargs: Any) -> Answer:
        """As `invoke`; the event loop goes on meanwhile."""
        _refuse(kwargs)

        async def answer(given: Given) -> Answer:
            return _first(await self._aanswers([given]))

        return await self._acall_with_config(answer, input, config)

    def batch(
        self,
        inputs: list[Given],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Answer]:
        """All rows together, in order. return_exceptions: a row that fails is its exception, and the others answers."""
        _refuse(kwargs)
        return self._batch_with_config(self._answers, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Given],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Answer]:
        """As `batch`; the event loop goes on meanwhile."""
        _refuse(kwargs)
        return await self._abatch_with_config(self._aanswers, inputs, config, return_exceptions=return_exceptions)

    def _answers(self, rows: Sequence[Given]) -> list[Exception | Answer]:
        asked, given = self._readable(rows)
        return self._in_order(asked, self._desk.submit(given).result())

    async def _aanswers(self, rows: Sequence[Given]) -> list[Exception | Answer]:
        asked, given = self._readable(rows)
        return self._in_order(asked, await asyncio.wrap_future(self._desk.submit(given)))

    def _readable(self, rows: Sequence[Given]) -> tuple[list[Exception | None], list[dict[str, str]]]:
        """Per row, why it cannot be asked (or None); and the inputs of those that can."""
        why: list[Exception | None] = []
        given: list[dict[str, str]] = []
        for row in rows:
            try:
                given.append(checked(row, self.task))
                why.append(None)
            except PromptError as error:
                why.append(error)
        return why, given

    def _in_order(self, why: list[Exception | None], predictions: list[Prediction]) -> list[Exception | Answer]:
        left = iter(predictions)
        return [error or self._answer(next(left)) for error in why]

    def _answer(self, prediction: Prediction) -> Exception | Answer:
        if prediction.error:
            return ModelError(prediction.error)
        output = prediction.output if isinstance(prediction.output, dict) else {"value": prediction.output}
        answer = self.OutputType.model_validate(output)
        answer._confidence = dict(prediction.confidence)
        return answer


def _first(answers: list[Exception | Answer]) -> Answer:
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _refuse(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise PromptError(f"{next(iter(kwargs))!r} has no effect on a specialist. Remove it.")
