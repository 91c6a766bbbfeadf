"""Rows of a table -> examples of a task; every row that cannot be one has a reason.

Comes in: a path, a task, the recipe's data settings. Goes out: examples in file order and rejections.
Knows nothing of splits. `read_inputs` is for rows without labels and never leaves one out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from afina.core.config import DataConfig
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.task import Task
from afina.data.columns import Answers, RowError, cell, find_answers, has_column, is_blank, missing_column, text_of
from afina.data.formats import in_order, read_table
from afina.data.table import Rejection, Row, Table, count_kinds, shorten


@dataclass
class Examples:
    """Usable rows and the others, both in file order.

    name: the file's. table: columns, notes, format and hash, without its rows.
    """

    name: str

    examples: list[Example]
    rejected: list[Rejection]
    table: Table
    num_read: int
    notes: list[str] = field(default_factory=list)


class InputRow(NamedTuple):
    """One row to be answered. problem: why it cannot be read; its inputs are then empty texts."""

    id: str
    inputs: dict[str, str]
    problem: str | None


def read_examples(data: DataConfig, task: Task, path: Path, *, id_prefix: str = "") -> Examples:
    """The labelled rows of `path`, checked against the task.

    id_prefix: put before line numbers where there is no data.id_column, to tell several files apart.
    Raises DataError for missing columns, and when more than data.max_rejected of the rows are unusable.
    """
    table = read_table(path, format=data.format, delimiter=data.delimiter, header=data.header)
    num_read = table.num_read
    answers = _check_columns(path, table, task, data)
    reasoning = _reasoning_columns(path, table, task, data)
    examples: list[Example] = []
    rejected = list(table.rejections)
    seen: dict[str, int] = {}
    for row in table.rows:
        try:
            example = _example(row, task, data, answers, reasoning, id_prefix)
            if example.id in seen:
                raise RowError("duplicate id", f"the id {example.id!r} already stands in line {seen[example.id]}")
        except RowError as problem:
            rejected.append(Rejection(row.line, problem.kind, problem.reason, shorten(dict(row.values))))
            continue
        seen[example.id] = row.line
        examples.append(example)
    rejected.sort(key=lambda rejection: rejection.line)
    rejected = [Rejection(r.line, r.kind, r.reason, r.raw, path.name) for r in rejected]
    table.rows = []
    result = Examples(path.name, examples, rejected, table, num_read, [*table.notes, *answers.notes])
    refuse_too_many(path, result, data.max_rejected)
    return result


def _check_columns(path: Path, table: Table, task: Task, data: DataConfig) -> Answers:
    if not table.rows:
        first = table.rejections[0]
        raise DataError(
            f"{path}:{first.line}: none of the {len(table.rejections)} rows can be read; the first: {first.reason}. "
            "Set data.format, data.delimiter or data.header to what the file is."
        )
    check_inputs(path, table, task)
    if data.id_column and not has_column(data.id_column, table):
        raise missing_column(path, table, data.id_column, "each row's id", "data.id_column: {}")
    return find_answers(path, table, task, data)


def check_inputs(path: Path, table: Table, task: Task, *, has_recipe: bool = True) -> None:
    """Raises DataError for an input without a column."""
    for name, column in task.inputs.items():
        if not has_column(column, table):
            setting = f"task.inputs: {{{{{name}: {{}}}}}}" if has_recipe else ""
            raise missing_column(path, table, column, f"task input {name!r}", setting)


def _reasoning_columns(path: Path, table: Table, task: Task, data: DataConfig) -> dict[str, str]:
    """Part key -> column with its reasoning; the key "" for one column that all parts share."""
    if not task.reasoning:
        return {}
    named = data.columns.get(task.reasoning, task.reasoning)
    if isinstance(named, dict):
        return _columns_of_parts(path, table, task, named)
    if has_column(named, table):
        return {"": named}
    if "" in data.columns or table.format in ("chat", "alpaca"):
        return {}  # it stands inside the answer's JSON
    raise missing_column(
        path,
        table,
        named,
        "task.reasoning",
        f"data.columns: {{{{{task.reasoning}: {{}}}}}}, or leave out task.reasoning",
    )


def _columns_of_parts(path: Path, table: Table, task: Task, named: Mapping[str, str]) -> dict[str, str]:
    keys = [part.key for part in task.parts]
    if sorted(named) != sorted(keys) or keys == [""]:
        wanted = f"one column for each of {keys}" if keys != [""] else "one column, for the task has no parts"
        raise DataError(f"data.columns.{task.reasoning}: found {dict(named)}, expected {wanted}.")
    for key, column in named.items():
        if not has_column(column, table):
            raise missing_column(
                path, table, column, f"reasoning of part {key!r}", f"data.columns.{task.reasoning}.{key}: {{}}"
            )
    return dict(named)


def _example(
    row: Row, task: Task, data: DataConfig, answers: Answers, reasoning_columns: Mapping[str, str], id_prefix: str
) -> Example:
    inputs = row_inputs(row.values, task)
    refuse_empty(inputs, task)
    identity = f"{id_prefix}{row.line}"
    if data.id_column:
        identity = text_of(cell(row.values, data.id_column))
        if not identity:
            raise RowError("empty id", f"{data.id_column!r} is empty, expected the row's id")
    output, written = answers.read(row)
    reasoning = {key: text_of(cell(row.values, column)) for key, column in reasoning_columns.items()}
    if written:
        reasoning.setdefault("", written)
    reasoning = {key: text for key, text in reasoning.items() if text}
    return Example(identity, inputs, output, reasoning, row.line)


def row_inputs(values: Mapping[str, Any], task: Task) -> dict[str, str]:
    """Input name -> text, "" where the cell is empty."""
    return {name: text_of(cell(values, column)) for name, column in task.inputs.items()}


def refuse_empty(inputs: Mapping[str, str], task: Task) -> None:
    if not any(inputs.values()):
        names = ", ".join(inputs)
        raise RowError("empty input", f"{names} {'is' if len(inputs) == 1 else 'are all'} empty")
    for part in task.parts if task.part_inputs else ():
        if not any(text for _, text in part.shown(inputs)):
            sources = list(dict.fromkeys(source for _, source in part.inputs))
            raise RowError("empty input", f"{', '.join(sources)} {'is' if len(sources) == 1 else 'are all'} empty")


def refuse_too_many(path: Path, result: Examples, max_rejected: float) -> None:
    """Raises DataError when no row is usable, or more than the share `max_rejected` is not."""
    share = len(result.rejected) / max(1, result.num_read)
    if not result.rejected or (result.examples and share <= max_rejected):
        return
    kinds = "; ".join(f"{count} × {kind}" for kind, count in count_kinds(result.rejected).items())
    first = "\n".join(f"  line {r.line}: {r.reason}" for r in result.rejected[:3])
    limit = "none is usable" if not result.examples else f"data.max_rejected allows {max_rejected:.0%}"
    raise DataError(
        f"{path}: {len(result.rejected)} of {result.num_read} rows ({share:.1%}) cannot be used, {limit}: {kinds}.\n"
        f"{first}\n"
        "Fix the rows, map spellings under data.labels"
        + (
            "."
            if not result.examples
            else f", or allow it with data.max_rejected: {min(1, int(share * 100 + 1) / 100)}."
        )
    )


def read_inputs(
    path: Path,
    task: Task,
    id_column: str | None = None,
    *,
    format: str = "auto",
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
) -> list[InputRow]:
    """Every row of a table to be answered, in order; a row that cannot be read has a problem, not an absence.

    The id is the line number where no id column is named, or its cell is empty.
    Raises DataError for a file that cannot be read and for a missing input or id column.
    """
    table = read_table(Path(path), format=format, delimiter=delimiter, header=header)
    if table.rows:
        check_inputs(Path(path), table, task, has_recipe=False)
        if id_column and not has_column(id_column, table):
            raise missing_column(Path(path), table, id_column, "each row's id", "--id-column {}")
    rows: list[InputRow] = []
    for entry in in_order(table):
        if isinstance(entry, Rejection):
            rows.append(InputRow(str(entry.line), dict.fromkeys(task.inputs, ""), f"line {entry.line}: {entry.reason}"))
            continue
        own = cell(entry.values, id_column) if id_column else None
        rows.append(InputRow(str(entry.line) if is_blank(own) else text_of(own), row_inputs(entry.values, task), None))
    return rows
