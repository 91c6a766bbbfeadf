"""Cross-entropy at the trained positions only, and the proof that the short way round is right.

Comes in: a causal language model and a MicroBatch. Goes out: the *sum* of the losses in nats, for the caller
to divide by the trained positions of the whole effective batch, so that uneven micro-batches weigh right.

The vocabulary head runs on the hidden states of trained positions alone: on a prompt of 200 tokens and an
answer of 3 it is most of what a plain `model(labels=...)` computes in vain. Where the answer's grammar allowed
a finite set, the softmax is over that set: the exact likelihood under constrained decoding, and the only rows of the
head that are multiplied (`fused_loss.py`).

B rows, T tokens, H hidden, N trained positions, V vocabulary, M positions with a finite set, K its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from afina.engine.encoded import Encoded
from afina.training.collate import Layout, MicroBatch, collate
from afina.training.fused_loss import Hits, chosen_logits, linear_cross_entropy

LogitsAt = Callable[[Any, MicroBatch], torch.Tensor]


def unwrap(model: Any) -> Any:
    """The causal model inside a PeftModel, its adapted layers still in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_at(model: Any, batch: MicroBatch) -> torch.Tensor:
    """hidden_NH: what the decoder hands to the head before each trained token."""
    decoder = unwrap(model).get_decoder()
    hidden_BTH = decoder(
        input_ids=batch.input_ids_BT,
        attention_mask=_mask(decoder, batch),
        position_ids=batch.position_ids_BT,
        use_cache=False,
    ).last_hidden_state
    return hidden_BTH.flatten(0, 1)[batch.source_N]


def _mask(model: Any, batch: MicroBatch) -> torch.Tensor | None:
    """The mask that a row with a shared beginning needs, in the form that the model's attention takes."""
    if batch.seen_BTT is None:
        return None
    seen_B1TT = batch.seen_BTT.unsqueeze(1)
    if model.config._attn_implementation != "eager":
        return seen_B1TT
    device = seen_B1TT.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else model.get_input_embeddings().weight.dtype
    return torch.zeros(seen_B1TT.shape, dtype=dtype).masked_fill(~seen_B1TT, torch.finfo(dtype).min)


def logits_short(model: Any, batch: MicroBatch) -> torch.Tensor:
    """logits_NV through the decoder and the head by themselves."""
    return unwrap(model).get_output_embeddings()(hidden_at(model, batch))


def logits_full(model: Any, batch: MicroBatch) -> torch.Tensor:
    """logits_NV through the model's own forward, for heads that do more than a product (Gemma's soft cap)."""
    causal = unwrap(model)
    logits_BTV = causal(
        input_ids=batch.input_ids_BT,
        attention_mask=_mask(causal, batch),
        position_ids=batch.position_ids_BT,
        use_cache=False,
    ).logits
    return logits_BTV.flatten(0, 1)[batch.source_N]


def loss_sum(
    model: Any, batch: MicroBatch, logits_at: LogitsAt | None = None, hits: Hits | None = None
) -> torch.Tensor:
    """Sum of the cross-entropies of a MicroBatch, in nats, float32. logits_at: None for the fused head."""
    open_sum, logits_MK, chosen_M = loss_parts(model, batch, logits_at, hits)
    return open_sum + (logits_MK.logsumexp(1) - chosen_M).sum()


