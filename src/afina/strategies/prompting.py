"""A model that is asked with an instruction and perhaps examples: zero-shot, few-shot, chain of thought.

Comes in: a task, a `ChatModel`, labelled rows of train. Goes out: predictions; for a vote, several of each row. One
question for each part of the task, in the words of `providers.wording`, so that a model tuned on them is asked as it
was trained. What stands behind the model is not known here, nor validation or test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina.core import schema as schemas
from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example, Inputs, Prediction, Usage
from afina.core.schema import Schema
from afina.core.strategy_config import PromptConfig
from afina.core.task import Part, Task
from afina.data.dedupe import normalise_text
from afina.engine.spoken import describe
from afina.providers import wording
from afina.strategies.chat_model import Ask, ChatMessage, ChatModel, Reply
from afina.strategies.examples import Choose, Examples, Shot, Wanted

ANSWER = "answer"  # what an answer that is no object is called where reasoning stands before it


@dataclass(frozen=True)
class Form:
    """How a model answers one part of a task.

    labels: schema of the part's answer without reasoning. reasoning: name of the text that is written first, or None.
    schema: of what the model writes; None for plain text.
    """

    part: Part
    labels: Schema
    reasoning: str | None
    schema: Schema | None

    @property
    def wraps(self) -> bool:
        """The answer is no object, and stands beside its reasoning."""
        return self.reasoning is not None and self.labels.get("type") != "object"

    def said(self, labels: Any, rationale: str | None) -> str:
        """What an answer looks like in a prompt. rationale: None to leave the reasoning out."""
        value = schemas.canonical(labels, self.labels)
        if self.schema is None:
            return value
        if self.reasoning is None or rationale is None:
            return schemas.dumps(value)
        return schemas.dumps({self.reasoning: rationale, **({ANSWER: value} if self.wraps else value)})

    def read(self, value: Any) -> tuple[str | None, Any]:
        """The reasoning and the labels of an answer."""
        if self.reasoning is None:
            return None, value
        rest = {key: inner for key, inner in value.items() if key != self.reasoning}
        return value[self.reasoning], rest[ANSWER] if self.wraps else rest

    def confidence(self, found: Mapping[str, float]) -> dict[str, float]:
        """An answer's confidences under their paths in the whole answer, that of the reasoning left out."""
        paths: dict[str, float] = {}
        for path, value in found.items():
            keys = path.split(".") if path else []
            if self.reasoning is not None and keys[:1] == [self.reasoning]:
                continue
            keys = keys[1:] if self.wraps else keys
            paths[".".join([self.part.key, *keys] if self.part.key else keys)] = value
        return paths


def form_of(task: Task, part: Part, reasoning: str | None) -> Form:
    """reasoning: what to call the text before the labels; None for none. Raises RecipeError where that is taken."""
    labels: Schema = task.output["properties"][part.key] if part.key else task.output
    if reasoning is None:
        return Form(part, labels, None, None if task.free_text else labels)
    is_object = labels.get("type") == "object"
    properties = labels["properties"] if is_object else {ANSWER: labels}
    if reasoning in properties:
        raise RecipeError(
            f"reasoning_field: {reasoning!r} is already a field of the answer of {part.key or task.name!r}. "
            "Choose another name."
        )
    required = labels["required"] if is_object else [ANSWER]
    schema = {
        "type": "object",
        "properties": {reasoning: {"type": "string"}, **properties},
        "required": [reasoning, *required],
        "additionalProperties": False,
    }
    return Form(part, labels, reasoning, schema)


