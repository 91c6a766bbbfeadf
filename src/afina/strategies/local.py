"""A language model on this machine as a predictor: base model zero-shot, or fine-tuned.

Comes in: a loaded model, a task. Goes out: predictions that are valid for every input. Long inputs are
cut to fit and marked; nothing raises for a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afina.core.errors import DataError
from afina.core.predictor import Inputs, Prediction, Usage
from afina.core.progress import progress
from afina.core.schema import dumps, integer_range, labels_of, problems
from afina.core.task import Part, Task
from afina.engine.codec import Codec
from afina.engine.decode import Answer, Made, field_confidence, write_answers
from afina.engine.renderer import Renderer, Style, describe


class LocalPredictor:
    """Answers a task with a local model through the engine.

    temperature: field path -> calibration temperature of its choices.
    max_length: tokens of prompt and answer together; longer inputs are cut.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        task: Task,
        *,
        style: Style,
        show_schema: bool = False,
        temperature: Mapping[str, float] | None = None,
        batch_size: int = 16,
        max_text_tokens: int = 256,
        max_length: int | None = None,
    ) -> None:
        self.name, self.model, self.task = name, model, task
        self.renderer = Renderer(task, Codec(tokenizer), style, show_schema=show_schema)
        self.temperature = dict(temperature or {})
        self.batch_size, self.max_text_tokens = batch_size, max_text_tokens
        context = int(getattr(model.config, "max_position_embeddings", None) or 2048)
        self.max_length = min(context, max_length or context)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order. label: what the progress bar says; None for no bar."""
        parts = self.task.parts
        prompts, cut, failed = [], [], {}
        for row in inputs:
            for part in parts:
                try:
                    ids, num_cut = self.renderer.prompt(part, row, self.max_length - self._reserve(part))
                except DataError as error:
                    ids, num_cut = [self.renderer.codec.eos], 0
                    failed[len(prompts)] = str(error)
                prompts.append((ids, self.renderer.writer(part, self.max_text_tokens)))
                cut.append(num_cut)
        if label is None:
            answers = self._write(prompts, None)
        else:
            with progress(label, len(prompts), "answers") as bar:
                answers = self._write(prompts, bar.advance)
        for at, error in failed.items():
            answers[at].error = error
        step = len(parts)
        return [
            self._prediction(answers[at : at + step], any(cut[at : at + step])) for at in range(0, len(answers), step)
        ]

    def _write(self, prompts: list[Any], done: Any) -> list[Answer]:
        return write_answers(self.model, prompts, batch_size=self.batch_size, pad_id=self.pad_id, done=done)

    def _reserve(self, part: Part) -> int:
        """Tokens kept free for the answer: its format, and every open value at its limit; at most half."""
        open_values = self.max_text_tokens if self.task.free_text else _open_tokens(part.schema, self.max_text_tokens)
        fixed = 0 if self.task.free_text else len(self.renderer.codec.answer_text(describe(part.schema)))
        return min(self.max_length // 2, fixed + open_values + 8)

    def _prediction(self, answers: list[Answer], truncated: bool) -> Prediction:
        usage = Usage(
            prompt_tokens=sum(a.prompt_tokens for a in answers),
            completion_tokens=sum(a.completion_tokens for a in answers),
            forward_passes=sum(a.forward_passes for a in answers),
        )
        latency_s = sum(a.latency_s for a in answers)
        error = next((a.error for a in answers if a.error), None)
        if error is None:
            values = [a.text if self.task.free_text else json.loads(a.text) for a in answers]
            output = self.task.assemble(values)
            error = problems(output, self.task.output)
            if error is None:
                confidence, probabilities = self._confidence(answers)
                return Prediction(output, confidence, probabilities, usage, latency_s, truncated=truncated)
        return Prediction(usage=usage, latency_s=latency_s, truncated=truncated, error=error)

    def _confidence(self, answers: list[Answer]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        confidence: dict[str, float] = {}
        probabilities: dict[str, dict[str, float]] = {}
        schemas = {field.path: field for field in self.task.fields}
        for part, answer in zip(self.task.parts, answers, strict=True):
            made = [_renamed(one, part.key) for one in answer.made]
            found = field_confidence(made, self.temperature)
            confidence |= {path: value for path, value in found.items() if path in schemas}
            for path, field in schemas.items():
                ours = [one for one in made if one.path == path]
                if field.labels and not field.multi and len(ours) == 1 and len(ours[0].allowed) == len(field.labels):
                    probabilities[path] = self._label_probabilities(ours[0], field.labels)
        # What the schema leaves no choice about is certain.
        for path in schemas:
            confidence.setdefault(path, 1.0)
        return confidence, probabilities

    def _label_probabilities(self, one: Made, labels: tuple[Any, ...]) -> dict[str, float]:
        """Where the first token tells all labels apart, the probability of each."""
        scaled = one.logits / self.temperature.get(one.path, 1.0)
        shares = np.exp(scaled - scaled.max())
        shares = shares / shares.sum()
        codec = self.renderer.codec
        texts = [dumps(label) for label in labels]
        if all(text.startswith('"') for text in texts):
            texts = [text[1:] for text in texts]
        first = [codec.answer_text(text)[0] for text in texts]
        at = {int(token): n for n, token in enumerate(one.allowed)}
        if set(first) != set(at):
            return {}
        return {str(label): float(shares[at[token]]) for label, token in zip(labels, first, strict=True)}


def _renamed(one: Made, key: str) -> Made:
    """The decision under its path in the whole answer."""
    path = one.path if not key else f"{key}.{one.path}" if one.path else key
    return Made(path, one.logits, one.chosen, one.allowed, one.is_open)


def _open_tokens(schema: Mapping[str, Any], limit: int) -> int:
    """Tokens that the open values of a schema may take at most."""
    if labels_of(dict(schema)) is not None or integer_range(dict(schema)):
        return 0
    if "anyOf" in schema:
        return max(_open_tokens(branch, limit) for branch in schema["anyOf"])
    if schema["type"] == "object":
        return sum(_open_tokens(inner, limit) for inner in schema["properties"].values())
    if schema["type"] == "array":
        return limit
    return limit if schema["type"] == "string" else 24
