"""What stands around a row's text in the messages that a model was trained with.

Comes in: conversations of a training file. Goes out: a `Wrapping`: the system's text, and what the user's text begins
and ends with everywhere. With it a table's rows become the questions that the model knows, and its training examples
become rows again. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from afina.core.chat import Completion, Conversation, Preference
from afina.core.errors import DataError

FEWEST_TEXTS = 5  # to tell what all of them share from chance
SHORTEST = 3  # characters of a beginning or end that counts, the border included
BORDERS = "\n:\"'“”«»<>[]{}`"  # where a wrapped text begins or ends


@dataclass(frozen=True)
class Wrapping:
    """system: None where there is no such message. before, after: around every text of the user's."""

    system: str | None
    before: str = ""
    after: str = ""

    def messages(self, text: str) -> list[dict[str, str]]:
        """The question about one text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": f"{self.before}{text}{self.after}"}]

    def unwrap(self, text: str) -> str:
        """The text inside a user's message."""
        return text.removeprefix(self.before).removesuffix(self.after) if self.before or self.after else text


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, of a training file."""

    system: str | None
    user: str
    assistant: str


def exchanges(examples: Iterable[Conversation | Preference | Completion]) -> tuple[list[Exchange], int]:
    """Conversations of one question and one answer in text, and how many others there were."""
    found: list[Exchange] = []
    others = 0
    for example in examples:
        exchange = _exchange(example)
        if exchange is None:
            others += 1
        else:
            found.append(exchange)
    return found, others


def _exchange(example: Conversation | Preference | Completion) -> Exchange | None:
    if not isinstance(example, Conversation) or example.tools:
        return None
    system = "\n".join(m.content or "" for m in example.messages if m.role == "system") or None
    talk = [m for m in example.messages if m.role != "system"]
    if [m.role for m in talk] != ["user", "assistant"] or not talk[1].content or not talk[0].content:
        return None
    return Exchange(system, talk[0].content, talk[1].content)


def find_wrapping(found: Sequence[Exchange], where: str) -> Wrapping:
    """The system's text of the first exchange, and what all user's texts begin and end with.

    Raises DataError if there is no exchange, or if the exchanges were held under several systems.
    """
    if not found:
        raise DataError(f"{where}: holds no line of one question and one answer in text, so how to ask cannot be told.")
    systems = {exchange.system for exchange in found}
    if len(systems) > 1:
        raise DataError(
            f"{where}: its lines have {len(systems)} different system messages, so which one to ask with cannot be "
            "told. Keep the lines of one of them, or name it with --instruction."
        )
    texts = [exchange.user for exchange in found]
    before, after = _shared(texts)
    return Wrapping(found[0].system, before, after)


def _shared(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin and end with, cut back to a border; "" where that is too little to be a template."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < FEWEST_TEXTS:
        return "", ""
    before = _beginning(distinct)
    before = before[: max(before.rfind(border) for border in BORDERS) + 1]
    before += " " if before and all(text.startswith(before + " ") for text in distinct) else ""
    before = before if len(before) >= SHORTEST else ""
    rest = [text.removeprefix(before)[::-1] for text in distinct]
    after = _beginning(rest)[::-1]
    places = [place for border in BORDERS if (place := after.find(border)) >= 0]
    after = after[min(places) :] if places else ""
    return before, after if len(after) >= SHORTEST else ""


def _beginning(texts: Sequence[str]) -> str:
    """The longest text that all begin with: what the first and the last in order share."""
    low, high = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
