"""Output schema -> the walk of one answer: what is forced, what is chosen, what is open.

An answer's text is a walk through its schema. The walk yields

    Forced   text that the schema leaves no choice about; it costs no thinking
    Choice   one of finitely many texts: a label, a boolean, the next key, one more item or the end
    Open     a value without a finite list: free text, a number; llguidance keeps it valid

With `gold`, a value of the schema, the walk follows that value: training and serving are the same
walk, so what is trained is what is served. Knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from afina.core.schema import Schema, dumps, labels_of, problems

MISSING: Any = object()
# Items of an array without maxItems that a model may write, so that every answer ends.
MAX_ITEMS = 32


@dataclass(frozen=True)
class Forced:
    text: str


@dataclass(frozen=True)
class Choice:
    """One of `options` comes next.

    structural: what follows depends on the option, so its index must be sent into the walk.
    gold: index of the gold option, or None.
    """

    path: str
    options: tuple[str, ...]
    structural: bool
    gold: int | None = None


@dataclass(frozen=True)
class Open:
    """A value without a finite list.

    kind: "string": the rest of a JSON string whose opening quote is written; "json": a whole JSON
        value; "text": plain text up to the end of the answer.
    gold: its text, or None.
    """

    path: str
    kind: Literal["string", "json", "text"]
    schema: Schema
    gold: str | None = None


Event = Forced | Choice | Open
Walk = Generator[Event, int | None, None]


def walk(schema: Schema, gold: Any = MISSING, path: str = "") -> Walk:
    """The events of one value. Send the chosen index into a structural Choice, None into the rest."""
    labels = labels_of(schema)
    if labels is not None:
        yield from _walk_labels(labels, gold, path)
    elif "anyOf" in schema:
        yield from _walk_union(schema, gold, path)
    elif schema["type"] == "object":
        yield Forced("{")
        yield from _walk_properties(schema, gold, path)
    elif schema["type"] == "array" and not _opaque(schema["items"]):
        yield Forced("[")
        yield from _walk_items(schema, gold, path)
    elif schema["type"] == "string":
        yield Forced('"')
        yield Open(path, "string", schema, None if gold is MISSING else dumps(gold)[1:])
    else:
        yield Open(path, "json", schema, None if gold is MISSING else _plain_text(gold))


def _plain_text(value: Any) -> str:
    """The JSON text of an open value, its numbers without exponents."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, list):
        return "[" + ",".join(_plain_text(item) for item in value) + "]"
    return dumps(value)


def walk_text(gold: Any = MISSING) -> Walk:
    """The walk of a free-text answer."""
    yield Open("", "text", {"type": "string"}, None if gold is MISSING else gold)


def open_values(schema: Schema, path: str = "") -> Iterator[Open]:
    """Every open value that a walk of the schema may come to, whatever is chosen."""
    if labels_of(schema) is not None:
        return
    if schema.get("type") == "object":
        for name, inner in schema["properties"].items():
            yield from open_values(inner, f"{path}.{name}" if path else name)
    elif schema.get("type") == "array" and not _opaque(schema["items"]):
        yield from open_values(schema["items"], path)
    elif "anyOf" in schema:
        for branch in schema["anyOf"]:
            yield from open_values(branch, path)
    else:
        yield Open(path, "string" if schema["type"] == "string" else "json", schema)


def _opaque(items: Schema) -> bool:
    """Can the items of an array not be told from its end by one fixed opening? Then it is one Open."""
    labels = labels_of(items)
    if labels is not None:
        return any(isinstance(v, int | float) and not isinstance(v, bool) for v in labels)
    return "anyOf" in items or items["type"] in ("integer", "number")


def _walk_labels(labels: tuple[Any, ...], gold: Any, path: str) -> Walk:
    texts = [dumps(label) for label in labels]
    index = None if gold is MISSING else texts.index(dumps(gold))
    if len(texts) == 1:
        yield Forced(texts[0])
        return
    if all(text.startswith('"') for text in texts):
        yield Forced('"')
        texts = [text[1:] for text in texts]
    yield Choice(path, tuple(texts), structural=False, gold=index)


