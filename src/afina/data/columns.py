"""Where each answer field stands in a table, and how its cell is read.

Comes in: a task, the recipe's data settings, a table's columns. Goes out: one reader for the whole
answer of a row. A column that is not there is a DataError that names the nearest one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core import schema as schemas
from afina.core.config import DataConfig
from afina.core.errors import DataError
from afina.core.schema import FALSE_TEXTS, TRUE_TEXTS, Field
from afina.core.task import Task
from afina.data.table import Row, Table, shorten

WHOLE_ANSWER = ("output", "completion", "assistant", "answer")


class RowError(Exception):
    """One row cannot be used. kind: what it is counted by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class LabelMap(Mapping[str, Any]):
    """data.labels of one field, without regard to case; 1.0 finds "1".

    layers: the most specific mapping last; it wins.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]]) -> None:
        self._found: dict[str, Any] = {}
        for layer in layers:
            self._found |= {text.strip().casefold(): label for text, label in layer.items()}

    def __getitem__(self, text: str) -> Any:
        folded = text.strip().casefold()
        for key in (folded, folded.removesuffix(".0")):
            if key in self._found:
                return self._found[key]
        raise KeyError(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def field_labels(data: DataConfig, path: str) -> LabelMap:
    """The label mapping of a field: '*', then its last name, then its full path, the later winning."""
    last = path.rpartition(".")[2]
    return LabelMap([data.labels.get(key, {}) for key in dict.fromkeys(("*", last, path))])


def is_blank(value: Any) -> bool:
    """No value: null, not-a-number, or text of white space. An empty list is a value."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def has_column(column: str, table: Table) -> bool:
    """A column of that name, or a dotted path into the objects of a JSON column."""
    if column in table.columns or "." not in column:
        return column in table.columns
    return any(cell(row.values, column) is not None for row in table.rows)


