"""How much memory a training takes, part by part, by a formula that is shown to the reader.

Comes in: settings, model facts, example lengths. Goes out: bytes. For a decoder with gated MLP. On a CPU the formula
counts what autograd was seen to keep in this training code, tensor by tensor (`benchmarks/cost.py` compares it with
whole runs); on a GPU activations and logits are a bound, not yet measured. Knows nothing of time.

h hidden, T tokens of a row, V vocabulary, in and out of a linear layer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from afina.training.collate import first_fit
from afina.training.facts import ModelFacts
from afina.training.fused_loss import LEAST_ROWS, SLICE_ELEMENTS
from afina.training.settings import Settings

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# CPU: 620 MiB once torch, transformers, peft and bitsandbytes are imported, 60 when the first products have run (their
# code, threads' stacks). CUDA: its context and libraries.
RUNTIME_BYTES = {"cpu": 680 << 20, "cuda": 700 << 20}
# Share of the activations that stands empty between blocks in use: glibc's aligned allocation splits the hole that a
# temporary tensor leaves, and cannot give it to the next of the same size. Measured as the peak beside that of a run
# in which every tensor has its own pages (MALLOC_MMAP_THRESHOLD_), which is without holes and takes twice the time.
HEAP_HOLES = 0.8  # 0.2 to 1 in single runs; fitted, with the kernels, to the 17 runs of benchmarks/results/cost-*-first
# oneDNN compiles a kernel for each product of each shape and keeps the last 1024 (ONEDNN_PRIMITIVE_CACHE_CAPACITY). Row
# widths differ from one micro-batch to the next: 45 of them grew a process by 690 MiB in a bare loop, 22.5 for each of
# the first 30; in whole runs, where evaluations have widths of their own and tensors of every width leave holes, more.
KERNEL_BYTES, MOST_KERNELS = 1100 << 10, 1024
SEEN_UPDATES = 64  # drawn to see how many row widths there are
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # what fused adapters group


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    weights: int
    checkpoint_pages: int
    quantisation_overhead: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    allocator_holes: int
    logits: int
    kernels: int
    runtime: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())


_HELD = (
    "peak = weights (P x bytes; 4-bit: 0.5, 8-bit: 1 per linear parameter) + quantisation scales + adapters (4 x A) "
    "+ gradients (4 x trainable) + optimizer (8 x trainable; 8-bit: 2) "
)
FORMULA = {
    "cpu": _HELD + "+ checkpoint pages (b per linear parameter, where the trained copy stands beside the mapped file) "
    "+ activations (layers x tokens of a micro-batch, padding included, x [norms 8 h, all weights: 16 h; linears' "
    "inputs b x in, fused adapters with dropout 3 b x in (input, mask, masked copy), once for q, k, v and gate, up; "
    "attention b x (q + k + v), eager: + heads x T x 4, and 2 for bfloat16; MLP 3 b x its width]; "
    f"checkpointing: one layer, h x layers) + allocator holes ({HEAP_HOLES:g} x activations, measured) + logits (of "
    f"{SLICE_ELEMENTS:,} elements at a time x (4 + 2 b); all weights: + 4 V x h) "
    f"+ kernels (bfloat16: {KERNEL_BYTES >> 10} KiB for each product of each micro-batch's size, "
    f"at most {MOST_KERNELS}) + runtime; b: 2 for bfloat16, else 4",
    "cuda": _HELD + "+ activations (tokens x sum over layers of [8 x hidden + 2 x (inputs + outputs of its linears)] x "
    "bytes; checkpointing: one layer, and hidden x layers) + logits (trained positions x vocabulary x 12) + runtime",
}


def num_trainable(settings: Settings, facts: ModelFacts) -> int:
    if settings.finetuning_type == "full":
        return facts.num_parameters
    return facts.num_adapter(settings.lora_r, list(settings.lora_target_modules), dora=settings.use_dora)


def estimate(settings: Settings, facts: ModelFacts, lengths: Sequence[int], shared: int = 0) -> Memory:
    """Memory of one training step with the longest examples in one micro-batch.

    lengths: tokens of each example. shared: those that all begin with (`collate.common_beginning`); they stand in a
    packed row once if the settings share them.
    """
    trainable = num_trainable(settings, facts)
    weights, pages, overhead = _weights(settings, facts)
    if settings.device == "cpu":
        activations, logits = _cpu_step(settings, facts, lengths, shared)
        holes = int(HEAP_HOLES * activations)
    else:
        activations, logits = _cuda_step(settings, facts, lengths)
        holes = 0
    moments = 2 if settings.optim.endswith("8bit") else 8
    return Memory(
        weights=weights,
        checkpoint_pages=pages,
        quantisation_overhead=overhead,
        adapters=4 * trainable if settings.finetuning_type == "lora" else 0,
        gradients=4 * trainable,
        optimizer=moments * trainable,
        activations=activations,
        allocator_holes=holes,
        logits=logits,
        kernels=_kernels(settings, facts, lengths, shared),
        runtime=RUNTIME_BYTES[settings.device],
    )


# -- what stays ------------------------------------------------------------------------------------


def _weights(settings: Settings, facts: ModelFacts) -> tuple[int, int, int]:
    """(weights, pages of the checkpoint's file beside them, quantisation scales)."""
    linear = facts.num_linear if settings.quantisation != "none" else 0
    compute_bytes, weight_bytes = BYTES[settings.compute_dtype], BYTES[settings.weights_dtype]
    overhead = 0
    if settings.quantisation == "4bit" and settings.dequantize:
        # Written out, the scales are gone, and nothing else was turned into float32.
        held = linear * BYTES[settings.bnb_4bit_compute_dtype] + (facts.num_parameters - linear) * weight_bytes
    elif settings.quantisation == "4bit":
        # one absmax per 64 weights: float32, or 8 bit and a float32 per 256 of them (double quantisation)
        overhead = int(linear / 64 * ((1 + 4 / 256) if settings.bnb_4bit_use_double_quant else 4))
        # PEFT's preparation holds what is not quantised in float32
        held = linear // 2 + (facts.num_parameters - linear) * 4
    elif settings.quantisation == "8bit":
        overhead = 4 * sum(out for out, _ in facts.linears.values())
        held = linear + (facts.num_parameters - linear) * 4
    else:
        held = facts.num_parameters * weight_bytes
    if settings.finetuning_type == "full" and compute_bytes < 4:
        held += facts.num_parameters * compute_bytes  # autocast's copy of the weights
    return held, _checkpoint_pages(settings, facts), overhead


def _checkpoint_pages(settings: Settings, facts: ModelFacts) -> int:
    """Weights of the file's own type are used where safetensors has mapped them. Linear layers that are copied from
    there (grouped by fused adapters, or written out of 4 bits) leave pages behind that count as this process's memory
    until the system wants them back: the file stays mapped for the embeddings."""
    mapped = settings.device == "cpu" and settings.weights_dtype == facts.stored_dtype and facts.stored == "none"
    copied = settings.dequantize or (settings.quantisation == "none" and _is_fused(settings))
    return facts.num_linear * BYTES[settings.weights_dtype] if mapped and copied else 0


def _is_fused(settings: Settings) -> bool:
    """Whether `fused.py` can group the adapted layers."""
    plain = settings.quantisation == "none" or (settings.quantisation == "4bit" and settings.dequantize)
    return settings.fused_lora and settings.finetuning_type == "lora" and plain and not settings.use_dora


# -- what one step adds ----------------------------------------------------------------------------


def _cpu_step(settings: Settings, facts: ModelFacts, lengths: Sequence[int], shared: int) -> tuple[int, int]:
    """(activations, logits) of the micro-batch that holds the longest examples."""
    tokens, width = _size(settings, sorted(lengths, reverse=True)[: settings.per_device_train_batch_size], shared)
    compute_bytes, is_full = BYTES[settings.compute_dtype], settings.finetuning_type == "full"
    per_layer = tokens * _kept_per_token(settings, facts, width)
    if settings.gradient_checkpointing:
        between = tokens * facts.hidden * facts.num_layers * _stream_bytes(settings)
        activations = per_layer + between
    else:
        activations = per_layer * facts.num_layers
    if settings.fused_loss:
        positions = min(tokens, max(LEAST_ROWS, SLICE_ELEMENTS // facts.vocabulary))
        logits = positions * facts.vocabulary * (4 + 2 * compute_bytes)
        logits += 4 * facts.vocabulary * facts.hidden if is_full else 0  # its gradient is made in the forward pass
    else:
        logits = tokens * facts.vocabulary * 12
    return activations, logits


def _size(settings: Settings, lengths: Sequence[int], shared: int) -> tuple[int, int]:
    """(tokens with padding, width of a row) of a micro-batch. lengths: falling."""
    shared = shared if settings.share_prefix else 0
    rows = first_fit(lengths, shared, settings.row_tokens) if settings.packing else [[i] for i in range(len(lengths))]
    width = max(shared + sum(lengths[i] - shared for i in row) for row in rows)
    return len(rows) * width, width


def _stream_bytes(settings: Settings) -> int:
    """Of a number in the residual stream: the embeddings' type."""
    in_float32 = settings.finetuning_type == "full" or (settings.quantisation != "none" and not settings.dequantize)
    return 4 if in_float32 else BYTES[settings.weights_dtype]


def _kept_per_token(settings: Settings, facts: ModelFacts, width: int) -> int:
    """Bytes that one decoder layer keeps for its backward pass, for each token of rows of `width` tokens."""
    b, is_full = BYTES[settings.compute_dtype], settings.finetuning_type == "full"
    layer = facts.first_layer()
    queries = layer.get("o_proj", (facts.hidden, facts.hidden))[1]
    mlp = layer.get("down_proj", (0, max(inner for _, inner in layer.values())))[1]
    heads = facts.heads or max(1, queries // 64)

    # 1. Norms read the stream in float32; a trained norm keeps what it scales, too.
    norms = facts.hidden * (16 if is_full else 8)
    # 2. Inputs of linear layers, for the gradients of their weights or adapters.
    inputs = _kept_inputs(settings, layer, b)
    # 3. Queries, keys and values, repeated for every head; the softmax in float32 and in the compute type, or instead
    #    what the blocked kernel keeps: its output stands among the inputs, and v is a view of the fused product.
    attention = 3 * queries * b
    if settings.attn_implementation == "eager":
        attention += heads * width * (4 + (b if b < 4 else 0))
    else:
        product = sum(layer[name][0] for name in SAME_INPUT[0] if name in layer)
        attention += 4 * heads + (max(0, product - queries) * b if _is_fused(settings) else 0)
    # 4. gate, up and silu(gate); a quantised layer answers in the stream's type.
    kept_out = b if is_full or settings.quantisation == "none" or settings.dequantize else 4
    return norms + inputs + attention + 3 * mlp * kept_out


def _kept_inputs(settings: Settings, layer: dict[str, tuple[int, int]], b: int) -> int:
    if settings.finetuning_type == "full":
        return b * sum(inner for _, inner in layer.values())
    adapted = {name: shape for name, shape in layer.items() if name in settings.lora_target_modules}
    low_rank = b * settings.lora_r * len(adapted)
    if not _is_fused(settings):  # PEFT: a copy for each layer, and its dropout keeps a float32 mask
        each = b + (4 if settings.lora_dropout else 0)
        return low_rank + each * sum(inner for _, inner in adapted.values())
    widths = sum(next(adapted[name][1] for name in group if name in adapted) for group in _groups(list(adapted)))
    return low_rank + widths * b * (3 if settings.lora_dropout else 1)


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Which adapted layers share an input."""
    return list(dict.fromkeys(next((g for g in SAME_INPUT if name in g), (name,)) for name in names))


def _kernels(settings: Settings, facts: ModelFacts, lengths: Sequence[int], shared: int) -> int:
    """Bytes of oneDNN's kernels. Products in float32 are MKL's, which compiles none."""
    if settings.device != "cpu" or settings.compute_dtype == "float32":
        return 0
    sizes = _num_sizes(settings, lengths, shared)
    return KERNEL_BYTES * min(MOST_KERNELS, sizes * _num_products(settings, facts))


def _num_sizes(settings: Settings, lengths: Sequence[int], shared: int) -> int:
    """How many different sizes micro-batches have, in a draw of the run's first updates, an epoch at least."""
    batch, effective, draw = settings.per_device_train_batch_size, settings.effective_batch, random.Random(0)
    sizes: set[int] = set()
    updates = max(settings.total_steps, -(-len(lengths) // effective))
    for _ in range(min(updates, SEEN_UPDATES)):
        update = sorted(draw.sample(lengths, min(effective, len(lengths))), reverse=True)
        sizes |= {_size(settings, update[i : i + batch], shared)[0] for i in range(0, len(update), batch)}
    return len(sizes)


def _num_products(settings: Settings, facts: ModelFacts) -> int:
    """Different products of a step. A layer's forward, its input's gradient, and its weight's where that is trained."""
    layer = facts.first_layer()
    shapes = set(layer.values())
    if settings.finetuning_type == "full":
        return 3 * len(shapes)
    adapted = {name: shape for name, shape in layer.items() if name in settings.lora_target_modules}
    if _is_fused(settings):
        return 8 * len(_groups(list(adapted)))  # 2 of the frozen weight, 3 of A, 3 of B
    outs, inners = (len({shape[at] for shape in adapted.values()}) for at in (0, 1))
    return 2 * len(shapes) + 3 * (outs + inners)


def _cuda_step(settings: Settings, facts: ModelFacts, lengths: Sequence[int]) -> tuple[int, int]:
    longest = sorted(lengths, reverse=True)[: settings.per_device_train_batch_size]
    tokens = len(longest) * longest[0]
    if settings.packing:
        tokens = min(tokens, sum(longest) + max(settings.row_tokens, longest[0]))
    compute_bytes = BYTES[settings.compute_dtype]
    per_layer = 8 * facts.hidden + 2 * sum(a + b for a, b in facts.linears.values()) // max(1, facts.num_layers)
    if settings.gradient_checkpointing:
        activations = tokens * (per_layer + facts.hidden * facts.num_layers) * compute_bytes
    else:
        activations = tokens * per_layer * facts.num_layers * compute_bytes
    positions = tokens if settings.loss_on == "completion" else max(1, tokens // 4)
    return activations, positions * facts.vocabulary * 12
