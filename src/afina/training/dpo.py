"""Direct preference optimization (Rafailov et al., arXiv:2305.18290): from pairs of answers, by TRL's DPOTrainer.

Comes in: a loaded base and pairs of token lists. Goes out: what `local.train` leaves, by the same steps, checkpoints
and watcher. The loss, its metrics and the reference passes are TRL's; the tokens, the order of the pairs and the files
are ours, so a continued training sees what an uninterrupted one would have seen. Nothing is asked of the hub or told to
it.

The reference is the model as it was when training began: the base with its adapter switched off, a frozen copy of the
adapter where training goes on from an earlier one, a frozen copy of the model where all weights are trained. TRL trains
without dropout, so that policy and reference differ by what was learned alone.

B rows (first the preferred answers, then the others), T tokens.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from afina.core.errors import MachineError
from afina.core.storage import digest
from afina.engine.encoded import Encoded
from afina.engine.hub import no_telemetry
from afina.engine.loader import LoadedModel
from afina.training.collate import Layout, Schedule
from afina.training.local import TrainResult, carry_out
from afina.training.loss import unwrap
from afina.training.settings import Settings
from afina.training.watch import Watcher

if TYPE_CHECKING:
    from afina.training.trainer import Sitting, Updates

# Of the rate at which texts are learned: TRL's own defaults for the two are 2e-5 and 1e-6, papers use 1/10 to 1/40.
RATE_SHARE = 0.1
# Of the recipe's train section: what TRL's loss cannot use.
WITHOUT = {
    "packing": False,
    "share_prefix": False,
    "fused_lora": False,
    "torch_compile": False,
    "use_liger_kernel": False,
}


@dataclass(frozen=True)
class Pair:
    """One preference as tokens. Both answers end as an answer ends; none of the three is empty."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of the prompt once and both answers, which is what a provider counts."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def num_read(self) -> int:
        """Tokens that one pass over the pair reads: the prompt stands before each answer."""
        return self.num_tokens + len(self.prompt_ids)


@dataclass
class PairBatch:
    """Pairs that go through the model together: DPOTrainer's tensors. num_chosen: tokens of preferred answers."""

    inputs: dict[str, torch.Tensor]
    num_pairs: int
    num_chosen: int
    num_tokens: int


@dataclass
class PairStep:
    """One update of the weights."""

    batches: list[PairBatch]


def require_trl() -> None:
    """Raise MachineError where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise MachineError("Training on preferences needs the library trl. Install it with: pip install 'afina[serve]'")


def train(
    loaded: LoadedModel,
    settings: Settings,
    train_set: Sequence[Pair],
    validation_set: Sequence[Pair],
    folder: Path,
    seed: int,
    *,
    beta: float,
    watcher: Watcher | None = None,
) -> TrainResult:
    """`local.train` for preferences. settings: resolved with `WITHOUT`. beta: how dear it is to leave the reference.

    The last step's weights are the result. Loss: mean over pairs. Accuracy: of the tokens of preferred answers.
    Raises as `local.train` does, and MachineError where TRL is not installed.
    """
    no_telemetry()
    require_trl()
    fresh = not loaded.has_adapter

    def make(sitting: Sitting) -> Updates:
        from afina.training.dpo_trainer import PreferenceTrainer

        schedule = PairSchedule(train_set, settings, seed, loaded.pad_token_id)
        size = settings.per_device_train_batch_size
        ordered = sorted(validation_set, key=lambda pair: -pair.num_read)
        validation = [pair_batch(ordered[i : i + size], loaded.pad_token_id) for i in range(0, len(ordered), size)]
        reference = None if loaded.has_adapter else frozen_copy(loaded.model)
        return PreferenceTrainer(sitting, schedule, validation, reference, beta, fresh_adapter=fresh)

    told = ["dpo", beta, *(digest([vars(pair) for pair in pairs]) for pairs in (train_set, validation_set))]
    return carry_out(loaded, settings, make, folder, seed, told, watcher=watcher)


def frozen_copy(model: Any) -> Any:
    """The model as it is now, in evaluation mode."""
    reference = copy.deepcopy(model)
    reference.requires_grad_(False)
    return reference.eval()


def attend_by(model: Any, implementation: str) -> str:
    """Change a model's attention; returns what it was."""
    causal = unwrap(model)
    before: str = causal.config._attn_implementation
    if before != implementation:
        causal.set_attn_implementation(implementation)
    return before


def autocast(settings: Settings) -> Any:
    """The compute type of the settings, as `Passes.autocast`."""
    if settings.compute_dtype == "float32":
        return nullcontext()
    return torch.autocast(settings.device, dtype=getattr(torch, settings.compute_dtype))


# -- data ------------------------------------------------------------------------------------------


def pair_batch(pairs: Sequence[Pair], pad_token_id: int) -> PairBatch:
    """Pairs as DPOTrainer's collator lays them out."""
    rows = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    shape = (len(rows), width)
    input_ids_BT = torch.full(shape, pad_token_id)
    attention_BT, completion_BT = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for at, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids_BT[at, :end] = torch.tensor((*prompt, *answer))
        attention_BT[at, :end] = 1
        completion_BT[at, len(prompt) : end] = 1
    inputs = {"input_ids": input_ids_BT, "attention_mask": attention_BT, "completion_mask": completion_BT}
    return PairBatch(inputs, len(pairs), sum(len(p.chosen_ids) for p in pairs), sum(p.num_read for p in pairs))


class PairSchedule(Dataset[PairStep]):
    """Every step of a run, made when asked for; in the order that `collate.Schedule` has for this seed."""

    def __init__(self, pairs: Sequence[Pair], settings: Settings, seed: int, pad_token_id: int) -> None:
        self.pairs, self.pad_token_id = list(pairs), pad_token_id
        self.batch_size = settings.per_device_train_batch_size
        self.order = Schedule(
            [Encoded((0,) * pair.num_read, 1) for pair in pairs],  # for group_by_length, it looks at lengths
            settings.total_steps,
            batch_size=self.batch_size,
            accumulation=settings.gradient_accumulation_steps,
            group_by_length=settings.group_by_length,
            seed=seed,
            layout=Layout("completion", pad_token_id),
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> PairStep:
        epoch, within = divmod(index, self.steps_per_epoch)
        chosen = sorted((self.pairs[i] for i in self.order.order(epoch)[within]), key=lambda pair: -pair.num_read)
        groups = [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        return PairStep([pair_batch(group, self.pad_token_id) for group in groups])
