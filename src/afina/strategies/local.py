"""A language model on this machine as a predictor: base model zero-shot, or fine-tuned.

Comes in: a loaded model, a task. Goes out: predictions that are valid for every input. Long inputs are
cut to fit and marked; nothing raises for a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from afina.core.errors import DataError
from afina.core.predictor import Inputs, Prediction, Usage
from afina.core.progress import progress
from afina.core.schema import integer_range, labels_of, problems
from afina.core.task import Part, Task
from afina.engine.codec import Codec
from afina.engine.decode import Answer, Made, Question, field_confidence, write_answers
from afina.engine.draft import Drafter, Scripts
from afina.engine.prefix import Prefixes
from afina.engine.reading import Reader
from afina.engine.renderer import Renderer, Style
from afina.engine.spelling import AnswerFormat

# Most rows of a batch on a CPU whose answers are guessed: rows that share a pass share its cost, and with more of them
# guessing costs more than it saves (docs/performance.md).
GUESSED_TOGETHER = 4
# Inputs that begin with unlike characters: what their prompts share, the instruction says.
PROBES = ("a", "Z", "9", "\u201c", "\n")


class LocalPredictor:
    """Answers a task with a local model through the engine.

    temperature: field path -> calibration temperature of its choices.
    max_length: tokens of prompt and answer together; longer inputs are cut.
    drafter: guesses answers, which are checked while the prompt is read; None to guess nothing.
    reuse_prefix: keep what the model has read of the beginning that all prompts of a part share.
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
        answer_format: AnswerFormat = "json",
        no_repeat_ngram_size: int = 0,
        drafter: Drafter | None = None,
        reuse_prefix: bool = True,
    ) -> None:
        self.name, self.model, self.task = name, model, task
        self.renderer = Renderer(
            task,
            Codec(tokenizer),
            style,
            show_schema=show_schema,
            answer_format=answer_format,
            no_repeat_ngram_size=no_repeat_ngram_size,
        )
        self.temperature = dict(temperature or {})
        self.batch_size, self.max_text_tokens = batch_size, max_text_tokens
        context = int(getattr(model.config, "max_position_embeddings", None) or 2048)
        self.max_length = min(context, max_length or context)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.drafter, self.reuse_prefix = drafter, reuse_prefix
        self._prefixes: Prefixes | None = None
        self._reserved = {part.key: self._reserve(part) for part in task.parts}
        self._scripts = {
            part.key: Scripts(part.schema, partial(self.renderer.writer, part, max_text_tokens)) for part in task.parts
        }

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order. label: what the progress bar says; None for no bar."""
        answers, cut = self._answers(inputs, label)
        step = len(self.task.parts)
        return [
            self._prediction(answers[at : at + step], any(cut[at : at + step])) for at in range(0, len(answers), step)
        ]

    def part_answers(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[tuple[Part, Inputs, Any]]:
        """What the model says of each part of each row: (part, row's inputs, value), failures left out."""
        answers, _ = self._answers(inputs, label)
        asked = [(part, row) for row in inputs for part in self.task.parts]
        return [
            (part, row, self._value(answer))
            for (part, row), answer in zip(asked, answers, strict=True)
            if answer.error is None
        ]

    def _answers(self, inputs: Sequence[Inputs], label: str | None) -> tuple[list[Answer], list[int]]:
        """Per row and part, the answer and how many characters of the inputs were cut."""
        together = min(self.batch_size, len(inputs) * len(self.task.parts))
        guessing = self.model.device.type != "cpu" or together <= GUESSED_TOGETHER
        questions: list[Question] = []
        cut: list[int] = []
        failed: dict[int, str] = {}
        for row in inputs:
            for part in self.task.parts:
                try:
                    ids, num_cut = self.renderer.prompt(part, row, self.max_length - self._reserved[part.key])
                except DataError as error:
                    ids, num_cut = [self.renderer.codec.eos], 0
                    failed[len(questions)] = str(error)
                questions.append(self._question(part, row, ids, guessing=guessing))
                cut.append(num_cut)
        if label is None:
            answers = self._write(questions, None)
        else:
            with progress(label, len(questions), "answers") as bar:
                answers = self._write(questions, bar.advance)
        for at, error in failed.items():
            answers[at].error = error
        return answers, cut

    def _question(self, part: Part, row: Inputs, ids: list[int], *, guessing: bool) -> Question:
        free = self.drafter is None or self.task.free_text or not guessing
        guess = None if free else self.drafter.draft(part, row)  # type: ignore[union-attr]
        return Question(ids, partial(self.renderer.writer, part, self.max_text_tokens), self._scripts[part.key], guess)

    def _write(self, questions: list[Question], done: Any) -> list[Answer]:
        if self.reuse_prefix and self._prefixes is None:
            self._prefixes = self._read_beginnings()
        return write_answers(
            self.model,
            questions,
            batch_size=self.batch_size,
            pad_id=self.pad_id,
            prefixes=self._prefixes,
            done=done,
        )

    def _read_beginnings(self) -> Prefixes:
        """Read once what the prompts of each part begin with, whatever the inputs."""
        prefixes = Prefixes(Reader(self.model))
        for part in self.task.parts:
            prompts = [self.renderer.prompt(part, dict.fromkeys(self.task.inputs, probe))[0] for probe in PROBES]
            prefixes.learn(prompts)
        return prefixes

    def _reserve(self, part: Part) -> int:
        """Tokens kept free for the answer: its format, and every open value at its limit; at most half."""
        open_values = self.max_text_tokens if self.task.free_text else _open_tokens(part.schema, self.max_text_tokens)
        fixed = 0 if self.task.free_text else len(self.renderer.codec.answer_text(self.renderer.describe(part)))
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
            values = [self._value(a) for a in answers]
            output = self.task.assemble(values)
            error = problems(output, self.task.output)
            if error is None:
                confidence, probabilities = self._confidence(answers)
                reasoning = self.task.rationales(values)
                return Prediction(
                    output, confidence, probabilities, usage, latency_s, truncated=truncated, reasoning=reasoning
                )
        return Prediction(usage=usage, latency_s=latency_s, truncated=truncated, error=error)

    def _value(self, answer: Answer) -> Any:
        return answer.text if self.task.free_text else json.loads(answer.text)

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
        first = [codec.answer_text(text)[0] for text in self.renderer.label_texts(labels)]
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
