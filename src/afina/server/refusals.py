"""What pydantic refused, said in the contract's sentences and codes.

Comes in: pydantic's list of problems and the body they are about. Goes out: one ApiError, about the first of them. A
union's branches fail one by one; of those, the one that came furthest is told, and where all failed at once, what each
wanted. Knows nothing of any endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from afina.server.errors import ApiError, bad_request
from afina.server.fields import (
    array_too_long,
    empty_array,
    kind_of,
    missing,
    string_too_long,
    unknown,
    wrong_type,
    wrong_value,
)

B = TypeVar("B", bound=BaseModel)
Problem = Mapping[str, Any]
PARSE_HINT = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The API expects a JSON payload, but what was sent was not valid JSON"
)
WANTED = {
    "int_type": "an integer", "int_parsing": "an integer", "int_from_float": "an integer",
    "int_parsing_size": "an integer", "float_type": "a decimal", "float_parsing": "a decimal",
    "finite_number": "a finite decimal",
    "bool_type": "a boolean", "bool_parsing": "a boolean", "string_type": "a string", "none_required": "null",
    "list_type": "an array", "tuple_type": "an array", "dict_type": "an object", "model_type": "an object",
    "model_attributes_type": "an object", "mapping_type": "an object",
}  # fmt: skip
BOUNDS = {
    "greater_than_equal": ("ge", ">=", "below minimum", "below_min"),
    "greater_than": ("gt", ">", "below minimum", "below_min"),
    "less_than_equal": ("le", "<=", "above maximum", "above_max"),
    "less_than": ("lt", "<", "above maximum", "above_max"),
}  # pydantic's problem: the limit's key, its sign, the contract's words and code


def unparsable(reason: str = "") -> ApiError:
    """The body is no JSON. reason: where and why, without the body's own text."""
    return bad_request(f"{PARSE_HINT}{': ' + reason if reason else ''}.)")


def read(model: type[B], raw: Any) -> B:
    """A value that came inside something else, as a batch's line, as a body. Raises ApiError as for a request's own."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise refusal([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()], raw) from error


def refusal(problems: Sequence[Problem], body: Any) -> ApiError:
    """problems: as pydantic's `errors()`, their places beginning with "body", "query" or "path"."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return unparsable(str(first.get("ctx", {}).get("error", "")))
    if tuple(first["loc"]) == ("body",) and first["type"] == "missing":
        return unparsable("the body is empty")
    places = [_place(problem, body) for problem in problems]
    branch_at = places[0][1]
    # The other branches of the union in which the first problem lies.
    same = [
        (problem, place)
        for problem, (place, fork) in zip(problems, places, strict=True)
        if problem is first
        or (branch_at is not None and fork is not None and place[:branch_at] == places[0][0][:branch_at])
    ]
    furthest = max(_progress(problem, place) for problem, place in same)
    best = [(problem, place) for problem, place in same if _progress(problem, place) == furthest]
    problem, place = best[0]
    if _wanted(problem) and place:
        wanted = dict.fromkeys(filter(None, (_wanted(other) for other, _ in best)))
        return wrong_type(_name(place), " or ".join(wanted), problem.get("input"))
    return _one(problem, _name(place))


