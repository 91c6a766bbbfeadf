"""A task: inputs, output schema, instruction. The single source of the prompt everywhere.

A task is asked in one or more *parts*. By default there is one: all inputs in, the whole answer out.
`parts` asks for each field of the answer by itself, with only the inputs that decide it; parts whose
schemas are equal share what the model learns (three sentences of a news item become three examples
of one question). One decision context at a time is what lets a tiny model learn at all (docs/findings.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from afina.core import schema as schemas
from afina.core.predictor import Example, Inputs
from afina.core.schema import Field, Schema
from afina.core.storage import digest


@dataclass(frozen=True)
class Part:
    """One question to the model.

    key: the field of the whole answer that it fills; "" for the whole answer.
    inputs: (name shown in the prompt, input of the task) pairs.
    schema: of the text that the model writes: the reasoning field first, if the task has one.
    """

    key: str
    inputs: tuple[tuple[str, str], ...]
    schema: Schema

    def shown(self, inputs: Inputs) -> list[tuple[str, str]]:
        """The named texts that stand in the prompt."""
        return [(name, inputs.get(source) or "") for name, source in self.inputs]

    @cached_property
    def signature(self) -> str:
        """Equal for parts that ask the same question of other inputs, whatever they say of it in words."""
        return digest([[name for name, _ in self.inputs], schemas.without_annotations(self.schema)])


@dataclass(frozen=True)
class Group:
    """Fields that are one question asked of several inputs, scored together as well as alone.

    name: "polaridade" for f1.polaridade, f2.polaridade, f3.polaridade; a lone field's own path.
    """

    name: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Task:
    """What is asked.

    inputs: input name -> column of the table.
    output: normalised JSON Schema of the answer without reasoning; {"type": "string"} with
        `free_text` for a task whose answer is plain text.
    reasoning: name of the free-text field written before the labels, or None.
    parts: answer field -> (name shown, input) pairs; empty for one question.
    """

    name: str
    instruction: str
    inputs: Mapping[str, str]
    output: Schema
    reasoning: str | None = None
    part_inputs: Mapping[str, tuple[tuple[str, str], ...]] | None = None
    free_text: bool = False

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        if not self.part_inputs:
            return (Part("", tuple((n, n) for n in self.inputs), self._with_reasoning(self.output)),)
        return tuple(
            Part(key, shown, self._with_reasoning(self.output["properties"][key]))
            for key, shown in self.part_inputs.items()
        )

    def _with_reasoning(self, schema: Schema) -> Schema:
        if not self.reasoning:
            return schema
        return {
            "type": "object",
            "properties": {self.reasoning: {"type": "string"}, **schema["properties"]},
            "required": [self.reasoning, *schema["required"]],
            "additionalProperties": False,
        }

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The scored leaves of the answer, in order; reasoning is not scored."""
        return tuple(schemas.fields(self.output))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The scored fields, those of equal parts put together, in the order of the answer."""
        signatures = {part.key: part.signature for part in self.parts}
        found: dict[tuple[str, str], list[Field]] = {}
        for field in self.fields:
            key, _, rest = field.path.partition(".")
            found.setdefault((signatures.get(key, field.path), rest), []).append(field)
        return tuple(
            Group(fields[0].path if len(fields) == 1 else rest or self.name, tuple(fields))
            for (_, rest), fields in found.items()
        )

    def part_answer(self, part: Part, example: Example) -> Any:
        """What the model should write for one part of a labelled example; None if it has no label."""
        value = example.output if not part.key else (example.output or {}).get(part.key)
        if value is None:
            return None
        if self.reasoning:
            value = {self.reasoning: example.rationale(part.key) or "", **value}
        return schemas.canonical(value, part.schema)

    def questions(self, inputs: Inputs) -> Iterator[tuple[Part, list[tuple[str, str]]]]:
        """Every part with its shown inputs."""
        for part in self.parts:
            yield part, part.shown(inputs)

    def assemble(self, answers: list[Any]) -> Any:
        """The whole answer from the parts' answers, reasoning left out."""
        if not self.part_inputs:
            return self._without_reasoning(answers[0])
        return {part.key: self._without_reasoning(answer) for part, answer in zip(self.parts, answers, strict=True)}

    def rationales(self, answers: list[Any]) -> dict[str, str]:
        """Part key -> the reasoning in the parts' answers; empty for a task without."""
        if not self.reasoning:
            return {}
        return {part.key: answer[self.reasoning] for part, answer in zip(self.parts, answers, strict=True)}

    def _without_reasoning(self, value: Any) -> Any:
        if self.reasoning and isinstance(value, dict):
            return {k: v for k, v in value.items() if k != self.reasoning}
        return value

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps; `from_json` reads it back."""
        return {
            "name": self.name,
            "instruction": self.instruction,
            "inputs": dict(self.inputs),
            "output": self.output,
            "reasoning": self.reasoning,
            "parts": {k: [list(p) for p in v] for k, v in (self.part_inputs or {}).items()},
            "free_text": self.free_text,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        parts = {k: tuple((a, b) for a, b in v) for k, v in value.get("parts", {}).items()}
        return cls(
            name=value["name"],
            instruction=value["instruction"],
            inputs=dict(value["inputs"]),
            output=value["output"],
            reasoning=value.get("reasoning"),
            part_inputs=parts or None,
            free_text=value.get("free_text", False),
        )
