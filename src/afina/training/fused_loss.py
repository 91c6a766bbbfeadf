"""The vocabulary head and its cross-entropy in one, a slice of positions at a time (as Liger's on a GPU,
arXiv:2410.10989): the logits of all positions never exist together, and the gradient is made while they are in cache.

Comes in: hidden states before the head, and the head's weight. Goes out: losses and logits. Knows nothing of batches.

N positions, H hidden, V vocabulary, K allowed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLICE_ELEMENTS = 2_000_000  # logits of a slice: 8 MB in float32, about a core's share of the cache
LEAST_ROWS = 128  # fewer make the matrix product slow


@dataclass
class Hits:
    """How many targets were the most likely token, added up where a loss is computed. A tensor, so that a GPU need
    not be waited for."""

    right: Tensor | int = 0

    def count(self, logits_NV: Tensor, target_N: Tensor) -> None:
        """logits_NV may be shifted by any number for each row."""
        self.right = self.right + (logits_NV.detach().argmax(1) == target_N).sum()


def linear_cross_entropy(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, hits: Hits | None = None) -> Tensor:
    """Sum over N of -log softmax(hidden W')[target], in nats, float32. hits: counts the targets that are likeliest."""
    loss: Tensor = _LinearCrossEntropy.apply(hidden_NH, weight_VH, target_N, hits)  # type: ignore[no-untyped-call]
    return loss


def chosen_logits(hidden_NH: Tensor, weight_VH: Tensor, allowed_NK: Tensor) -> Tensor:
    """logits_NK, float32, of the allowed tokens alone (-1 among them: some logit, to be masked).

    Where the allowed sets together are small, every position is multiplied with all of them: one product.
    """
    tokens, at_NK = allowed_NK.clamp(min=0).unique(return_inverse=True)
    return (hidden_NH @ weight_VH[tokens].T).float().gather(1, at_NK)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, hits: Hits | None) -> Tensor:
        rows = max(LEAST_ROWS, SLICE_ELEMENTS // len(weight_VH))
        want_hidden, want_weight, *_ = ctx.needs_input_grad
        grad_NH = torch.empty_like(hidden_NH) if want_hidden else None
        grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if want_weight else None
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        for start in range(0, len(target_N), rows):
            hidden, target = hidden_NH[start : start + rows], target_N[start : start + rows, None]
            raw = hidden @ weight_VH.T
            p = raw.float()
            if hits is not None:
                hits.count(p, target[:, 0])
            p -= p.amax(1, keepdim=True)
            chosen = p.gather(1, target)
            scale = p.exp_().sum(1, keepdim=True)
            total += (scale.log() - chosen).sum()
            if grad_NH is None and grad_VH is None:
                continue
            p /= scale
            p.scatter_add_(1, target, torch.full_like(chosen, -1.0))
            p = p.to(raw.dtype)
            if grad_NH is not None:
                grad_NH[start : start + rows] = p @ weight_VH
            if grad_VH is not None:
                grad_VH += p.T @ hidden
        ctx.save_for_backward(grad_NH, None if grad_VH is None else grad_VH.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_NH, grad_VH = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_NH is None else grad_NH * scale.to(grad_NH.dtype),
            None if grad_VH is None else grad_VH * scale.to(grad_VH.dtype),
            None,
            None,
        )