def _walk_union(schema: Schema, gold: Any, path: str) -> Walk:
    openings: list[tuple[str, Schema | None]] = []
    for branch in schema["anyOf"]:
        labels = labels_of(branch)
        if branch.get("type") in ("integer", "number") or any(type(v) in (int, float) for v in labels or ()):
            # A number has no opening of its own, and 1 begins like 10.
            yield Open(path, "json", schema, None if gold is MISSING else _plain_text(gold))
            return
        if labels is not None:
            openings += [(dumps(label), None) for label in labels]
        else:
            openings.append(({"object": "{", "array": "[", "string": '"'}[branch["type"]], branch))
    index = None
    if gold is not MISSING:
        text = dumps(gold)
        index = next(
            i
            for i, (opening, branch) in enumerate(openings)
            if (opening == text if branch is None else not problems(gold, branch))
        )
    chosen = yield Choice(path, tuple(opening for opening, _ in openings), structural=True, gold=index)
    assert chosen is not None, "a structural choice needs its answer"
    branch = openings[chosen][1]
    if branch is not None:
        yield from _after_opening(branch, gold, path)


def _after_opening(schema: Schema, gold: Any, path: str) -> Walk:
    """The walk of a value whose first character is already written."""
    inner = walk(schema, gold, path)
    first = next(inner)
    assert isinstance(first, Forced), "an opening is forced"
    assert len(first.text) == 1, "an opening is one character"
    yield from inner


def _walk_properties(schema: Schema, gold: Any, path: str) -> Walk:
    names = list(schema["properties"])
    required = set(schema["required"])
    at, separator = 0, ""
    while True:
        # What may come next: the optional properties up to the first required one, or the end.
        candidates: list[int] = []
        for index in range(at, len(names)):
            candidates.append(index)
            if names[index] in required:
                break
        options = [f"{separator}{dumps(names[i])}:" for i in candidates]
        if not candidates or names[candidates[-1]] not in required:
            candidates.append(len(names))
            options.append("}")
        picked = 0
        if len(options) == 1:
            yield Forced(options[0])
        else:
            follows = None
            if gold is not MISSING:
                follows = next(n for n, i in enumerate(candidates) if i == len(names) or names[i] in gold)
            decided = f"{path}.{names[candidates[0]]}" if path else names[candidates[0]]
            answer = yield Choice(decided, tuple(options), structural=True, gold=follows)
            assert answer is not None, "a structural choice needs its answer"
            picked = answer
        if candidates[picked] == len(names):
            return
        name = names[candidates[picked]]
        inner = MISSING if gold is MISSING else gold[name]
        yield from walk(schema["properties"][name], inner, f"{path}.{name}" if path else name)
        at, separator = candidates[picked] + 1, ","


def _walk_items(schema: Schema, gold: Any, path: str) -> Walk:
    items, low = schema["items"], schema.get("minItems", 0)
    high = schema.get("maxItems", max(MAX_ITEMS, low) if gold is MISSING else None)
    labels = labels_of(items)
    unique = bool(schema.get("uniqueItems"))
    first_allowed = 0  # unique labels are written in the schema's order
    count = 0
    while True:
        separator = "," if count else ""
        if high is not None and count >= high:
            yield Forced("]")
            return
        ended = gold is not MISSING and count >= len(gold)
        if labels is not None:
            # Leave room for the labels that minItems still asks for.
            last_allowed = len(labels) - max(0, low - count - 1) if unique else len(labels)
            open_labels = list(range(first_allowed, last_allowed)) if unique else list(range(len(labels)))
            options = [separator + dumps(labels[i]) for i in open_labels]
            if count >= low:
                options.append("]")
            index = None
            if gold is not MISSING:
                index = len(options) - 1 if ended else options.index(separator + dumps(gold[count]))
            picked = 0
            if len(options) == 1:
                yield Forced(options[0])
            else:
                answer = yield Choice(path, tuple(options), structural=True, gold=index)
                assert answer is not None, "a structural choice needs its answer"
                picked = answer
            if options[picked] == "]":
                return
            first_allowed = open_labels[picked] + 1
        else:
            inner = MISSING if gold is MISSING or ended else gold[count]
            opening = {"object": "{", "array": "[", "string": '"'}[items["type"]]
            if count < low:
                yield Forced(separator)
                yield from walk(items, inner, path)
            else:
                answer = yield Choice(
                    path,
                    (separator + opening, "]"),
                    structural=True,
                    gold=None if gold is MISSING else int(ended),
                )
                if answer == 1:
                    return
                yield from _after_opening(items, inner, path)
        count += 1
