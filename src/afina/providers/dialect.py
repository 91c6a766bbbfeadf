"""What one model at one provider does not take: remembered when it is refused, told once.

Comes in: our request, as it is written for every provider. Goes out: the request as this one takes it. The answer is
kept under our own request, so that what is learned here does not make an answer another one.
"""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Callable
from typing import Any

from afina.core.storage import digest
from afina.providers.client import ProviderError
from afina.providers.wording import with_schema, without_limits

Body = dict[str, Any]
FORMAT = "response_format"
LIMITS = ("max_completion_tokens", "max_tokens")
# Status of a request that is refused for what stands in it.
REFUSED = (400, 404, 415, 422, 501)
ABOUT_FORMAT = re.compile(
    r"response.?format|json.?schema|json.?object|json.?mode|structured.?output|guided.?(json|decoding)", re.I
)
BAD_SCHEMA = re.compile(r"invalid.?schema|invalid_json_schema", re.I)
UNWANTED = re.compile(
    r"unsupported|not.?supported|does not support|unrecogni[sz]ed|unknown|unexpected|not.?permitted|not allowed|"
    r"extra.?(input|field|forbidden)|no longer|instead|only the default|is not available",
    re.I,
)


class Fall(enum.Enum):
    """What to do when a provider refuses the form of an answer."""

    NEVER = "it is an error"
    SILENT = "a schema, one without limits, else plain text; the messages stay as they are"
    TOLD = "a schema, one without limits, else any JSON object, else plain text; the messages then say the schema"


BARE = "json_schema without limits"
FORMS = {Fall.SILENT: ("json_schema", BARE, "text"), Fall.TOLD: ("json_schema", BARE, "json_object", "text")}


class Dialect:
    """Thread-safe. limit_key: what the provider calls the limit of an answer's tokens."""

    def __init__(self, provider: str, tell: Callable[[str], None], limit_key: str = LIMITS[0]) -> None:
        self.provider, self.tell = provider, tell
        self._limit_key = limit_key
        self._refused_limits: set[str] = set()
        self._dropped: set[str] = set()  # of seed and temperature
        self._refused: set[tuple[str, str]] = set()  # (form, digest of the schema; "" for every schema)
        self._lock = threading.Lock()

    def speak(self, body: Body, fall: Fall) -> Body:
        """The request as the provider takes it, as far as is known."""
        found = {key: value for key, value in body.items() if key not in self._dropped}
        for key in LIMITS:
            if key in found:
                found[self._limit_key] = found.pop(key)
        shape = found.get(FORMAT)
        if shape is None or shape.get("type") != "json_schema" or fall is Fall.NEVER:
            return found
        schema = _schema_of(shape)
        form = next((form for form in FORMS[fall] if not self._is_refused(form, schema)), "text")
        if form == BARE:
            found[FORMAT] = {**shape, "json_schema": {**shape["json_schema"], "schema": without_limits(schema)}}
        elif form != "json_schema":
            found[FORMAT] = {"type": form}
            if fall is Fall.TOLD and schema:
                found["messages"] = with_schema(found["messages"], schema)
        if form == "text":
            del found[FORMAT]
        return found

    def learns(self, sent: Body, body: Body, error: ProviderError, fall: Fall) -> bool:
        """Whether the refusal of `sent` says how `body` has to be said, so that it is worth sending again."""
        if error.status not in REFUSED or error.written is not None:
            return False
        words = f"{error.param or ''} {error}"
        with self._lock:
            if FORMAT in sent and fall is not Fall.NEVER and is_about_format(error):
                self._drop_form(sent, body, words)
            else:
                self._drop_key(sent, error.param, words)
        return self.speak(body, fall) != sent

    def _drop_form(self, sent: Body, body: Body, words: str) -> None:
        form, schema = str(sent[FORMAT].get("type")), _schema_of(body[FORMAT])
        only = digest(schema) if schema and BAD_SCHEMA.search(words) else ""
        if form == "json_schema" and sent[FORMAT] != body[FORMAT]:
            form = BARE
        if (form, only) in self._refused:
            return
        self._refused.add((form, only))
        if form == "json_schema" and (not only or without_limits(schema) == schema):
            self._refused.add((BARE, only))  # without its limits it would be refused as well
        self.tell(f"{self.provider}: takes no {form} answers{' of this schema' if only else ''}; asking without")

    def _drop_key(self, sent: Body, param: str | None, words: str) -> None:
        if not UNWANTED.search(words):
            return
        limit = next(key for key in LIMITS if key in sent)
        # "Use 'max_completion_tokens' instead" names both limits: the one that was sent is meant.
        keys = [key for key in ("seed", "temperature", limit) if key in sent]
        named = [key for key in keys if key == param] or [key for key in keys if re.search(rf"\b{key}\b", words)]
        if not named:
            return
        if (key := named[0]) == limit:
            other = LIMITS[1 - LIMITS.index(key)]
            self._refused_limits.add(key)
            # Never sent without a limit: what is set aside for an answer would then not suffice.
            if other not in self._refused_limits and self._limit_key == key:
                self._limit_key = other
                self.tell(f"{self.provider}: takes no {key}; {other} is sent")
        elif key not in self._dropped:
            self._dropped.add(key)
            self.tell(f"{self.provider}: takes no {key}; asking without")

    def _is_refused(self, form: str, schema: Any) -> bool:
        return (form, "") in self._refused or (bool(schema) and (form, digest(schema)) in self._refused)


def is_about_format(error: ProviderError) -> bool:
    """Whether a request was refused for the form that it wants its answer in."""
    words = f"{error.param or ''} {error}"
    return error.status in REFUSED and error.written is None and ABOUT_FORMAT.search(words) is not None


def _schema_of(shape: Any) -> Any:
    """The schema of a response_format; None where there is none."""
    inner = shape.get("json_schema")
    return inner.get("schema") if isinstance(inner, dict) else None
