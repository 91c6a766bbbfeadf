"""One JSON object inside a request, read field by field: typed, bounded, nothing left over.

Comes in: a parsed JSON value and where it stands (`messages[0]`). Goes out: its fields, or the sentence and code of the
contract that say what is wrong with which one. Used where a field's type depends on another's (a message's on its
role), which the bodies' own types cannot say. Knows nothing of any endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

from afina.server.errors import ApiError, bad_request

T = TypeVar("T")
ABSENT: Any = object()
# Deeper JSON than this is refused before anything recursive reads it.
MOST_DEPTH = 100


def kind_of(value: Any) -> str:
    """What the contract's sentences call a JSON value."""
    names = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def wrong_type(param: str, wanted: str, value: Any) -> ApiError:
    return bad_request(
        f"Invalid type for '{param}': expected {wanted}, but got {kind_of(value)} instead.", param, "invalid_type"
    )


def missing(param: str) -> ApiError:
    return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def unknown(param: str) -> ApiError:
    return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def wrong_value(param: str, value: Any, wanted: Iterable[str]) -> ApiError:
    *rest, last = [f"'{one}'" for one in wanted]
    listed = f"{', '.join(rest)}{',' if len(rest) > 1 else ''} and {last}" if rest else last
    shown = str(value)[:100]
    return bad_request(f"Invalid value: '{shown}'. Supported values are: {listed}.", param, "invalid_value")


def wrong_pattern(param: str, pattern: str) -> ApiError:
    message = (
        f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern '{pattern}'."
    )
    return bad_request(message, param, "invalid_value")


def empty_array(param: str) -> ApiError:
    message = (
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
    )
    return bad_request(message, param, "empty_array")


def array_too_long(param: str, most: int, found: int) -> ApiError:
    message = (
        f"Invalid '{param}': array too long. Expected an array with maximum length {most}, but got an array with "
        f"length {found} instead."
    )
    return bad_request(message, param, "array_above_max_length")


def string_too_long(param: str, most: int, found: int) -> ApiError:
    message = (
        f"Invalid '{param}': string too long. Expected a string with maximum length {most}, but got a string with "
        f"length {found} instead."
    )
    return bad_request(message, param, "string_above_max_length")


def _kind_of_number(bound: float, found: float) -> str:
    """What a field takes: its bound is a float where decimals are taken, also when 200 was sent."""
    return "decimal" if isinstance(bound, float) or isinstance(found, float) else "integer"


def _shown(number: float) -> str:
    """A number in a sentence; an integer beyond a float's range by its size."""
    try:
        return f"{number:g}"
    except OverflowError:
        return f"an integer of {int(number).bit_length()} bits"


def too_small(param: str, least: float, found: float) -> ApiError:
    kind = _kind_of_number(least, found)
    got = f"Expected a value >= {_shown(least)}, but got {_shown(found)} instead."
    message = f"Invalid '{param}': {kind} below minimum value. {got}"
    return bad_request(message, param, f"{kind}_below_min_value")


def too_large(param: str, most: float, found: float) -> ApiError:
    kind = _kind_of_number(most, found)
    got = f"Expected a value <= {_shown(most)}, but got {_shown(found)} instead."
    message = f"Invalid '{param}': {kind} above maximum value. {got}"
    return bad_request(message, param, f"{kind}_above_max_value")


def depth_of(value: Any, most: int = MOST_DEPTH) -> int:
    """Levels of objects and arrays, counted without recursion and no further than `most` + 1."""
    depth, level = 0, [value]
    while depth <= most:
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            return depth
        depth += 1
        level = [inner for x in level for inner in (x.values() if isinstance(x, dict) else x)]
    return depth


def too_deep(value: Any, param: str) -> None:
    """Raises ApiError for JSON that nests deeper than anything here needs."""
    if depth_of(value) > MOST_DEPTH:
        raise bad_request(f"Invalid '{param}': it nests deeper than {MOST_DEPTH} levels.", param, "invalid_value")


def as_list(value: Any, param: str, of: str = "objects") -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(param, f"an array of {of}", value)
    return cast(list[Any], value)


def as_text(value: Any, param: str) -> str:
    """A string that can be written as UTF-8: a lone surrogate, as in "\\ud800", is none."""
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        message = f"Invalid '{param}': the string holds half of a surrogate pair, which is no character."
        raise bad_request(message, param, "invalid_value")
    return value


class Fields:
    """The fields of one object. Every `take` marks one as read; `done` refuses what nobody read."""

    def __init__(self, value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(at, "an object", value)
        self._rest: dict[str, Any] = dict(cast(Mapping[str, Any], value))
        self.at = at

    def name(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key

    def take(self, key: str, default: Any = ABSENT) -> Any:
        if key in self._rest:
            return self._rest.pop(key)
        if default is ABSENT:
            raise missing(self.name(key))
        return default

    def text(self, key: str, default: Any = ABSENT, *, most: int | None = None, nullable: bool = False) -> Any:
        value = self.take(key, default)
        if value is default or (nullable and value is None):
            return default if value is default else None
        text = as_text(value, self.name(key))
        if most is not None and len(text) > most:
            raise string_too_long(self.name(key), most, len(text))
        return text

    def flag(self, key: str, default: Any = ABSENT, *, nullable: bool = True) -> Any:
        value = self.take(key, default)
        if value is default or (nullable and value is None):
            return value
        if not isinstance(value, bool):
            raise wrong_type(self.name(key), "a boolean", value)
        return value

    def one_of(self, key: str, wanted: tuple[str, ...], default: Any = ABSENT) -> Any:
        value = self.take(key, default)
        if value is default:
            return value
        if not isinstance(value, str):
            raise wrong_type(self.name(key), "one of " + ", ".join(f"'{w}'" for w in wanted), value)
        if value not in wanted:
            raise wrong_value(self.name(key), value, wanted)
        return value

    def mapping(self, key: str, default: Any = ABSENT) -> Any:
        value = self.take(key, default)
        if value is not default and not isinstance(value, dict):
            raise wrong_type(self.name(key), "an object", value)
        return value

    def each(self, key: str, read: Callable[[Any, str], T], default: Any = ABSENT) -> Any:
        """A list, every item read by `read(item, where)`."""
        value = self.take(key, default)
        if value is default:
            return value
        at = self.name(key)
        return [read(item, f"{at}[{i}]") for i, item in enumerate(as_list(value, at))]

    def ignore(self, *keys: str) -> None:
        """Fields that change nothing here and promise nothing."""
        for key in keys:
            self._rest.pop(key, None)

    def refuse(self, key: str, error: Callable[[str], ApiError]) -> None:
        """A field that is served only when it is absent or null."""
        if self._rest.pop(key, None) is not None:
            raise error(self.name(key))

    def done(self) -> None:
        for key in self._rest:
            self._unknown(key)

    def _unknown(self, key: str) -> NoReturn:
        raise unknown(self.name(key[:100]))
