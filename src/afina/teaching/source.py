"""A table of rows to be labelled -> rows in order, with their gold answers where the table has the answer's columns.

Comes in: a path, a task, how the recipe reads tables. Goes out: `Source`; a row that cannot be read has a problem, not
an absence. Knows nothing of teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from afina.core.config import DataConfig
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.schema import get
from afina.core.task import Task
from afina.data.columns import WHOLE_ANSWER, Answers, RowError, candidates_of, cell, find_answers, has_column, text_of
from afina.data.examples import InputRow, check_inputs, refuse_empty, row_inputs
from afina.data.formats import in_order, read_table
from afina.data.table import Rejection, Row, Table

LabelRow = InputRow | Example
"""A row to be labelled; an Example with an output has gold."""


@dataclass
class Source:
    """rows: in file order. has_gold: the table has the answer's columns. gold_problems: why some rows have none."""

    rows: list[LabelRow]
    has_gold: bool
    num_read: int
    gold_problems: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_source(
    path: Path,
    task: Task,
    data: DataConfig,
    *,
    use_gold: bool = True,
    need_gold: bool = True,
    limit: int | None = None,
) -> Source:
    """The rows of `path`, the first `limit` of them.

    use_gold: False where gold answers are not wanted: the answer's columns are then not looked at. need_gold: whether
    some but not all of the answer's columns are an error, or a note.
    Raises DataError for a file that cannot be read, for missing inputs, and for gold that is needed and not whole.
    """
    table = _read(path, data)
    check_inputs(path, table, task, has_recipe=False)
    notes = list(table.notes)
    id_column = data.id_column
    if id_column and not has_column(id_column, table):
        notes.append(f"{path}: has no column {id_column!r} (data.id_column), so the line number is the id")
        id_column = None
    try:
        answers = _gold_reader(path, table, task, data) if use_gold else None
    except DataError as error:
        if need_gold:
            raise
        notes.append(f"gold is not looked at: {str(error).splitlines()[0]}")
        answers = None
    found = Source([], answers is not None, table.num_read, notes=notes)
    seen: dict[str, int] = {}
    for entry in in_order(table)[:limit]:
        if isinstance(entry, Rejection):
            problem = f"line {entry.line}: {entry.reason}"
            found.rows.append(InputRow(str(entry.line), dict.fromkeys(task.inputs, ""), problem))
        else:
            found.rows.append(_row(entry, task, answers, id_column, seen, found.gold_problems))
    return found


def _read(path: Path, data: DataConfig) -> Table:
    """As the recipe says where the file is of its table's kind; else by its own name and content."""
    if path.suffixes == data.path.suffixes:
        return read_table(path, format=data.format, delimiter=data.delimiter, header=data.header)
    return read_table(path)


def _row(
    row: Row,
    task: Task,
    answers: Answers | None,
    id_column: str | None,
    seen: dict[str, int],
    gold_problems: dict[str, int],
) -> LabelRow:
    inputs = row_inputs(row.values, task)
    identity = text_of(cell(row.values, id_column)) if id_column else str(row.line)
    try:
        refuse_empty(inputs, task)
        if not identity:
            raise RowError("empty id", f"{id_column!r} is empty, expected the row's id")
        if identity in seen:
            raise RowError("duplicate id", f"the id {identity!r} already stands in line {seen[identity]}")
    except RowError as problem:
        return InputRow(identity or str(row.line), dict.fromkeys(task.inputs, ""), f"line {row.line}: {problem.reason}")
    seen[identity] = row.line
    if answers is None:
        return InputRow(identity, inputs, None)
    try:
        gold, _ = answers.read(row)
    except RowError as problem:
        gold_problems[problem.kind] = gold_problems.get(problem.kind, 0) + 1
        return InputRow(identity, inputs, None)
    return Example(identity, inputs, gold, line=row.line)


def _gold_reader(path: Path, table: Table, task: Task, data: DataConfig) -> Answers | None:
    """None for a table without any of the answer's columns. Raises DataError if it has some of them."""
    if not _has_any(table, task, data):
        return None
    try:
        return find_answers(path, table, task, data)
    except DataError as error:
        raise DataError(
            f"{error}\nThe table has some of the answer's columns and not all; to label it without looking at them, "
            "pass --keep-wrong."
        ) from error


def _has_any(table: Table, task: Task, data: DataConfig) -> bool:
    whole = data.columns.get("")
    names = [whole] if isinstance(whole, str) else []
    if task.output.get("type") != "object" and not names:
        names = [*WHOLE_ANSWER, "label", task.name]
    elif not names:
        for one in task.fields:
            named = data.columns.get(one.path)
            found = list(named.values()) if isinstance(named, Mapping) else [named] if named else None
            names += found if found is not None else candidates_of(one, task)
        if table.format in ("alpaca", "chat"):
            names += WHOLE_ANSWER
    inputs = set(task.inputs.values())
    return any(_has_value(name, table) for name in names if name not in inputs)


def _has_value(name: str, table: Table) -> bool:
    """A column with something in it: a table of rows to be labelled may have the columns, empty."""
    if not has_column(name, table):
        return False
    return any(text_of(row.values.get(name) if name in row.values else get(row.values, name)) for row in table.rows)
