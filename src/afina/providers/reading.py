"""A model's text -> the value that it means, for models that no grammar holds to a schema.

Comes in: a text and a schema. Goes out: a value of the schema, and whether the text had to be repaired. Nothing is ever
made up: a repaired value is taken only if each of its texts, numbers and names stands in the model's own text, and if
there is one such value, not two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.schema import Schema, dumps
from afina.providers.client import ProviderError
from afina.providers.wording import ONLY, as_object, no_constant, without_nulls

LONGEST = 200_000  # characters that are looked through
THOUGHTS = re.compile(r"^\s*<think(?:ing)?>.*?</think(?:ing)?>", re.S)  # of models that think aloud before they answer
WORDS_FOR = {True: r"true", False: r"false", None: r"null|none"}


@dataclass(frozen=True)
class Read:
    """A value of the schema in its canonical order. repaired: the text was no clean JSON."""

    value: Any
    repaired: bool = False


def read(text: str, schema: Schema) -> Read:
    """Raises DataError that says what is wrong with the text, in one sentence."""
    wrapped = as_object(schema)
    try:
        value = _parse(text)
    except ValueError:
        return _repaired(text, schema, wrapped)
    problem = schemas.problems(without_nulls(value, wrapped), wrapped)
    if problem is None:
        return Read(_unwrap(schemas.canonical(without_nulls(value, wrapped), wrapped), schema))
    if schema is not wrapped and schemas.problems(value, schema) is None:
        return Read(schemas.canonical(value, schema), repaired=True)
    raise DataError(f"the answer does not fit the schema: {problem}")


def _parse(text: str) -> Any:
    """Raises ValueError for what is no JSON."""
    try:
        return json.loads(text, parse_constant=no_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _unwrap(value: Any, schema: Schema) -> Any:
    return value if schema.get("type") == "object" else value[ONLY]


# -- repair ----------------------------------------------------------------------------------------


def _repaired(text: str, schema: Schema, wrapped: Schema) -> Read:
    """The one value that the text says, though not in clean JSON."""
    said = THOUGHTS.sub("", text[:LONGEST])
    found: dict[str, Any] = {}
    problem: str | None = None
    for candidate in _candidates(said):
        value = without_nulls(_mended(candidate), wrapped)
        if (wrong := schemas.problems(value, wrapped)) is not None:
            problem = problem or wrong
        elif (invented := _made_up(value, candidate)) is not None:
            problem = problem or f"{invented} does not stand in it"
        else:
            value = schemas.canonical(value, wrapped)
            found[dumps(value)] = _unwrap(value, schema)
    if len(found) == 1:
        return Read(next(iter(found.values())), repaired=True)
    if found:
        raise DataError(f"the answer holds {len(found)} different JSON objects, expected one")
    shown = " ".join(said.split())[:80]
    if problem is None or "{" not in said:
        raise DataError(f"the answer is no JSON: {shown!r}" if shown else "the answer is empty")
    raise DataError(f"the answer is no valid JSON: {problem}")


def _candidates(text: str) -> list[str]:
    """Pieces of the text that may be the answer: each outermost object in braces."""
    found = list(_objects(text))
    if not found and "{" in text and "}" in text:  # braces that do not pair
        found = [text[text.index("{") : text.rindex("}") + 1]]
    return found


def _objects(text: str) -> Iterator[str]:
    """Outermost {...} of the text; braces within double quotes do not count."""
    depth, start, quoted, escaped = 0, 0, False, False
    for place, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"' and depth:
            quoted = True
        elif character == "{":
            start = place if depth == 0 else start
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]


def _mended(text: str) -> Any:
    try:
        return _parse(text)
    except ValueError:
        pass
    try:
        import json_repair
    except ImportError as error:
        raise ProviderError(
            "the reader of unclean JSON is not installed. Install it with: pip install 'afina[hosted]'"
        ) from error
    try:
        return json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None


def _made_up(value: Any, text: str) -> str | None:
    """A name, text or number of the value that does not stand in the text; None if all do."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not _stands(key, text):
                return repr(key)
            if (found := _made_up(inner, text)) is not None:
                return found
        return None
    if isinstance(value, list):
        if not value and not re.search(r"\[\s*\]", text):
            return "an empty list"
        return next((found for item in value if (found := _made_up(item, text)) is not None), None)
    return None if _stands(value, text) else repr(value)


def _stands(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return re.search(rf"\b({WORDS_FOR[value]})\b", text, re.I) is not None
    if isinstance(value, int | float):
        numbers = re.findall(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", text)
        return any(float(number) == float(value) for number in numbers)
    if not value:
        return re.search(r"\"\s*\"|'\s*'", text) is not None
    squeezed = re.sub(r"\s+", "", text)
    spellings = (value, dumps(value)[1:-1], json.dumps(value)[1:-1])
    return any(re.sub(r"\s+", "", spelling) in squeezed for spelling in spellings)
