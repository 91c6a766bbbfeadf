"""A model at a provider as a predictor: asked with the words it was trained with, its answers checked against the task.

Comes in: rows. Goes out: predictions in the same order; an answer that is no valid one is an error inside. Money, cache
and retries are the `Asker`'s. Confidences are not known: a provider's logprobs are not normalised over what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from afina.core.errors import DataError
from afina.core.predictor import Inputs, Prediction, Usage
from afina.core.task import Part, Task
from afina.providers import wording
from afina.providers.asking import Asker, Body
from afina.providers.cache import Answer


class HostedPredictor:
    """model: its full name at the provider. max_tokens: of one answer; a longer one is cut off, and is an error.

    constrain: send the schema, so that the answer is held to it where the provider can.
    """

    def __init__(
        self, name: str, model: str, task: Task, asker: Asker, *, max_tokens: int = 1024, constrain: bool = True
    ) -> None:
        self.name, self.model, self.task, self.asker = name, model, task, asker
        self.max_tokens, self.constrain = max_tokens, constrain

    def bodies(self, inputs: Sequence[Inputs]) -> list[Body]:
        """The requests of these rows: a row's parts stand together, in the order of the task."""
        return [self._body(part, row) for row in inputs for part in self.task.parts]

    def _body(self, part: Part, row: Inputs) -> Body:
        body: Body = {
            "model": self.model,
            "messages": wording.question(self.task, part, row),
            "temperature": 0,
            "max_completion_tokens": self.max_tokens,
        }
        shape = wording.response_format(self.task, part) if self.constrain else None
        return body if shape is None else {**body, "response_format": shape}

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One prediction per row, in order. Raises ProviderError and BudgetError."""
        answers = self.asker.ask(self.bodies(inputs), self.name)
        size = len(self.task.parts)
        return [self._prediction(answers[i * size : (i + 1) * size]) for i in range(len(inputs))]

    def _prediction(self, answers: Sequence[Answer]) -> Prediction:
        usage = Usage(
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            cost_usd=sum(answer.cost_usd or 0.0 for answer in answers),
        )
        failed = Prediction(usage=usage, latency_s=sum(answer.latency_s for answer in answers))
        values: list[Any] = []
        for part, answer in zip(self.task.parts, answers, strict=True):
            problem = answer.error
            if problem is None and answer.finish_reason == "length":
                problem = f"the answer was cut off after {answer.completion_tokens} tokens"
            if problem is None:
                try:
                    values.append(wording.parse_answer(self.task, part, answer.content or ""))
                except DataError as error:
                    problem = str(error)
            if problem is not None:
                return replace(failed, error=problem)
        return replace(failed, output=self.task.assemble(values))
