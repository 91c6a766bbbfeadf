"""Keys and values of a batch, each row at its own length.

In this cache a token's column is its position in its row. So a row needs no padding between its tokens, a
rejected guess is forgotten by writing over it, and a mask is a comparison of positions: right also where
a layer looks back only so far. Knows nothing of answers.

Shapes: B rows, K new tokens, W columns, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, get_layer_types_and_kwargs

SPARE_COLUMNS = 64  # made room for when a cache grows, so that it does not grow at every token


@dataclass
class Place:
    """Where the tokens of the running pass go. start: the common first column, or None where rows differ.

    first: of the rows that take part, in a cache whose rows may rest.
    """

    start: int | None = 0
    width: int = 0
    first: int = 0
    rows_B1: torch.Tensor | None = None
    columns_BK: torch.Tensor | None = None


class RowLayer(DynamicLayer):
    """One layer's keys and values. `place` is shared by all layers and set before each pass."""

    is_croppable = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = self._write(self.keys, key_states)
        self.values = self._write(self.values, value_states)
        self.is_initialized = True
        return self.keys[:, :, : self.place.width], self.values[:, :, : self.place.width]

    def _write(self, kept_BHWD: torch.Tensor | None, new_BHKD: torch.Tensor) -> torch.Tensor:
        place = self.place
        if kept_BHWD is None:
            return new_BHKD
        if place.start is not None and place.start == kept_BHWD.shape[2]:
            return torch.cat([kept_BHWD, new_BHKD], dim=2)
        if kept_BHWD.shape[2] < place.width:
            rows, heads, columns, size = kept_BHWD.shape
            room = kept_BHWD.new_zeros(rows, heads, place.width + SPARE_COLUMNS, size)
            room[:, :, :columns] = kept_BHWD
            kept_BHWD = room
        if place.start is not None:
            kept_BHWD[:, :, place.start : place.start + new_BHKD.shape[2]] = new_BHKD
        else:
            kept_BHWD[place.rows_B1, :, place.columns_BK] = new_BHKD.transpose(1, 2)
        return kept_BHWD

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.width, 0

    def get_seq_length(self) -> int:
        return self.place.start or 0


@dataclass(frozen=True)
class Shape:
    """What a model needs of its cache. windows: per layer, how many tokens it looks back on, or None for all."""

    windows: tuple[int | None, ...]
    eager: bool

    @classmethod
    def of(cls, config: Any) -> Shape | None:
        """None for layers that keep something else than keys and values: a state, chunks, another layer's."""
        text = config.get_text_config(decoder=True)
        if text._attn_implementation not in ("sdpa", "eager"):
            return None
        types, settings = get_layer_types_and_kwargs(text)
        if not set(types) <= {"full_attention", "sliding_attention"}:
            return None
        windows = tuple(one.get("sliding_window") for one in settings)
        if len(set(windows) - {None}) > 1:
            return None
        return cls(windows, text._attn_implementation == "eager")


