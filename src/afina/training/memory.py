"""How much memory a training takes, part by part, by a formula that is shown to the reader.

Comes in: settings, model facts, example lengths. Goes out: bytes. An estimate for a decoder with gated MLP; the
parts that dominate (weights, optimizer) are exact, activations are a bound from what autograd keeps per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from afina.training.facts import ModelFacts
from afina.training.settings import Settings

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
RUNTIME_BYTES = {"cpu": 600 << 20, "cuda": 700 << 20}  # torch, transformers and their buffers; CUDA context


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    weights: int
    quantisation_overhead: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())


FORMULA = (
    "peak = weights (P x bytes; 4-bit: 0.5, 8-bit: 1 per linear parameter) + quantisation scales + adapters (4 x A) "
    "+ gradients (4 x trainable) + optimizer (8 x trainable; 8-bit: 2) "
    "+ activations (tokens x sum over layers of [8 x hidden + 2 x (inputs + outputs of its linears)] x bytes; "
    "checkpointing: one layer, and hidden x layers) + logits (trained positions x vocabulary x 12) + runtime"
)


def num_trainable(settings: Settings, facts: ModelFacts) -> int:
    if settings.finetuning_type == "full":
        return facts.num_parameters
    return facts.num_adapter(settings.lora_r, list(settings.lora_target_modules), dora=settings.use_dora)


def estimate(settings: Settings, facts: ModelFacts, lengths: Sequence[int]) -> Memory:
    """Memory of one training step with the longest examples in one micro-batch."""
    longest = sorted(lengths, reverse=True)[: settings.per_device_train_batch_size]
    tokens = len(longest) * longest[0]
    if settings.packing:
        tokens = min(tokens, sum(longest) + max(settings.row_tokens, longest[0]))
    linear = facts.num_linear if settings.quantisation != "none" else 0
    trainable = num_trainable(settings, facts)
    adapter = trainable if settings.finetuning_type == "lora" else 0
    weight_bytes = BYTES[settings.weights_dtype]
    compute_bytes = BYTES[settings.compute_dtype]
    if settings.quantisation == "4bit":
        held = linear * BYTES[settings.bnb_4bit_compute_dtype] if settings.dequantize else linear // 2
        # one absmax per 64 weights: float32, or 8 bit and a float32 per 256 of them (double quantisation)
        overhead = int(linear / 64 * ((1 + 4 / 256) if settings.bnb_4bit_use_double_quant else 4))
        # PEFT's preparation holds what is not quantised in float32
        rest = (facts.num_parameters - linear) * 4
    elif settings.quantisation == "8bit":
        held, overhead, rest = (
            linear,
            4 * sum(a for a, _ in facts.linears.values()),
            (facts.num_parameters - linear) * 4,
        )
    else:
        held, overhead, rest = 0, 0, facts.num_parameters * weight_bytes
    if settings.finetuning_type == "full" and compute_bytes < 4:
        rest += facts.num_parameters * compute_bytes  # autocast's copy of the weights
    per_layer = 8 * facts.hidden + 2 * sum(a + b for a, b in facts.linears.values()) // max(1, facts.num_layers)
    layers = facts.num_layers
    if settings.gradient_checkpointing:
        activations = tokens * (per_layer + facts.hidden * layers) * compute_bytes
    else:
        activations = tokens * per_layer * layers * compute_bytes
    positions = tokens if settings.loss_on == "completion" else max(1, tokens // 4)
    moments = 2 if settings.optim.endswith("8bit") else 8
    return Memory(
        weights=held + rest,
        quantisation_overhead=overhead,
        adapters=4 * adapter,
        gradients=4 * trainable,
        optimizer=moments * trainable,
        activations=activations,
        logits=positions * facts.vocabulary * 12,
        runtime=RUNTIME_BYTES[settings.device],
    )
