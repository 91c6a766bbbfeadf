"""The data stage: a table, or a catalogue, becomes train, validation and test examples; and examples become tokens."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from afina.core.errors import RunError
from afina.core.predictor import Example
from afina.data.prepare import Prepared, load_prepared, shares_of, summary_lines
from afina.data.prepare import prepare as prepare_data
from afina.engine.codec import Codec
from afina.engine.encoded import Encoded
from afina.engine.loader import load_tokenizer
from afina.engine.renderer import Renderer, prompt_style
from afina.engine.writer import check_grammar
from afina.pipeline.opening import say
from afina.runs import STAGING, Run

if TYPE_CHECKING:
    from afina.catalogue.catalogue import Catalogue


Lengths = Callable[[Run], Callable[[Example], int]]
"""A run -> what counts an example's tokens."""


def prepare(opened: Run, *, quiet: bool = False, lengths: Lengths | None = None) -> Prepared:
    """Split examples, from the run folder if they are already there. Raises DataError, SchemaError.

    quiet: say nothing of what was found; the caller does. lengths: as the recipe's local model counts when not given.
    """
    if opened.is_done("prepare", opened.data_key):
        with contextlib.suppress(RunError):  # damaged since: they are made again
            prepared = load_prepared(opened.data)
            opened.claim()
            return prepared
    staging = opened.folder / STAGING
    try:
        prepared = _made(opened, staging, lengths)
        opened.claim()
    except BaseException:
        opened.release()
        raise
    shutil.rmtree(opened.data, ignore_errors=True)
    staging.rename(opened.data)
    opened.mark_done("prepare", opened.data_key)
    if not quiet:
        say(*summary_lines(prepared.report))
    return prepared


def _made(opened: Run, staging: Path, lengths: Lengths | None) -> Prepared:
    """The splits of the recipe's table, or of its catalogue's chosen shards."""
    recipe, task = opened.recipe, opened.task
    if recipe.catalogue is None:
        return prepare_data(recipe, task, staging, (lengths or _longest_part)(opened))
    from afina.catalogue.selection import prepare_selection, title_input  # libraries of the extra `assistant`

    title_input(task, recipe.catalogue)  # refused before hours of reading
    found = catalogue_of(opened)
    if lengths is not None:  # a provider counts and cuts
        return prepare_selection(recipe, task, found, staging, lengths(opened))
    shorten = partial(renderer_of(opened).shorten, max_tokens=recipe.answer.max_text_tokens)
    return prepare_selection(recipe, task, found, staging, _longest_part(opened), shorten)


def catalogue_of(opened: Run) -> Catalogue:
    """The recipe's catalogue as clean shards; made, continued, or only read. Raises DataError."""
    from afina.catalogue.prepare import prepare_catalogue

    recipe = opened.recipe
    assert recipe.catalogue is not None, "called for catalogue recipes only"
    return prepare_catalogue(recipe.catalogue, opened.catalogue, seed=recipe.seed, shares=shares_of(recipe.data))


def _longest_part(opened: Run) -> Callable[[Example], int]:
    """Tokens of an example's longest part. Raises SchemaError for what this tokenizer cannot write."""
    renderer = renderer_of(opened)
    for part in opened.task.parts:
        check_grammar(renderer.codec, part.schema)

    def longest(example: Example) -> int:
        encoded = [renderer.encode(part, example) for part in opened.task.parts]
        return max((len(one.input_ids) for one in encoded if one is not None), default=0)

    return longest


def renderer_of(opened: Run) -> Renderer:
    train = opened.recipe.train
    tokenizer = load_tokenizer(train.base_model, train.revision)
    style = prompt_style(tokenizer, train.chat_template, train.base_model)
    return Renderer(opened.task, Codec(tokenizer), style, answer_format=opened.recipe.answer.answer_format)


def encode(renderer: Renderer, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Every part of every example as training tokens."""
    found = [renderer.encode(part, e, max_length) for e in examples for part in renderer.task.parts]
    return [one for one in found if one is not None]


Encode = Callable[[Renderer, Sequence[Example], int], list[Encoded]]
"""As `encode`: examples as training tokens of at most so many; others leave out or add what is learned."""
