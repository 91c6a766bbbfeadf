"""The beginning that all prompts of a task share, read once and kept.

Comes in: prompts as tokens. Goes out: keys and values of the tokens they begin with, to start a batch from.
What is reused is found by comparing tokens, prompt by prompt; nothing is assumed of templates. Memory is
bounded: what was used longest ago is forgotten. The model's weights may not change while this lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from afina.engine.reading import Reader, RowMemory
from afina.engine.rowcache import RowCache

MIN_TOKENS = 4  # below, copying costs more than reading
MAX_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Shared:
    """A beginning that was read. length: how many of its tokens all prompts of the batch begin with."""

    cache: RowCache
    length: int


class Prefixes:
    """Beginnings of prompts for one model, newest last."""

    def __init__(self, reader: Reader, max_bytes: int = MAX_BYTES) -> None:
        self.reader, self.max_bytes = reader, max_bytes
        self._kept: OrderedDict[tuple[int, ...], RowCache] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(cache.num_bytes for cache in self._kept.values())

    def learn(self, prompts: Sequence[Sequence[int]]) -> int:
        """Read and keep what all these prompts begin with; returns how many tokens that is, 0 if not kept."""
        length = min((common_length(prompts[0], one) for one in prompts[1:]), default=len(prompts[0]))
        tokens = tuple(prompts[0][:length])
        if length < MIN_TOKENS or self.reader.shape is None:
            return 0
        if tokens not in self._kept:
            memory = RowMemory(self.reader, RowCache(self.reader.shape))
            with torch.inference_mode():
                memory.read([list(tokens)], [0], [[length - 1]])
            self._kept[tokens] = memory.cache
            while self.num_bytes > self.max_bytes:
                self._kept.popitem(last=False)
        return length if tokens in self._kept else 0

    def shared(self, prompts: Sequence[Sequence[int]]) -> Shared | None:
        """The most that is kept of what all these prompts begin with; of each, a token is left to read."""
        best, most = None, MIN_TOKENS - 1
        for tokens in self._kept:
            length = min(min(common_length(tokens, prompt), len(prompt) - 1) for prompt in prompts)
            if length > most:
                best, most = tokens, length
        if best is None:
            return None
        self._kept.move_to_end(best)
        return Shared(self._kept[best], most)


def begin(memory: RowMemory, shared: Shared, rows: int) -> None:
    """Let a fresh batch start with what is shared, without a copy."""
    memory.cache.begin(*shared.cache.first(shared.length, rows))


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    for n in range(length):
        if one[n] != other[n]:
            return n
    return length
