"""Who answers: a name of `compare` becomes a predictor, and its answers to the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from afina.core.predictor import Example, Prediction, Predictor
from afina.core.storage import read_json
from afina.data.prepare import Prepared
from afina.engine.loader import LoadedModel, load_spec
from afina.engine.renderer import Style, prompt_style
from afina.evaluation.perplexity import perplexity
from afina.evaluation.runner import SystemRun, run_system
from afina.pipeline.opening import ANSWERS, say
from afina.pipeline.planning import settings_of
from afina.pipeline.training import train
from afina.runs import Run
from afina.strategies.build import Builder
from afina.strategies.classical import Majority, TfidfLogistic
from afina.strategies.finetuned import Specialist
from afina.strategies.local import LocalPredictor
from afina.strategies.local_chat import LocalChat
from afina.training import local

Answerer = Callable[[str], SystemRun]
"""A name of `compare` -> that system's answers to the test rows."""


def answer_locally(opened: Run, prepared: Prepared) -> Answerer:
    """Systems on this machine, and the strategies of the recipe."""
    builder = strategy_builder(opened, prepared)
    return partial(answers_of, opened, prepared, builder)


def answers_of(opened: Run, prepared: Prepared, builder: Builder, name: str) -> SystemRun:
    """One system's answers to the test rows."""
    test, recipe = prepared.splits["test"], opened.recipe
    config = recipe.strategies.get(name)
    strategy = config.strategy if config is not None else name
    predictor = builder.predictor(name)
    if config is not None:
        say(f"{name}: answering {len(test)} rows")
        return run_system(predictor, test, strategy, num_timed=0)
    base_model = recipe.train.base_model if strategy in ("zero-shot", "finetuned") else None
    found = run_system(predictor, test, strategy, base_model)
    if opened.task.free_text and isinstance(predictor, WithProgress):
        found = replace(found, perplexity=gold_perplexity(predictor.predictor, test))
    if strategy != "finetuned":
        return found
    training = read_json(opened.training / local.RESULT)
    peak = max(found.peak_memory_bytes or 0, training["peak_memory_bytes"])
    return replace(found, peak_memory_bytes=peak, train_seconds=training["train_seconds"])


def gold_perplexity(predictor: LocalPredictor, test: Sequence[Example]) -> Mapping[str, Any] | None:
    """How likely a local model finds the gold texts behind its own prompts."""
    part = predictor.task.parts[0]
    rows = [predictor.renderer.encode(part, example) for example in test]
    texts = [str(example.output) for example in test]
    return perplexity(predictor.model, rows, texts, max_length=predictor.max_length)


def strategy_builder(
    opened: Run, prepared: Prepared, built_in: Callable[[str], Predictor | None] = lambda name: None
) -> Builder:
    """What makes predictors of the recipe's names. built_in: knows more names than `compare` alone."""
    recipe = opened.recipe

    def known(name: str) -> Predictor:
        return built_in(name) or make_built_in(opened, prepared, name)

    return Builder(
        recipe,
        opened.task,
        {name: prepared.splits[name] for name in ("train", "validation")},
        built_in=known,
        base=lambda: base_chat(opened, prepared),
        answers=opened.folder / ANSWERS,
        cap_usd=recipe.comparison.max_cost_usd,
        tell=say,
    )


def make_built_in(opened: Run, prepared: Prepared, name: str) -> Predictor:
    """A system that is no strategy of the recipe."""
    train_rows, task = prepared.splits["train"], opened.task
    if name == "majority":
        return Majority(task, train_rows)
    if name == "tfidf":
        say("tfidf: choosing its settings on validation")
        return TfidfLogistic(task, train_rows, prepared.splits["validation"], opened.recipe.seed)
    if name == "nearest":
        from afina.strategies.nearest import Nearest

        say("nearest: choosing its settings on validation")
        return Nearest(task, train_rows, prepared.splits["validation"])
    if name == "finetuned":
        return WithProgress(Specialist.load(train(opened), batch_size=opened.recipe.answer.batch_size).predictor)
    return WithProgress(_zero_shot(opened, prepared))


def _base(opened: Run, prepared: Prepared) -> tuple[LoadedModel, Style]:
    """The base model as it is."""
    settings, _ = settings_of(opened, prepared)
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    loaded.model.eval()
    train = opened.recipe.train
    return loaded, prompt_style(loaded.tokenizer, train.chat_template, train.base_model)


def base_chat(opened: Run, prepared: Prepared) -> LocalChat:
    answer = opened.recipe.answer
    loaded, style = _base(opened, prepared)
    return LocalChat("base", loaded, style, batch_size=answer.batch_size, max_text_tokens=answer.max_text_tokens)


def _zero_shot(opened: Run, prepared: Prepared) -> LocalPredictor:
    """The base model, told the labels in its prompt, held to them by the same engine."""
    loaded, style = _base(opened, prepared)
    return LocalPredictor(
        "zero-shot",
        loaded.model,
        loaded.tokenizer,
        opened.task,
        style=style,
        show_schema=True,
        answer_format=opened.recipe.answer.answer_format,
        batch_size=opened.recipe.answer.batch_size,
        max_text_tokens=opened.recipe.answer.max_text_tokens,
        no_repeat_ngram_size=opened.recipe.answer.no_repeat_ngram_size,
    )


class WithProgress:
    """A local predictor that shows its progress where there is something to wait for."""

    def __init__(self, predictor: LocalPredictor, label: str | None = None) -> None:
        self.predictor, self.name, self.label = predictor, predictor.name, label or predictor.name

    def predict(self, inputs: Sequence[Any]) -> list[Prediction]:
        return self.predictor.predict(inputs, label=self.label if len(inputs) > 1 else None)
