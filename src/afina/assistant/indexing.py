"""The index stage: every kept row of every shard becomes searchable, whatever the recipe learns from."""

from __future__ import annotations

from afina.catalogue.catalogue import Catalogue
from afina.pipeline.opening import say
from afina.retrieval.dense import DenseIndex
from afina.retrieval.index import ProductIndex
from afina.runs import Run


def index(opened: Run, catalogue: Catalogue) -> ProductIndex:
    """The index of the run's catalogue; built, continued, or only opened. Raises RunError, MachineError."""
    shards, model = catalogue.shard_paths("all"), opened.recipe.sources.dense
    if model is None:
        return ProductIndex.build(opened.index, shards, catalogue_key=catalogue.key, tell=say)
    return DenseIndex.build_dense(opened.index, shards, model=model, catalogue_key=catalogue.key, tell=say)
