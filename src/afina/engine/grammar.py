"""Output schema -> the walk of one answer: what is forced, what is chosen, what is open.

An answer's text is a walk through its schema. The walk yields

    Forced   text that the schema leaves no choice about; it costs no thinking
    Choice   one of finitely many texts: a label, a boolean, the next key, one more item or the end
    Open     a value without a finite list: free text, a number; llguidance keeps it valid

Each event carries its JSON text, and what the model says of it (`spoken`) in the compact answer format:
nothing where the schema forces, a label or a mark where it leaves a choice. docs/formats.md describes it.

With `gold`, a value of the schema, the walk follows that value: training and serving are the same
walk, so what is trained is what is served. Knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from afina.core.schema import Schema, dumps, labels_of, problems
from afina.engine.spelling import END, LIST, OBJECT, SPACE, TEXT, AnswerFormat, spell

# Instead of a gold value: there is none; or, a reader follows an answer that stands already, however long.
MISSING: Any = object()
READING: Any = object()
# Items of an array without maxItems that a model may write, so that every answer ends.
MAX_ITEMS = 32


@dataclass(frozen=True)
class Forced:
    """text: in JSON. spoken: in the compact format, mostly nothing. One of the two may be empty."""

    text: str
    spoken: str = ""

    def said(self, answer_format: AnswerFormat) -> str:
        return self.text if answer_format == "json" else self.spoken


@dataclass(frozen=True)
class Choice:
    """One of `options` comes next.

    spoken: the options in the compact format; none of them begins another.
    structural: what follows depends on the option, so its index must be sent into the walk.
    gold: index of the gold option, or None.
    """

    path: str
    options: tuple[str, ...]
    spoken: tuple[str, ...]
    structural: bool
    gold: int | None = None

    def said(self, answer_format: AnswerFormat) -> tuple[str, ...]:
        return self.options if answer_format == "json" else self.spoken


@dataclass(frozen=True)
class Open:
    """A value without a finite list; both formats write it alike.

    kind: "json": a JSON value; "text": plain text up to the end of the answer.
    gold: its text, or None.
    opened: how the JSON value begins, already written; neither the model nor `gold` writes it again.
    """

    path: str
    kind: Literal["json", "text"]
    schema: Schema
    gold: str | None = None
    opened: str = ""


Event = Forced | Choice | Open
Walk = Generator[Event, int | None, None]
OPENINGS = {"object": ("{", OBJECT), "array": ("[", LIST), "string": ('"', TEXT)}


def _unknown(gold: Any) -> bool:
    return gold is MISSING or gold is READING


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
    elif schema["type"] == "array" and not is_opaque(schema["items"]):
        yield Forced("[")
        yield from _walk_items(schema, gold, path)
    elif schema["type"] == "string":
        yield Forced(*OPENINGS["string"])
        yield Open(path, "json", schema, None if _unknown(gold) else dumps(gold)[1:], opened='"')
    else:
        yield from _walk_json(schema, gold, path)


def _walk_json(schema: Schema, gold: Any, path: str) -> Walk:
    """A whole JSON value that the model writes itself: a number, a list of numbers."""
    yield Forced("", SPACE)
    yield Open(path, "json", schema, None if _unknown(gold) else _plain_text(gold))
    if schema.get("type") != "array":  # a list ends with its bracket
        yield Forced("", END)


def _plain_text(value: Any) -> str:
    """The JSON text of an open value, its numbers without exponents."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, list):
        return "[" + ",".join(_plain_text(item) for item in value) + "]"
    return dumps(value)


def walk_text(gold: Any = MISSING) -> Walk:
    """The walk of a free-text answer."""
    yield Open("", "text", {"type": "string"}, None if _unknown(gold) else gold)


def open_values(schema: Schema, path: str = "") -> Iterator[Open]:
    """Every open value that a walk of the schema may come to, whatever is chosen."""
    if labels_of(schema) is not None:
        return
    if schema.get("type") == "object":
        for name, inner in schema["properties"].items():
            yield from open_values(inner, f"{path}.{name}" if path else name)
    elif schema.get("type") == "array" and not is_opaque(schema["items"]):
        yield from open_values(schema["items"], path)
    elif "anyOf" in schema:
        for branch in schema["anyOf"]:
            yield from open_values(branch, path)
    else:
        yield Open(path, "json", schema, opened='"' if schema["type"] == "string" else "")


def is_opaque(items: Schema) -> bool:
    """Can the items of an array not be told from its end by one fixed opening? Then it is one Open."""
    labels = labels_of(items)
    if labels is not None:
        return any(isinstance(v, int | float) and not isinstance(v, bool) for v in labels)
    return "anyOf" in items or items["type"] in ("integer", "number")


def _walk_labels(labels: tuple[Any, ...], gold: Any, path: str) -> Walk:
    texts = [dumps(label) for label in labels]
    index = None if _unknown(gold) else texts.index(dumps(gold))
    spoken = spell(tuple(texts))
    if len(texts) == 1:
        yield Forced(texts[0])
        return
    if all(text.startswith('"') for text in texts):
        yield Forced('"')
        texts = [text[1:] for text in texts]
    yield Choice(path, tuple(texts), spoken, structural=False, gold=index)


