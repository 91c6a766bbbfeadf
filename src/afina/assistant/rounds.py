"""Chained rounds over a catalogue: shard 0, then shard 1 on top of that model; local or at a provider.

Comes in: a recipe with `catalogue.rounds`. Goes out: what `afina.rounds` makes of tables, under RUN/rounds: the
forgetting table says what each round cost the earlier ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from afina import pipeline, rounds
from afina.catalogue.selection import title_input, write_round
from afina.core.config import Recipe
from afina.core.storage import ensure_folder
from afina.pipeline.splits import catalogue_of
from afina.training.hosted import Agree


def train_rounds(recipe: Recipe, agree: Agree, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and judge every round. What rounds.json holds. A killed call goes on where it stopped."""
    config = recipe.catalogue
    assert config is not None, "called for catalogue recipes only"
    assert config.rounds is not None, "called for recipes with rounds only"
    opened = pipeline.open_recipe(recipe, overwrite=overwrite)
    name = title_input(opened.task, config)
    found = catalogue_of(opened)
    opened.claim()
    shorten = None
    if recipe.train.provider is None:
        shorten = partial(pipeline.renderer_of(opened).shorten, max_tokens=recipe.answer.max_text_tokens)
    folder = opened.folder / "rounds-tables"
    ensure_folder(folder)
    tables = [folder / f"round-{number}.jsonl" for number in range(1, len(config.rounds) + 1)]
    for table, shards in zip(tables, config.rounds, strict=True):
        if not table.exists():
            write_round(found, config, shards, recipe.seed, table, shorten)
    tabled = recipe.model_copy(
        update={
            "catalogue": None,
            "task": recipe.task.model_copy(update={"inputs": {name: "title"}}),
            "data": recipe.data.model_copy(
                update={"path": tables[0], "columns": {"": "content"}, "id_column": "uid", "format": "auto"}
            ),
            "train": recipe.train.model_copy(update={"rounds": tables}),
            "compare": ["finetuned"],
            "output_dir": opened.folder / "rounds",
        }
    )
    return rounds.train_rounds(tabled, agree, overwrite=overwrite)
