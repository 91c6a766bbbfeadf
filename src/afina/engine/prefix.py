"""Beginnings of prompts, read once and kept: those that all prompts of a task share, and those of recent requests.

Comes in: prompts as tokens. Goes out: keys and values of the tokens they begin with, to start from.
What is reused is found by comparing tokens, prompt by prompt; nothing is assumed of templates. Memory is
bounded: what was used longest ago is forgotten. The model's weights may not change while this lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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


Held = list[tuple[torch.Tensor, torch.Tensor]]
REUSED_TOKENS = 16  # fewer are read as quickly as they are copied
MAX_TEXTS = 256


@dataclass
class _Read:
    """What was read under some tokens. owner: the model that read it."""

    owner: int
    ids: np.ndarray
    held: Held

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.held for t in pair)


class RecentTexts:
    """Keys and values of texts that were read lately, by any of several models, within `max_bytes` together.

    For one thread. owner: any number that stands for one model with fixed weights.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._read: OrderedDict[int, _Read] = OrderedDict()  # by age, what was used longest ago first
        self._next = 0

    def find(self, owner: int, ids: Sequence[int]) -> tuple[int, Held]:
        """The longest beginning of a prompt that is kept, at least one token of it left out; (0, []) for none."""
        wanted, best, length = np.asarray(ids[:-1], dtype=np.int64), None, REUSED_TOKENS - 1
        for key, read in self._read.items():
            if read.owner == owner and len(read.ids) > length:
                common = common_start(read.ids, wanted)
                if common > length:
                    best, length = key, common
        if best is None:
            return 0, []
        self._read.move_to_end(best)
        return length, self._read[best].held

    def fits(self, num_bytes: int) -> bool:
        """Whether a text of this size would be kept: one may not drive out all others."""
        return num_bytes <= self.max_bytes // 4

    def keep(self, owner: int, ids: Sequence[int], held: Held) -> None:
        """Keep a text that was read, in place of those that it begins with."""
        read = _Read(owner, np.asarray(ids, dtype=np.int64), held)
        for key, other in list(self._read.items()):
            if other.owner == owner and common_start(other.ids, read.ids) == len(other.ids):
                self._drop(key)
        self._read[self._next] = read
        self._next += 1
        self.num_bytes += read.num_bytes
        while self.num_bytes > self.max_bytes or len(self._read) > MAX_TEXTS:
            self._drop(next(iter(self._read)))

    def knows(self, owner: int, ids: Sequence[int]) -> bool:
        """Whether a text is kept that begins with these tokens."""
        wanted = np.asarray(ids, dtype=np.int64)
        return any(
            read.owner == owner and len(read.ids) >= len(wanted) and common_start(read.ids, wanted) == len(wanted)
            for read in self._read.values()
        )

    def forget(self, owner: int) -> None:
        """Drop what a model has read."""
        for key in [key for key, read in self._read.items() if read.owner == owner]:
            self._drop(key)

    def _drop(self, key: int) -> None:
        self.num_bytes -= self._read.pop(key).num_bytes


def common_start(one: np.ndarray, other: np.ndarray) -> int:
    """`common_length`, for long texts."""
    length = min(len(one), len(other))
    if length and one[0] != other[0]:
        return 0
    unlike = np.flatnonzero(one[:length] != other[:length])
    return int(unlike[0]) if len(unlike) else length
