"""A question and its passages -> one part of the grounded task, which fits the model and can cite nothing else.

Comes in: a question, products, a renderer. Goes out: `Asked`: the part with its own schema, the prompt's inputs, and
what each label means. Training and serving ask through the same function.

The answer is either the word "absent", or sources and then a text:

    {"sources": ["Mog's Kittens (0001360000): Now, even infants can enjoy ..."], "answer": "Now, even ..."}

A source's label begins with the title, as the passage's line does: to choose it, a model goes on as the question and
the passage go on, which even a small one can. Its uid is forced by the grammar, its sentence chosen among those of that
passage. Sources come before the text, so that the text is written with its evidence before the model's eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from afina.core.catalogue_config import SourcesConfig
from afina.core.errors import DataError, ModelError
from afina.core.predictor import Inputs
from afina.core.schema import Schema, dumps
from afina.core.task import Part, Task
from afina.engine.codec import Codec
from afina.engine.renderer import Renderer
from afina.engine.spelling import AnswerFormat
from afina.engine.writer import Writer
from afina.retrieval.passage import Passage
from afina.strategies.grounded.passages import Quote, Shown, show
from afina.strategies.grounded.question import cut

ABSENT = "absent"
INSTRUCTION = "Answer the question with sentences of these passages."
ANSWER_FORMAT: AnswerFormat = "json"
PROMPT_VERSION = 1
MIN_PASSAGE_CHARS = 40
QUESTION_SHARE = 3  # a question may take one part in so many of the model's length
FRAME = '{"sources":[],"answer":""}'
CLOSING_TOKENS = 12  # an escape that the text's limit falls into, the end, and what other borders of tokens cost
SHOWN_INPUTS = (("passages", "passages"), ("question", "question"))


def answer_schema(labels: Sequence[str], max_sources: int) -> Schema:
    """What the model may write. labels: at least one."""
    sources: Schema = {
        "type": "array", "items": {"enum": list(labels)}, "uniqueItems": True, "minItems": 1,
        "maxItems": min(max_sources, len(labels)),
    }  # fmt: skip
    found: Schema = {
        "type": "object",
        "properties": {"sources": sources, "answer": {"type": "string"}},
        "required": ["sources", "answer"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"enum": [ABSENT]}, found]}


GROUNDED = Task(
    name="grounded",
    instruction=INSTRUCTION,
    inputs={"passages": "passages", "question": "question"},
    output=answer_schema(["..."], 1),
)
"""The task without passages; what is asked has the labels of its own."""


@dataclass(frozen=True)
class Asked:
    """One question as it is put to a model.

    inputs: of the prompt. part: its schema knows this prompt's labels alone. question_cut: characters left out of it.
    """

    question: str
    shown: Shown
    part: Part
    inputs: Inputs
    ids: list[int]
    question_cut: int = 0

    @cached_property
    def _by_label(self) -> dict[str, Quote]:
        return {quote.label: quote for quote in self.shown.quotes}

    def quote(self, label: str) -> Quote:
        return self._by_label[label]


def grounded_renderer(renderer: Renderer) -> Renderer:
    """The same tokenizer and style, for questions with passages."""
    size = renderer.no_repeat_ngram_size
    return Renderer(GROUNDED, renderer.codec, renderer.style, answer_format=ANSWER_FORMAT, no_repeat_ngram_size=size)


def ask(
    renderer: Renderer,
    question: str,
    passages: Sequence[Passage],
    config: SourcesConfig,
    *,
    max_length: int,
    max_text_tokens: int,
) -> Asked:
    """The longest passages that fit, each as long as the others may be; then fewer of them.

    renderer: of the grounded task. max_length: tokens of prompt and answer together. max_text_tokens: of the answer's
    text. Raises DataError where not even one short passage fits.
    """
    allowed = max_length // QUESTION_SHARE
    fitting = renderer.shorten(question, allowed) or cut(question, allowed)
    chosen = list(passages[: config.passages])
    frame = len(renderer.codec.answer_text(FRAME))
    while True:

        def made(chars: int, chosen: list[Passage] = chosen) -> tuple[Asked, int]:
            asked, sources = _asked(renderer, fitting, show(chosen, chars), config.max_sources)
            return asked, len(asked.ids) + frame + sources + max_text_tokens + CLOSING_TOKENS

        found = _longest(made, config.passage_chars, max_length)
        if found is not None:
            return replace(found, question_cut=len(question) - len(fitting))
        if len(chosen) < 2:
            raise DataError(
                f"a question with one passage does not fit in {max_length} tokens, of which {max_text_tokens} are kept "
                "for the answer. Raise train.max_length, or lower answer.max_text_tokens."
            )
        chosen = chosen[:-1]


def _longest(made: Callable[[int], tuple[Asked, int]], max_chars: int, max_length: int) -> Asked | None:
    """What is made of the most characters a passage that fit; None where the fewest do not."""
    asked, needed = made(max_chars)
    if needed <= max_length:
        return asked
    low, high, best = MIN_PASSAGE_CHARS, max_chars, None
    while low < high:
        middle = (low + high) // 2
        asked, needed = made(middle)
        if needed <= max_length:
            low, best = middle + 10, asked
        else:
            high = middle - 10
    return best


def _asked(renderer: Renderer, question: str, shown: Shown, max_sources: int) -> tuple[Asked, int]:
    """The question, and the tokens that its longest sources take."""
    lengths = {quote.label: _length(renderer.codec, quote.label) for quote in shown.quotes}
    # What a tokenizer has no characters for can not be written, and so not be cited.
    shown = replace(shown, quotes=tuple(quote for quote in shown.quotes if lengths[quote.label]))
    if not shown.quotes:
        raise DataError("none of the passages found has a sentence that can be cited. Ask of another product.")
    part = Part("", SHOWN_INPUTS, answer_schema(shown.labels, max_sources))
    inputs = {"passages": "\n" + shown.text, "question": question}
    ids, _ = renderer.prompt(part, inputs)
    longest = sorted(lengths.values(), reverse=True)[:max_sources]
    return Asked(question, shown, part, inputs, ids), sum(longest) + len(longest)


def _length(codec: Codec, label: str) -> int:
    """Tokens of a label; 0 where this tokenizer lacks some of its characters."""
    try:
        return len(codec.answer_text(dumps(label)))
    except ModelError:
        return 0


def writer(renderer: Renderer, asked: Asked, max_text_tokens: int, gold: Any = None) -> Writer:
    return renderer.writer(asked.part, max_text_tokens) if gold is None else renderer.writer(asked.part, 0, gold)
