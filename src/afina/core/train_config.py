"""The recipe's group `train`: how the specialist is trained, here or at a provider.

Keys carry the field's standard names, so that a notebook's settings can be copied. Settings that contradict each other,
or that would have no effect, are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from afina.core.config_base import Config

Auto = Literal["auto"]
SevenModules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What a hosted job reads of the group train, and what it calls what a local training calls otherwise.
HOSTED_KEYS = {
    "base_model", "provider", "api_key_env", "suffix", "hyperparameters", "max_cost_usd", "prices", "rounds",
    "max_length",
}  # fmt: skip
HOSTED_MAX_LENGTH = 65_536  # tokens: the training context of gpt-4o and gpt-4.1
HOSTED_NAMES = {
    "num_train_epochs": "n_epochs", "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate_multiplier",
}  # fmt: skip


class AdaptConfig(Config):
    """Plain language modelling on the domain's unlabelled text before the task is learned."""

    path: Path
    column: str = Field(description="Column of the table that holds the text.")
    num_train_epochs: float = Field(default=4, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)


class HostedHyperparameters(Config):
    """Of a job at a provider, under its names. `auto` lets the provider choose."""

    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto = Field(
        default="auto",
        description="Of the provider's own rate: 0.5 to 2 is usual; 1e-5 is surely a rate, not a factor.",
    )

    @field_validator("learning_rate_multiplier", mode="after")
    @classmethod
    def _is_a_factor(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value < 0.01:
            raise ValueError(
                f"found {value:g}, which looks like a learning rate; the multiplier multiplies the provider's own. "
                "Write 1 for that rate, 0.5 for half of it, or auto."
            )
        return value


class TrainConfig(Config):
    """How the specialist is trained. `auto` lets the planner choose, and it says what it chose."""

    base_model: str = Field(
        default="afina/nano",
        description="afina/nano, a local folder, or a Hugging Face model id; with a provider, a name of its.",
    )
    provider: str | None = Field(
        default=None, description="Where to train: openai, azure, or the address of a server that speaks their API."
    )
    api_key_env: str | None = Field(
        default=None,
        min_length=1,
        description="Environment variable with the provider's key; OPENAI_API_KEY, AZURE_OPENAI_API_KEY, or "
        "AFINA_API_KEY for an address, when not given.",
    )
    suffix: str | None = Field(default=None, min_length=1, max_length=64, description="In the hosted model's name.")
    hyperparameters: HostedHyperparameters = HostedHyperparameters()
    max_cost_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="A job that may cost more is not begun."
    )
    prices: Path | None = Field(
        default=None, description="YAML with prices that replace or extend the dated ones (docs/hosted.md)."
    )
    rounds: list[Path] | None = Field(
        default=None,
        min_length=1,
        description="Tables learned one after the other, each on the model of the one before; instead of data.path.",
    )
    revision: str | None = Field(default=None, description="Git revision of a Hugging Face model.")
    chat_template: Literal["auto", "chat", "completion"] = Field(
        default="auto",
        description="chat: the tokenizer's template; completion: plain text. auto: chat if it has a template "
        "and is no base model.",
    )
    finetuning_type: Literal["auto", "lora", "full"] = "auto"
    load_in_4bit: bool | Auto = "auto"
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    bf16: bool | Auto = Field(default="auto", description="bfloat16 compute.")
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=64, gt=0)
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    lora_target_modules: list[str] = Field(default=list(SevenModules), min_length=1)
    use_dora: bool = False
    use_rslora: bool = False
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | Auto = "auto"
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | Auto = "auto"
    num_train_epochs: float = Field(default=3, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="Instead of num_train_epochs.")
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(default="auto", description="Peak.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=0.3, gt=0)
    optim: Literal["adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"] = "adamw_torch"
    max_length: int = Field(default=1024, ge=16, description="Tokens of one example, answer included.")
    packing: bool | Auto = Field(
        default="auto", description="Several examples in one row, without attention between them."
    )
    share_prefix: bool | Auto = Field(
        default="auto", description="Examples packed in one row have the instruction that all begin with only once."
    )
    group_by_length: bool = False
    loss_on: Literal["completion", "choices"] = Field(
        default="completion",
        description="choices: only where the grammar leaves a choice; what it forces need not be learned.",
    )
    gradient_checkpointing: bool | Auto = "auto"
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="eager is the fastest for short rows on a CPU; flash_attention_2 needs CUDA."
    )
    dequantize: bool | Auto = Field(
        default="auto", description="Write 4-bit weights out once (the same values) instead of at every product."
    )
    fused_lora: bool = Field(default=True, description="Adapters of one input in one product; CPU only.")
    fused_loss: bool = Field(
        default=True, description="Head and loss together, at trained positions only; false: all logits at once."
    )
    torch_compile: bool | Auto = Field(
        default="auto", description="Compile a decoder layer; auto: when the run is long enough to pay for it."
    )
    use_liger_kernel: bool | Auto = Field(default="auto", description="Liger's Triton kernels; CUDA only.")
    backend: Literal["afina", "unsloth"] = Field(
        default="afina", description="unsloth: its engine behind the same recipe; CUDA only."
    )
    logging_steps: int = Field(default=5, ge=1)
    eval_steps: int | Auto = Field(default="auto", description="Steps between validation losses and checkpoints.")
    early_stopping_patience: int | None = Field(default=None, ge=1, description="Evaluations without improvement.")
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default=[])
    adapt: AdaptConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _hosted_context(cls, raw: Any) -> Any:
        """A provider cuts where its own context ends, not where a small model's does."""
        if isinstance(raw, dict) and raw.get("provider") is not None and "max_length" not in raw:
            return {**raw, "max_length": HOSTED_MAX_LENGTH}
        return raw

    @field_validator("provider", mode="after")
    @classmethod
    def _known_provider(cls, value: str | None) -> str | None:
        if value is None or value in ("openai", "azure") or value.startswith(("http://", "https://")):
            return value
        raise ValueError(f"found {value!r}, expected openai, azure, or an address as http://127.0.0.1:8000/v1.")

    @model_validator(mode="after")
    def _provider_has_effect(self) -> TrainConfig:
        """The keys of a hosted job and those of a local training exclude each other."""
        given = self.model_fields_set
        if self.provider is None:
            for name in ("api_key_env", "suffix", "hyperparameters", "max_cost_usd", "prices"):
                if name in given and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is of a hosted job, but no provider is named. Add train.provider, or remove it."
                    )
            return self
        if "base_model" not in given:
            raise ValueError(
                f"provider is {self.provider}, so base_model must name a model of its, as gpt-4.1-mini-2025-04-14."
            )
        unused = sorted(given - HOSTED_KEYS)
        if unused:
            instead = HOSTED_NAMES.get(unused[0])
            hint = f"Write train.hyperparameters.{instead}." if instead else "Remove it, or the provider."
            raise ValueError(f"the provider {self.provider} trains, so {unused[0]} has no effect. {hint}")
        return self

    @model_validator(mode="after")
    def _no_contradictions(self) -> TrainConfig:
        given = self.model_fields_set
        if self.load_in_4bit is True and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both true. Keep one of them.")
        if (self.load_in_4bit is True or self.load_in_8bit) and self.finetuning_type == "full":
            raise ValueError(
                "finetuning_type: full cannot train quantised weights. Set load_in_4bit: false and "
                "load_in_8bit: false, or finetuning_type: lora."
            )
        if self.lr_scheduler_type == "constant" and self.warmup_ratio > 0 and "warmup_ratio" in given:
            raise ValueError(
                f"lr_scheduler_type: constant ignores its warm-up, but warmup_ratio is {self.warmup_ratio}. "
                "Write lr_scheduler_type: constant_with_warmup, or warmup_ratio: 0."
            )
        if "max_steps" in given and "num_train_epochs" in given and self.max_steps is not None:
            raise ValueError(
                "max_steps and num_train_epochs are both given. Keep one of them; train.num_train_epochs=null on the "
                "command line takes the recipe's away."
            )
        if self.packing is True and self.group_by_length:
            raise ValueError("packing fills every row, so group_by_length has no effect. Keep one of them.")
        if self.finetuning_type == "full":
            unused = sorted(k for k in given if k.startswith("lora_") or k in ("use_dora", "use_rslora"))
            if unused:
                raise ValueError(f"finetuning_type: full has no adapter, so {unused[0]} has no effect. Remove it.")
        if self.load_in_4bit is False or self.load_in_8bit:
            unused = sorted(k for k in given if k.startswith("bnb_4bit_"))
            if unused:
                why = "load_in_8bit is true" if self.load_in_8bit else "load_in_4bit is false"
                raise ValueError(f"{why}, so {unused[0]} has no effect. Remove it.")
        return self
