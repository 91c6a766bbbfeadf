"""The recipe's groups that name ways to answer: models, strategies, distillation, comparison.

Comes in and goes out: checked settings. Whether the names that they use exist is the `Recipe`'s to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from afina.core.config_base import Config

BUILT_IN = ("majority", "tfidf", "nearest", "zero-shot", "finetuned", "sources")
STUDENT = "student-"  # before the kind, in compare


class ModelConfig(Config):
    """A model that strategies ask: at a provider, or on this machine."""

    provider: str | None = Field(
        default=None,
        description="openai, azure, groq, maritaca, ollama, or the address of a server that speaks their API. "
        "None: on this machine.",
    )
    model: str = Field(
        min_length=1, description="Its name at the provider; else afina/nano, a local folder, or a Hugging Face id."
    )
    revision: str | None = Field(default=None, description="Git revision of a Hugging Face model.")
    chat_template: Literal["auto", "chat", "completion"] = Field(
        default="auto", description="Of a model on this machine; see train.chat_template."
    )
    api_key_env: str | None = Field(
        default=None, min_length=1, description="Environment variable with the provider's key, if not its usual one."
    )
    structured: Literal["auto", "json_schema", "json_object", "text"] = Field(
        default="auto",
        description="How the provider holds answers to a schema; auto: the strictest way that it takes.",
    )
    describe: bool = Field(
        default=True, description="Tell the model the answer's fields and labels; false for one tuned on this task."
    )
    prices: Path | None = Field(default=None, description="YAML with prices beside the dated ones (docs/hosted.md).")
    concurrency: int = Field(default=8, ge=1, le=256, description="Requests under way at once.")
    batch: bool = Field(default=False, description="Ask by the provider's batch endpoint: half the price, hours.")
    max_tokens: int = Field(default=1024, ge=1, description="Of one answer.")
    timeout_s: float = Field(default=120, gt=0)

    @model_validator(mode="after")
    def _has_effect(self) -> ModelConfig:
        local_only, hosted_only = ("revision", "chat_template"), ("api_key_env", "structured", "prices", "batch")
        for name in hosted_only if self.provider is None else local_only:
            if name in self.model_fields_set:
                where = "at a provider" if self.provider is None else "on this machine"
                raise ValueError(f"{name} is of a model {where}, so it has no effect here. Remove it.")
        return self


class PromptConfig(Config):
    """One question, one structured answer. cot: the reasoning is written before the labels, in the same answer."""

    strategy: Literal["zero-shot", "few-shot", "cot"]
    model: str = Field(default="base", description="A name of `models`; base: train.base_model, not tuned.")
    k: int | None = Field(
        default=None, ge=0, le=64, description="Examples of train shown; few-shot: 4, else 0, when not given."
    )
    choose: Literal["fixed", "random", "nearest"] = Field(
        default="nearest", description="fixed: the same for all rows; random: by row; nearest: alike in words."
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    instruction: str | None = Field(default=None, min_length=1, description="Instead of task.instruction.")
    reasoning_field: str = Field(default="reasoning", min_length=1, description="What cot calls the reasoning.")

    @property
    def num_examples(self) -> int:
        return self.k if self.k is not None else 4 if self.strategy == "few-shot" else 0

    @model_validator(mode="after")
    def _has_effect(self) -> PromptConfig:
        if self.num_examples == 0 and ("choose" in self.model_fields_set or self.strategy == "few-shot"):
            raise ValueError(f"k is 0, so {'choose' if self.strategy != 'few-shot' else 'few-shot'} has no effect.")
        if self.strategy == "zero-shot" and self.num_examples:
            raise ValueError(f"zero-shot shows no examples, but k is {self.k}. Write strategy: few-shot.")
        return self


class VoteConfig(Config):
    """The majority of several answers, field by field. of: one strategy asked n times, or several strategies."""

    strategy: Literal["vote"]
    of: str | list[str] = Field(description="A strategy asked n times at a temperature, or a list of strategies.")
    n: int = Field(default=5, ge=2, le=101)
    temperature: float = Field(default=0.7, gt=0, le=2)

    @model_validator(mode="after")
    def _has_effect(self) -> VoteConfig:
        if isinstance(self.of, list):
            if len(self.of) < 2:
                raise ValueError(f"of names {self.of}: a vote needs two voters at least, or one name and n.")
            given = sorted({"n", "temperature"} & self.model_fields_set)
            if given:
                raise ValueError(f"of names several strategies, each asked once, so {given[0]} has no effect.")
        return self


class NegotiateConfig(Config):
    """A generator proposes with reasoning; a discriminator agrees or counter-proposes, until they agree."""

    strategy: Literal["negotiate"]
    generator: str = Field(default="base", description="A name of `models`.")
    discriminator: str = Field(default="base", description="A name of `models`; it may be the same one.")
    rounds: int = Field(default=3, ge=1, le=20, description="Most exchanges of proposal and judgement.")
    k: int = Field(default=0, ge=0, le=64, description="Examples of train shown, the nearest.")
    temperature: float = Field(default=0.0, ge=0, le=2)


class CascadeConfig(Config):
    """The cheap one answers where it is sure enough, else the other. The threshold is chosen on validation."""

    strategy: Literal["cascade"]
    first: str = Field(default="finetuned", description="The cheap strategy; it must state confidences.")
    then: str = Field(description="The strategy that answers the others.")
    accuracy: float | None = Field(
        default=None, gt=0, le=1, description="Wanted accuracy of the whole answer: the cheapest way that reaches it."
    )
    max_share: float | None = Field(
        default=None, ge=0, le=1, description="Largest share of rows that the second may be asked."
    )

    @model_validator(mode="after")
    def _one_aim(self) -> CascadeConfig:
        if (self.accuracy is None) == (self.max_share is None):
            raise ValueError("expected one of accuracy and max_share: what the threshold is chosen for.")
        return self


StrategyConfig = Annotated[
    PromptConfig | VoteConfig | NegotiateConfig | CascadeConfig,
    Field(discriminator="strategy"),
]


class DistillConfig(Config):
    """A teacher's answers, and the students that learn from them."""

    teacher: str = Field(
        default="table",
        description="A strategy that labels the rows; table: task.reasoning and the labels of the table itself.",
    )
    students: list[Literal["gold", "labels", "reasoning", "two-task", "mixed"]] = Field(
        default=["gold", "labels", "reasoning", "two-task"],
        min_length=1,
        description="gold: the table's labels. labels: the teacher's. reasoning: its reasoning, then its labels. "
        "two-task: its labels, and its reasoning as a second task of the same model. mixed: gold and the teacher's.",
    )
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1, description="Each student is trained once with each.")
    rationale_weight: float = Field(default=1.0, gt=0, le=10, description="Of two-task's second loss.")
    rows: Path | None = Field(default=None, description="Unlabelled table that the teacher labels, too.")
    min_agreement: float = Field(
        default=0.0, ge=0, le=1, description="Rows of which the teacher is less sure are left out."
    )
    keep_wrong: bool = Field(default=False, description="Keep the teacher's answers that differ from the table's gold.")
    curve: list[Annotated[int, Field(ge=2)]] = Field(
        default=[], description="Numbers of labelled rows for the learning curve of the first student."
    )

    @field_validator("students", "seeds", "curve", mode="after")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) < len(value):
            raise ValueError(f"an entry stands twice in {value}. Remove one.")
        return value