def _walk_union(schema: Schema, gold: Any, path: str) -> Walk:
    openings: list[tuple[str, Schema | None]] = []
    for branch in schema["anyOf"]:
        labels = labels_of(branch)
        if branch.get("type") in ("integer", "number") or any(type(v) in (int, float) for v in labels or ()):
            # A number has no opening of its own, and 1 begins like 10.
            yield from _walk_json(schema, gold, path)
            return
        if labels is not None:
            openings += [(dumps(label), None) for label in labels]
        else:
            openings.append((OPENINGS[branch["type"]][0], branch))
    words = iter(spell(tuple(opening for opening, branch in openings if branch is None)))
    spoken = tuple(next(words) if branch is None else OPENINGS[branch["type"]][1] for _, branch in openings)
    index = None
    if not _unknown(gold):
        text = dumps(gold)
        index = next(
            i
            for i, (opening, branch) in enumerate(openings)
            if (opening == text if branch is None else not problems(gold, branch))
        )
    chosen = yield Choice(path, tuple(opening for opening, _ in openings), spoken, structural=True, gold=index)
    assert chosen is not None, "a structural choice needs its answer"
    branch = openings[chosen][1]
    if branch is not None:
        yield from _after_opening(branch, gold, path)


def _after_opening(schema: Schema, gold: Any, path: str) -> Walk:
    """The walk of a value whose first character is already written."""
    if schema["type"] == "array" and is_opaque(schema["items"]):
        yield Open(path, "json", schema, None if _unknown(gold) else _plain_text(gold)[1:], opened="[")
        return
    inner = walk(schema, gold, path)
    first = next(inner)
    assert isinstance(first, Forced), "an opening is forced"
    assert len(first.text) == 1, "an opening is one character"
    yield from inner


def _walk_properties(schema: Schema, gold: Any, path: str) -> Walk:
    names = list(schema["properties"])
    spellings = spell(tuple(dumps(name) for name in names))
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
        spoken = [spellings[i] for i in candidates]
        if not candidates or names[candidates[-1]] not in required:
            candidates.append(len(names))
            options.append("}")
            spoken.append(END)
        picked = 0
        if len(options) == 1:
            yield Forced(options[0])
        else:
            follows = None
            if not _unknown(gold):
                follows = next(n for n, i in enumerate(candidates) if i == len(names) or names[i] in gold)
            decided = f"{path}.{names[candidates[0]]}" if path else names[candidates[0]]
            answer = yield Choice(decided, tuple(options), tuple(spoken), structural=True, gold=follows)
            assert answer is not None, "a structural choice needs its answer"
            picked = answer
        if candidates[picked] == len(names):
            return
        name = names[candidates[picked]]
        inner = gold if _unknown(gold) else gold[name]
        yield from walk(schema["properties"][name], inner, f"{path}.{name}" if path else name)
        at, separator = candidates[picked] + 1, ","


def _walk_items(schema: Schema, gold: Any, path: str) -> Walk:
    items, low = schema["items"], schema.get("minItems", 0)
    high = schema.get("maxItems", max(MAX_ITEMS, low) if gold is MISSING else None)
    labels, unique = labels_of(items), bool(schema.get("uniqueItems"))
    first_allowed = 0  # unique labels are written in the schema's order
    count = 0
    while True:
        separator = "," if count else ""
        if high is not None and count >= high:
            # A list that our own limit ends is spelt as any other of its length.
            yield Forced("]", "" if "maxItems" in schema else END)
            return
        ended = not _unknown(gold) and count >= len(gold)
        item = gold if _unknown(gold) else MISSING if ended else gold[count]
        if labels is None:
            written = yield from _opened_item(items, item, path, separator, may_end=count >= low, ended=ended)
            if not written:
                return
        else:
            # Leave room for the labels that minItems still asks for.
            last_allowed = len(labels) - max(0, low - count - 1) if unique else len(labels)
            allowed = range(first_allowed if unique else 0, last_allowed)
            picked = yield from _label_item(labels, allowed, item, path, separator, may_end=count >= low, ended=ended)
            if picked is None:
                return
            first_allowed = picked + 1
        count += 1


def _label_item(
    labels: tuple[Any, ...], allowed: range, gold: Any, path: str, separator: str, *, may_end: bool, ended: bool
) -> Generator[Event, int | None, int | None]:
    """The next label of a list, or its end. Returns the label's index, None for the end."""
    texts = [dumps(label) for label in labels]
    spellings = spell(tuple(texts))
    options = [separator + texts[i] for i in allowed] + ["]"] * may_end
    spoken = [spellings[i] for i in allowed] + [END] * may_end
    picked = 0
    if len(options) == 1:
        yield Forced(options[0])
    else:
        index = len(allowed) if ended else None if _unknown(gold) else options.index(separator + dumps(gold))
        answer = yield Choice(path, tuple(options), tuple(spoken), structural=True, gold=index)
        assert answer is not None, "a structural choice needs its answer"
        picked = answer
    return allowed[picked] if picked < len(allowed) else None


def _opened_item(
    items: Schema, gold: Any, path: str, separator: str, *, may_end: bool, ended: bool
) -> Generator[Event, int | None, bool]:
    """The next text, object or list of a list, or its end. Returns whether there was one."""
    opening, spoken = OPENINGS[items["type"]]
    if may_end:
        index = 1 if ended else None if _unknown(gold) else 0
        answer = yield Choice(path, (separator + opening, "]"), (spoken, END), structural=True, gold=index)
        if answer == 1:
            return False
    else:
        yield Forced(separator + opening, spoken)
    yield from _after_opening(items, gold, path)
    return True
