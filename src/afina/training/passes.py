"""One update's forward and backward passes, by the short ways that were proven to hold on this model.

Comes in: a model prepared for training, and settings. Goes out: `Passes`, which turns a Step into gradients. It knows
nothing of optimizers, schedules or checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from afina.engine.loader import LoadedModel
from afina.training.collate import Layout, MicroBatch, Step
from afina.training.compiled import CompiledLayers
from afina.training.fused import Group, fuse, reseed, unfuse
from afina.training.fused_loss import Hits
from afina.training.loss import (
    LogitsAt,
    head_is_plain,
    logits_full,
    loss_sum,
    packing_is_clean,
    probe,
    sharing_is_clean,
    unwrap,
)
from afina.training.settings import Settings


class Passes:
    """The passes of a training. Each short way is proven on the model first, and done without where it fails.

    layout: how examples become rows. logits_at: None for the fused head, else where logits come from.
    notes: what could not be used, and why.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        self.model, self.settings, self.device = loaded.model, settings, loaded.device
        self.notes: list[str] = []
        self._attention_before = unwrap(self.model).config._attn_implementation
        self._attend_by(settings.attn_implementation)
        self.model.eval()
        vocabulary = unwrap(self.model).config.get_text_config().vocab_size
        with self.autocast():
            self.logits_at, self.layout = self._short_ways(vocabulary, loaded.pad_token_id)
        self.groups: list[Group] = []
        if settings.fused_lora and loaded.has_adapter:
            self.groups = fuse(self.model, lambda: probe(self.model, vocabulary))
        self.compiled = self._compile() if settings.torch_compile else None

    def _short_ways(self, vocabulary: int, pad_token_id: int) -> tuple[LogitsAt | None, Layout]:
        """Where logits come from and how rows are laid out, as far as the model allows."""
        settings, logits_at = self.settings, None if self.settings.fused_loss else logits_full
        if settings.fused_loss and not head_is_plain(self.model, vocabulary):
            logits_at = logits_full
            self.notes.append("This model's head is more than a product; logits are computed at every position.")
        packing = settings.packing
        if packing and not packing_is_clean(self.model, vocabulary):
            packing = False
            self.notes.append("packing: false, because examples in one row would see each other in this model.")
        share_prefix = packing and settings.share_prefix
        if share_prefix and not sharing_is_clean(self.model, vocabulary):
            share_prefix = False
            self.notes.append("share_prefix: false, because this model does not take the mask that it needs.")
        layout = Layout(
            settings.loss_on,
            pad_token_id,
            packing=packing,
            share_prefix=share_prefix,
            row_tokens=settings.row_tokens,
            flat="flash" in settings.attn_implementation and not share_prefix,
        )
        return logits_at, layout

    def _compile(self) -> CompiledLayers:
        if self.settings.finetuning_type == "lora":
            # Else the first layer, whose input needs no gradient, would be compiled by itself.
            unwrap(self.model).enable_input_require_grads()
        return CompiledLayers(self.model, self.settings)

    def _attend_by(self, implementation: str) -> None:
        causal = unwrap(self.model)
        if causal.config._attn_implementation != implementation:
            causal.set_attn_implementation(implementation)

    def learn(self, step: Step, backward: Callable[[torch.Tensor], Any], hits: Hits | None = None) -> torch.Tensor:
        """Gradients of the mean loss over the step's trained tokens; that mean, in nats, detached.

        With a second task, of that mean plus the weighted mean loss over the second task's own tokens.
        backward: what is called with the loss of each micro-batch. hits: counts the trained tokens of the first task
        that were likeliest.
        """
        self.model.train()
        total = torch.zeros((), device=self.device)
        for batch in step.micro_batches:
            total += self._learn(batch, 1.0, step.num_trained, backward, hits)
        for batch in step.second:
            total += self._learn(batch, step.second_weight, step.num_second, backward)
        return total

    def _learn(
        self,
        batch: MicroBatch,
        weight: float,
        num_trained: int,
        backward: Callable[[torch.Tensor], Any],
        hits: Hits | None = None,
    ) -> torch.Tensor:
        reseed(self.groups)
        with self.compiled.training() if self.compiled else contextlib.nullcontext():
            with self.autocast():
                loss = weight * loss_sum(self.model, batch.to(self.device), self.logits_at, hits) / num_trained
            backward(loss)
        return loss.detach()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The compute type of the settings."""
        if self.settings.compute_dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.settings.compute_dtype))

    def close(self) -> None:
        """Leave the model as other code knows it: PEFT's own layers, nothing compiled."""
        self._attend_by(self._attention_before)
        unfuse(self.groups)
        if self.compiled is not None:
            self.compiled.remove()
            with contextlib.suppress(AttributeError):
                unwrap(self.model).disable_input_require_grads()