class RowCache(Cache):
    """The cache of one batch. Call `enter` before a pass and give the model what it returns."""

    layer: type[RowLayer] = RowLayer

    def __init__(self, shape: Shape) -> None:
        self.shape, self.place = shape, Place()
        self.kept = [self.layer(self.place) for _ in shape.windows]
        super().__init__(layers=[*self.kept])

    @property
    def num_bytes(self) -> int:
        tensors = [t for layer in self.kept for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def first(self, length: int, rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The first `length` keys and values of a one-row cache, shown once per row without a copy."""
        both = [(layer.keys, layer.values) for layer in self.kept]
        shown = [[t[:, :, :length].expand(rows, -1, -1, -1) for t in pair if t is not None] for pair in both]
        return [pair[0] for pair in shown], [pair[1] for pair in shown]

    def begin(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Start with keys and values that all rows share; they are never written to."""
        for layer, key, value in zip(self.kept, keys, values, strict=True):
            layer.keys, layer.values, layer.is_initialized = key, value, True

    def select(self, rows: list[int]) -> None:
        """Keep these rows only."""
        for layer in self.kept:
            if layer.keys is not None and layer.values is not None:
                index = torch.tensor(rows, device=layer.keys.device)
                layer.keys, layer.values = layer.keys[index], layer.values[index]

    def enter(self, starts: list[int], counts: list[int], device: Any, dtype: Any) -> tuple[torch.Tensor, Any]:
        """Position ids_BK and attention mask of a pass that adds `counts[b]` tokens from column `starts[b]` on,
        aligned to the left: what fills a row up stands after its tokens, where no token looks."""
        width = max(counts)
        start_B1 = torch.tensor(starts).unsqueeze(1)
        columns_BK = start_B1 + torch.arange(width)
        common = len(set(starts)) == 1
        self.place.start = starts[0] if common else None
        self.place.width = max(starts) + width
        self.place.rows_B1 = None if common else torch.arange(len(starts), device=device).unsqueeze(1)
        self.place.columns_BK = None if common else columns_BK.to(device)
        last_B1 = start_B1 + torch.tensor(counts).unsqueeze(1) - 1
        positions_BK = torch.minimum(columns_BK, last_B1.clamp(min=0)).to(device)
        if common and starts[0] == 0:
            return positions_BK, None  # plain causal attention
        return positions_BK, self._mask(columns_BK[:1] if common else columns_BK, device, dtype)

    def _mask(self, columns_BK: torch.Tensor, device: Any, dtype: Any) -> Any:
        seen_W = torch.arange(self.place.width)
        full = seen_W <= columns_BK.unsqueeze(2)
        window = next((one for one in self.shape.windows if one is not None), None)
        if window is None or self.place.width <= window:
            return self._finished(full, device, dtype)
        near = self._finished(full & (seen_W > columns_BK.unsqueeze(2) - window), device, dtype)
        if None not in self.shape.windows:
            return near
        return {"full_attention": self._finished(full, device, dtype), "sliding_attention": near}

    def _finished(self, seen_BKW: torch.Tensor, device: Any, dtype: Any) -> torch.Tensor:
        mask = seen_BKW.unsqueeze(1).to(device)
        if not self.shape.eager:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)


class SlotLayer(RowLayer):
    """One layer of a SlotCache: rows beyond those of the running pass keep what they hold."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.place.first + key_states.shape[0]
        self.make_room(last, self.place.width, key_states, value_states)
        assert self.keys is not None and self.values is not None  # noqa: PT018
        keys, values = self.keys[self.place.first : last], self.values[self.place.first : last]
        self._put(keys, key_states)
        self._put(values, value_states)
        return keys[:, :, : self.place.width], values[:, :, : self.place.width]

    def make_room(self, rows: int, columns: int, *like: torch.Tensor) -> None:
        """Grow to so many rows and columns at least. like: keys and values of the same heads, widths and types."""
        self.keys, self.values = (
            _grown(kept, rows, columns, one) for kept, one in zip((self.keys, self.values), like, strict=True)
        )
        self.is_initialized = True

    def _put(self, rows_BHWD: torch.Tensor, new_BHKD: torch.Tensor) -> None:
        place = self.place
        if place.start is not None:
            rows_BHWD[:, :, place.start : place.start + new_BHKD.shape[2]] = new_BHKD
        else:
            rows_BHWD[place.rows_B1, :, place.columns_BK] = new_BHKD.transpose(1, 2)


def _grown(kept: torch.Tensor | None, rows: int, columns: int, like_BHKD: torch.Tensor) -> torch.Tensor:
    had = (0, 0) if kept is None else (kept.shape[0], kept.shape[2])
    if kept is not None and rows <= had[0] and columns <= had[1]:
        return kept
    rows = had[0] if rows <= had[0] else max(rows, 2 * had[0])
    columns = had[1] if columns <= had[1] else max(columns + SPARE_COLUMNS, had[1] * 3 // 2)
    # Zeros, because what was never written must be finite to count for nothing.
    grown = like_BHKD.new_zeros(rows, like_BHKD.shape[1], columns, like_BHKD.shape[3])
    if kept is not None:
        grown[: had[0], :, : had[1]] = kept
    return grown


class SlotCache(RowCache):
    """A cache whose rows come and go. A pass takes the rows from `place.first` on, as many as it has."""

    layer = SlotLayer
    kept: list[SlotLayer]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a row over another row."""
        for layer in self.kept:
            for tensor in (layer.keys, layer.values):
                if tensor is not None:
                    tensor[target, :, :length] = tensor[source, :, :length]

    def take(self, row: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of the first `length` keys and values of a row, by layer: H, length, D."""
        return [
            (layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone())
            for layer in self.kept
            if layer.keys is not None and layer.values is not None
        ]

    def put(self, row: int, held: list[tuple[torch.Tensor, torch.Tensor]], length: int) -> None:
        """Begin a row with the first `length` of keys and values that `take` gave."""
        for layer, pair in zip(self.kept, held, strict=True):
            layer.make_room(row + 1, length, *(tensor.unsqueeze(0) for tensor in pair))
            for kept, tensor in zip((layer.keys, layer.values), pair, strict=True):
                assert kept is not None, "room was made"
                kept[row, :, :length] = tensor[:, :length]

    def clear(self) -> None:
        """Give all memory back."""
        for layer in self.kept:
            layer.keys = layer.values = None
