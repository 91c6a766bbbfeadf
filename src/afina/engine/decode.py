"""The engine: prompts in, answers that cannot be invalid out, in few forward passes.

Forced tokens are appended and read together with the next question; the model runs only where the
grammar leaves a choice. Rows of a batch advance together, each with as many new tokens as it has.
Greedy: the most probable allowed token, ties to the lowest id, so the same model and prompt give the
same answer.

Shapes: B rows, K new tokens, C cached tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from afina.core.errors import SchemaError
from afina.engine.encoded import Encoded
from afina.engine.writer import Decision, Writer


@dataclass(frozen=True)
class Made:
    """A decision that the model took. logits: over the allowed ids, ascending; chosen: its index there."""

    path: str
    logits: np.ndarray
    chosen: int
    allowed: np.ndarray
    is_open: bool


@dataclass
class Answer:
    """One written answer.

    text: the answer's text. made: the model's decisions in order (open ones keep no logits).
    error: why there is no answer, or None.
    """

    text: str = ""
    made: list[Made] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    forward_passes: int = 0
    latency_s: float = 0.0
    error: str | None = None


@dataclass
class _Row:
    index: int
    writer: Writer
    answer: Answer
    unread: list[int]  # tokens the model has not read yet
    written: int = 0  # tokens of the writer that are in `unread` or were read
    logits_V: np.ndarray | None = None  # of the position after the last read token
    decision: Decision | None = None


def write_answers(
    model: Any,
    prompts: Sequence[tuple[list[int], Writer]],
    *,
    batch_size: int,
    pad_id: int = 0,
    done: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers in the order of the prompts.

    prompts: (prompt ids, a fresh Writer) pairs; the prompt plus the answer must fit the model's context.
    done: called with the number of answers finished since the last call.
    """
    answers = [Answer(prompt_tokens=len(ids)) for ids, _ in prompts]
    # Rows of like length share a batch, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [_Row(i, prompts[i][1], answers[i], list(prompts[i][0])) for i in chosen]
        began = time.perf_counter()
        with torch.inference_mode():
            _run_batch(model, rows, pad_id)
        elapsed = time.perf_counter() - began
        for row in rows:
            row.answer.latency_s = elapsed / len(rows)
            row.answer.completion_tokens = len(row.writer.tokens)
            row.answer.text = row.writer.text
        if done is not None:
            done(len(rows))
    return answers


def _run_batch(model: Any, rows: list[_Row], pad_id: int) -> None:
    cache: Any = None
    mask_BC = torch.zeros((len(rows), 0), dtype=torch.long)
    while True:
        # 1. Every row runs on as far as the logits it has allow.
        open_rows = [n for n, row in enumerate(rows) if _advance(row)]
        if not open_rows:
            return
        # 2. Drop finished rows from the cache once they are the larger part.
        if cache is not None and len(open_rows) * 2 <= len(rows):
            keep = torch.tensor(open_rows)
            cache.batch_select_indices(keep.to(model.device))
            mask_BC = mask_BC[keep]
            rows = [rows[n] for n in open_rows]
        # 3. One pass over all tokens not read yet, aligned to the right, padding masked out for ever.
        width = max(len(row.unread) for row in rows)
        ids_BK = torch.full((len(rows), width), pad_id, dtype=torch.long)
        new_BK = torch.zeros((len(rows), width), dtype=torch.long)
        for n, row in enumerate(rows):
            if row.unread:
                ids_BK[n, width - len(row.unread) :] = torch.tensor(row.unread)
                new_BK[n, width - len(row.unread) :] = 1
        positions_BK = (mask_BC.sum(1, keepdim=True) + new_BK.cumsum(1) - 1).clamp(min=0)
        mask_BC = torch.cat([mask_BC, new_BK], dim=1)
        output = model(
            input_ids=ids_BK.to(model.device),
            attention_mask=mask_BC.to(model.device),
            position_ids=positions_BK.to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits_BV = output.logits[:, -1].float().cpu().numpy()
        for n, row in enumerate(rows):
            if row.unread:
                row.logits_V = logits_BV[n]
                row.answer.forward_passes += 1
                row.unread = []


def _advance(row: _Row) -> bool:
    """Append what is forced and take the decisions whose logits are known. True if the model must run."""
    if row.answer.error is not None:
        return False
    try:
        while True:
            decision = row.writer.need()
            _collect(row)
            if decision is None:
                return False
            if row.unread or row.logits_V is None:
                return True
            logits = row.logits_V[decision.allowed]
            best = int(np.argmax(logits))
            kept = logits if not decision.is_open else np.array([_log_probability(logits, best)], dtype=np.float32)
            row.answer.made.append(
                Made(decision.path, kept, best if not decision.is_open else 0, decision.allowed, decision.is_open)
            )
            row.writer.take(int(decision.allowed[best]))
            _collect(row)
    except SchemaError as error:
        row.answer.error = str(error)
        row.unread = []
        return False


def _collect(row: _Row) -> None:
    """Move newly written tokens to what the model must read."""
    fresh = row.writer.tokens[row.written :]
    if fresh:
        row.unread += fresh
        row.written = len(row.writer.tokens)


def _log_probability(logits: np.ndarray, chosen: int) -> float:
    shifted = logits - logits.max()
    return float(shifted[chosen] - np.log(np.exp(shifted).sum()))


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
            value = _log_probability(one.logits / temperature.get(one.path, 1.0), one.chosen)
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
