"""Which examples are learned in which step, and the tensors of a step.

Comes in: Encoded lists and a seed. Goes out: for every step of the run one `Step` of micro-batches, the same
for the same seed wherever the run is continued. It knows nothing of models.

Rows need no attention mask. A causal model never looks ahead, so padding at the end of a row changes
nothing before it; and in a packed row the position ids start again at 0 with every example, from which
transformers cuts the attention between examples (masking_utils.find_packed_sequence_indices), for sdpa and
flash attention alike. `loss.packing_is_clean` proves it on the model at hand before it is used.

Examples of a row may also share their beginning, the instruction: it stands in the row once, every example sees it
and itself, and its positions go on from it. That needs a mask; `loss.sharing_is_clean` proves it.

B rows, T tokens, N trained positions, K allowed tokens, P tokens of a shared beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch.utils.data import Dataset

from afina.engine.encoded import Encoded

MEGABATCH_STEPS = 50  # steps whose examples are sorted together by group_by_length


@dataclass
class MicroBatch:
    """Rows that go through the model together.

    input_ids_BT, position_ids_BT: int64. Ends of rows hold the pad token, at positions 0, 1, 2, ...
    seen_BTT: bool, which token (last index) each one sees; None where the positions say it.
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
    seen_BTT: torch.Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


@dataclass
class Step:
    """One update of the weights. num_trained: trained positions in all micro-batches together.

    second: the same rows' texts of a second task, whose mean loss over its own `num_second` positions is added with
    second_weight: long rationales do not drown short labels (Distilling Step-by-Step, arXiv:2305.02301, section 3.2).
    """

    micro_batches: list[MicroBatch]
    second: list[MicroBatch] = field(default_factory=list)
    second_weight: float = 1.0

    @property
    def num_trained(self) -> int:
        return sum(len(m.target_N) for m in self.micro_batches)

    @property
    def num_second(self) -> int:
        return sum(len(m.target_N) for m in self.second)

    @property
    def num_tokens(self) -> int:
        return sum(m.num_tokens for m in (*self.micro_batches, *self.second))


@dataclass(frozen=True)
class Layout:
    """How examples become rows.

    packing: several in one row of up to `row_tokens` tokens, or of the longest example. share_prefix: with their
    common beginning once. flat: all in one single row, for flash attention, whose cost does not grow with the row.
    """

    loss_on: str
    pad_token_id: int
    packing: bool = True
    share_prefix: bool = False
    row_tokens: int = 256
    flat: bool = False


def common_beginning(examples: Sequence[Encoded]) -> int:
    """Tokens that all prompts begin with, at most all but the last token of the shortest prompt."""
    if len(examples) < 2:
        return 0
    least = min(examples, key=lambda e: e.input_ids).input_ids
    most = max(examples, key=lambda e: e.input_ids).input_ids
    room = min(e.num_prompt for e in examples) - 1
    return next((n for n in range(room) if least[n] != most[n]), max(0, room))


def make_rows(examples: Sequence[Encoded], layout: Layout) -> list[list[Encoded]]:
    """Examples as rows: one each, or packed first-fit by falling length (deterministic)."""
    ordered = sorted(examples, key=lambda e: -len(e.input_ids))
    if not layout.packing:
        return [[e] for e in ordered]
    if layout.flat:
        return [ordered]
    shared = common_beginning(ordered) if layout.share_prefix else 0
    return [
        [ordered[i] for i in row] for row in first_fit([len(e.input_ids) for e in ordered], shared, layout.row_tokens)
    ]


def first_fit(lengths: Sequence[int], shared: int, row_tokens: int) -> list[list[int]]:
    """Which examples (by index) share a row. lengths: falling. shared: tokens that a row holds only once."""
    rows: list[list[int]] = []
    room_each: list[int] = []
    capacity = max(row_tokens, lengths[0]) if lengths else 0
    for index, length in enumerate(lengths):
        place = next((i for i, room in enumerate(room_each) if room >= length - shared), None)
        if place is None:
            rows.append([])
            room_each.append(capacity - shared)
            place = len(rows) - 1
        rows[place].append(index)
        room_each[place] -= length - shared
    return rows


