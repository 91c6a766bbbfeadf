"""Every `auto` of the recipe resolved for this model, this data and this machine, with the reasons.

Comes in: the train section, what the model is, how long the examples are, what the machine can do. Goes out:
`Settings` without any `auto`, and one note for each wish that cannot hold here. It loads no weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from afina.core.errors import RecipeError
from afina.core.train_config import AdaptConfig, TrainConfig
from afina.engine.loader import Quantisation
from afina.training.collate import first_fit
from afina.training.compiled import COMPILE_SAVES, compile_seconds, compiler_found
from afina.training.facts import ModelFacts
from afina.training.machine import Machine
from afina.training.memory import estimate
from afina.training.settings import Settings

FULL_BELOW = 50_000_000  # parameters; a rank-16 adapter learned less than all weights (docs/findings.md)
EFFECTIVE_BATCH = 16  # examples per update
LEAST_BATCH, UPDATES_PER_EPOCH = 4, 25  # of few examples, fewer per update: a small table is learned in updates
EVALUATIONS = 10  # per run, when eval_steps is auto
ROW_TOKENS = (128, 256, 384, 512, 768, 1024)  # of a packed row, tried
# Of all weights the gradients, made anew for each micro-batch, want larger ones.
MICRO_BATCH_TOKENS = {
    "lora": 1024,
    "full": 2048,
}  # on a CPU: the activations of more fall out of its cache (docs/performance.md)
EAGER_ATTENTION_TOKENS = 512  # of a row on a CPU, up to which plain products beat the blocked kernel
CPU_FLOPS_PER_CORE = 1e11  # useful arithmetic of an uncompiled step, for the decision to compile
USABLE = 0.9  # share of the free memory that a plan may fill


def resolve(
    train: TrainConfig, facts: ModelFacts, lengths: Sequence[int], machine: Machine, shared: int = 0
) -> Settings:
    """Settings for training `facts` on examples of these lengths (tokens) on this machine.

    shared: tokens that all examples begin with (`collate.common_beginning`).

    Raises RecipeError where the model cannot do what the recipe says.
    """
    notes: list[str] = []
    _check(train, facts, lengths)
    if train.backend == "unsloth":
        raise RecipeError(
            "train.backend: unsloth is not in this version of Afina, for want of a GPU to prove it on. Use afina."
        )
    compute = _compute_dtype(train, machine, notes)
    kind = _finetuning_type(train, facts, machine, notes)
    quantisation = _quantisation(train, facts, machine, kind, compute, notes)
    compute_4bit = train.bnb_4bit_compute_dtype if train.bnb_4bit_compute_dtype != "auto" else compute
    if quantisation == "4bit" and compute_4bit == "bfloat16" and compute != "bfloat16":
        notes.append(f"bnb_4bit_compute_dtype: bfloat16 is not in this machine's hardware; {compute} is used.")
        compute_4bit = compute
    batch, accumulation = _batch(train, kind, lengths, machine)
    targets = _targets(train, facts, notes) if kind == "lora" else tuple(train.lora_target_modules)
    packing = (not train.group_by_length) if train.packing == "auto" else train.packing
    share = packing and shared > 0 and train.share_prefix is not False
    row_tokens, share = _rows(facts, lengths, shared if share else 0, batch, forced=train.share_prefix is True)
    settings = Settings(
        base_model=train.base_model,
        revision=train.revision,
        finetuning_type=kind,
        quantisation=quantisation,
        bnb_4bit_quant_type=train.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=train.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_4bit,
        dequantize=quantisation == "4bit" and train.dequantize in ((True,) if machine.gpus else (True, "auto")),
        compute_dtype=compute,
        weights_dtype="float32" if kind == "full" else compute,
        device=machine.device,
        lora_r=train.lora_r,
        lora_alpha=train.lora_alpha,
        lora_dropout=train.lora_dropout,
        lora_target_modules=targets,
        use_dora=train.use_dora,
        use_rslora=train.use_rslora,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        learning_rate=train.learning_rate
        if train.learning_rate != "auto"
        else auto_learning_rate(kind, facts.num_parameters),
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_ratio=0.0 if train.lr_scheduler_type == "constant" else train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=_optimizer(train, machine, notes),
        max_length=train.max_length,
        packing=packing,
        share_prefix=share,
        row_tokens=row_tokens,
        group_by_length=train.group_by_length,
        loss_on=train.loss_on,
        gradient_checkpointing=train.gradient_checkpointing is True,
        attn_implementation=_attention(train, lengths, row_tokens, machine),
        torch_compile=train.torch_compile is True,
        fused_lora=train.fused_lora and kind == "lora" and not machine.gpus,
        fused_loss=train.fused_loss,
        use_liger_kernel=_liger(train, machine, notes),
        logging_steps=train.logging_steps,
        eval_steps=1,
        early_stopping_patience=train.early_stopping_patience,
        total_steps=1,
    )
    if train.learning_rate == "auto":
        notes.append(f"learning_rate: {settings.learning_rate:.1e}, by size and finetuning_type {kind}.")
    room = machine.training_bytes * USABLE

    def fits(candidate: Settings) -> bool:
        return estimate(candidate, facts, lengths).peak <= room

    settings = _make_fit(settings, train, fits, notes)
    settings = _with_steps(settings, len(lengths), train.eval_steps)
    settings = replace(settings, torch_compile=_compile(settings, train, facts, lengths, machine, notes))
    return replace(settings, notes=tuple(notes))


def resolve_batch(
    train: TrainConfig,
    facts: ModelFacts,
    lengths: Sequence[int],
    machine: Machine,
    shared: int = 0,
    *,
    batch_size: int,
) -> Settings:
    """`resolve` for updates of exactly `batch_size` examples: in the largest equal micro-batches that suit the machine.

    train.per_device_train_batch_size: the most that a micro-batch may hold. Raises RecipeError.
    """
    most = train.per_device_train_batch_size if isinstance(train.per_device_train_batch_size, int) else batch_size
    mean = sum(lengths) / max(1, len(lengths))
    for size in range(min(most, batch_size), 0, -1):
        if batch_size % size:
            continue
        changes: dict[str, Any] = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": batch_size // size,
        }
        if size > 1:  # smaller micro-batches cost least, so what saves memory otherwise comes after them
            changes |= {"gradient_checkpointing": False} if train.gradient_checkpointing == "auto" else {}
            changes |= {"dequantize": True} if train.dequantize == "auto" and not machine.gpus else {}
        settings = resolve(train.model_copy(update=changes), facts, lengths, machine, shared)
        in_cache = machine.gpus or size * mean <= MICRO_BATCH_TOKENS[settings.finetuning_type]
        if size == 1 or (in_cache and estimate(settings, facts, lengths).peak <= machine.training_bytes * USABLE):
            return settings
    raise AssertionError("1 divides every batch size")


def adapt_settings(settings: Settings, adapt: AdaptConfig, num_examples: int) -> Settings:
    """Settings of plain language modelling on unlabelled text, before the task is learned."""
    changed = replace(
        settings,
        num_train_epochs=adapt.num_train_epochs,
        max_steps=None,
        learning_rate=adapt.learning_rate,
        loss_on="completion",
        early_stopping_patience=None,
        notes=(),
    )
    return _with_steps(changed, num_examples, "auto")


def auto_learning_rate(kind: str, num_parameters: int) -> float:
    """Peak rate. LoRA: 2e-4 from 1 B parameters on (QLoRA, arXiv:2305.14314), rising with the square root as the
    model shrinks, 2e-3 at 10 M. Full: 1e-3 at 10 M (docs/findings.md), 1.8e-4 at 135 M, 5e-5 at 1 B; at least 1e-5."""
    if kind == "lora":
        return float(f"{2e-4 * min(10.0, max(1.0, math.sqrt(1e9 / num_parameters))):.2g}")
    return float(f"{min(1e-3, max(1e-5, 1e-3 * (10e6 / num_parameters) ** 0.65)):.2g}")


def _check(train: TrainConfig, facts: ModelFacts, lengths: Sequence[int]) -> None:
    if not lengths:
        raise RecipeError("There is no training example left. See rejected.jsonl for the reasons.")
    if train.eval_steps != "auto" and train.eval_steps < 1:
        raise RecipeError(f"train.eval_steps is {train.eval_steps}, expected at least 1, or auto.")
    if facts.context and train.max_length > facts.context and max(lengths) > facts.context:
        raise RecipeError(
            f"train.max_length is {train.max_length} and an example has {max(lengths)} tokens, but {facts.name} reads "
            f"at most {facts.context}. Set train.max_length: {facts.context} or less."
        )
    if facts.stored != "none" and train.finetuning_type == "full":
        raise RecipeError(
            f"train.finetuning_type: full cannot train {facts.name}, whose weights are stored in {facts.stored}. "
            "Use finetuning_type: lora, or the unquantised model."
        )


def _compute_dtype(train: TrainConfig, machine: Machine, notes: list[str]) -> str:
    if train.bf16 is False:
        return "float32"
    if machine.bf16:
        return "bfloat16"
    nearest = "float16" if machine.gpus and machine.gpus[0].capability >= (7, 0) else "float32"
    notes.append(f"bf16: not in this machine's hardware; {nearest} is used.")
    return nearest


def _finetuning_type(train: TrainConfig, facts: ModelFacts, machine: Machine, notes: list[str]) -> str:
    if train.finetuning_type != "auto":
        return train.finetuning_type
    adapter_keys = sorted(
        k for k in train.model_fields_set if k.startswith("lora_") or k in ("use_dora", "use_rslora", "load_in_8bit")
    )
    if train.load_in_4bit is True or train.load_in_8bit or facts.stored != "none":
        return "lora"
    if adapter_keys:
        notes.append(f"finetuning_type: lora, because {adapter_keys[0]} is set.")
        return "lora"
    needed = 16 * facts.num_parameters  # float32 weights, gradients and two moments
    if facts.num_parameters < FULL_BELOW and needed < machine.training_bytes * USABLE / 2:
        notes.append(
            f"finetuning_type: full, because all {facts.num_parameters / 1e6:.1f} M parameters fit, and a tiny model "
            "learns more so."
        )
        return "full"
    reason = "memory is short" if facts.num_parameters < FULL_BELOW else "the model is large enough for it"
    notes.append(f"finetuning_type: lora, because {reason}.")
    return "lora"


def _quantisation(
    train: TrainConfig, facts: ModelFacts, machine: Machine, kind: str, compute: str, notes: list[str]
) -> Quantisation:
    wanted: Quantisation = "4bit" if train.load_in_4bit is True else "8bit" if train.load_in_8bit else "none"
    if facts.stored != "none":
        if wanted not in ("none", facts.stored) or train.load_in_4bit is False:
            notes.append(f"{facts.name} is stored in {facts.stored}, and is trained as it is stored.")
        return facts.stored
    if wanted == "none" and train.load_in_4bit == "auto" and kind == "lora":
        weights = facts.num_parameters * (4 if compute == "float32" else 2)
        if weights > machine.training_bytes * USABLE * 0.6 and machine.bitsandbytes:
            notes.append("load_in_4bit: true, because the weights would otherwise leave no memory to train in.")
            return "4bit"
    if wanted != "none" and not machine.bitsandbytes:
        notes.append(f"load_in_{wanted}: bitsandbytes is not usable here; the weights stay in {compute}.")
        return "none"
    if wanted != "none" and not machine.gpus:
        notes.append(f"load_in_{wanted}: slower on a CPU than without, unless written out once (dequantize).")
    return wanted


def _targets(train: TrainConfig, facts: ModelFacts, notes: list[str]) -> tuple[str, ...]:
    """The named modules; where they are Llama's by default and this model has others, all its linear layers."""
    have = sorted({name.rsplit(".", 1)[-1] for name in facts.linears})
    if "lora_target_modules" not in train.model_fields_set and not set(train.lora_target_modules) <= set(have):
        notes.append(f"lora_target_modules: {', '.join(have)}, all linear layers of this model.")
        return tuple(have)
    facts.num_adapter(train.lora_r, list(train.lora_target_modules))  # raises for a name that is not there
    return tuple(train.lora_target_modules)


