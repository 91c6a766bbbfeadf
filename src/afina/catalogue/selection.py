"""Rows of the chosen shards -> train, validation and test examples of "title -> description".

Kept as `data.prepare` keeps any other task's.
Comes in: a prepared catalogue, the recipe, and how texts are shortened and counted. Goes out: `Prepared`, written like
any other task's, so that training, evaluation and all that follows need not know of catalogues. The split is the
catalogue's own; what still resembles a test row is taken out of the training rows, and it is said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars

from afina.catalogue.catalogue import Catalogue
from afina.core.catalogue_config import CatalogueConfig
from afina.core.config import Recipe
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.storage import write_jsonl
from afina.core.task import Task
from afina.data.dedupe import describe_duplicates, find_duplicates
from afina.data.examples import Examples
from afina.data.prepare import (
    REPORT_VERSION,
    Prepared,
    TokenLengths,
    describe_source,
    measure_leakage,
    measure_lengths,
    remove_leaks,
    write_prepared,
)
from afina.data.split import SPLITS
from afina.data.table import Rejection, Table, count_kinds

CONTENT = Task("content", "", {"content": "content"}, {"type": "string"}, free_text=True)
"""What near-duplicates are judged by: two different products may have nearly one title."""
Shorten = Callable[[str], str]


def prepare_selection(
    recipe: Recipe,
    task: Task,
    catalogue: Catalogue,
    folder: Path,
    token_lengths: TokenLengths | None = None,
    shorten: Shorten | None = None,
) -> Prepared:
    """Choose, shorten, check and write. Raises DataError; nothing is written then.

    shorten: a content as far as an answer may be long, to the end of a sentence; "" where nothing fits.
    """
    config = recipe.catalogue
    assert config is not None, "called for catalogue recipes only"
    name = title_input(task, config)
    # 1. The rows, a seeded sample where the recipe sets a limit.
    rows = _chosen_rows(catalogue, config, recipe.seed)
    examples, places, rejected, num_cut = _examples(rows, name, shorten)
    # 2. What does not fit the model, then what is too much alike across the split.
    table = Table([config.title, config.content], [], format="shards", encoding="UTF-8")
    source = Examples(config.path.name, examples, [], table, len(rows))
    lengths = None
    if token_lengths:
        lengths, too_long = measure_lengths({"train": source}, token_lengths, recipe)
        rejected += too_long
    contents, found = _cluster(source, config.near_duplicate_threshold)
    splits = {split: [e for e in source.examples if places[e.id] == split] for split in SPLITS}
    removed = remove_leaks(splits, {"train": source})
    rejected += removed
    _refuse_empty(splits, config)
    # 3. The account.
    source.rejected = rejected
    judged = {split: [contents[e.id] for e in splits[split]] for split in SPLITS}
    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "sources": [describe_source("train", config.path, source)],
        "rows": {"read": len(rows), "usable": sum(map(len, splits.values())), "rejected": len(rejected)},
        "rejected": count_kinds(rejected),
        "first_rejected": {r.kind: asdict(r) for r in reversed(rejected)},
        "duplicates": found,
        "splits": {split: len(rows) for split, rows in splits.items()},
        "split_clusters": {split: len({e.cluster for e in rows}) for split, rows in splits.items()},
        "leakage": measure_leakage(judged, CONTENT, config.near_duplicate_threshold, len(removed)),
        "labels": {},
        "lengths": lengths,
        "notes": [f"{num_cut:,} contents were cut at a sentence's end to the length of an answer"] if num_cut else [],
    }
    write_prepared(folder, splits, rejected, report)
    return Prepared(splits, report)


def title_input(task: Task, config: CatalogueConfig) -> str:
    """The name under which the task shows the title. Raises DataError if it asks for anything else."""
    if list(task.inputs.values()) not in ([config.title], ["title"]):
        raise DataError(
            f"task.inputs: found {dict(task.inputs)}, expected only the title's column {config.title!r}. "
            "A catalogue teaches title -> description."
        )
    return next(iter(task.inputs))


def _chosen_rows(catalogue: Catalogue, config: CatalogueConfig, seed: int) -> polars.DataFrame:
    """Rows of the chosen shards in file order; of each split as many as the recipe allows, drawn by the seed."""
    rows = polars.concat([polars.read_parquet(path) for path in catalogue.shard_paths(config.shards)])
    limits = {"train": config.max_train_rows, "validation": config.max_validation_rows, "test": config.max_test_rows}
    chosen: list[int] = []
    for split, limit in limits.items():
        numbers = rows.with_row_index("number").filter(polars.col("split") == split)["number"].to_list()
        if limit is not None and len(numbers) > limit:
            numbers = random.Random(f"{seed} {split}").sample(numbers, limit)
        chosen += numbers
    return rows[sorted(chosen)]


def write_round(
    catalogue: Catalogue, config: CatalogueConfig, shards: str, seed: int, path: Path, shorten: Shorten | None = None
) -> None:
    """The rows of one round as a table with uid, title and content, for `train.rounds`; not written again."""
    rows = _chosen_rows(catalogue, config.model_copy(update={"shards": shards}), seed)
    contents = rows["content"].to_list() if shorten is None else [shorten(text) for text in rows["content"]]
    found = zip(rows["uid"], rows["title"], contents, strict=True)
    write_jsonl(path, ({"uid": uid, "title": title, "content": content} for uid, title, content in found if content))


def _examples(
    rows: polars.DataFrame, name: str, shorten: Shorten | None
) -> tuple[list[Example], dict[str, str], list[Rejection], int]:
    """Examples, each id's split, rows that cannot be learned, and how many contents were cut."""
    examples: list[Example] = []
    places: dict[str, str] = {}
    rejected: list[Rejection] = []
    num_cut = 0
    for row in rows.iter_rows(named=True):
        content = row["content"] if shorten is None else shorten(row["content"])
        if not content:
            rejected.append(Rejection(row["line"], "too long", "not even the content's first words fit into an answer"))
            continue
        num_cut += len(content) < len(row["content"])
        places[row["uid"]] = row["split"]
        examples.append(Example(row["uid"], {name: row["title"]}, content, line=row["line"]))
    return examples, places, rejected, num_cut


def _cluster(source: Examples, threshold: float) -> tuple[dict[str, Example], dict[str, Any]]:
    """Write cluster numbers into the examples. Gives by id the contents they were judged by, and what was found."""
    contents = [replace(e, inputs={"content": str(e.output)}) for e in source.examples]
    found = find_duplicates(contents, CONTENT, threshold)
    source.examples = [replace(e, cluster=c) for e, c in zip(source.examples, found.clusters, strict=True)]
    described = {**describe_duplicates(found, contents), "conflicting_labels": 0, "conflicts": []}
    return {e.id: e for e in contents}, described


def _refuse_empty(splits: dict[str, list[Example]], config: CatalogueConfig) -> None:
    empty: Sequence[str] = [split for split in SPLITS if not splits[split]]
    if empty:
        raise DataError(
            f"{config.path}: no usable row of the shards {config.shards} is left for {', '.join(empty)}. "
            "Name more shards with catalogue.shards, or raise catalogue.max_validation_rows and max_test_rows."
        )
