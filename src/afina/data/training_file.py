"""A fine-tuning file, JSON Lines: is every line as the fine-tuning API wants it, and what do they hold?

Comes in: a path. Goes out: `Checked` with every bad line's number and reason, the `error` of a job that such a file
makes fail, or the examples of a good file. Files are read a line at a time: memory does not grow with them. Knows
nothing of uploads, tokens and models. Each line's rules are in `training_line`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from afina.core.chat import Completion, Conversation, Preference
from afina.core.errors import DataError
from afina.data.training_line import Format, LineError, format_of, parse_example, parse_object

Method = Literal["supervised", "dpo"]
MIN_EXAMPLES = 10  # of a training file; a validation file may have fewer
MAX_LINE_BYTES = 16 * 1024 * 1024  # a longer line is no training example of text
BOM = b"\xef\xbb\xbf"
METHODS = {"fine-tune-chat": "supervised", "fine-tune-preference": "dpo", "fine-tune-completion": "supervised"}


@dataclass(frozen=True)
class Problem:
    """line: from 1. message: what is wrong, to be read behind 'Example 7, '. whole_file: not with that line only."""

    line: int
    message: str
    whole_file: bool = False


@dataclass
class Checked:
    """num_examples: lines that are not blank. problems: the first ones, in file order. num_bad_lines: of all."""

    format: Format
    num_examples: int
    problems: list[Problem] = field(default_factory=list)
    num_bad_lines: int = 0


def check(
    path: Path, method: Method = "supervised", *, completion_model: bool = False, most_problems: int = 50
) -> Checked:
    """Hold every line against the contract. Raises OSError only.

    completion_model: the base has no turns (babbage-002), so the lines are prompt and completion.
    most_problems: how many are kept; the others are counted.
    """
    wanted = _wanted(method, completion_model)
    found = Checked(wanted, 0)
    known: Format | None = None
    blank = 0
    for number, raw in _lines(path):
        # 1. Blank lines are good at the end only.
        if raw is not None and not raw.strip():
            blank = blank or number
            continue
        if blank:
            _report(found, Problem(blank, "is blank; blank lines may stand at the end of the file only"), most_problems)
            blank = 0
        found.num_examples += 1
        # 2. The first line with known keys says which format the file has; the others must have the same.
        try:
            if raw is None:
                raise LineError(f"is longer than {MAX_LINE_BYTES} bytes")
            value = parse_object(raw)
            if known is None and (known := format_of(value)) is not None:
                found.format = known
                if known != wanted:
                    mismatch = _mismatch(path.name, known, method, completion_model)
                    _report(found, Problem(number, mismatch, whole_file=True), most_problems)
            parse_example(value, known or wanted)
        except LineError as error:
            _report(found, Problem(number, str(error)), most_problems)
    return found


def job_error(checked: Checked, param: str = "training_file") -> dict[str, Any] | None:
    """The `error` of a job on this file: {"code", "param", "message"}; None if the file is good.

    param: "training_file" or "validation_file", which needs no 10 examples.
    """
    what = param.replace("_", " ")
    if checked.problems:
        first = checked.problems[0]
        reason = first.message if first.whole_file else f"Invalid file format. Example {first.line}, {first.message}"
        message = f"The job failed due to an invalid {what}. {reason}"
        return {"code": f"invalid_{param}", "param": param, "message": message}
    least = MIN_EXAMPLES if param == "training_file" else 1
    if checked.num_examples < least:
        message = (
            f"{what.capitalize()} has {checked.num_examples} example(s), "
            f"but must have at least {least} example{'s' * (least > 1)}"
        )
        return {"code": "invalid_n_examples", "param": param, "message": message}
    return None


def read(path: Path) -> Iterator[Conversation | Preference | Completion]:
    """The examples of a checked file, in its order. Raises DataError where the file is not as it was checked."""
    known: Format | None = None
    for number, raw in _lines(path):
        if raw is not None and not raw.strip():
            continue
        try:
            if raw is None:
                raise LineError(f"is longer than {MAX_LINE_BYTES} bytes")
            value = parse_object(raw)
            known = known or format_of(value)
            yield parse_example(value, known or "fine-tune-chat")
        except LineError as error:
            raise DataError(f"{path}:{number}: {error}. Correct the line.") from error


# -- details ---------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each line; None for one that is too long, whose rest is skipped."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)
            if len(line) <= MAX_LINE_BYTES:
                yield number, line
                continue
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                pass
            yield number, None


def _wanted(method: Method, completion_model: bool) -> Format:
    if method == "dpo":
        return "fine-tune-preference"
    return "fine-tune-completion" if completion_model else "fine-tune-chat"


def _mismatch(name: str, found: Format, method: Method, completion_model: bool) -> str:
    if METHODS[found] != method:
        return (
            f"Input file {name} is in the {found} format, but the specified fine-tuning job is not using "
            f"'{METHODS[found]}' as the training method (provided method={method})."
        )
    kind = "completions" if completion_model else "chat"
    return f"Input file {name} is in the {found} format, but the specified model is a {kind} model."


def _report(found: Checked, problem: Problem, most: int) -> None:
    found.num_bad_lines += 1
    if len(found.problems) < most:
        found.problems.append(problem)
