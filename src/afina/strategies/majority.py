"""The majority of several answers to one question, field by field, as one valid answer.

Comes in: valid answers of a task, each with its voter's confidences. Goes out: the answer that most agree on, how many
of them do, and what was done where the fields' majorities do not make a valid answer. Whoever voted, and how they were
asked, is not known here. The order of the votes decides nothing.

The rules, from the root of the answer down:

- An optional property is there if most of the votes that have its parent have it.
- A label, a truth value or a small integer: the commonest among the votes that have the field.
- A set of labels: each label that more than half of them hold; within minItems and maxItems, by their counts.
- An open number: the median; of the two middle numbers of an even count, the one of the better tie.
- Any other value: the commonest, texts compared without regard to white space; in the spelling that is commonest.
- Ties: the greater sum of the voters' confidences in the field, 1 where a voter states none; then the label that stands
  first in the schema (what is there before what is absent; the smaller number; the first text by its characters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from afina.core import schema as schemas
from afina.core.schema import Field, Schema
from afina.core.task import Task
from afina.evaluation.metrics import key

Rank = Callable[[Any], Any]
"""Where a value stands among those of equal count and confidence: the least goes first."""


@dataclass(frozen=True)
class Ballot:
    """One valid answer. confidence: field path -> probability in [0, 1], where the voter states one."""

    output: Any
    confidence: Mapping[str, float]

    def weight(self, path: str) -> float:
        return self.confidence.get(path, 1.0)


@dataclass(frozen=True)
class Decision:
    """What the votes come to.

    agreement: field path -> share of the votes whose value there is the chosen one, in [0, 1].
    shares: field path -> {label: share of the votes that hold it}, for fields with labels.
    whole: the position of the vote whose whole answer was taken because the fields' majorities are no valid answer
    together; None where they are. problem: what is wrong with them.
    """

    output: Any
    agreement: dict[str, float]
    shares: dict[str, dict[str, float]]
    whole: int | None = None
    problem: str | None = None


def decide(task: Task, votes: Sequence[Ballot]) -> Decision:
    """The majority of at least one vote, each of which is a value of the task's output schema."""
    assert votes, "there is no vote to decide by"
    output = _chosen(task.output, [(vote, vote.output) for vote in votes], "")
    problem = schemas.problems(output, task.output)
    whole = None
    if problem is not None:
        whole = _closest_whole(task, votes, output)
        output = votes[whole].output
    output = schemas.canonical(output, task.output)
    agreement = {
        field.path: sum(agrees(field, vote.output, output) for vote in votes) / len(votes) for field in task.fields
    }
    shares = {field.path: _label_shares(field, votes) for field in task.fields if field.labels is not None}
    return Decision(output, agreement, shares, whole, problem)


def agrees(field: Field, one: Any, other: Any) -> bool:
    """Whether two answers have the same value in a field: sets without regard to order, texts to white space."""
    return _plain(schemas.get(one, field.path), field.multi) == _plain(schemas.get(other, field.path), field.multi)


def num_agreeing(fields: Sequence[Field], one: Any, other: Any) -> int:
    return sum(agrees(field, one, other) for field in fields)


def _plain(value: Any, multi: bool = False) -> Any:
    if multi and isinstance(value, list):
        return frozenset(key(item) for item in cast(list[Any], value))
    return key(" ".join(value.split())) if isinstance(value, str) else key(value)


def _closest_whole(task: Task, votes: Sequence[Ballot], wanted: Any) -> int:
    """The vote that agrees with the fields' majorities most often; ties by its confidences, then by its text."""

    def rank(at: int) -> Any:
        sure = math.fsum(votes[at].weight(field.path) for field in task.fields)
        text = schemas.dumps(schemas.canonical(votes[at].output, task.output))
        return (-num_agreeing(task.fields, votes[at].output, wanted), -sure, text)

    return min(range(len(votes)), key=rank)


def _label_shares(field: Field, votes: Sequence[Ballot]) -> dict[str, float]:
    """Absent fields hold no label but null."""
    held = [schemas.get(vote.output, field.path) for vote in votes]
    sets = [
        {key(item) for item in value} if field.multi and isinstance(value, list) else {key(value)} for value in held
    ]
    return {str(label): sum(key(label) in one for one in sets) / len(votes) for label in field.labels or ()}


