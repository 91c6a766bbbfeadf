"""What a chain's prompt says of a task's inputs: the text of a message in, the named inputs out.

A specialist carries its own instruction and takes named inputs; a prompt template has melted both into one text. Read
here are the text of training, a JSON object of the inputs, and lines `name: text`. What cannot be read with certainty
is refused with what was wanted, because inputs that were read wrongly would be answered all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from pydantic import BaseModel

from afina.core.errors import DataError
from afina.core.predictor import Inputs
from afina.core.task import Task

# The last line of many templates, after which a model was meant to go on writing: "Resultado:", "### Answer:".
CLOSING = re.compile(r"\n[^\n:]{1,60}:\s*\Z")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
WAYS_OUT = (
    "Or pass the inputs as a dictionary to SpecialistRunnable, or give ChatAfina(read=...), a function from the "
    "message's text to the inputs."
)


class PromptError(DataError, ValueError):
    """A prompt from which a specialist's inputs cannot be read, or a setting of a call that has no effect on it."""


def text_of(messages: Sequence[BaseMessage]) -> str:
    """The text of the one message of the user. Raises PromptError for a conversation, and for pictures or sounds.

    System messages are passed over: a specialist has the instruction that it was trained with.
    """
    asked = [message for message in messages if not isinstance(message, SystemMessage)]
    if len(asked) != 1 or not isinstance(asked[0], HumanMessage):
        kinds = [message.type for message in messages]
        raise PromptError(
            f"found the messages {kinds}, expected one human message (and system messages, which are passed over): a "
            "specialist answers one item at a time and keeps no conversation."
        )
    content = asked[0].content
    for block in [] if isinstance(content, str) else content:
        if isinstance(block, dict) and block.get("type") != "text":
            raise PromptError(f"found a block of type {block.get('type')!r} in the message, expected text alone.")
    return str(asked[0].text)


def read_inputs(text: str, task: Task) -> dict[str, str]:
    """Input name -> text, for every input of the task. Raises PromptError, which says what was wanted."""
    names = list(task.inputs)
    if (found := _json_object(text, names)) is not None:
        return checked(found, task)
    # 1. What parsers add to prompts is neither instruction nor input.
    bare = _without_format_instructions(text)
    # 2. Lines that begin with an input's name; what stands before the first is the prompt's own instruction.
    line = re.compile(
        rf"^[^\S\n]*({'|'.join(re.escape(n) for n in sorted(names, key=len, reverse=True))})[^\S\n]*:", re.M
    )
    starts = list(line.finditer(bare))
    if not starts:
        return _whole_text(bare, task, is_prompt=bare != text.strip())
    bare = _without_closing(bare, starts[-1].end())
    # 3. The text of training may hold anything after a name; elsewhere a blank line may be the prompt's own.
    as_trained = bare.startswith(f"{task.instruction}\n\n") and starts[0].start() == len(task.instruction) + 2
    inputs: dict[str, str] = {}
    for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(bare)], strict=True):
        name, value = start[1], bare[start.end() : end].strip()
        if name in inputs:
            raise PromptError(f"found two lines that begin with '{name}:', expected one. {WAYS_OUT}")
        if not as_trained and BLANK_LINE.search(value):
            rest = BLANK_LINE.split(value, maxsplit=1)[1].strip()
            raise PromptError(
                f"after the blank line behind '{name}:' comes {_short(rest)}, which may be more of {name!r} or words "
                f"of the prompt. Put the prompt's words before the first input. {WAYS_OUT}"
            )
        inputs[name] = value
    return checked(inputs, task)


def checked(found: Any, task: Task) -> dict[str, str]:
    """The task's inputs out of a mapping, other keys left behind. Raises PromptError if one is absent or no text."""
    wanted = list(task.inputs)
    if not isinstance(found, Mapping):
        raise PromptError(f"found {type(found).__name__}, expected a dictionary with the inputs {wanted}.")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise PromptError(
            f"the input {missing[0]!r} was not found; the specialist {task.name!r} wants {wanted}, each as a line "
            f"'name: text' of a prompt or a key of a dictionary; found {[str(key) for key in found]}."
        )
    for name in wanted:
        if not isinstance(found[name], str):
            raise PromptError(f"the input {name!r} is {type(found[name]).__name__}, expected text.")
    return {name: found[name] for name in wanted}


def _json_object(text: str, names: list[str]) -> Inputs | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and set(names) <= set(found) else None


def _whole_text(text: str, task: Task, *, is_prompt: bool) -> dict[str, str]:
    """A message without named lines is the one input of a task that has one."""
    names = list(task.inputs)
    if len(names) > 1 or is_prompt:
        wanted = " and ".join(f"'{name}: ...'" for name in names)
        raise PromptError(
            f"found no line that begins with {' or '.join(repr(f'{n}:') for n in names)} in {_short(text)}; the "
            f"specialist {task.name!r} wants the lines {wanted}. {WAYS_OUT}"
        )
    return {names[0]: text.removeprefix(task.instruction).strip()}


def _without_closing(text: str, after: int) -> str:
    """Without the heading that many templates end with, unless it is an input's own line."""
    closing = CLOSING.search(text.rstrip(), after)
    return text[: closing.start()] if closing else text


def _without_format_instructions(text: str) -> str:
    for head in _instruction_heads():
        text = re.sub(re.escape(head) + r"```.*?\n```", "", text, flags=re.DOTALL)
    return text.replace(JsonOutputParser().get_format_instructions(), "").strip()


@cache
def _instruction_heads() -> tuple[str, ...]:
    """How the format instructions of this langchain-core's parsers begin, up to their schema."""

    class Probe(BaseModel):
        field: str

    texts = [
        parser(pydantic_object=Probe).get_format_instructions() for parser in (PydanticOutputParser, JsonOutputParser)
    ]
    return tuple(text.removesuffix("\n```").rpartition("```\n")[0] for text in texts)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