class ComparisonConfig(Config):
    """How systems are compared."""

    reference: str | None = Field(
        default=None, description="The system that the others are tested against; finetuned, or else the first."
    )
    priority: Literal["accuracy", "cost", "latency", "explanation"] = Field(
        default="accuracy", description="What the recommendation goes by."
    )
    seeds: list[int] | None = Field(
        default=None, min_length=1, description="finetuned is trained once with each; else once with the recipe's."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Most that all answers of paid models may cost together."
    )
    machine_usd_per_hour: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="What an hour of this machine costs; else it is free."
    )


def models_of(strategy: StrategyConfig) -> tuple[str, ...]:
    """Names of the models that a strategy asks itself."""
    if isinstance(strategy, PromptConfig):
        return (strategy.model,)
    return (strategy.generator, strategy.discriminator) if isinstance(strategy, NegotiateConfig) else ()


def inner_of(strategy: StrategyConfig) -> tuple[str, ...]:
    """Names of the strategies that a strategy is made of."""
    if isinstance(strategy, VoteConfig):
        return tuple(strategy.of) if isinstance(strategy.of, list) else (strategy.of,)
    return (strategy.first, strategy.then) if isinstance(strategy, CascadeConfig) else ()


def strategy_keys(kind: str) -> tuple[str, ...]:
    """The settings of one kind of strategy."""
    for config in (PromptConfig, VoteConfig, NegotiateConfig, CascadeConfig):
        if kind in get_args(config.model_fields["strategy"].annotation):
            return tuple(config.model_fields)
    return ()