class Prompting:
    """Answers a task through any chat model.

    Reasoning is asked for by `cot`. A model that need not be told the format (`describe` is false) was tuned on the
    task, so it is always asked for what the task says, its reasoning included.
    train: where examples come from; nothing else may. notes: what the reader should know of the examples.
    Raises DataError where examples are wanted and there is none, RecipeError for names that collide.
    """

    def __init__(
        self, name: str, task: Task, model: ChatModel, config: PromptConfig, train: Sequence[Example], seed: int
    ) -> None:
        self.name, self.task, self.model, self.config = name, task, model, config
        reasoning = None if model.describe else task.reasoning
        if config.strategy == "cot":
            reasoning = task.reasoning or config.reasoning_field
        self.forms = tuple(form_of(task, part, reasoning) for part in task.parts)
        self._worded = replace(task, instruction=config.instruction or task.instruction)
        self._shown = ShownExamples(name, self._worded, self.forms, config.choose, config.num_examples, train, seed)
        self.notes = self._shown.notes

    def messages(self, inputs: Sequence[Inputs]) -> list[list[tuple[ChatMessage, ...]]]:
        """What is asked: for each row, the conversation of each part."""
        chosen = self._shown.of(inputs)
        return [
            [self._conversation(form, row, shots) for form, shots in zip(self.forms, of_parts, strict=True)]
            for row, of_parts in zip(inputs, chosen, strict=True)
        ]

    def _conversation(self, form: Form, row: Inputs, shots: Sequence[Shot]) -> tuple[ChatMessage, ...]:
        system, asked = wording.question(self._worded, form.part, row)
        if self.model.describe and form.schema is not None:
            system = {**system, "content": f"{system['content']}\n\n{describe(form.schema, 'json')}"}
        return (system, *turns(shots), asked)

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order. label: what the progress bar says; None for no bar."""
        return self.sample(inputs, [0], self.config.temperature, label=label)[0]

    def sample(
        self, inputs: Sequence[Inputs], samples: Sequence[int], temperature: float, *, label: str | None = None
    ) -> list[list[Prediction]]:
        """For each number in `samples` a prediction per row; equal numbers are the same draw."""
        conversations = self.messages(inputs)
        asks = [
            Ask(conversation, form.schema, temperature, number)
            for number in samples
            for row in conversations
            for form, conversation in zip(self.forms, row, strict=True)
        ]
        replies = iter(self.model.ask(asks, label=label))
        return [[self._prediction([next(replies) for _ in self.forms]) for _ in inputs] for _ in samples]

    def _prediction(self, replies: Sequence[Reply]) -> Prediction:
        made = Prediction(
            usage=sum((reply.usage for reply in replies), Usage()),
            latency_s=sum(reply.latency_s for reply in replies),
            truncated=any(reply.truncated for reply in replies),
        )
        reasoning: dict[str, str] = {}
        confidence: dict[str, float] = {}
        answers: list[Any] = []
        for form, reply in zip(self.forms, replies, strict=True):
            if reply.error is not None:
                return replace(made, error=f"{form.part.key}: {reply.error}" if form.part.key else reply.error)
            said, labels = form.read(reply.value)
            if said is not None:
                reasoning[form.part.key] = said
            confidence |= form.confidence(reply.confidence)
            answers.append(labels)
        output = self.task.assemble(answers)
        if (problem := schemas.problems(output, self.task.output)) is not None:
            return replace(made, error=problem)
        return replace(made, output=output, confidence=confidence, reasoning=reasoning)


class ShownExamples:
    """The examples that prompts of a task show: parts that ask the same question draw from all of them.

    task: in the words of the prompt. forms: of the task's parts, in order. k: for each question; 0 for none.
    """

    def __init__(
        self, name: str, task: Task, forms: Sequence[Form], how: Choose, k: int, train: Sequence[Example], seed: int
    ) -> None:
        self.task, self.forms, self.k = task, forms, k
        self.notes: list[str] = []
        self._examples: dict[str, Examples] = {}
        self._clusters: dict[tuple[str, ...], frozenset[int]] = {}
        if not k:
            return
        rows = [(example, _cluster(example, index)) for index, example in enumerate(train)]
        for example, cluster in rows:
            key = self._row(example.inputs)
            self._clusters[key] = self._clusters.get(key, frozenset()) | {cluster}
        for form in forms:
            if form.part.signature not in self._examples:
                shots = self._shots(name, form.part.signature, rows)
                self._examples[form.part.signature] = Examples(shots, how, k, seed)

    def of(self, inputs: Sequence[Inputs]) -> list[list[list[Shot]]]:
        """For each row and each part, the examples in the order of the prompt."""
        if not self.k:
            return [[[] for _ in self.forms] for _ in inputs]
        clusters = [self._clusters.get(self._row(row), frozenset()) for row in inputs]
        columns = [
            self._examples[form.part.signature].choose(
                [Wanted(_texts(form.part, row), hidden) for row, hidden in zip(inputs, clusters, strict=True)]
            )
            for form in self.forms
        ]
        return [[column[at] for column in columns] for at in range(len(inputs))]

    def _row(self, inputs: Inputs) -> tuple[str, ...]:
        return tuple(normalise_text(inputs.get(name) or "") for name in self.task.inputs)

    def _shots(self, name: str, signature: str, rows: Sequence[tuple[Example, int]]) -> list[Shot]:
        forms = [form for form in self.forms if form.part.signature == signature]
        found: list[tuple[Shot, bool]] = []
        for example, cluster in rows:
            for form in forms:
                value = example.output if not form.part.key else (example.output or {}).get(form.part.key)
                if value is not None:
                    rationale = example.rationale(form.part.key)
                    found.append((self._shot(form, example, value, rationale, cluster), rationale is not None))
        if not found:
            raise DataError(
                f"{name}: none of the {len(rows)} training examples has an answer to show for "
                f"{forms[0].part.key or self.task.name!r}. Label some rows, or use strategy: zero-shot."
            )
        return [shot for shot, _ in found] if forms[0].reasoning is None else self._reasoned(name, found)

    def _shot(self, form: Form, example: Example, value: Any, rationale: str | None, cluster: int) -> Shot:
        labels = [field.path for field in schemas.fields(form.labels) if field.labels is not None]
        return Shot(
            texts=_texts(form.part, example.inputs),
            labels=tuple(schemas.dumps(schemas.get(value, path)) for path in labels),
            cluster=cluster,
            user=wording.question(self.task, form.part, example.inputs)[-1]["content"],
            assistant=form.said(value, rationale),
        )

    def _reasoned(self, name: str, found: Sequence[tuple[Shot, bool]]) -> list[Shot]:
        """Those with reasoning; all of them, without, where none has any."""
        kept = [shot for shot, has_reasoning in found if has_reasoning]
        if not kept:
            self.notes.append(f"{name}: no training example has reasoning, so examples are shown with labels only.")
        elif len(kept) < len(found):
            self.notes.append(
                f"{name}: {len(found) - len(kept)} of {len(found)} training examples have no reasoning; not shown."
            )
        return kept or [shot for shot, _ in found]


def turns(shots: Sequence[Shot]) -> list[ChatMessage]:
    """The examples as turns of a conversation."""
    return [
        {"role": role, "content": content}
        for shot in shots
        for role, content in (("user", shot.user), ("assistant", shot.assistant))
    ]


def _texts(part: Part, inputs: Inputs) -> tuple[str, ...]:
    return tuple(text for _, text in part.shown(inputs))


def _cluster(example: Example, index: int) -> int:
    """A row that was never clustered is a cluster of its own."""
    return example.cluster if example.cluster >= 0 else -2 - index
