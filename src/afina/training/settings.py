"""What decides a training, with nothing left open. The planner makes it, everything else in this layer reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from afina.engine.loader import BaseSpec, Quantisation


@dataclass(frozen=True)
class Settings:
    """Everything that decides a training, resolved. Named as in the recipe where they are the same thing.

    dequantize: 4-bit weights are written out once, in bnb_4bit_compute_dtype.
    compute_dtype: of products ("bfloat16", "float16", "float32"). weights_dtype: of unquantised weights as loaded;
    full tuning keeps float32 masters. row_tokens: most tokens of a packed row of several examples.
    total_steps: updates in the run. notes: what was chosen or changed, and why.
    """

    base_model: str
    revision: str | None
    finetuning_type: str
    quantisation: Quantisation
    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: str
    dequantize: bool
    compute_dtype: str
    weights_dtype: str
    device: str
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: tuple[str, ...]
    use_dora: bool
    use_rslora: bool
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_train_epochs: float
    max_steps: int | None
    learning_rate: float
    lr_scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    optim: str
    max_length: int
    packing: bool
    share_prefix: bool
    row_tokens: int
    group_by_length: bool
    loss_on: str
    gradient_checkpointing: bool
    attn_implementation: str
    torch_compile: bool
    fused_lora: bool
    fused_loss: bool
    use_liger_kernel: bool
    logging_steps: int
    eval_steps: int
    early_stopping_patience: int | None
    total_steps: int
    notes: tuple[str, ...] = ()

    @property
    def effective_batch(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def base(self) -> BaseSpec:
        """How `engine.loader.load_spec` is to load the base model."""
        return BaseSpec(
            self.base_model,
            self.revision,
            self.quantisation,
            self.weights_dtype,
            self.bnb_4bit_quant_type,
            self.bnb_4bit_use_double_quant,
            self.bnb_4bit_compute_dtype,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
