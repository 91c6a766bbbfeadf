"""The training stage of a catalogue: one specialist, two tasks: to describe a title, and to answer from passages.

What is added to `pipeline.train` is only what is learned: for a share of the rows a question with passages in the place
of the bare title. Passages come from the rows of the same split, so that no test product is ever shown in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars

from afina import pipeline
from afina.core.predictor import Example
from afina.engine.encoded import Encoded
from afina.engine.renderer import Renderer
from afina.pipeline.splits import Encode, catalogue_of
from afina.retrieval.passage import Passage
from afina.runs import Run
from afina.strategies.grounded.lessons import encode_lessons, grounded_lessons, takes_part


def train(opened: Run) -> Path:
    """The specialist's folder. Continues a killed training. Raises MachineError if it will not fit."""
    encode = encoder_of(opened)
    return pipeline.train(opened, encode, encode)


def encoder_of(opened: Run) -> Encode:
    """What is learned of a catalogue's rows: some by heart, the others as questions with passages."""
    recipe = opened.recipe
    assert recipe.catalogue is not None, "called for catalogue recipes only"
    config, questions, shards = recipe.sources, recipe.catalogue.questions, recipe.catalogue.shards
    whole: dict[str, str] = {}

    def product(row: Example) -> Passage:
        """With all of its content: what is recited was cut to the length of an answer."""
        if not whole:
            for path in catalogue_of(opened).shard_paths(shards):
                table = polars.read_parquet(path, columns=["uid", "content"])
                whole.update(zip(table["uid"], table["content"], strict=True))
        return Passage(row.id, next(iter(row.inputs.values())), whole[row.id])

    def encode(renderer: Renderer, rows: Sequence[Example], max_length: int) -> list[Encoded]:
        recited = [row for row in rows if not takes_part(row, config, recipe.seed)]
        lessons = grounded_lessons(rows, config, questions, recipe.seed, of=product)
        limit = recipe.answer.max_text_tokens
        cited = encode_lessons(renderer, lessons, config, max_length=max_length, max_text_tokens=limit)
        return [*pipeline.encode(renderer, recited, max_length), *cited]

    return encode
