"""The recipe: all groups of settings together, and what they must not contradict in each other.

Goes out: a frozen `Recipe`. How a file becomes one is known by `core.recipe_file`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from afina.core.catalogue_config import CatalogueConfig, SourcesConfig, SweepConfig
from afina.core.config_base import Config
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
)
from afina.core.task_config import TaskConfig
from afina.core.train_config import TrainConfig

NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}")
# May change between the parts of a continued run.
NOT_DECIDING = ("api_key_env", "max_cost_usd", "prices", "concurrency", "batch", "timeout_s")


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


class AnswerConfig(Config):
    """How answers are written."""

    batch_size: int = Field(default=16, ge=1)
    max_text_tokens: int = Field(
        default=256, ge=1, description="Limit of one free-text field; the JSON is closed after it."
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, description="Free text never has so many tokens in a row twice; 0: it may go round in circles."
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
        min_length=1,
        description="majority, tfidf, for plain text nearest; zero-shot, finetuned, for a catalogue sources; names "
        "of `strategies`, and student-KIND of `distill`.",
    )
    comparison: ComparisonConfig = ComparisonConfig()
    catalogue: CatalogueConfig | None = Field(
        default=None, description="Products as title and content; instead of data.path (docs/catalogue.md)."
    )
    sources: SourcesConfig = SourcesConfig()
    sweep: SweepConfig = SweepConfig()
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

    @model_validator(mode="before")
    @classmethod
    def _catalogue_is_the_data(cls, raw: Any) -> Any:
        """With a catalogue its file stands for data.path, which would have no effect."""
        catalogue = raw.get("catalogue") if isinstance(raw, dict) else None
        if not isinstance(catalogue, dict) or "path" not in catalogue or not isinstance(raw.get("data", {}), dict):
            return raw
        data = raw.get("data") or {}
        for name in ("path", "validation_path", "test_path"):
            if data.get(name) is not None and (name != "path" or str(data[name]) != str(catalogue["path"])):
                raise ValueError(f"catalogue is given, so data.{name} has no effect. Remove one.")
        return {**raw, "data": {**data, "path": catalogue["path"]}}

    @model_validator(mode="before")
    @classmethod
    def _compare_what_can_answer(cls, raw: Any) -> Any:
        """Without `compare`: the baselines of the kind of answer, the model before and after tuning."""
        if not isinstance(raw, dict) or "compare" in raw:
            return raw
        task = raw.get("task")
        is_text = isinstance(task, dict) and task.get("output") == "text"
        names = ["nearest", "zero-shot", "finetuned"] if is_text else ["majority", "tfidf", "zero-shot", "finetuned"]
        return {**raw, "compare": [*names, *(["sources"] if raw.get("catalogue") else [])]}

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
        self._answer_this_task()
        if self.comparison.reference is not None:
            self._require(self.comparison.reference, self.compare, "comparison.reference is not compared")
        self._require(self.distill.teacher, ("table", *self._answerers), "distill.teacher is no strategy")
        return self

    def _answer_this_task(self) -> None:
        """Labels have a majority, plain text has a nearest neighbour; sources come from a catalogue."""
        is_text = self.task.output == "text"
        for name in self.compare:
            if is_text and name in ("majority", "tfidf"):
                raise ValueError(f"compare: {name} chooses among labels, but the answer is plain text. Name nearest.")
            if not is_text and name == "nearest":
                raise ValueError("compare: nearest repeats a text, but the answer has labels. Name majority or tfidf.")
            if name == "sources" and self.catalogue is None:
                raise ValueError("compare: sources answers from a catalogue, but the recipe has none. Add catalogue.")
        if self.catalogue is not None and not is_text:
            raise ValueError("catalogue: its rows have a content, which is plain text. Write task.output: text.")
        if self.catalogue is not None and self.train.rounds is not None:
            raise ValueError(
                "catalogue is given, so train.rounds has no effect. Write catalogue.rounds, as ['0', '1']."
            )

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
        without = {"output_dir", "sweep", *(() if self.catalogue is not None else ("catalogue", "sources"))}
        kept = {k: v for k, v in self.resolved().items() if k not in without}
        for group in (kept["train"], kept["comparison"], *kept["models"].values()):
            for name in NOT_DECIDING:
                group.pop(name, None)
        return digest(kept)