def cell(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column; in a JSON record also by a dotted path."""
    return values[column] if column in values else schemas.get(values, column) if "." in column else None


def text_of(value: Any) -> str:
    """A cell as an input's text: lists line by line, objects as JSON, absent as ''."""
    if is_blank(value):
        return ""
    if isinstance(value, list):
        return "\n".join(text_of(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).strip()


def missing_column(path: Path, table: Table, column: str, needed_by: str, setting: str) -> DataError:
    """setting: how the recipe would name another column; {} stands for it. Empty where there is no recipe."""
    near = difflib.get_close_matches(column, table.columns, n=1, cutoff=0.5)
    fix = f"write {setting.format(near[0] if near else 'COLUMN')}" if setting else f"rename it to {column!r}"
    hint = f"The nearest is {near[0]!r}: if it is meant, {fix}." if near else f"If another column is meant, {fix}."
    return DataError(f"{path}: no column {column!r} ({needed_by}). The columns are {table.columns}. {hint}")


@dataclass(frozen=True)
class Answers:
    """Reads a row's answer. `read` raises RowError; reasoning comes with answers that are one JSON cell."""

    read: Callable[[Row], tuple[Any, str | None]]
    notes: tuple[str, ...] = ()


def find_answers(path: Path, table: Table, task: Task, data: DataConfig) -> Answers:
    """Raises DataError for a column that is missing, or a data.columns key that is no field of the answer."""
    known = {field.path for field in task.fields} | {"", *([task.reasoning] if task.reasoning else [])}
    for name in data.columns:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            raise DataError(
                f"data.columns: {name!r} is no field of the answer. Fields are {sorted(known - {''})}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    names = known | {path.rpartition(".")[2] for path in known} | {"*"}
    for name in data.labels:
        if name not in names:
            raise DataError(
                f"data.labels: {name!r} is no field of the answer, so it has no effect. "
                f"Expected one of {sorted(names - {''})}."
            )
    if task.output.get("type") != "object":
        column = _whole_column(path, table, data, task)
        return Answers(lambda row: (_single(row, column, task, data), None))
    if "" in data.columns or _only_whole(table, task, data):
        column = _whole_column(path, table, data, task)
        return Answers(lambda row: _from_json(row, column, task, data))
    notes: list[str] = []
    readers = [_field_reader(field, path, table, task, data, notes) for field in task.fields]
    return Answers(lambda row: (_checked(_collect(row, readers), task), None), tuple(notes))


def _only_whole(table: Table, task: Task, data: DataConfig) -> bool:
    """Chat and Alpaca records hold the whole answer in one text, unless columns are named."""
    candidates = [c for field in task.fields for c in candidates_of(field, task)]
    return table.format in ("chat", "alpaca") and not data.columns and not any(has_column(c, table) for c in candidates)


def _whole_column(path: Path, table: Table, data: DataConfig, task: Task) -> str:
    named = data.columns.get("")
    if isinstance(named, dict):
        raise DataError('data.columns: the whole answer (key "") is one column, found a mapping of labels.')
    names = [named] if named else [c for c in (*WHOLE_ANSWER, "label", task.name) if has_column(c, table)]
    if not names or not has_column(names[0], table):
        column = named or "output"
        raise missing_column(path, table, column, "the task's answer", 'data.columns: {{"": {}}}')
    return names[0]


def _single(row: Row, column: str, task: Task, data: DataConfig) -> Any:
    """A task whose answer is one value: free text, a label, a number."""
    raw = cell(row.values, column)
    if is_blank(raw):
        raise RowError("missing label", f"{column!r} is empty, expected the answer")
    if task.free_text:
        return text_of(raw)
    return _checked(schemas.coerce(raw, task.output, field_labels(data, ""), data.list_separator), task)


def _from_json(row: Row, column: str, task: Task, data: DataConfig) -> tuple[Any, str | None]:
    raw = cell(row.values, column)
    if is_blank(raw):
        raise RowError("missing label", f"{column!r} is empty, expected the answer as JSON")
    try:
        value = json.loads(raw) if isinstance(raw, str) else raw
    except ValueError as error:
        raise RowError("invalid JSON", f"{column!r} is {shorten(raw, 80)!r}, expected JSON: {error}") from None
    if not isinstance(value, dict):
        raise RowError("invalid JSON", f"{column!r} is {shorten(raw, 80)!r}, expected a JSON object")
    value = dict(value)
    reasoning = value.pop(task.reasoning, None) if task.reasoning else None
    for field in task.fields:
        found = schemas.get(value, field.path)
        if found is not None:
            labels = field_labels(data, field.path)
            schemas.assign(value, field.path, schemas.coerce(found, field.schema, labels, data.list_separator))
    return _checked(value, task), reasoning if isinstance(reasoning, str) else None


def _checked(value: Any, task: Task) -> Any:
    problem = schemas.problems(value, task.output)
    if problem:
        kind = "missing label" if " lacks " in problem else "unknown label" if "one of" in problem else "invalid value"
        raise RowError(kind, problem)
    return schemas.canonical(value, task.output)


def _collect(row: Row, readers: list[tuple[Field, Callable[[Row], Any]]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for field, read in readers:
        found = read(row)
        if found is not None:
            schemas.assign(value, field.path, found)
    return value


# -- one field ---------------------------------------------------------------------------------


def candidates_of(field: Field, task: Task) -> list[str]:
    """Column names that mean a field when data.columns does not say."""
    last = field.keys[-1]
    alone = sum(1 for other in task.fields if other.keys[-1] == last) == 1
    return list(dict.fromkeys([field.path, field.path.replace(".", "_"), *([last] if alone else [])]))


def _field_reader(
    field: Field, path: Path, table: Table, task: Task, data: DataConfig, notes: list[str]
) -> tuple[Field, Callable[[Row], Any]]:
    named = data.columns.get(field.path)
    if isinstance(named, dict):
        return field, _indicator_reader(field, named, path, table, notes)
    names = [named] if named else candidates_of(field, task)
    found = [name for name in names if has_column(name, table)]
    optional = not _required(field, task)
    if not found and optional and not named:
        notes.append(f"no column for the optional field {field.path!r}: it is absent everywhere")
        return field, lambda row: None
    if not found:
        wanted = named or names[min(1, len(names) - 1)]
        needed = f"answer field {field.path!r}"
        if not named and len(names) > 1:
            needed += f", tried {names}"
        raise missing_column(path, table, wanted, needed, f"data.columns: {{{{{field.path}: {{}}}}}}")
    column, labels = found[0], field_labels(data, field.path)

    def read(row: Row) -> Any:
        raw = cell(row.values, column)
        if is_blank(raw) and text_of(raw) not in labels:
            if optional:
                return None
            wanted = f"expected one of {list(field.labels)}" if field.labels else "expected a value"
            raise RowError("missing label", f"{column!r} is empty, {wanted}")
        value = schemas.coerce(raw, field.schema, labels, data.list_separator)
        if problem := schemas.problems(value, field.schema, field.path):
            raise RowError("unknown label" if "expected one of" in problem else "invalid value", problem)
        return value

    return field, read


def _required(field: Field, task: Task) -> bool:
    schema = task.output
    for key in field.keys:
        if key not in schema["required"]:
            return False
        schema = schema["properties"][key]
    return True


def _indicator_reader(
    field: Field, columns: Mapping[str, str], path: Path, table: Table, notes: list[str]
) -> Callable[[Row], Any]:
    """A field spread over 0/1 columns, one for each label."""
    known = {str(label): label for label in field.labels or ()}
    for label, column in columns.items():
        if label not in known:
            raise DataError(f"data.columns.{field.path}: {label!r} is no label of the field. Labels are {list(known)}.")
        if not has_column(column, table):
            setting = f"data.columns: {{{{{field.path}: {{{{{label}: {{}}}}}}}}}}"
            raise missing_column(path, table, column, f"label {label!r} of {field.path!r}", setting)
    if absent := [label for label in known if label not in columns]:
        notes.append(f"no column for the labels {absent} of {field.path!r}: they never occur")

    def read(row: Row) -> Any:
        chosen: list[Any] = []
        for label, column in columns.items():
            text = text_of(cell(row.values, column)).casefold()
            if not text:
                raise RowError("missing label", f"{column!r} is empty, expected 0 or 1")
            if text not in TRUE_TEXTS and text not in FALSE_TEXTS:
                raise RowError("unknown label", f"{column!r} is {text!r}, expected 0 or 1")
            if text in TRUE_TEXTS:
                chosen.append(known[label])
        if field.multi:
            return schemas.canonical(chosen, field.schema)
        if len(chosen) != 1:
            raise RowError("unknown label", f"{len(chosen)} of the columns of {field.path!r} are 1, expected one")
        return chosen[0]

    return read
