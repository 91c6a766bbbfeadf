"""Which examples are learned in which step, and the tensors of a step.

Comes in: Encoded lists and a seed. Goes out: for every step of the run one `Step` of micro-batches, the same
for the same seed wherever the run is continued. It knows nothing of models.

Rows need no attention mask. A causal model never looks ahead, so padding at the end of a row changes
nothing before it; and in a packed row the position ids start again at 0 with every example, from which
transformers cuts the attention between examples (masking_utils.find_packed_sequence_indices), for sdpa and
flash attention alike. `loss.packing_is_clean` proves it on the model at hand before it is used.

B rows, T tokens, N trained positions, K allowed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset

from afina.engine.encoded import Encoded

PACKED_ROW_TOKENS = 256  # attention inside a row is quadratic, so longer rows than this gain nothing on a CPU
MEGABATCH_STEPS = 50  # steps whose examples are sorted together by group_by_length


@dataclass
class MicroBatch:
    """Rows that go through the model together.

    input_ids_BT, position_ids_BT: int64. Ends of rows hold the pad token, at positions 0, 1, 2, ...
    source_N: index into B*T of the token *before* each trained one, whose hidden state predicts it.
    target_N: the token to predict.
    finite_M: indices into N where only a finite set was allowed; allowed_MK: those token ids, -1 where there
        are fewer than K. Elsewhere the whole vocabulary was open.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    finite_M: torch.Tensor
    allowed_MK: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


@dataclass
class Step:
    """One update of the weights. num_trained: trained positions in all micro-batches together."""

    micro_batches: list[MicroBatch]

    @property
    def num_trained(self) -> int:
        return sum(len(m.target_N) for m in self.micro_batches)

    @property
    def num_tokens(self) -> int:
        return sum(m.num_tokens for m in self.micro_batches)


def make_rows(examples: Sequence[Encoded], *, packing: bool, flat: bool = False) -> list[list[Encoded]]:
    """Examples as rows: one each, or packed first-fit by falling length (deterministic).

    flat: one single row, for flash attention, whose cost does not grow with the row.
    """
    ordered = sorted(examples, key=lambda e: -len(e.input_ids))
    if not packing:
        return [[e] for e in ordered]
    if flat:
        return [ordered]
    room_each: list[int] = []
    rows: list[list[Encoded]] = []
    capacity = max(PACKED_ROW_TOKENS, len(ordered[0].input_ids)) if ordered else 0
    for example in ordered:
        length = len(example.input_ids)
        place = next((i for i, room in enumerate(room_each) if room >= length), None)
        if place is None:
            rows.append([])
            room_each.append(capacity)
            place = len(rows) - 1
        rows[place].append(example)
        room_each[place] -= length
    return rows


def collate(rows: Sequence[Sequence[Encoded]], loss_on: str, pad_token_id: int) -> MicroBatch:
    """Rows as tensors, padded at the end, with what is trained where. The end of sequence is always trained
    against the whole vocabulary: whether to stop is never forced upon the loss."""
    width = max(sum(len(e.input_ids) for e in row) for row in rows)
    ids, positions, source, target = [], [], [], []
    finite: list[int] = []
    allowed: list[tuple[int, ...]] = []
    for index, row in enumerate(rows):
        row_ids, row_positions = [], []
        for example in row:
            start = index * width + len(row_ids)
            last = len(example.input_ids) - 1
            for position in example.trained(loss_on):
                assert position > 0, "the first token has nothing before it that could predict it"
                choices = example.choices.get(position) if loss_on == "choices" and position != last else None
                if choices is not None:
                    assert example.input_ids[position] in choices, "the chosen token is not among the allowed ones"
                    finite.append(len(target))
                    allowed.append(choices)
                source.append(start + position - 1)
                target.append(example.input_ids[position])
            row_ids += example.input_ids
            row_positions += range(len(example.input_ids))
        gap = width - len(row_ids)
        ids.append(row_ids + [pad_token_id] * gap)
        positions.append(row_positions + list(range(gap)))
    most = max((len(a) for a in allowed), default=0)
    return MicroBatch(
        input_ids_BT=torch.tensor(ids),
        position_ids_BT=torch.tensor(positions),
        source_N=torch.tensor(source, dtype=torch.int64),
        target_N=torch.tensor(target, dtype=torch.int64),
        finite_M=torch.tensor(finite, dtype=torch.int64),
        allowed_MK=torch.tensor([[*a, *[-1] * (most - len(a))] for a in allowed], dtype=torch.int64).view(
            len(allowed), most
        ),
        num_tokens=sum(len(e.input_ids) for row in rows for e in row),
    )


def micro_batches(
    examples: Sequence[Encoded], batch_size: int, *, loss_on: str, packing: bool, pad_token_id: int, flat: bool = False
) -> list[MicroBatch]:
    """Examples in groups of `batch_size`, similar lengths together: within one update the order changes no sum."""
    ordered = sorted(examples, key=lambda e: -len(e.input_ids))
    return [
        collate(make_rows(ordered[i : i + batch_size], packing=packing, flat=flat), loss_on, pad_token_id)
        for i in range(0, len(ordered), batch_size)
    ]


class Schedule(Dataset[Step]):
    """Every step of a run, made when asked for.

    Each epoch is a new shuffle by `seed`; its last step may have fewer examples. An effective batch is
    batch_size x accumulation examples, packed or not.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        num_steps: int,
        *,
        batch_size: int,
        accumulation: int,
        loss_on: str,
        packing: bool,
        group_by_length: bool,
        pad_token_id: int,
        seed: int,
        flat: bool = False,
    ) -> None:
        self.examples, self.num_steps, self.seed = list(examples), num_steps, seed
        self.batch_size, self.effective = batch_size, batch_size * accumulation
        self.group_by_length = group_by_length
        self.layout: dict[str, Any] = {
            "loss_on": loss_on,
            "packing": packing,
            "pad_token_id": pad_token_id,
            "flat": flat,
        }
        self.order = lru_cache(maxsize=2)(self._order)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.effective)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Step:
        epoch, within = divmod(index, self.steps_per_epoch)
        chosen = [self.examples[i] for i in self.order(epoch)[within]]
        return Step(micro_batches(chosen, self.batch_size, **self.layout))

    def _order(self, epoch: int) -> list[list[int]]:
        """Example numbers of each step of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
        if not self.group_by_length:
            return [order[i : i + self.effective] for i in range(0, len(order), self.effective)]
        size = self.effective * MEGABATCH_STEPS
        mega = [
            sorted(order[i : i + size], key=lambda n: -len(self.examples[n].input_ids))
            for i in range(0, len(order), size)
        ]
        order = [n for group in mega for n in group]
        steps = [order[i : i + self.effective] for i in range(0, len(order), self.effective)]
        return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
