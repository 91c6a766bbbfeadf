"""The engine: prompts in, answers that cannot be invalid out, in few forward passes.

Forced tokens are appended and read together with the next question; the model runs only where the
grammar leaves a choice. A guess of the whole answer is read with the prompt: as far as it agrees with the
model, the answer is there after one pass; where it does not, the model's own token stands, and the guess is
revised. Rows of a batch advance together, each with as many new tokens as it has.
Greedy: the most probable allowed token, ties to the lowest id, so the same model and prompt give the
same answer, guessed or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from afina.engine.encoded import Encoded
from afina.engine.prefix import Prefixes, begin
from afina.engine.reading import Memory, Reader, RowMemory
from afina.engine.row import Answer, Made, Question, Row, log_probability
from afina.engine.writer import Writer

__all__ = ["Answer", "Made", "Question", "against_gold", "field_confidence", "write_answers"]


def write_answers(
    model: Any,
    prompts: Sequence[Question | tuple[list[int], Writer]],
    *,
    batch_size: int,
    pad_id: int = 0,
    prefixes: Prefixes | None = None,
    done: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers in the order of the prompts.

    prompts: questions, or (prompt ids, a fresh Writer) pairs to guess nothing; the prompt plus the answer must
        fit the model's context.
    prefixes: beginnings of prompts that this model has read; what a batch's prompts begin with is not read again.
    done: called with the number of answers finished since the last call.
    """
    reader = Reader(model)
    questions = [one if isinstance(one, Question) else _unguessed(*one) for one in prompts]
    answers = [Answer(prompt_tokens=len(one.ids)) for one in questions]
    # Rows of like length share a batch, so that little is padded.
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        began = time.perf_counter()
        with torch.inference_mode():
            memory = reader.memory(pad_id)
            rows = [Row(i, questions[i], answers[i], drafted=memory.rewinds) for i in chosen]
            _begin(memory, rows, prefixes)
            _run_batch(memory, rows)
        elapsed = time.perf_counter() - began
        for row in rows:
            row.answer.latency_s = elapsed / len(rows)
        if done is not None:
            done(len(rows))
    return answers


def _unguessed(ids: list[int], writer: Writer) -> Question:
    return Question(ids, lambda: writer)


def _begin(memory: Memory, rows: list[Row], prefixes: Prefixes | None) -> None:
    """Start from what the prompts share with what was read before."""
    if prefixes is None or not isinstance(memory, RowMemory):
        return
    shared = prefixes.shared([row.question.ids for row in rows])
    if shared is not None:
        begin(memory, shared, len(rows))
        for row in rows:
            row.read = shared.length


def _run_batch(memory: Memory, rows: list[Row]) -> None:
    while True:
        # 1. Every row finds its next decisions; finished ones are forgotten.
        going = [n for n, row in enumerate(rows) if row.ask(memory.pass_tokens / len(rows))]
        if not going:
            return
        if len(going) < len(rows):
            memory.select(going)
            rows = [rows[n] for n in going]
        # 2. One pass over all tokens not read yet, guessed ones among them.
        places = [[row.position(step) - row.read for step in row.asked] for row in rows]
        scores = memory.read([row.fresh() for row in rows], [row.read for row in rows], places)
        # 3. Every row takes what the model says, as far as its guess holds.
        logits = scores.at([(n, step.allowed) for n, step in enumerate(step for row in rows for step in row.asked)])
        at = 0
        for row in rows:
            count = len(row.asked)
            row.answer.forward_passes += 1
            row.take(scores, at, logits[at : at + count])
            at += count


def field_confidence(made: Iterable[Made], temperature: Mapping[str, float]) -> dict[str, float]:
    """Probability of each field's chosen value given what was written before it, in [0, 1].

    The product over the field's decisions; forced tokens are no evidence and are skipped. An open
    value's confidence is the probability of its exact text.
    temperature: field path -> divisor of the logits (1 where absent); open decisions stay as they are.
    """
    logs: dict[str, float] = {}
    for one in made:
        if one.is_open:
            value = float(one.logits[0])
        else:
            value = log_probability(one.logits / temperature.get(one.path, 1.0), one.chosen)
        logs[one.path] = logs.get(one.path, 0.0) + value
    return {path: float(min(1.0, np.exp(value))) for path, value in logs.items()}


def against_gold(made: Iterable[Made], gold: Encoded) -> list[tuple[str, np.ndarray, int]]:
    """For calibration: (field path, logits over the allowed ids, index of the gold one) at each finite choice
    of an answer, as long as the answer's field has not left the gold one.

    gold: the same example with its gold answer.
    """
    expected: dict[str, list[int]] = {}
    for position, allowed in sorted(gold.choices.items()):
        if allowed is not None:
            expected.setdefault(gold.fields[position], []).append(gold.input_ids[position])
    found: list[tuple[str, np.ndarray, int]] = []
    for one in made:
        if one.is_open or not expected.get(one.path):
            continue
        token = expected[one.path].pop(0)
        places = np.flatnonzero(one.allowed == token)
        if len(places):
            found.append((one.path, one.logits, int(places[0])))
        if int(one.allowed[one.chosen]) != token:
            expected[one.path] = []
    return found
