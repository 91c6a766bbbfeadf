"""Where the rows of a running batch lie: what the model has read of each, in slots without holes.

Rows come and go between passes. Two kinds: `SharedBed` reads all rows in one pass through our own cache, where `Reader`
has proven that for the model; `ApartBed` reads row by row through the model's own cache. Knows nothing of requests.
"""

from __future__ import annotations

from typing import Protocol

import torch

from afina.engine.prefix import Held
from afina.engine.reading import OwnMemory, Reader, RowMemory, Scores
from afina.engine.rowcache import SlotCache

RESTING_BYTES = 16 * 2**20  # of a cache without rows, which the next ones find ready


class Bed(Protocol):
    """reuses: whether what was read can be copied out and in."""

    reuses: bool

    @property
    def pass_tokens(self) -> float:
        """How many tokens could be read for what a pass costs whatever it reads."""
        ...

    @property
    def token_bytes(self) -> int:
        """Of memory, for each token of each row; 0 before anything was read."""
        ...

    def read(self, first: int, fresh: list[list[int]], starts: list[int]) -> Scores:
        """One pass over new tokens of the rows from slot `first` on; the scores after the last of each."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Let a row lie in another slot, whose row is forgotten. length: how many tokens it has read."""
        ...

    def take(self, slot: int, length: int) -> Held: ...

    def put(self, slot: int, held: Held, length: int) -> None:
        """Begin a row with `length` tokens that were read before; 0 for an empty row."""
        ...

    def clear(self) -> None:
        """Nothing lies here any more."""
        ...


class SharedBed:
    """All rows in one cache."""

    reuses = True

    def __init__(self, reader: Reader) -> None:
        assert reader.shape is not None, "proven"
        self._cache = SlotCache(reader.shape)
        self._memory = RowMemory(reader, self._cache)

    @property
    def pass_tokens(self) -> float:
        return self._memory.pass_tokens

    @property
    def token_bytes(self) -> int:
        held = [tensor for layer in self._cache.kept for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in held)

    def read(self, first: int, fresh: list[list[int]], starts: list[int]) -> Scores:
        self._cache.place.first = first
        return self._memory.read(fresh, starts, [[len(tokens) - 1] for tokens in fresh])

    def move(self, source: int, target: int, length: int) -> None:
        if length:
            self._cache.move(source, target, length)

    def take(self, slot: int, length: int) -> Held:
        return self._cache.take(slot, length)

    def put(self, slot: int, held: Held, length: int) -> None:
        if length:
            self._cache.put(slot, held, length)

    def clear(self) -> None:
        if self._cache.num_bytes > RESTING_BYTES:
            self._cache.clear()


class ApartBed:
    """Each row in a memory of its own, read the model's own way."""

    reuses = False
    pass_tokens = 0.0
    token_bytes = 0

    def __init__(self, reader: Reader, pad_id: int) -> None:
        self._reader, self._pad_id = reader, pad_id
        self._rows: dict[int, OwnMemory] = {}

    def read(self, first: int, fresh: list[list[int]], starts: list[int]) -> Scores:
        logits: list[torch.Tensor] = []
        for slot, tokens in enumerate(fresh, first):
            scores = self._rows[slot].read([tokens], [0], [[len(tokens) - 1]])
            assert scores.logits_NV is not None, "a model's own way makes logits"
            logits.append(scores.logits_NV)
        return Scores(None, torch.cat(logits), None)

    def move(self, source: int, target: int, length: int) -> None:
        self._rows[target] = self._rows.pop(source)

    def take(self, slot: int, length: int) -> Held:
        raise AssertionError("nothing is reused")

    def put(self, slot: int, held: Held, length: int) -> None:
        self._rows[slot] = OwnMemory(self._reader.model, self._pad_id)

    def clear(self) -> None:
        self._rows.clear()