def loss_parts(
    model: Any, batch: MicroBatch, logits_at: LogitsAt | None = None, hits: Hits | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of the losses over the whole vocabulary, allowed logits_MK, gold logits_M of the finite choices).

    logits_at: where the logits come from; None for the fused head, which never holds all of them.
    hits: counts the trained tokens that were the most likely of the allowed ones.
    """
    is_open_N = torch.ones_like(batch.target_N, dtype=torch.bool)
    is_open_N[batch.finite_M] = False
    open_target = batch.target_N[is_open_N]
    if logits_at is None:
        hidden_NH, head = hidden_at(model, batch), unwrap(model).get_output_embeddings()
        open_sum = linear_cross_entropy(hidden_NH[is_open_N], head.weight, open_target, hits)
        allowed_MK = chosen_logits(hidden_NH[batch.finite_M], head.weight, batch.allowed_MK)
    else:
        logits_NV = logits_at(model, batch).float()
        open_sum = torch.nn.functional.cross_entropy(logits_NV[is_open_N], open_target, reduction="sum")
        if hits is not None:
            hits.count(logits_NV[is_open_N], open_target)
        allowed_MK = logits_NV[batch.finite_M].gather(1, batch.allowed_MK.clamp(min=0))
    if not len(batch.finite_M):
        return open_sum, allowed_MK.new_zeros(0, 1), allowed_MK.new_zeros(0)
    logits_MK = allowed_MK.masked_fill(batch.allowed_MK < 0, float("-inf"))
    is_chosen_MK = batch.allowed_MK == batch.target_N[batch.finite_M].unsqueeze(1)
    if hits is not None:
        hits.count(logits_MK, is_chosen_MK.int().argmax(1))
    return open_sum, logits_MK, allowed_MK[is_chosen_MK]


def calibrated_sum(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Loss of finite choices, in nats, after the best single temperature (Guo et al. 2017, arXiv:1706.04599).

    parts: (logits_MK, gold logits_M) of each batch. A small model grows overconfident long before it stops
    getting better at choosing, and a specialist is calibrated before it answers: this is the loss it will have.
    """
    best = float("inf")
    for temperature in torch.logspace(-1, 1.3, 47).tolist():
        losses = [float((m / temperature).logsumexp(1).sum() - (c / temperature).sum()) for m, c in parts]
        best = min(best, sum(losses))
    return best


# -- proofs on the model at hand ------------------------------------------------------------------


@torch.no_grad()
def head_is_plain(model: Any, vocabulary: int) -> bool:
    """Whether `logits_short` gives this model's own logits."""
    batch = _probe_batch(vocabulary, packed=False).to(next(model.parameters()).device)
    try:
        if getattr(unwrap(model).get_output_embeddings(), "bias", None) is not None:
            return False
        return _close(logits_short(model, batch), logits_full(model, batch))
    except (AttributeError, TypeError, RuntimeError):
        return False


@torch.no_grad()
def packing_is_clean(model: Any, vocabulary: int) -> bool:
    """Whether examples in one row leave each other alone (a recurrent model's state would leak)."""
    device = next(model.parameters()).device
    packed, alone = (_probe_batch(vocabulary, packed=p).to(device) for p in (True, False))
    return _close(logits_full(model, packed), logits_full(model, alone))


@torch.no_grad()
def sharing_is_clean(model: Any, vocabulary: int) -> bool:
    """Whether examples that share their beginning in one row are read as if each stood alone."""
    device = next(model.parameters()).device
    shared = _probe_batch(vocabulary, packed=True, share_prefix=True).to(device)
    alone = _probe_batch(vocabulary, packed=False).to(device)
    assert shared.seen_BTT is not None, "the probe has a beginning to share"
    return _close(logits_full(model, shared), logits_full(model, alone))


def probe(model: Any, vocabulary: int) -> None:
    """Run the decoder once, to see what calls what."""
    hidden_at(model, _probe_batch(vocabulary, packed=False).to(next(model.parameters()).device))


def _probe_batch(vocabulary: int, *, packed: bool, share_prefix: bool = False) -> MicroBatch:
    generator = torch.Generator().manual_seed(0)
    begin, *rest = (torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in (3, 6, 4))
    examples = [Encoded((*begin, *own), num_prompt=4) for own in rest]
    layout = Layout("completion", 0, packing=packed, share_prefix=share_prefix)
    return collate([examples] if packed else [[e] for e in examples], layout)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # bfloat16 keeps 8 bits: sums in another order differ by a few parts in 256. A leak differs by the whole scale.
    scale = b.float().abs().max().clamp(min=1e-6)
    coarse = a.dtype != torch.float32 or torch.is_autocast_enabled(a.device.type)
    tolerance = 0.05 if coarse else 1e-3
    return bool((a.float() - b.float()).abs().max() <= tolerance * scale)
