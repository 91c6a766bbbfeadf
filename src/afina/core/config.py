"""The recipe: one strict YAML file, overrides by dotted key, and the Task it describes.

Comes in: a path and `key=value` overrides. Goes out: a frozen `Recipe`. An unknown key, a wrong type
and settings that contradict each other are refused here, before anything runs. Keys carry the
field's standard names, so that a notebook's settings can be copied.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from afina.core import schema as schemas
from afina.core.config_base import Config
from afina.core.errors import RecipeError, SchemaError
from afina.core.storage import digest
from afina.core.strategy_config import (
    BUILT_IN,
    STUDENT,
    ComparisonConfig,
    DistillConfig,
    ModelConfig,
    NegotiateConfig,
    PromptConfig,
    StrategyConfig,
    VoteConfig,
    inner_of,
    models_of,
    strategy_keys,
)
from afina.core.task import Task

Auto = Literal["auto"]
SevenModules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Names that other tools use for the same thing, so that the message can say ours.
ALIASES = {
    "model_name_or_path": "base_model", "model_name": "base_model", "model": "base_model",
    "cutoff_len": "max_length", "sequence_len": "max_length", "max_seq_length": "max_length",
    "num_epochs": "num_train_epochs", "n_epochs": "num_train_epochs", "epochs": "num_train_epochs",
    "micro_batch_size": "per_device_train_batch_size", "batch_size": "per_device_train_batch_size",
    "lora_rank": "lora_r", "rank": "lora_r", "r": "lora_r", "alpha": "lora_alpha", "lora_target": "lora_target_modules",
    "target_modules": "lora_target_modules", "lr": "learning_rate", "sample_packing": "packing",
    "val_size": "validation_size", "val_set_size": "validation_size", "warmup_steps": "warmup_ratio",
    "quantization_bit": "load_in_4bit", "train_on_inputs": "loss_on", "completion_only_loss": "loss_on",
    "dataset": "path", "train_file": "path", "length_grouping": "group_by_length",
}  # fmt: skip


# What a hosted job reads of the group train, and what it calls what a local training calls otherwise.
HOSTED_KEYS = {
    "base_model", "provider", "api_key_env", "suffix", "hyperparameters", "max_cost_usd", "prices", "rounds",
    "max_length",
}  # fmt: skip
HOSTED_MAX_LENGTH = 65_536  # tokens: the training context of gpt-4o and gpt-4.1
NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}")
# May change between the parts of a continued run.
NOT_DECIDING = ("api_key_env", "max_cost_usd", "prices", "concurrency", "batch", "timeout_s")
HOSTED_NAMES = {
    "num_train_epochs": "n_epochs", "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate_multiplier",
}  # fmt: skip


class TaskConfig(Config):
    """What is asked."""

    name: str = Field(default="task", description="Short name, used in reports.")
    instruction: str = Field(min_length=1, description="What the model is told before the inputs.")
    inputs: list[str] | dict[str, str] = Field(description="Input columns, or a mapping from input name to column.")
    output: Any = Field(
        description="The answer: shorthand (" + schemas.SHORTHAND_HELP + "), a JSON Schema file, "
        "module:PydanticModel, or text for a free-text answer."
    )
    reasoning: str | None = Field(
        default=None, description="Column with free text that the model writes before the labels."
    )
    parts: dict[str, list[str] | dict[str, str]] | None = Field(
        default=None,
        description="Ask for each top-level answer field by itself: field -> its inputs (a list, or a mapping from "
        "the name shown to the input). Parts with equal schemas share what is learned.",
    )


class DataConfig(Config):
    """The labelled table, how to read it, and how it is split."""

    path: Path = Field(description="CSV, TSV, JSONL, JSON, Parquet, Alpaca or chat JSONL, plain or gzipped.")
    format: Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "alpaca", "chat"] = "auto"
    delimiter: str | None = Field(default=None, description="Of a CSV; found out when not given.")
    header: list[str] | None = Field(
        default=None, description="Column names, for a table whose first line is already data."
    )
    id_column: str | None = Field(
        default=None, description="Column with each row's own id; the line number when not given."
    )
    columns: dict[str, str | dict[str, str]] = Field(
        default_factory=dict,
        description="Answer field -> column, where they differ. For a multi-label field also label -> 0/1 column.",
    )
    labels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Answer field (or its last name, or '*') -> {text in the table: label}, as Felicidade: alegria.",
    )
    list_separator: str = Field(default=",", min_length=1, description="Between the labels of a multi-label cell.")
    validation_path: Path | None = Field(default=None, description="A table of its own for validation.")
    test_path: Path | None = Field(
        default=None, description="A table of its own for the test; else test_size is split off."
    )
    test_size: float = Field(default=0.2, gt=0, lt=1, description="Share of near-duplicate clusters for the test.")
    validation_size: float = Field(default=0.1, gt=0, lt=1, description="Share of clusters for validation.")
    near_duplicate_threshold: float = Field(
        default=0.8, ge=0.3, le=1, description="Jaccard similarity of word 3-grams."
    )
    max_rejected: float = Field(default=0.1, ge=0, le=1, description="Largest share of rows that may be unusable.")
    min_examples_per_label: int = Field(default=2, ge=0, description="A label used in fewer examples stops the run.")
    on_too_long: Literal["refuse", "truncate", "drop"] = Field(
        default="refuse", description="What happens to an example longer than train.max_length."
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        """YAML reads `1: raiva` as a number and `no: ...` as false; a table cell is text."""
        if not isinstance(value, dict):
            return value
        return {
            field: {str(key): label for key, label in found.items()} if isinstance(found, dict) else found
            for field, found in value.items()
        }

    @model_validator(mode="after")
    def _splits_hold(self) -> DataConfig:
        """A size beside a file of its own has no effect; sizes that leave nothing to train on cannot be."""
        shares: dict[str, float] = {}
        for name in ("test", "validation"):
            own, size = f"{name}_path", f"{name}_size"
            if getattr(self, own) is None:
                shares[size] = getattr(self, size)
            elif size in self.model_fields_set:
                raise ValueError(
                    f"{own} is given, so {size} has no effect. Remove one; data.{size}=null on the command line takes "
                    "the recipe's away."
                )
        if sum(shares.values()) >= 1:
            found = " and ".join(f"{name} {share}" for name, share in shares.items())
            raise ValueError(f"{found} leave nothing to train on. Their sum must be below 1.")
        return self


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


class AnswerConfig(Config):
    """How answers are written."""

    batch_size: int = Field(default=16, ge=1)
    max_text_tokens: int = Field(
        default=256, ge=1, description="Limit of one free-text field; the JSON is closed after it."
    )
    answer_format: Literal["json", "compact"] = Field(
        default="json",
        description="json: the model writes the JSON, so that other engines can serve it. compact: it writes only its "
        "choices, some 12 tokens instead of 97, and Afina the JSON around them. Decided before training.",
    )
    draft: bool = Field(
        default=True,
        description="Guess the whole answer and check it while the prompt is read; the answer stays the same.",
    )
    reuse_prefix: bool = Field(
        default=True, description="Read the beginning that all prompts share once, and keep it in memory."
    )


class Recipe(Config):
    """The whole recipe."""

    task: TaskConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    answer: AnswerConfig = AnswerConfig()
    models: dict[str, ModelConfig] = Field(default_factory=dict, description="Models that strategies ask, by name.")
    strategies: dict[str, StrategyConfig] = Field(default_factory=dict, description="Ways to answer, by name.")
    distill: DistillConfig = DistillConfig()
    compare: list[str] = Field(
        default=list(BUILT_IN),
        min_length=1,
        description="majority, tfidf, zero-shot, finetuned, names of `strategies`, and student-KIND of `distill`.",
    )
    comparison: ComparisonConfig = ComparisonConfig()
    seed: int = Field(default=42, ge=0, lt=2**32)
    output_dir: Path | None = Field(default=None, description="The run folder; runs/<task name> when not given.")

    @model_validator(mode="before")
    @classmethod
    def _rounds_are_the_data(cls, raw: Any) -> Any:
        """With train.rounds the first round stands for data.path, which would have no effect."""
        train = raw.get("train") if isinstance(raw, dict) else None
        rounds = train.get("rounds") if isinstance(train, dict) else None
        if not isinstance(rounds, list) or not rounds or not isinstance(raw.get("data", {}), dict):
            return raw
        data = raw.get("data") or {}
        for name in ("path", "validation_path", "test_path"):
            if data.get(name) is not None and (name != "path" or str(data[name]) != str(rounds[0])):
                raise ValueError(
                    f"train.rounds is given, so data.{name} has no effect. Remove one; every round is split by itself."
                )
        return {**raw, "data": {**data, "path": rounds[0]}}

    @model_validator(mode="after")
    def _hosted_has_effect(self) -> Recipe:
        if self.train.provider is not None:
            if self.answer.answer_format == "compact":
                raise ValueError(
                    f"answer.answer_format: compact needs our own engine, but train.provider is {self.train.provider}. "
                    "Remove one."
                )
            if self.data.on_too_long == "truncate":
                raise ValueError(
                    "data.on_too_long: truncate has no effect with train.provider, which cuts by itself. Use refuse or "
                    "drop."
                )
        return self

    @field_validator("answer", mode="after")
    @classmethod
    def _format_has_effect(cls, answer: AnswerConfig, info: ValidationInfo) -> AnswerConfig:
        task = info.data.get("task")
        if answer.answer_format == "compact" and isinstance(task, TaskConfig) and task.output == "text":
            raise ValueError("answer_format: compact has no effect on an answer of plain text. Remove it.")
        return answer

    @field_validator("compare", mode="after")
    @classmethod
    def _compared_once(cls, compare: list[str]) -> list[str]:
        if len(set(compare)) < len(compare):
            raise ValueError(f"a system stands twice in {compare}. Remove one.")
        return compare

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        """Every name that a strategy, the comparison or the distillation uses, and no strategy that uses itself."""
        for name in (*self.strategies, *self.models):
            if name in (*BUILT_IN, "base", "table") or name.startswith(STUDENT) or not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is taken or no name (letters, digits, - and _). Choose another.")
        for name, strategy in self.strategies.items():
            where = f"strategies.{name}"
            for model in models_of(strategy):
                self._require(model, ("base", *self.models), f"{where}: {model!r} is no model")
            for inner in inner_of(strategy):
                self._require(inner, self._answerers, f"{where}: {inner!r} is no strategy")
            if isinstance(strategy, VoteConfig) and isinstance(strategy.of, str):
                voter = self.strategies.get(strategy.of)
                if not isinstance(voter, PromptConfig | NegotiateConfig):
                    raise ValueError(
                        f"{where}: {strategy.of!r} answers the same each time, so n votes of it are one. Name a prompt "
                        "or a negotiation, or several strategies."
                    )
        for name in self.strategies:
            self._refuse_circle(name, ())
        for name in self.compare:
            students = [STUDENT + kind for kind in self.distill.students]
            self._require(name, (*self._answerers, *students), f"compare: {name!r} is no system")
        if self.comparison.reference is not None:
            self._require(self.comparison.reference, self.compare, "comparison.reference is not compared")
        self._require(self.distill.teacher, ("table", *self._answerers), "distill.teacher is no strategy")
        return self

    @property
    def _answerers(self) -> tuple[str, ...]:
        return (*BUILT_IN, *self.strategies)

    @staticmethod
    def _require(name: str, known: Sequence[str], problem: str) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{problem}. Known here: {', '.join(known)}.{hint}")

    def _refuse_circle(self, name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"strategies.{name} needs itself: {' -> '.join((*above, name))}.")
        for inner in inner_of(self.strategies[name]) if name in self.strategies else ():
            self._refuse_circle(inner, (*above, name))

    @property
    def run_dir(self) -> Path:
        return self.output_dir or Path("runs") / self.task.name

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain JSON, defaults included."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """Of all that decides the result: everything but where the run is kept, and what it may cost."""
        kept = {k: v for k, v in self.resolved().items() if k != "output_dir"}
        for group in (kept["train"], kept["comparison"], *kept["models"].values()):
            for name in NOT_DECIDING:
                group.pop(name, None)
        return digest(kept)


# -- reading -----------------------------------------------------------------------------------


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides, check everything. Paths in it are relative to it;
    paths in an override are relative to the current folder.

    Raises RecipeError (a subclass SchemaError for the output schema).
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such recipe. Write one with: afina init DATA.csv")
    if path.is_dir():
        raise RecipeError(f"{path}: found a folder, expected a recipe (a YAML file). Name the file in it.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8 text, expected a recipe (a YAML file). Name another.") from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{_place(path, error)}: is no valid YAML: {_yaml_problem(error)}. Correct that line; `afina init` writes "
            "a recipe to start from."
        ) from error
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else "a list" if isinstance(raw, list) else "a single value"
        raise RecipeError(
            f"{path}: found {found}, expected the groups task, data and train. Write a recipe with: afina init DATA.csv"
        )
    for place in PATHS:
        _rebase(raw, place, path.parent)
    output = raw.get("task", {}).get("output") if isinstance(raw.get("task"), dict) else None
    if isinstance(output, str) and output.endswith(".json"):
        raw["task"]["output"] = str(path.parent / output)
    for override in overrides:
        _override(raw, override)
    return make_recipe(raw, str(path))


PATHS = (
    ("data", "path"), ("data", "validation_path"), ("data", "test_path"), ("train", "adapt", "path"),
    ("train", "prices"), ("train", "rounds"), ("distill", "rows"), ("models", "*", "prices"),
)  # fmt: skip


def _rebase(raw: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    node: Any = raw
    for at, key in enumerate(keys[:-1]):
        if key == "*":
            for inner in node.values() if isinstance(node, dict) else ():
                _rebase(inner, keys[at + 1 :], folder)
            return
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return
    value = node.get(keys[-1])
    if isinstance(value, str):
        node[keys[-1]] = str(folder / value)
    elif isinstance(value, list):
        node[keys[-1]] = [str(folder / one) if isinstance(one, str) else one for one in value]


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand only once: of two, PyYAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    parts = (getattr(error, name, None) for name in ("context", "problem"))
    return ", ".join(part for part in parts if part) or " ".join(str(error).split())


def _override(raw: dict[str, Any], text: str) -> None:
    """Write one KEY=VALUE into the recipe; KEY=null takes the key away, so that its default holds again."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {text!r}: expected KEY=VALUE, as in train.lora_r=32")
    parsed = _override_value(key, value, text)
    node = raw
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(node.setdefault(parent, {}), dict):
            raise RecipeError(
                f"override {text!r}: {parent!r} is a single value in the recipe, not a group of settings."
            )
        node = node[parent]
    if parsed is None:
        node.pop(last, None)
    else:
        node[last] = parsed


