"""JSON, JSON Lines, Alpaca and chat records -> Table.

Comes in: text. Goes out: rows with line (JSON Lines) or record number (a JSON document), and rejections.
A chat record's last exchange becomes the columns system, history, user and assistant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from afina.core.errors import DataError
from afina.data.delimited import broken_text
from afina.data.encodings import SURROGATE
from afina.data.table import Rejection, Row, Table, name_some, shorten

ALPACA = ("instruction", "input", "output")
CHAT = ("system", "history", "user", "assistant")


def read_json_lines(text: str, path: Path) -> Table:
    """One JSON object on each line; a line that is none is a rejection."""
    table, blank = Table([], [], format="jsonl"), 0
    # Not splitlines(): it also splits at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            blank += 1
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"is no valid JSON: {error.msg} at column {error.colno}"
            table.rejections.append(Rejection(number, "invalid JSON", reason, shorten(line)))
            continue
        except (ValueError, RecursionError) as error:
            table.rejections.append(Rejection(number, "invalid JSON", f"is no usable JSON: {error}", shorten(line)))
            continue
        _add(table, number, value)
    if blank - text.endswith("\n") > 0:
        table.notes.append(f"{blank - text.endswith(chr(10))} blank lines skipped")
    return _finish(table, path)


def read_json(text: str, path: Path) -> Table:
    """An array of objects, an object with one array of objects in it, or an object of objects.

    JSON Lines under the name .json are recognised. Raises DataError with line and column of the first error.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if _is_json_lines(text):
            table = read_json_lines(text, path)
            table.notes.insert(0, "named as JSON, but holds JSON Lines: read as such")
            return table
        raise DataError(
            f"{path}:{error.lineno}: is no valid JSON: {error.msg} at column {error.colno}. "
            "Expected an array of objects, or one object on each line. Export it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no usable JSON: {error}. Expected an array of objects.") from error
    table = Table([], [], format="json")
    for number, value in enumerate(_objects(document, path, table.notes), 1):
        _add(table, number, value)
    return _finish(table, path)


def _is_json_lines(text: str) -> bool:
    lines = (line for line in text.split("\n") if line.strip())
    try:
        return isinstance(json.loads(next(lines)), dict) and next(lines, None) is not None
    except (ValueError, StopIteration):
        return False


def _objects(document: Any, path: Path, notes: list[str]) -> Iterable[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list) and any(map(_is_object, value))]
        if len(lists) == 1:
            notes.append(f"rows are the array {lists[0]!r}")
            return document[lists[0]]
        if document and all(map(_is_object, document.values())):
            if any("key" in value for value in document.values()):
                return document.values()
            notes.append("rows are the objects of the document; their names are the column 'key'")
            return [{"key": key, **value} for key, value in document.items()]
        raise DataError(
            f"{path}: found an object with {f'the arrays {name_some(lists)}' if lists else 'no array of objects'}, "
            "expected one array of objects. Keep the array that holds the rows."
        )
    raise DataError(f"{path}: found a single {type(document).__name__}, expected an array of objects.")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _add(table: Table, number: int, value: Any) -> None:
    if not isinstance(value, dict):
        reason = f"found a {type(value).__name__}, expected an object with named values"
        table.rejections.append(Rejection(number, "no object", reason, shorten(value)))
    elif broken := next((text for text in _texts(value) if SURROGATE.search(text)), None):
        table.rejections.append(broken_text(number, broken))
    else:
        table.rows.append(Row(number, value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _finish(table: Table, path: Path) -> Table:
    if not table.rows and not table.rejections:
        raise DataError(f"{path}: holds no records, expected an array of objects, or one object on each line.")
    table.columns = list(dict.fromkeys(name for row in table.rows for name in row.values))
    return table


# -- shapes ------------------------------------------------------------------------------------


def is_chat(table: Table) -> bool:
    """Most rows have a list of messages."""
    having = sum(1 for row in table.rows if isinstance(row.values.get("messages"), list))
    return having > 0 and having >= 0.5 * len(table.rows)


def is_alpaca(table: Table) -> bool:
    return {"instruction", "output"} <= set(table.columns)


def as_alpaca(table: Table, path: Path) -> Table:
    """Raises DataError if the columns instruction and output are missing; `input` may be absent."""
    if not is_alpaca(table):
        raise DataError(
            f"{path}: data.format is alpaca, but the columns are {table.columns}; expected {list(ALPACA)}. "
            "Write data.format: auto."
        )
    table.rows = [Row(row.line, {**row.values, "input": row.values.get("input") or ""}) for row in table.rows]
    table.columns = list(dict.fromkeys([*ALPACA, *table.columns]))
    table.format = "alpaca"
    return table


def as_chat(table: Table, path: Path) -> Table:
    """The last exchange of every record as columns; other values of a record stay columns."""
    if not is_chat(table):
        raise DataError(
            f"{path}: data.format is chat, but the columns are {table.columns}; expected 'messages', a list of "
            "objects with role and content. Write data.format: auto."
        )
    rows: list[Row] = []
    for row in table.rows:
        try:
            exchange = _last_exchange(row.values.get("messages"))
        except ValueError as error:
            table.rejections.append(Rejection(row.line, "unusable messages", str(error), shorten(dict(row.values))))
            continue
        others = {key: value for key, value in row.values.items() if key != "messages"}
        rows.append(Row(row.line, {**others, **exchange}))
    table.rejections.sort(key=lambda rejection: rejection.line)
    table.rows, table.format = rows, "chat"
    table.columns = list(dict.fromkeys([*CHAT, *(name for name in table.columns if name != "messages")]))
    return table


def _last_exchange(messages: Any) -> dict[str, str | None]:
    """system, history (earlier turns, a line each), user, assistant (None if it is still to come)."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is empty or no list")
    turns = [(_role(message), _content(message)) for message in messages]
    system = "\n".join(text for role, text in turns if role in ("system", "developer"))
    talk = [(role, text) for role, text in turns if role not in ("system", "developer")]
    assistant = talk.pop()[1] if talk and talk[-1][0] == "assistant" else None
    if not talk or talk[-1][0] != "user":
        raise ValueError(
            f"the roles are {[role for role, _ in turns]}, expected a user's message before the last answer"
        )
    user = talk.pop()[1]
    history = "\n".join(f"{role}: {text}" for role, text in talk)
    return {"system": system, "history": history, "user": user, "assistant": assistant}


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "developer", "user", "assistant"):
        raise ValueError(f"a message has the role {role!r}, expected system, user or assistant")
    return role


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "\n".join(part["text"] for part in content)
    kind = "tool calls" if message.get("tool_calls") else f"content {shorten(content, 60)}"
    raise ValueError(f"the {message.get('role')} message has {kind}, expected text")
