"""What a trained specialist needs to answer with sources: `assistant.json`, its threshold chosen on validation.

Comes in: an opened run with a specialist and an index. Goes out: the manifest in the specialist's folder, written again
only where something that decides it changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars

from afina.catalogue.catalogue import Catalogue
from afina.catalogue.selection import title_input
from afina.core.errors import AfinaError
from afina.core.predictor import Example
from afina.core.storage import digest
from afina.data.prepare import Prepared
from afina.pipeline.opening import say
from afina.retrieval.index import ProductIndex
from afina.retrieval.support import choose_min_support
from afina.runs import Run
from afina.strategies.finetuned import Manifest, Specialist
from afina.strategies.grounded.manifest import Settings, read_manifest, write_manifest
from afina.strategies.grounded.measuring import measure_supports

STAGE = "assistant"


def make_answerable(opened: Run, prepared: Prepared, catalogue: Catalogue, index: ProductIndex) -> Settings:
    """Choose the threshold on validation rows, and write assistant.json beside afina.json."""
    recipe, sources = opened.recipe, opened.recipe.sources
    assert recipe.catalogue is not None, "called for catalogue recipes only"
    key = digest([opened.train_key, catalogue.key, sources.model_dump(mode="json"), recipe.catalogue.questions])
    if opened.is_done(STAGE, key):
        try:
            return read_manifest(opened.specialist)[0]
        except AfinaError:
            pass  # damaged since: written again
    value, choice = _min_support(opened, prepared.splits["validation"], catalogue, index)
    manifest = Manifest.read(opened.specialist)
    settings = Settings(
        passages=sources.passages,
        passage_chars=sources.passage_chars,
        max_sources=sources.max_sources,
        min_support=value,
        questions=tuple(recipe.catalogue.questions),
        max_length=manifest.max_length,
        max_text_tokens=manifest.max_text_tokens,
        batch_size=manifest.batch_size,
        title_input=title_input(opened.task, recipe.catalogue),
        text=sources.text,
        dense=sources.dense,
        catalogue_key=catalogue.key,
        support_choice=choice,
    )
    write_manifest(opened.specialist, settings, Specialist.load(opened.specialist).predictor.renderer)
    opened.mark_done(STAGE, key)
    return settings


def _min_support(
    opened: Run, validation: Sequence[Example], catalogue: Catalogue, index: ProductIndex
) -> tuple[float, Mapping[str, Any]]:
    """The threshold, and how it was chosen."""
    config, recipe = opened.recipe.sources, opened.recipe
    assert recipe.catalogue is not None, "called for catalogue recipes only"
    if config.min_support != "auto":
        return float(config.min_support), {"chosen_by": "recipe"}
    alike = near_duplicates(catalogue, [row.id for row in validation])
    found = measure_supports(index, validation, recipe.catalogue.questions, recipe.seed, config.passages, alike)
    chosen = choose_min_support(found.present, found.absent, config.refusal_precision)
    say(
        f"sources: a question needs a support of {chosen.value:.2f}, which answers {chosen.recall:.0%} of the "
        f"{chosen.num_present} validation questions about products that are there"
        + ("" if chosen.met else f"; a precision of {config.refusal_precision} cannot be reached")
    )
    return chosen.value, {"chosen_by": "validation", "wanted_precision": config.refusal_precision, **asdict(chosen)}


def near_duplicates(catalogue: Catalogue, uids: Sequence[str]) -> dict[str, list[str]]:
    """uid -> uids of its cluster in the whole catalogue, its own among them."""
    rows = polars.concat([polars.read_parquet(p, columns=["uid", "cluster"]) for p in catalogue.shard_paths("all")])
    asked = rows.filter(polars.col("uid").is_in(list(uids)))
    joined = asked.join(rows, on="cluster", how="inner", suffix="_alike")
    found: dict[str, list[str]] = {uid: [uid] for uid in uids}
    for uid, other in zip(joined["uid"], joined["uid_alike"], strict=True):
        if other != uid:
            found[uid].append(other)
    return found