def _batch(train: TrainConfig, kind: str, lengths: Sequence[int], machine: Machine) -> tuple[int, int]:
    batch, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if batch == "auto" and accumulation == "auto":
        most = effective = _effective_batch(len(lengths))
        while not machine.gpus and most > 1 and most * sum(lengths) / len(lengths) > MICRO_BATCH_TOKENS[kind]:
            most //= 2
        return most, effective // most
    if batch == "auto":
        return max(1, EFFECTIVE_BATCH // int(accumulation)), int(accumulation)
    if accumulation == "auto":
        return batch, max(1, EFFECTIVE_BATCH // batch)
    return batch, accumulation


def _optimizer(train: TrainConfig, machine: Machine, notes: list[str]) -> str:
    if train.optim == "adamw_torch" or (machine.gpus and machine.bitsandbytes):
        return train.optim
    notes.append(f"optim: {train.optim} needs a CUDA device and bitsandbytes; adamw_torch is used.")
    return "adamw_torch"


def _effective_batch(num_examples: int) -> int:
    """Examples per update: halved until an epoch has UPDATES_PER_EPOCH updates."""
    batch = EFFECTIVE_BATCH
    while batch > LEAST_BATCH and num_examples < batch * UPDATES_PER_EPOCH:
        batch //= 2
    return batch


def _rows(facts: ModelFacts, lengths: Sequence[int], shared: int, batch: int, *, forced: bool) -> tuple[int, bool]:
    """(tokens of a packed row, whether its examples share their beginning): what costs least arithmetic.

    A layer of n parameters costs 4 n per token and 12 x hidden per pair of tokens of a row, forward and backward.
    """
    per_token = 4 * facts.num_linear / max(1, facts.num_layers)
    sample = [sorted(lengths[i : i + batch], reverse=True) for i in range(0, min(len(lengths), 16 * batch), batch)]

    def cost(row_tokens: int, p: int) -> float:
        total = 0.0
        for group in sample:
            rows = first_fit(group, p, row_tokens)
            width = max(p + sum(group[i] - p for i in row) for row in rows)
            total += len(rows) * width * (per_token + 12 * facts.hidden * width)
        return total

    options = [(cost(tokens, p), tokens, p) for p in {shared} | ({0} if not forced else set()) for tokens in ROW_TOKENS]
    _, row_tokens, p = min(options)
    return row_tokens, p > 0


def _attention(train: TrainConfig, lengths: Sequence[int], row_tokens: int, machine: Machine) -> str:
    """On a CPU the kernel behind sdpa is slow for short rows (docs/performance.md): plain products there."""
    if train.attn_implementation == "flash_attention_2" and not machine.gpus:
        raise RecipeError("train.attn_implementation: flash_attention_2 needs a CUDA device. Use auto.")
    if train.attn_implementation != "auto":
        return train.attn_implementation
    return "eager" if not machine.gpus and max(*lengths, row_tokens) <= EAGER_ATTENTION_TOKENS else "sdpa"


def _liger(train: TrainConfig, machine: Machine, notes: list[str]) -> bool:
    found = bool(machine.gpus) and importlib.util.find_spec("liger_kernel") is not None
    if train.use_liger_kernel is True and not found:
        notes.append("use_liger_kernel: needs a CUDA device and the package liger-kernel; not used.")
    return found and train.use_liger_kernel is not False


def _compile(
    settings: Settings,
    train: TrainConfig,
    facts: ModelFacts,
    lengths: Sequence[int],
    machine: Machine,
    notes: list[str],
) -> bool:
    """Whether compiling a layer pays: by the arithmetic of the run."""
    if train.torch_compile is False or (train.torch_compile == "auto" and machine.gpus):
        return False
    why_not = "gradient_checkpointing is on" if settings.gradient_checkpointing else ""
    if not compiler_found():
        why_not = "no C++ compiler was found"
    if not why_not and train.torch_compile == "auto":
        tokens = sum(lengths) / len(lengths) * settings.effective_batch * settings.total_steps
        per_token = (4 if settings.finetuning_type == "lora" else 6) * facts.num_linear
        plain_s = tokens * per_token / (CPU_FLOPS_PER_CORE * machine.cores)
        if plain_s * COMPILE_SAVES < compile_seconds(settings):
            return False
        notes.append("torch_compile: true, because the run is long enough to pay for compiling a layer.")
    if why_not and train.torch_compile is True:
        notes.append(f"torch_compile: not used, because {why_not}.")
    return not why_not


def _make_fit(settings: Settings, train: TrainConfig, fits: Any, notes: list[str]) -> Settings:
    """Smaller micro-batches first (same updates, no cost), then checkpointing (a third slower), where auto allows."""
    asked = settings
    may_batch = train.per_device_train_batch_size == "auto" and train.gradient_accumulation_steps == "auto"
    while may_batch and not fits(settings) and settings.per_device_train_batch_size > 1:
        settings = replace(
            settings,
            per_device_train_batch_size=settings.per_device_train_batch_size // 2,
            gradient_accumulation_steps=settings.gradient_accumulation_steps * 2,
        )
    if settings != asked and fits(settings):
        notes.append(
            f"per_device_train_batch_size: {settings.per_device_train_batch_size} x "
            f"{settings.gradient_accumulation_steps} accumulated, to fit the memory."
        )
    if not fits(settings) and settings.dequantize and train.dequantize == "auto":
        settings = replace(settings, dequantize=False)
        notes.append("dequantize: false, to fit the memory; 4-bit weights are expanded at every product.")
    if not fits(settings) and train.gradient_checkpointing == "auto":
        settings = replace(settings, gradient_checkpointing=True)
        notes.append("gradient_checkpointing: true, to fit the memory; about a third slower.")
    return settings


def _with_steps(settings: Settings, num_examples: int, eval_steps: int | str) -> Settings:
    per_epoch = math.ceil(num_examples / settings.effective_batch)
    total = settings.max_steps or max(1, math.ceil(settings.num_train_epochs * per_epoch))
    every = eval_steps if isinstance(eval_steps, int) else max(1, round(total / EVALUATIONS))
    return replace(settings, total_steps=total, eval_steps=min(every, total))