def _override_value(key: str, value: str, text: str) -> Any:
    wants_text = _annotation(key) in (str, Path, str | None, Path | None)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        if wants_text:
            return value  # as data.delimiter=|
        raise RecipeError(
            f"override {text!r}: the value is no valid YAML: {_yaml_problem(error)}. Put it in quotes."
        ) from error
    if wants_text and parsed is not None:
        return parsed if isinstance(parsed, str) else value  # as output_dir=2026
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            return float(parsed)  # YAML 1.1 reads 2e-4 as text
    return parsed


def _annotation(key: str) -> Any:
    """The type of a dotted key; None if there is no such key."""
    model: Any = Recipe
    for part in key.split("."):
        info = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Config) else None
        if info is None:
            return None
        inner = [t for t in typing.get_args(info.annotation) if isinstance(t, type) and issubclass(t, Config)]
        model = inner[0] if inner else info.annotation
    return model


def make_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe that is already a mapping. Raises RecipeError with every problem, a line each."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # The branches of a union fail one by one: what each wanted becomes one line.
        problems: dict[str, list[Mapping[str, Any]]] = {}
        for problem in error.errors():
            problems.setdefault(_key(problem), []).append(problem)
        lines = [_explain(key, found) for key, found in problems.items()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


BRANCHES = ("int", "float", "bool", "str", "list[str]", "dict[str,str]")  # pydantic's names in a union's place
EXPECTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false",
    "string_type": "text", "path_type": "a path", "string_too_short": "some text",
    "list_type": "a list, as [a, b]", "too_short": "at least one entry",
    "dict_type": "a mapping, as {name: value}", "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
}  # fmt: skip
LIMITS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def _key(problem: Mapping[str, Any]) -> str:
    place = [str(part) for part in problem["loc"] if part not in BRANCHES]
    if place[:1] == ["strategies"] and len(place) > 2:
        del place[2]  # pydantic names the kind of strategy after the strategy's own name
    return ".".join(part for part in place if not part.startswith(("literal[", "constrained-", "function-")))


