"""TRL's DPOTrainer in our loop: its loss and reference passes, our updates, checkpoints and watcher.

Imports TRL, which is optional: `dpo.py` imports this module when it is needed. TRL 1.16 would tokenise texts with its
own template code, write a model card with every checkpoint and count its users; each of the three is taken out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset as Table
from trl import DPOConfig, DPOTrainer

from afina.training.dpo import PairBatch, PairSchedule, PairStep, attend_by, autocast
from afina.training.loss import unwrap
from afina.training.trainer import Sitting, Updates
from afina.training.watch import Measured

REFERENCE = "ref"  # TRL's name for the frozen copy of an adapter


class PreferenceTrainer(Updates, DPOTrainer):
    """Trains on PairSteps.

    reference: a frozen model, or None where an adapter is trained. fresh_adapter: it begins as no change at all, so the
    reference is the base with the adapter switched off.
    """

    def __init__(
        self,
        sitting: Sitting,
        schedule: PairSchedule,
        validation: Sequence[PairBatch],
        reference: Any,
        beta: float,
        *,
        fresh_adapter: bool,
    ) -> None:
        model, settings = sitting.loaded.model, sitting.settings
        self._attention_before = attend_by(model, settings.attn_implementation)
        if reference is not None:
            attend_by(reference, settings.attn_implementation)
        arguments = DPOConfig(
            **sitting.arguments,
            beta=beta,
            max_length=None,  # cut already
            bf16=False,  # by our own autocast, as everywhere
            gradient_checkpointing=False,  # `prepare` has switched it on
            dataset_num_proc=None,
        )
        # TRL rounds adapters on quantised weights to bfloat16.
        exact = {
            name: p.data.clone()
            for name, p in model.named_parameters()
            if p.requires_grad and settings.quantisation != "none"
        }
        options = {
            "ref_model": reference,
            "processing_class": sitting.loaded.tokenizer,
            "train_dataset": _shown(schedule),
        }
        pad, pad_id = sitting.loaded.tokenizer.pad_token, getattr(model.config, "pad_token_id", None)
        super().__init__(sitting, schedule, arguments, **options)
        sitting.loaded.tokenizer.pad_token, model.config.pad_token_id = pad, pad_id  # TRL writes eos into them
        for name, parameter in model.named_parameters():
            if name in exact:
                parameter.data = exact[name]
        if sitting.loaded.has_adapter:
            if fresh_adapter:
                model.delete_adapter(REFERENCE)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in name and f".{REFERENCE}." not in name)
        self.validation = list(validation)

    # -- what TRL would do by itself -------------------------------------------------------------------

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokens already

    def close(self) -> None:
        model = self.loaded.model
        unwrap(model).__dict__.pop("forward", None)  # TRL's fused head
        attend_by(model, self._attention_before)
        if self.loaded.has_adapter and REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
        self.ref_model = None

    # -- one update --------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        step: PairStep = inputs
        model.train()
        num_pairs = sum(batch.num_pairs for batch in step.batches)
        total, right = torch.zeros((), device=self.args.device), 0.0
        for batch in step.batches:
            loss = self._loss(model, batch) * (batch.num_pairs / num_pairs)
            self.accelerator.backward(loss)
            total += loss.detach()
            right += self._metrics["train"]["mean_token_accuracy"][-1] * batch.num_chosen
        self.last = (float(total), right / sum(batch.num_chosen for batch in step.batches))
        self.recorder.count(sum(batch.num_tokens for batch in step.batches))
        return total

    def _loss(self, model: Any, batch: PairBatch) -> torch.Tensor:
        inputs = {name: tensor.to(self.args.device) for name, tensor in batch.inputs.items()}
        with autocast(self.settings):
            loss: Any = self.compute_loss(model, inputs)
        return loss

    # -- evaluation ----------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, number: int | None = None) -> Measured | None:
        if not self.validation:
            return None
        batches = self.validation if number is None else [self.validation[number % len(self.validation)]]
        model: Any = self.model
        model.eval()
        loss = right = 0.0
        for batch in batches:
            loss += float(self._loss(model, batch)) * batch.num_pairs
            right += self._metrics["eval"]["mean_token_accuracy"][-1] * batch.num_chosen
        self._metrics["eval"].clear()
        return Measured(loss / sum(b.num_pairs for b in batches), right / sum(b.num_chosen for b in batches))


def _shown(schedule: PairSchedule) -> Table:
    """What TRL looks at to see that the data is text: one pair."""
    pair = schedule.pairs[0]
    return Table.from_dict({name: [list(ids)] for name, ids in vars(pair).items()})
