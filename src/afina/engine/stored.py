"""Weights that a checkpoint holds in few bits already, as bitsandbytes stored them.

Comes in: a model's configuration, or the loaded model. Goes out: how its weights are stored, or one clear line why they
cannot be used. They stay the values that were stored: nothing is quantised again. Loads nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from afina.core.errors import ModelError

Quantisation = Literal["none", "4bit", "8bit"]


class FourBits(Protocol):
    """How 4-bit weights are made where they are not stored so."""

    @property
    def bnb_quant_type(self) -> str: ...
    @property
    def bnb_double_quant(self) -> bool: ...


@dataclass(frozen=True)
class Stored:
    """bnb_quant_type, bnb_double_quant: of 4-bit weights; as they were asked for where nothing is stored so."""

    quantisation: Quantisation
    bnb_quant_type: str
    bnb_double_quant: bool


def stored_as(config: Any, wanted: FourBits) -> Stored:
    """What a checkpoint's own configuration says, whatever is wanted. Raises ModelError for another method."""
    stored, settings = stored_quantisation(config), _settings(config)
    if stored != "4bit":
        return Stored(stored, wanted.bnb_quant_type, wanted.bnb_double_quant)
    quant_type = str(settings.get("bnb_4bit_quant_type", "fp4"))  # bitsandbytes' own defaults
    return Stored(stored, quant_type, bool(settings.get("bnb_4bit_use_double_quant", False)))


def stored_quantisation(config: Any) -> Quantisation:
    """What a checkpoint's own configuration says. Raises ModelError for a method other than bitsandbytes."""
    settings = _settings(config)
    if not settings:
        return "none"
    name = getattr(config, "_name_or_path", "") or "the model"
    method = str(settings.get("quant_method") or "a method that it does not name").rsplit(".", 1)[-1].lower()
    in_few_bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    if "bitsandbytes" not in method and (settings.get("quant_method") or not in_few_bits):
        raise ModelError(
            f"{name}: its weights are quantised with {method}, which cannot be trained here. Name its unquantised "
            "checkpoint (train.load_in_4bit makes it as small), or one of bitsandbytes (bnb-4bit in its name)."
        )
    if not in_few_bits:
        raise ModelError(
            f"{name}: its config.json names bitsandbytes, but neither load_in_4bit nor load_in_8bit, so how its "
            "weights are stored cannot be told. Download it again, or name its unquantised checkpoint."
        )
    return "4bit" if settings.get("load_in_4bit") else "8bit"


def _settings(config: Any) -> dict[str, Any]:
    """quantization_config of a checkpoint, of its text model where it has several; empty where there is none."""
    for one in (config, getattr(config, "text_config", None)):
        settings = getattr(one, "quantization_config", None)
        if settings:
            return dict(settings) if isinstance(settings, dict) else settings.to_dict()
    return {}


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Products with stored 4-bit weights in the type that was asked for, not in the one of the machine that stored
    them: its bfloat16 may be missing here. What a weight stands for is then worked out in that type, too."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.weight.quant_state.dtype = dtype
            module.compute_dtype = dtype
            module.compute_type_is_set = True  # else the first input would decide it again


def hold_others_in(model: Any, dtype: torch.dtype) -> None:
    """Weights that are not held in few bits (embeddings, norms, the head) in the type that was asked for: of a stored
    checkpoint transformers 5.23 leaves them as they were stored, beside products in another type."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def forget_reading(model: Any) -> None:
    """How the stored bits were read is of no use when the model is written: transformers 5.23 would undo it at each
    `save_pretrained`, which it cannot, even of a merged model that holds no such bits any more."""
    read = getattr(model, "_weight_conversions", None) or []
    ours = [one for one in read if not any(_is_bits(op) for op in getattr(one, "operations", None) or ())]
    model._weight_conversions = ours or None


def _is_bits(operation: object) -> bool:
    return type(operation).__module__.endswith(".bitsandbytes")


def keep_layout(model: Any) -> None:
    """Keep 4-bit weights as they were stored. On a CPU with AVX512_BF16 bitsandbytes 0.50 repacks them in place at
    the first forward in evaluation mode: that asserts on layers whose output is no multiple of 32, and what reads
    the weights afterwards (training, merging) would have to unpack them again."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def num_values(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for: bitsandbytes packs two 4-bit values in a byte, or eight in a float32
    that is used as bytes."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
