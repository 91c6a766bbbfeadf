"""Continuous batching: many requests of one model answered together, each joining and leaving between passes.

Comes in: generations, from any thread. Goes out: their deltas, from the one thread that calls `step`. A step reads the
next tokens of all running answers in one pass, then a piece of the newcomers' prompts in another, so that a long prompt
holds nobody up for long. What prompts begin with and was read lately is copied instead of read.

Slots: running rows first, then the newcomers that are being read, without holes.
Knows nothing of names of models, of HTTP or of how many may wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from afina.core.errors import MachineError
from afina.engine.bed import ApartBed, Bed, SharedBed
from afina.engine.codec import Codec
from afina.engine.generation import Generation
from afina.engine.prefix import REUSED_TOKENS, RecentTexts, common_start
from afina.engine.reading import GATHERED_SHARE, Reader, Scores
from afina.engine.serving_row import Heard, ServingRow
from afina.engine.stepping import InferenceThread, ModelLock

__all__ = ["Batcher", "InferenceThread", "ModelLock"]

PREFILL_TOKENS = 512
CACHE_BYTES = 2 * 2**30


class Batcher:
    """One model's running batch. Methods but `submit` and the counts belong to the thread that steps it.

    stop_ids: tokens that end free text. max_rows: answers at once; others wait. context: tokens of prompt and answer.
    prefill_tokens: of newcomers, read in one pass. cache_bytes: for keys and values of all rows; newcomers wait until
    there is room.
    recent, owner: what was read lately, shared with other models of the same thread; `owner` stands for this one.
    activate: called before the model is used, where several adapters share its weights. lock: held by others while
    they change those.
    """

    def __init__(
        self,
        model: Any,
        codec: Codec,
        stop_ids: frozenset[int],
        *,
        max_rows: int = 32,
        context: int | None = None,
        pad_id: int = 0,
        prefill_tokens: int = PREFILL_TOKENS,
        cache_bytes: int = CACHE_BYTES,
        recent: RecentTexts | None = None,
        owner: int = 0,
        activate: Callable[[], None] | None = None,
        lock: ModelLock | None = None,
    ) -> None:
        self.model, self.codec, self.stop_ids = model, codec, stop_ids
        self.context = context or int(getattr(model.config, "max_position_embeddings", None) or 2048)
        self.max_rows, self.prefill_tokens, self.cache_bytes = max_rows, prefill_tokens, cache_bytes
        self.lock = lock or ModelLock()
        self.on_work: Callable[[], None] = _nothing
        self._recent = recent if recent is not None else RecentTexts()
        self._owner = owner
        self._activate = activate or _nothing
        self._activate()
        self._reader = Reader(model)
        self._bed: Bed = ApartBed(self._reader, pad_id) if self._reader.shape is None else SharedBed(self._reader)
        self._vocabulary = _vocabulary(model)
        self._waiting: deque[Generation] = deque()
        self._head: ServingRow | None = None  # of the one that waits longest, once it was looked at
        self._rows: list[ServingRow] = []  # by slot
        self._running = 0  # how many of the rows are read to their end; the others are newcomers

    # -- for any thread -------------------------------------------------------------------------

    def submit(self, generation: Generation) -> None:
        """Let an answer wait for its turn."""
        self._waiting.append(generation)
        self.on_work()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + (self._head is not None)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows or self._head)

    # -- for the stepping thread ----------------------------------------------------------------

    def step(self) -> bool:
        """Two passes at most: of the running answers, and of newcomers. False if there was nothing to do."""
        if not self.busy:
            return False
        with torch.inference_mode():
            self._leave_cancelled()
            self._activate()
            if self._running:
                self._pass(0, self._running, self._best_width(self._rows[: self._running]))
            if len(self._rows) == self._running:
                self._admit()
            newcomers = len(self._rows) - self._running
            if newcomers:
                self._pass(self._running, newcomers, max(1, self.prefill_tokens // newcomers))
                self._join()
        if not self._rows:
            self._bed.clear()
        return True

    def fail(self, error: Exception) -> None:
        """Give up everything that runs or waits."""
        generations = [row.generation for row in (*self._rows, *([self._head] if self._head else []))]
        self._rows, self._running, self._head = [], 0, None
        self._bed.clear()
        while self._waiting:
            generations.append(self._waiting.popleft())
        for generation in generations:
            _refuse(generation, error)

    def embed(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The mean of the last hidden states of each text, of length 1; float32. One pass; texts may not be empty."""
        with torch.inference_mode():
            self._activate()
            width = max(len(ids) for ids in texts)
            ids_BK = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts], device=self.model.device)
            real_BK = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts], device=ids_BK.device)
            hidden_BKH = self._hidden(ids_BK, real_BK).float()
            mean_BH = (hidden_BKH * real_BK.unsqueeze(2)).sum(1) / real_BK.sum(1, keepdim=True)
            return list(torch.nn.functional.normalize(mean_BH, dim=1).cpu().numpy())

    def _hidden(self, ids_BK: torch.Tensor, real_BK: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"input_ids": ids_BK, "attention_mask": real_BK, "use_cache": False}
        if self._reader.head is not None:
            return self._reader.causal.get_decoder()(**options).last_hidden_state
        return self.model(**options, output_hidden_states=True).hidden_states[-1]

    # -- rows come and go -----------------------------------------------------------------------

    def _leave_cancelled(self) -> None:
        for row in [row for row in self._rows if row.generation.cancelled]:
            self._leave(row)
        if self._head is not None and self._head.generation.cancelled:
            self._head = None
        # Those that wait are let go as well, or they would count as waiting.
        for _ in range(len(self._waiting)):
            generation = self._waiting.popleft()
            if not generation.cancelled:
                self._waiting.append(generation)

    def _admit(self) -> None:
        """Newcomers in order: as many as one pass can read, or one that is longer."""
        longest, newcomers = 0, self._rows[self._running :]
        while len(self._rows) < self.max_rows and (row := self._first_waiting()) is not None:
            known, held = self._recent.find(self._owner, row.ids) if self._bed.reuses else (0, [])
            longest = max(longest, len(row.ids) - known)
            crowded = newcomers and (len(newcomers) + 1) * longest > self.prefill_tokens
            if crowded or self._too_large(row) or any(_soon_known(row, known, other) for other in newcomers):
                return
            self._head = None
            row.read = known
            row.generation.cached_tokens = known
            self._bed.put(len(self._rows), held, known)
            self._rows.append(row)
            if self._guarded(row, row.begin):
                newcomers.append(row)

    def _first_waiting(self) -> ServingRow | None:
        """The row of the one that waits longest; those that cannot be served at all are told so on the way."""
        while self._head is None and self._waiting:
            generation = self._waiting.popleft()
            if generation.cancelled:
                continue
            try:
                self._head = ServingRow(generation, self.codec, self.stop_ids, self._vocabulary, self.context)
            except Exception as error:
                _refuse(generation, error)
        return self._head

    def _too_large(self, row: ServingRow) -> bool:
        """Whether keys and values of all rows, at their longest, would take too much memory with this one."""
        longest = max(one.most_tokens for one in (*self._rows, row))
        size = (len(self._rows) + 1) * longest * self._bed.token_bytes
        return bool(self._rows) and size > self.cache_bytes

    def _join(self) -> None:
        """Newcomers whose prompts are read run with the others from now on."""
        newcomers = self._rows[self._running :]
        if any(row.read < row.generation.prompt_tokens for row in newcomers):
            return
        for row in newcomers:
            if row.generation.prompt_tokens - row.generation.cached_tokens >= REUSED_TOKENS:
                self._keep(row, row.generation.prompt_tokens)
        self._running = len(self._rows)

    def _keep(self, row: ServingRow, length: int) -> None:
        size = length * self._bed.token_bytes
        if self._bed.reuses and length > REUSED_TOKENS and self._recent.fits(size):
            held = self._bed.take(self._rows.index(row), length)
            self._recent.keep(self._owner, row.ids[:length], held)

    def _leave(self, row: ServingRow) -> None:
        """Free the row's slot; others move so that there are no holes."""
        hole = self._rows.index(row)
        if hole < self._running:
            self._running -= 1
            self._move(self._running, hole)
            hole = self._running
        self._move(len(self._rows) - 1, hole)
        self._rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._bed.move(source, target, self._rows[source].read)
            self._rows[target] = self._rows[source]

    # -- passes ---------------------------------------------------------------------------------

    def _best_width(self, rows: Sequence[ServingRow]) -> int:
        """How many tokens of each row to read in a pass. Rows with forced text have many to read, and every row pays
        for the longest; so as many as make most of the pass's cost useful."""
        fresh = [row.fresh for row in rows]
        fixed = self._bed.pass_tokens

        def use(width: int) -> float:
            return sum(min(one, width) for one in fresh) / (fixed + len(rows) * width)

        return max(sorted(set(fresh)), key=use)

    def _pass(self, first: int, count: int, width: int) -> None:
        """Read up to `width` tokens of each of these rows, and let those that are read to their end go on."""
        rows = self._rows[first : first + count]
        if count > 1 and not self._bed.reuses:
            self._one_by_one(rows, width)
            return
        fresh = [row.ids[row.read : row.read + width] for row in rows]
        try:
            scores = self._bed.read(first, fresh, [row.read for row in rows])
            asked = [n for n, row in enumerate(rows) if row.fresh <= width]
            said = dict(zip(asked, self._said(scores, [(n, rows[n]) for n in asked]), strict=True))
        except Exception as error:
            # Whose fault it was shows when each is read alone; the others lose nothing.
            if count == 1:
                self._give_up(rows[0], error)
            else:
                self._one_by_one(rows, width)
            return
        for row, tokens in zip(rows, fresh, strict=True):
            row.read += len(tokens)  # of all, before any of them moves to another slot
        for n, row in enumerate(rows):
            if n in said:
                row.heard = Heard(scores, n)
                self._guarded(row, lambda row=row, n=n: self._go_on(row, said[n]))

    def _one_by_one(self, rows: Sequence[ServingRow], width: int) -> None:
        for row in rows:
            self._pass(self._rows.index(row), 1, width)

    def _said(self, scores: Scores, asked: Sequence[tuple[int, ServingRow]]) -> list[np.ndarray]:
        """What the model says at each asked place of what its row needs."""
        found: dict[int, np.ndarray] = {}
        few = [(n, row) for n, row in asked if _is_few(row, self._vocabulary)]
        many = [(n, row) for n, row in asked if not _is_few(row, self._vocabulary)]
        if few:
            logits = scores.at([(n, _ids(row)) for n, row in few])
            found |= {n: one for (n, _), one in zip(few, logits, strict=True)}
        if many:
            logits_NV = scores.whole([n for n, _ in many])
            for (n, row), logits_V in zip(many, logits_NV, strict=True):
                ids = None if row.need is None else row.need.ids
                found[n] = logits_V if ids is None else logits_V[ids]
        return [found[n] for n, _ in asked]

    def _go_on(self, row: ServingRow, said: np.ndarray) -> None:
        """Let a row choose; where a choice only ended a value, the same place is asked again of what follows."""
        row.take(said)
        while row.finish is None and not row.fresh:
            assert row.heard is not None, "a place that was read was asked"
            row.take(self._said(row.heard.scores, [(row.heard.place, row)])[0])
        row.heard = None
        row.tell()

    def _guarded(self, row: ServingRow, act: Callable[[], None]) -> bool:
        """Do something for one row. What goes wrong, or ends, concerns that row only; whether it goes on."""
        try:
            act()
        except Exception as error:
            self._give_up(row, error)
            return False
        if row.finish is None:
            return True
        if row.read >= row.generation.prompt_tokens and row.read - row.generation.cached_tokens >= REUSED_TOKENS:
            self._keep(row, row.read)  # the next turn of a conversation begins with this one
        self._leave(row)
        return False

    def _give_up(self, row: ServingRow, error: Exception) -> None:
        self._leave(row)
        _refuse(row.generation, error)


def _is_few(row: ServingRow, vocabulary: int) -> bool:
    assert row.need is not None, "asked"
    return row.need.ids is not None and len(row.need.ids) <= GATHERED_SHARE * vocabulary


def _ids(row: ServingRow) -> np.ndarray:
    assert row.need is not None and row.need.ids is not None  # noqa: PT018
    return row.need.ids


def _soon_known(row: ServingRow, known: int, other: ServingRow) -> bool:
    """Whether most of what this row has to read is being read for another row just now."""
    common = common_start(np.asarray(row.ids[:-1]), np.asarray(other.ids))
    return common - known >= max(REUSED_TOKENS, (len(row.ids) - known) // 2)


def _refuse(generation: Generation, error: Exception) -> None:
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        error = MachineError("no memory is left for this answer. Ask for fewer tokens, or lower max_rows.")
    if not generation.cancelled:
        with suppress(Exception):
            generation.on_error(error)


def _vocabulary(model: Any) -> int:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = getattr(causal, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    features = getattr(head, "out_features", None)
    if features is None and weight is not None:
        features = weight.shape[0]
    return int(features or causal.config.get_text_config(decoder=True).vocab_size)


def _nothing() -> None:
    pass
