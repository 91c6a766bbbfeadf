"""LoRA with fewer and larger products: the same mathematics as PEFT's layers, in less time.

Comes in: a model that PEFT has given adapters. Goes out: the same model, its adapted layers computing in groups.
It knows nothing of data or steps, and takes nothing away: `unfuse` leaves PEFT's own layers.

Layers that read the same input (q, k and v; gate and up) are one product with their weights side by side, one with
their A side by side, and one with their B on a block diagonal:

    x' = x * keep                      one dropout mask per input, as in the original loralib's MergedLinear
    y  = x W' + scale * (x' A') B'     W' (in, sum of outs), A' (in, n r), B' (n r, sum of outs)

PEFT computes the low-rank path in float32 and casts back and forth; here it has the type of x, as autocast would
have made it. Its mask costs a random number of its own for every element; here four elements share a 64-bit number
of a fast generator (SFC64), and the share that is dropped is exact to 1/65536.

T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from afina.engine.hub import local_code_only

with local_code_only():
    from peft.tuners.lora.layer import Linear as LoraLinear

LEVELS = 1 << 16  # of a 16-bit random number


@torch.library.custom_op("afina::keep_mask", mutates_args=())
def keep_mask(x_TI: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """1 where an element is kept and 0 where it is dropped, in the type and shape of x. A pure function of
    the seed (int64 scalar), so it can be made again in the backward pass."""
    generator = np.random.Generator(np.random.SFC64(int(seed)))
    quarter = generator.integers(-(2**63), 2**63, (x_TI.numel() + 3) // 4, dtype=np.int64)
    bits_TI = torch.from_numpy(quarter.view(np.int16)[: x_TI.numel()]).view(x_TI.shape)
    return torch.ge(bits_TI, round(dropout * LEVELS) - LEVELS // 2, out=torch.empty_like(x_TI))


@keep_mask.register_fake
def _(x_TI: Tensor, seed: Tensor, dropout: float) -> Tensor:
    return torch.empty_like(x_TI)


keep_mask.register_autograd(lambda ctx, grad: (None, None, None))


class Group:
    """Adapted layers that read one input. Their base weights become views of one matrix."""

    def __init__(self, layers: list[FusedLora]) -> None:
        bases: list[Any] = [layer.base_layer for layer in layers]
        self.layers: list[Any] = [*layers]
        self.widths: list[int] = [base.weight.shape[0] for base in bases]
        self.weight_OI = torch.cat([base.weight.data for base in bases])
        for base, rows in zip(bases, self.weight_OI.split(self.widths), strict=True):
            base.weight.data = rows
        biases = [base.bias for base in bases]
        self.bias_O = None if biases[0] is None else torch.cat([bias.data for bias in biases])
        self.scale = float(layers[0].scaling[layers[0].active_adapters[0]])
        module = layers[0].lora_dropout[layers[0].active_adapters[0]]
        self.dropout = float(module.p) if isinstance(module, nn.Dropout) else 0.0
        self.seed = torch.zeros((), dtype=torch.int64)
        self.read: Tensor | None = None
        self.written: tuple[Tensor, ...] = ()

    def outputs(self, x: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        """What each layer makes of x (..., I), in order."""
        name = self.layers[0].active_adapters[0]
        x_TI = x.reshape(-1, x.shape[-1])
        a_RI = torch.cat([layer.lora_A[name].weight for layer in self.layers]).to(x.dtype)
        b_OR = torch.block_diag(*[layer.lora_B[name].weight for layer in self.layers]).to(x.dtype)
        scale, kept_TI = self.scale, x_TI
        if training and self.dropout:
            scale /= 1 - round(self.dropout * LEVELS) / LEVELS
            kept_TI = x_TI * keep_mask(x_TI, self.seed, self.dropout)
        y_TO = torch.addmm(linear(x_TI, self.weight_OI, self.bias_O), kept_TI @ a_RI.T, b_OR.T, alpha=scale)
        return y_TO.view(*x.shape[:-1], -1).split(self.widths, -1)


class FusedLora(LoraLinear):
    """PEFT's layer, answering from its group: the first layer computes for all, the others pick up."""

    group: Group
    at: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        group = self.group
        if group.read is not x:
            group.read, group.written = x, group.outputs(x, training=self.training)
        y = group.written[self.at]
        if self.at == len(group.widths) - 1:
            group.read, group.written = None, ()
        return y


def fuse(model: Any, probe: Any) -> list[Group]:
    """Group the adapted layers of a model. Layers that cannot be (quantised, DoRA, on a GPU) stay as they are.

    probe: a call without arguments that runs the model once, to see which layers read the same input.
    """
    reads: list[tuple[Any, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: reads.append((module, args[0])))
        for module in model.modules()
        if _can_be_fused(module)
    ]
    try:
        with torch.no_grad():
            probe()
    finally:
        for hook in hooks:
            hook.remove()
    if len({id(module) for module, _ in reads}) != len(reads):
        return []  # a layer that runs twice cannot be said to belong to one input
    together: list[list[Any]] = []
    for at, (module, x) in enumerate(reads):
        joins = at > 0 and x is reads[at - 1][1] and _alike(module, reads[at - 1][0])
        together[-1].append(module) if joins else together.append([module])
    groups: list[Group] = []
    for modules in together:
        for module in modules:
            module.__class__ = FusedLora
        group = Group(modules)
        for at, module in enumerate(modules):
            module.group, module.at = group, at
        groups.append(group)
    return groups


def unfuse(groups: list[Group]) -> None:
    """PEFT's own layers again; weights stay where they are."""
    for group in groups:
        for layer in group.layers:
            del layer.group, layer.at
            layer.__class__ = LoraLinear  # type: ignore[assignment]
    groups.clear()


def reseed(groups: list[Group]) -> None:
    """New dropout masks for the next pass, from torch's global generator."""
    if any(group.dropout for group in groups):
        seeds = torch.randint(0, 2**62, (len(groups),))
        for group, seed in zip(groups, seeds, strict=True):
            group.seed.copy_(seed)


def _can_be_fused(module: Any) -> bool:
    if type(module) is not LoraLinear or len(module.active_adapters) != 1 or module.merged:
        return False
    name, base = module.active_adapters[0], module.base_layer
    variant = getattr(module, "lora_variant", {}).get(name)  # DoRA and its like
    plain = type(base) is nn.Linear and base.weight.device.type == "cpu" and not base.weight.requires_grad
    return plain and variant is None and not module.lora_bias.get(name, False) and not module.fan_in_fan_out


def _alike(a: Any, b: Any) -> bool:
    """Whether two layers may share a group: bias, scale and dropout the same."""
    names = a.active_adapters[0], b.active_adapters[0]
    drops = [str(m.lora_dropout[n]) for m, n in zip((a, b), names, strict=True)]
    return (
        (a.base_layer.bias is None) == (b.base_layer.bias is None)
        and a.scaling[names[0]] == b.scaling[names[1]]
        and a.base_layer.weight.dtype == b.base_layer.weight.dtype
        and drops[0] == drops[1]
    )
