"""The columns of a table of labels: named so that `afina run data.path=labels.jsonl` reads them as they are.

Comes in: a task, and how its recipe reads a table. Goes out: one row for an answer, and the same row read back. How
answers come about, and which are kept, is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from afina.core.config import DataConfig
from afina.core.errors import DataError
from afina.core.predictor import Example, Inputs, Prediction
from afina.core.schema import Field
from afina.core.task import Task
from afina.data.columns import WHOLE_ANSWER, Answers, RowError, candidates_of, find_answers, text_of
from afina.data.records import SURROGATE
from afina.data.table import Row, Table

REASONING = "reasoning"
PLACES = 6  # of a confidence


@dataclass(frozen=True)
class Columns:
    """Names of columns. reasoning: of the whole answer's reasoning; `reasoning_of` names a part's.

    data: how the table of labels is read, once it is there.
    """

    task: Task
    data: DataConfig
    identity: str
    inputs: Mapping[str, str]
    fields: Mapping[str, str | Mapping[str, str]]
    reasoning: str
    confidence: str
    agreement: str
    teacher: str

    def reasoning_of(self, part_key: str) -> str:
        named = self.data.columns.get(self.task.reasoning) if self.task.reasoning else None
        if isinstance(named, dict) and part_key in named:
            return named[part_key]
        return f"{self.reasoning}_{part_key}" if part_key else self.reasoning

    # -- writing ------------------------------------------------------------------------------------

    def row(
        self, identity: str, inputs: Inputs, answer: Prediction, agreement: float | None, teacher: str
    ) -> dict[str, Any]:
        """One line of the table. Raises DataError for an answer that the table's reader would read as another."""
        row: dict[str, Any] = {self.identity: identity}
        row |= {column: inputs.get(name, "") for name, column in self.inputs.items()}
        row |= self._answer(answer.output)
        row |= {self.reasoning_of(key): text for key, text in answer.reasoning.items()}
        row[self.confidence] = {path: round(value, PLACES) for path, value in answer.confidence.items()}
        row[self.agreement] = None if agreement is None else round(agreement, PLACES)
        row[self.teacher] = teacher
        if SURROGATE.search(json.dumps(row, ensure_ascii=False)):
            raise DataError("the answer holds half a character, which no file can hold")
        try:
            found, _ = self._reader.read(Row(1, row))
        except RowError as problem:
            raise DataError(f"the answer cannot stand in a table: {problem.reason}") from None
        if _stripped(found) != _stripped(answer.output):
            raise DataError(f"the answer would be read as {found!r}: see data.labels and data.columns of the recipe")
        return row

    def _answer(self, output: Any) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for path, column in self.fields.items():
            field = next((one for one in self.task.fields if one.path == path), None)
            if field is None or not field.path:
                cells[str(column)] = output  # the whole answer
                continue
            present, value = _leaf(output, field)
            if isinstance(column, str):
                # A blank cell is an absent field; null is one of its values.
                cells[column] = "null" if present and value is None else value
            else:
                chosen = value if field.multi else [value]
                cells |= {name: int(label in map(str, chosen or ())) for label, name in column.items()}
        return cells

    # -- reading ------------------------------------------------------------------------------------

    @cached_property
    def _reader(self) -> Answers:
        names = [self.identity, *self.inputs.values(), *self._answer_columns, self.confidence, self.agreement]
        return find_answers(self.data.path, Table(names, [], format="jsonl"), self.task, self.data)

    @property
    def _answer_columns(self) -> list[str]:
        return [c for one in self.fields.values() for c in ([one] if isinstance(one, str) else one.values())]

    def example(self, row: Mapping[str, Any], line: int) -> Example:
        """A row of the table as a labelled example, its reasoning included."""
        output, _ = self._reader.read(Row(line, row))
        keys = ["", *(part.key for part in self.task.parts)]
        reasoning = {key: text for key in keys if (text := text_of(row.get(self.reasoning_of(key))))}
        inputs = {name: str(row[column]) for name, column in self.inputs.items()}
        return Example(str(row[self.identity]), inputs, output, reasoning, line)

    def settings(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """KEY=VALUE that the recipe needs to be run on the table of these rows, data.path first."""
        used = {name for row in rows for name in row}
        found = [f"data.path={self.data.path}"]
        if {"instruction", "output"} <= used:  # looks like another format
            found.append("data.format=jsonl")
        found += self._reasoning_settings(used)
        return found

    def _reasoning_settings(self, used: set[str]) -> list[str]:
        name = self.task.reasoning
        parts = {part.key: self.reasoning_of(part.key) for part in self.task.parts if part.key}
        by_part = bool(parts) and set(parts.values()) <= used
        if name is None or isinstance(self.data.columns.get(name), dict):
            return []
        if by_part:
            named = ", ".join(f"{key}: {column}" for key, column in parts.items())
            return [f"data.columns.{name}={{{named}}}"]
        return [] if self.reasoning in used else ["task.reasoning=null"]


def name_columns(task: Task, output: Path, data: DataConfig | None = None) -> Columns:
    """The columns of the table of labels at `output`.

    data: of the recipe that will read it: names that it gives to columns are kept. Raises DataError where an input has
    the name of an answer's column.
    """
    given = data or DataConfig(path=output)
    read = given.model_copy(update={"path": output, "format": "jsonl", "header": None, "delimiter": None})
    inputs = dict(task.inputs)
    fields = _field_columns(task, read, set(inputs.values()))
    taken = set(inputs.values()) | {name for field in task.fields for name in _names_of(field, task)}
    taken |= {c for one in fields.values() for c in ([one] if isinstance(one, str) else one.values())}
    reasoning = _reasoning_column(task, read, taken)
    taken |= {reasoning, *(f"{reasoning}_{part.key}" for part in task.parts)}
    return Columns(
        task=task,
        data=read,
        identity=given.id_column or _free("id", taken),
        inputs=inputs,
        fields=fields,
        reasoning=reasoning,
        confidence=_free("confidence", taken),
        agreement=_free("agreement", taken),
        teacher=_free("teacher", taken),
    )


# -- details ---------------------------------------------------------------------------------------


def _field_columns(task: Task, data: DataConfig, inputs: set[str]) -> dict[str, str | Mapping[str, str]]:
    """Field path -> column (or label -> 0/1 column); "" for a whole answer in one column."""
    if task.output.get("type") != "object" or "" in data.columns:
        named = data.columns.get("")
        names = [named] if isinstance(named, str) else [*WHOLE_ANSWER, "label", task.name]
        # The reader takes the first of these names that it finds, so none before ours may be an input's.
        if names[0] in inputs and not named:
            raise DataError(_clash(names[0], "the answer", 'data.columns: {"": COLUMN}'))
        return {"": names[0]}
    found: dict[str, str | Mapping[str, str]] = {}
    for field in task.fields:
        named = data.columns.get(field.path)
        if named is not None:
            found[field.path] = named
            continue
        names = _names_of(field, task)
        usable = [names[1], names[0]] if len(names) > 1 and names[0] not in inputs else names[:1]
        free = [name for name in usable if name not in inputs]
        if not free:
            raise DataError(
                _clash(names[0], f"the answer field {field.path!r}", f"data.columns: {{{field.path}: COLUMN}}")
            )
        found[field.path] = free[0]
    return found


def _clash(name: str, what: str, setting: str) -> str:
    return f"the column {name!r} is an input, and {what} would have the same one. Name another in the recipe: {setting}"


def _names_of(field: Field, task: Task) -> list[str]:
    return candidates_of(field, task) if field.path else list(WHOLE_ANSWER)


def _reasoning_column(task: Task, data: DataConfig, taken: set[str]) -> str:
    if not task.reasoning:
        return _free(REASONING, taken)
    named = data.columns.get(task.reasoning)
    return named if isinstance(named, str) else task.reasoning


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _leaf(output: Any, field: Field) -> tuple[bool, Any]:
    """Whether the answer has the field, and its value."""
    for key in field.keys:
        if not isinstance(output, Mapping) or key not in output:
            return False, None
        output = output[key]
    return True, output


def _stripped(value: Any) -> Any:
    """White space around texts is not kept by a table's reader."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return {key: _stripped(inner) for key, inner in value.items()}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value