# -- one value ------------------------------------------------------------------------------------

Held = Sequence[tuple[Ballot, Any]]
"""The votes that have a value at some place, each with it."""


def _chosen(schema: Schema, held: Held, path: str) -> Any:
    labels = schemas.labels_of(schema)
    if labels is not None:
        return _commonest(held, path, [key(label) for label in labels].index)
    if "anyOf" in schema:
        branches = [_branch(schema, value) for _, value in held]
        branch = _plurality(list(zip(branches, [vote.weight(path) for vote, _ in held], strict=True)), lambda at: at)
        kept = [one for one, its_branch in zip(held, branches, strict=True) if its_branch == branch]
        # A union is scored as one value, so an object in it is voted on as a whole.
        inner = schema["anyOf"][branch]
        return _any_value(kept, path) if inner.get("type") == "object" else _chosen(inner, kept, path)
    if schema["type"] == "object":
        return _object(schema, held, path)
    if schema["type"] == "array" and schemas.labels_of(schema["items"]) is not None:
        return _label_set(schema, held, path)
    if schema["type"] in ("integer", "number"):
        return _median(held, path)
    return _any_value(held, path)


def _branch(schema: Schema, value: Any) -> int:
    return next(n for n, branch in enumerate(schema["anyOf"]) if schemas.problems(value, branch) is None)


def _object(schema: Schema, held: Held, path: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, inner in schema["properties"].items():
        place = f"{path}.{name}" if path else name
        having = [(vote, value[name]) for vote, value in held if name in value]
        if name not in schema["required"]:
            present = [(name not in value, vote.weight(place)) for vote, value in held]
            if _plurality(present, int):
                continue
        chosen[name] = _chosen(inner, having, place)
    return chosen


def _label_set(schema: Schema, held: Held, path: str) -> list[Any]:
    """Labels in the schema's order. With too few or too many, those that were named most."""
    labels = schemas.labels_of(schema["items"]) or ()
    counts: list[tuple[int, float]] = []
    for label in labels:
        holders = [vote for vote, value in held if any(key(item) == key(label) for item in value)]
        counts.append((len(holders), math.fsum(vote.weight(path) for vote in holders)))
    order = sorted(range(len(labels)), key=lambda n: (-counts[n][0], -counts[n][1], n))
    number = sum(2 * count > len(held) for count, _ in counts)
    number = min(max(number, schema.get("minItems", 0)), schema.get("maxItems", len(labels)))
    return [labels[n] for n in sorted(order[:number])]


def _median(held: Held, path: str) -> Any:
    values = sorted((value for _, value in held), key=lambda value: (value, str(value)))
    middle = values[(len(values) - 1) // 2], values[len(values) // 2]
    if middle[0] == middle[1]:
        return middle[0]
    sure = [math.fsum(vote.weight(path) for vote, value in held if value == one) for one in middle]
    return middle[1] if sure[1] > sure[0] else middle[0]


def _any_value(held: Held, path: str) -> Any:
    """The commonest value; of its spellings the commonest one."""
    texts: dict[Any, list[str]] = {}
    for _, value in held:
        texts.setdefault(_plain(value), []).append(schemas.dumps(value))
    first = {plain: min(spellings) for plain, spellings in texts.items()}
    weighed = [(_plain(value), vote.weight(path)) for vote, value in held]
    plain = _plurality(weighed, lambda one: first[one])
    return _commonest([one for one in held if _plain(one[1]) == plain], path, None)


def _commonest(held: Held, path: str, rank: Rank | None) -> Any:
    """rank: of a value's `key`; None to go by the value's text."""
    values = {key(value): value for _, value in sorted(held, key=lambda one: schemas.dumps(one[1]), reverse=True)}
    by = rank or (lambda one: schemas.dumps(values[one]))
    return values[_plurality([(key(value), vote.weight(path)) for vote, value in held], by)]


def _plurality(weighed: Sequence[tuple[Any, float]], rank: Rank) -> Any:
    """The value of most votes, then of the greatest summed weight, then of the least rank.

    Sums are rounded once, at their end, so that the order of the votes cannot break a tie.
    """
    weights: dict[Any, list[float]] = {}
    for value, weight in weighed:
        weights.setdefault(value, []).append(weight)
    return min(weights, key=lambda value: (-len(weights[value]), -math.fsum(weights[value]), rank(value)))