def _expected(problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        return context["expected"]
    for name, words in LIMITS.items():
        if name in context:
            return f"{words} {context[name]}"
    message = str(problem["msg"])
    return EXPECTED.get(str(problem["type"])) or message[0].lower() + message[1:]


def _explain(key: str, problems: Sequence[Mapping[str, Any]]) -> str:
    problem, place = problems[0], key.split(".")
    if problem["type"] == "extra_forbidden":
        known = list(known_keys())
        group = [place[0], "*"] if place[0] == "models" else place[:-1]
        siblings = [k for k in known if k.rpartition(".")[0] == ".".join(group)]
        if place[0] == "strategies":
            siblings = [f"{'.'.join(group)}.{k}" for k in strategy_keys(problem["loc"][2])]
        alias = ALIASES.get(place[-1])
        matches = [k for k in known if alias and k.rpartition(".")[2] == alias]
        matches += [k for k in known if k.rpartition(".")[2] == place[-1]]
        named = {k.rpartition(".")[2]: k for k in siblings}
        matches += [named[name] for name in difflib.get_close_matches(place[-1], named, n=1, cutoff=0.6)]
        matches += difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        names = ", ".join(name.rpartition(".")[2] for name in siblings) or "nothing"
        matches = [match.replace("*", place[1]) for match in matches]
        hint = f"Did you mean {matches[0]}?" if matches else f"Known here: {names}."
        return f"unknown key {key}. {hint}"
    if problem["type"] == "union_tag_invalid":
        return f"{key}.strategy: found {problem['ctx']['tag']!r}, expected {problem['ctx']['expected_tags']}."
    if problem["type"] == "union_tag_not_found":
        return f"{key}: has no strategy. Add one: zero-shot, few-shot, cot, vote, negotiate or cascade."
    if problem["type"] == "missing":
        return f"{key} is missing, and it has no default. Add it; `afina schema` describes every key."
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = " or ".join(dict.fromkeys(_expected(one) for one in problems))
    return (
        f"{key}: found {problem.get('input')!r}, expected {expected}. Correct it; `afina schema` describes every key."
    )


ANY_NAME = "*."  # in a dotted key: whatever the user called it


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the recipe."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for inner in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from known_keys(inner, f"{prefix}{name}.{ANY_NAME if inner is ModelConfig else ''}")


# -- the task ----------------------------------------------------------------------------------


def load_task(config: TaskConfig) -> Task:
    """The Task of a recipe. Raises SchemaError or RecipeError."""
    inputs = config.inputs if isinstance(config.inputs, dict) else {name: name for name in config.inputs}
    if not inputs:
        raise RecipeError("task.inputs: found an empty list, expected at least one column.")
    if isinstance(config.inputs, list) and len(inputs) != len(config.inputs):
        raise RecipeError(f"task.inputs: an input stands twice in {config.inputs}. Remove one.")
    free_text = config.output == "text"
    output = schemas.normalise(output_schema(config.output))
    if config.reasoning:
        if output.get("type") != "object" and not config.parts:
            raise RecipeError("task.reasoning needs an answer with named fields, so that the labels can follow it.")
        if config.reasoning in output.get("properties", {}):
            raise RecipeError(f"task.reasoning: {config.reasoning!r} is already a field of the answer. Rename one.")
    return Task(
        name=config.name,
        instruction=config.instruction.strip(),
        inputs=inputs,
        output=output,
        reasoning=config.reasoning,
        part_inputs=_parts(config, inputs, output) if config.parts else None,
        free_text=free_text,
    )


def _parts(
    config: TaskConfig, inputs: Mapping[str, str], output: schemas.Schema
) -> dict[str, tuple[tuple[str, str], ...]]:
    parts = config.parts or {}
    known = list(output.get("properties", {}))
    if sorted(parts) != sorted(known) or sorted(output.get("required", [])) != sorted(known):
        raise RecipeError(
            f"task.parts names {sorted(parts)}, but the answer's fields are {sorted(known)}. "
            "Every top-level field needs its part, and none may be optional."
        )
    result = {}
    for key in known:
        asked = parts[key]
        shown = asked if isinstance(asked, dict) else {name: name for name in asked}
        unknown = [source for source in shown.values() if source not in inputs]
        if unknown or not shown:
            raise RecipeError(f"task.parts.{key}: {unknown} is no input of the task. Inputs are {list(inputs)}.")
        result[key] = tuple(shown.items())
        if config.reasoning and output["properties"][key].get("type") != "object":
            raise RecipeError(f"task.reasoning needs named fields in every part; {key!r} is a single value.")
    return result


def output_schema(output: Any) -> schemas.Schema:
    """The JSON Schema that a recipe's `task.output` means, before normalising."""
    if isinstance(output, str) and output.endswith(".json"):
        path = Path(output)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SchemaError(f"task.output: {path}: no such file, expected a JSON Schema.") from error
        except (ValueError, OSError) as error:
            raise SchemaError(f"task.output: {path}: is no valid JSON: {error}") from error
    if isinstance(output, str) and ":" in output and "(" not in output:
        return _pydantic_schema(output)
    if isinstance(output, Mapping) and ("$schema" in output or output.get("type") == "object" or "$defs" in output):
        return dict(output)
    return schemas.from_shorthand(output)


def _pydantic_schema(reference: str) -> schemas.Schema:
    module_name, _, class_name = reference.partition(":")
    sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise SchemaError(
            f"task.output: cannot import {reference!r}: {error}. Expected module:PydanticModel."
        ) from error
    finally:
        sys.path.remove("")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise SchemaError(f"task.output: {reference!r} is {model!r}, expected a Pydantic model.")
    return model.model_json_schema()


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of the recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
