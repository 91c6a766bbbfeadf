"""Names of the recipe become predictors: strategies nested as they are written, models opened once each.

Comes in: a recipe, its train and validation rows, and who knows the built-in systems. Goes out: a `Predictor` for a
name. The test rows are never seen here. All paid answers share one cache and one budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from afina.core.config import Recipe
from afina.core.predictor import Example, Predictor
from afina.core.strategy_config import (
    CascadeConfig,
    ModelConfig,
    NegotiateConfig,
    PromptConfig,
    VoteConfig,
    inner_of,
    models_of,
)
from afina.core.task import Task
from afina.engine.loader import BaseSpec, load_config, load_spec
from afina.engine.renderer import prompt_style
from afina.providers.budget import Budget
from afina.providers.cache import AnswerCache
from afina.providers.endpoints import connect_model
from afina.strategies.cascade import Cascade, choose_threshold
from afina.strategies.chat_model import ChatModel
from afina.strategies.endpoint import Endpoint
from afina.strategies.local_chat import LocalChat
from afina.strategies.negotiate import Negotiation
from afina.strategies.prompting import Prompting
from afina.strategies.vote import Vote


class Builder:
    """Opens each model and makes each predictor once.

    built_in: the predictor of a name that is no strategy: majority, tfidf, zero-shot, finetuned, a student. base: the
    recipe's base model, not tuned. answers: the SQLite file of paid answers. cap_usd: the most that they may cost
    together, those of earlier calls included.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        splits: Mapping[str, Sequence[Example]],
        *,
        built_in: Callable[[str], Predictor],
        base: Callable[[], ChatModel],
        answers: Path,
        cap_usd: float | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.task = recipe, task
        self._train, self._validation = splits["train"], splits["validation"]
        self._built_in, self._base, self._answers, self._tell = built_in, base, answers, tell
        self._cap_usd = cap_usd
        self._predictors: dict[str, Predictor] = {}
        self._models: dict[str, ChatModel] = {}
        self._money: tuple[AnswerCache, Budget] | None = None

    def predictor(self, name: str) -> Predictor:
        """Raises AfinaError where a model or its key is missing."""
        if name not in self._predictors:
            found = self._predictors[name] = self._make(name)
            for note in getattr(found, "notes", ()):
                self._tell(note)
        return self._predictors[name]

    def model(self, name: str) -> ChatModel:
        """A model of the recipe's `models`, or `base`."""
        if name not in self._models:
            self._models[name] = self._base() if name == "base" else self._open(name, self.recipe.models[name])
        return self._models[name]

    @property
    def spent_usd(self) -> float:
        """What all answers cost, this time and before."""
        return self._money[1].spent_usd if self._money else 0.0

    # -- strategies -----------------------------------------------------------------------------------

    def _make(self, name: str) -> Predictor:
        config = self.recipe.strategies.get(name)
        seed = self.recipe.seed
        match config:
            case None:
                return self._built_in(name)
            case PromptConfig():
                return Prompting(name, self.task, self.model(config.model), config, self._train, seed)
            case VoteConfig():
                voters = [self.predictor(one) for one in config.of] if isinstance(config.of, list) else config.of
                asked: Any = self.predictor(voters) if isinstance(voters, str) else voters
                return Vote(name, self.task, asked, n=config.n, temperature=config.temperature)
            case NegotiateConfig():
                speakers = self.model(config.generator), self.model(config.discriminator)
                return Negotiation(name, self.task, *speakers, config, self._train, seed)
            case CascadeConfig():
                return self._cascade(name, config)
        assert_never(config)

    def _cascade(self, name: str, config: CascadeConfig) -> Cascade:
        """The threshold is chosen on validation; the second is asked there only where an accuracy is wanted."""
        first, then = self.predictor(config.first), self.predictor(config.then)
        rows = [example for example in self._validation if example.output is not None]
        inputs = [example.inputs for example in rows]
        seconds = then.predict(inputs) if config.accuracy is not None else None
        threshold = choose_threshold(
            first.predict(inputs),
            seconds,
            [example.output for example in rows],
            self.task,
            accuracy=config.accuracy,
            max_share=config.max_share,
            first_name=config.first,
        )
        self._tell(f"{name}: {threshold.told}")
        return Cascade(name, self.task, first, then, threshold)

    # -- models ---------------------------------------------------------------------------------------

    def _open(self, name: str, config: ModelConfig) -> ChatModel:
        answer = self.recipe.answer
        if config.provider is None:
            stored = str(load_config(config.model, config.revision).dtype).removeprefix("torch.")
            dtype = "float32" if stored in ("None", "float32") else "bfloat16"
            loaded = load_spec(BaseSpec(config.model, config.revision, dtype=dtype))
            loaded.model.eval()
            style = prompt_style(loaded.tokenizer, config.chat_template, config.model)
            return LocalChat(
                name,
                loaded,
                style,
                batch_size=answer.batch_size,
                max_text_tokens=answer.max_text_tokens,
                describe=config.describe,
            )
        if self._money is None:
            cache = AnswerCache(self._answers)
            self._money = cache, Budget(self._cap_usd, cache.spent_usd)
        asker = connect_model(config, *self._money, self._tell)
        return Endpoint(
            name,
            config.model,
            asker,
            structured=config.structured,
            describe=config.describe,
            max_tokens=config.max_tokens,
        )


def models_under(recipe: Recipe, name: str) -> set[str]:
    """Names of the models that a strategy asks, itself or through others; empty for a built-in system."""
    config = recipe.strategies.get(name)
    if config is None:
        return set()
    return set(models_of(config)).union(*(models_under(recipe, inner) for inner in inner_of(config)))


def built_in_under(recipe: Recipe, name: str) -> set[str]:
    """Names of the systems that are no strategies and that a name stands on."""
    config = recipe.strategies.get(name)
    if config is None:
        return {name}
    base = {"zero-shot"} if "base" in models_of(config) else set[str]()
    return base.union(*(built_in_under(recipe, inner) for inner in inner_of(config)))