def _place(problem: Problem, body: Any) -> tuple[tuple[str | int, ...], int | None]:
    """Where the problem is in what was sent, without pydantic's names of union branches; and at what depth the first
    such name stood, None when there was none."""
    source, *rest = problem["loc"]
    if source != "body":
        return tuple(rest), None
    place: list[str | int] = []
    fork: int | None = None
    node: Any = body
    for i, part in enumerate(rest):
        last = i == len(rest) - 1
        if isinstance(node, dict) and part in node:
            node = cast(dict[str, Any], node)[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(cast(list[Any], node)):
            node = cast(list[Any], node)[part]
        elif not (last and problem["type"] == "missing"):
            fork = len(place) if fork is None else fork
            continue
        place.append(part)
    return tuple(place), fork


def _progress(problem: Problem, place: Sequence[str | int]) -> tuple[int, int]:
    """How far a union's branch came before it failed: deeper, and there further than the type."""
    return len(place), 0 if _wanted(problem) else 1


def _wanted(problem: Problem) -> str | None:
    """The type that was wanted, of a problem that is only about the type."""
    if problem["type"] in ("literal_error", "enum") and not isinstance(problem.get("input"), str):
        return str(problem.get("ctx", {}).get("expected", "one of the known values"))
    return WANTED.get(str(problem["type"]))


def _name(place: Sequence[str | int]) -> str:
    """`messages[0].content`."""
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name[:200]


def _one(problem: Problem, param: str) -> ApiError:
    type_, found = str(problem["type"]), problem.get("input")
    context: Mapping[str, Any] = problem.get("ctx", {})
    if type_ == "missing":
        return missing(param)
    if type_ == "extra_forbidden":
        return unknown(param)
    if type_ in WANTED:
        message = f"Invalid type for the request body: expected an object, but got {kind_of(found)} instead."
        return bad_request(message, None, "invalid_type")
    if type_ in ("literal_error", "enum"):
        return wrong_value(param, found, _words(str(context.get("expected", ""))))
    if type_ in ("union_tag_invalid", "union_tag_not_found"):
        return _tag(param, found, context)
    return _limit(type_, param, found, context) or _rest(problem, param)


def _words(expected: str) -> list[str]:
    """Of pydantic's `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", expected) or [expected]


def _tag(param: str, found: Any, context: Mapping[str, Any]) -> ApiError:
    key = str(context.get("discriminator", "'type'")).strip("'")
    inner = f"{param}.{key}" if param else key
    if "tag" not in context:
        return missing(inner) if isinstance(found, dict) else wrong_type(param, "an object", found)
    return wrong_value(inner, context["tag"], _words(str(context.get("expected_tags", ""))))


def _limit(type_: str, param: str, found: Any, context: Mapping[str, Any]) -> ApiError | None:
    if type_ in BOUNDS:
        return _beyond(type_, param, _number(found), context)
    if type_ == "string_too_long":
        return string_too_long(param, context["max_length"], len(found))
    if type_ == "string_too_short":
        least = context["min_length"]
        wanted = f"Expected a string with minimum length {least}, but got"
        if not found:
            message = f"Invalid '{param}': empty string. {wanted} an empty string instead."
            return bad_request(message, param, "empty_string")
        message = f"Invalid '{param}': string too short. {wanted} a string with length {len(found)} instead."
        return bad_request(message, param, "string_below_min_length")
    if type_ == "too_long" and not isinstance(found, dict):
        return array_too_long(param, context["max_length"], len(found))
    if type_ == "too_long":
        message = (
            f"Invalid '{param}': too many properties. Expected an object with at most {context['max_length']} "
            f"properties, but got an object with {len(found)} properties instead."
        )
        return bad_request(message, param, "object_above_max_properties")
    return empty_array(param) if type_ == "too_short" else None


def _beyond(type_: str, param: str, number: int | float, context: Mapping[str, Any]) -> ApiError:
    key, sign, words, code = BOUNDS[type_]
    kind = "integer" if isinstance(context[key], int) else "decimal"  # what the field is, not what was sent
    shown = str(number) if isinstance(number, int) else f"{number:g}"
    message = (
        f"Invalid '{param}': {kind} {words} value. Expected a value {sign} {context[key]:g}, but got "
        f"{shown[:100]} instead."
    )
    return bad_request(message, param, f"{kind}_{code}_value")


def _number(found: Any) -> int | float:
    """Query parameters come as text."""
    if not isinstance(found, str):
        return found
    try:
        return int(found)
    except ValueError:
        return float(found)


def _rest(problem: Problem, param: str) -> ApiError:
    context: Mapping[str, Any] = problem.get("ctx", {})
    if problem["type"] == "value_error":
        return bad_request(str(context.get("error", "")) or f"Invalid '{param}'.", param or None, "invalid_value")
    if problem["type"] == "string_pattern_mismatch":
        message = (
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            f"'{context['pattern']}'."
        )
        return bad_request(message, param, "invalid_value")
    # pydantic's own words name types and limits, and never what was sent.
    text = str(problem["msg"])
    return bad_request(f"Invalid '{param}': {text[:1].lower()}{text[1:]}.", param or None, "invalid_value")