@dataclass
class _Row:
    """One row as lists. segments: 0 for the shared beginning, 1, 2, ... for the examples, -1 for padding.
    starts: where position 0 of each example would stand."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    starts: list[int]


def _lay_out(row: Sequence[Encoded], shared: int) -> _Row:
    found = _Row(list(row[0].input_ids[:shared]), list(range(shared)), [0] * shared, [])
    for number, example in enumerate(row, start=1):
        found.starts.append(len(found.ids) - shared)
        own = example.input_ids[shared:]
        found.ids += own
        found.positions += range(shared, shared + len(own))
        found.segments += [number] * len(own)
    return found


def collate(rows: Sequence[Sequence[Encoded]], layout: Layout) -> MicroBatch:
    """Rows as tensors, padded at the end, with what is trained where. The end of sequence is always trained
    against the whole vocabulary: whether to stop is never forced upon the loss."""
    shared = [common_beginning(row) if layout.share_prefix else 0 for row in rows]
    laid = [_lay_out(row, p) for row, p in zip(rows, shared, strict=True)]
    width = max(len(row.ids) for row in laid)
    source, target = [], []
    finite: list[int] = []
    allowed: list[tuple[int, ...]] = []
    for index, (row, lay) in enumerate(zip(rows, laid, strict=True)):
        for example, start in zip(row, lay.starts, strict=True):
            last = len(example.input_ids) - 1
            for position in example.trained(layout.loss_on):
                assert position > 0, "the first token has nothing before it that could predict it"
                choices = example.choices.get(position) if layout.loss_on == "choices" and position != last else None
                if choices is not None:
                    assert example.input_ids[position] in choices, "the chosen token is not among the allowed ones"
                    finite.append(len(target))
                    allowed.append(choices)
                source.append(index * width + start + position - 1)
                target.append(example.input_ids[position])
        gap = width - len(lay.ids)
        lay.ids += [layout.pad_token_id] * gap
        lay.positions += range(gap)
        lay.segments += [-1] * gap
    most = max((len(a) for a in allowed), default=0)
    return MicroBatch(
        input_ids_BT=torch.tensor([row.ids for row in laid]),
        position_ids_BT=torch.tensor([row.positions for row in laid]),
        source_N=torch.tensor(source, dtype=torch.int64),
        target_N=torch.tensor(target, dtype=torch.int64),
        finite_M=torch.tensor(finite, dtype=torch.int64),
        allowed_MK=torch.tensor([[*a, *[-1] * (most - len(a))] for a in allowed], dtype=torch.int64).view(
            len(allowed), most
        ),
        num_tokens=sum(len(e.input_ids) for row in rows for e in row),
        seen_BTT=_seen(torch.tensor([row.segments for row in laid])) if any(shared) else None,
    )


def _seen(segments_BT: torch.Tensor) -> torch.Tensor:
    """Each token sees itself, what stands before it in its own example, and the shared beginning."""
    before_TT = torch.ones(segments_BT.shape[1], segments_BT.shape[1], dtype=torch.bool).tril()
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return before_TT & (same_BTT | (segments_BT == 0)[:, None, :])


def micro_batches(examples: Sequence[Encoded], batch_size: int, layout: Layout) -> list[MicroBatch]:
    """Examples in groups of `batch_size`, similar lengths together: within one update the order changes no sum."""
    ordered = sorted(examples, key=lambda e: -len(e.input_ids))
    return [collate(make_rows(ordered[i : i + batch_size], layout), layout) for i in range(0, len(ordered), batch_size)]


def make_step(examples: Sequence[Encoded], batch_size: int, layout: Layout) -> Step:
    """One update from whole rows. Texts of a second task have micro-batches of their own, of `batch_size` texts."""
    beside = [one.second for one in examples if one.second is not None]
    if not beside:
        return Step(micro_batches(examples, batch_size, layout))
    weights = {one.second_weight for one in examples if one.second is not None}
    assert len(weights) == 1, f"one update has one weight for its second task, found {weights}"
    return Step(micro_batches(examples, batch_size, layout), micro_batches(beside, batch_size, layout), weights.pop())


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
        group_by_length: bool,
        seed: int,
        layout: Layout,
    ) -> None:
        self.examples, self.num_steps, self.seed = list(examples), num_steps, seed
        self.batch_size, self.effective = batch_size, batch_size * accumulation
        self.group_by_length, self.layout = group_by_length, layout
        self.order = lru_cache(maxsize=2)(self._order)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.effective)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Step:
        epoch, within = divmod(index, self.steps_per_epoch)
        chosen = [self.examples[i] for i in self.order(epoch)[within]]
        return make_step(chosen, self.batch_size, self.layout)

    def num_tokens(self, num_steps: int) -> int:
        """Tokens that the first `num_steps` updates read, prompts and second texts included."""
        each = [len(e.input_ids) + (len(e.second.input_ids) if e.second is not None else 0) for e in self.examples]
        whole, rest = divmod(num_steps, self.steps_per_epoch)
        begun = self.order(whole)[:rest] if rest else []
        return whole * sum(each) + sum(each[n] for step in begun for n in step)

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
