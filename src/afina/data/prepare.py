"""Recipe -> train, validation and test examples in a folder, with an account of every row.

Comes in: a recipe, its task, and a way to count an example's tokens. Goes out: `Prepared`, and in the
folder train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl and report.json. Knows nothing of
models: token lengths come from a function that the caller brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.config import DataConfig, Recipe
from afina.core.errors import DataError, RunError
from afina.core.predictor import Example
from afina.core.progress import Progress, progress
from afina.core.storage import ensure_folder, read_json, read_jsonl, write_json, write_jsonl
from afina.core.task import Task
from afina.data.account import summary_lines
from afina.data.dedupe import Duplicates, across_splits, describe_duplicates, find_duplicates
from afina.data.examples import Examples, read_examples
from afina.data.split import SPLITS, check_labels, label_table, split_by_cluster
from afina.data.table import Rejection, count_kinds, name_some

__all__ = ["Prepared", "load_prepared", "prepare", "summary_lines"]

REPORT_VERSION = 1
TokenLengths = Callable[[Example], int]


@dataclass
class Prepared:
    """splits: train, validation, test -> examples in file order. report: what report.json holds."""

    splits: dict[str, list[Example]]
    report: dict[str, Any]


def prepare(recipe: Recipe, task: Task, folder: Path, token_lengths: TokenLengths | None = None) -> Prepared:
    """Read, check, cluster, split and write.

    token_lengths: tokens of one example as it is trained on (of its longest part, for a task with parts).
    Raises DataError; nothing is written then.
    """
    data = recipe.data
    shares = shares_of(data)
    # 1. Rows -> examples, of every file that the recipe names.
    sources = _read_sources(data, task)
    rejected = [rejection for source in sources.values() for rejection in source.rejected]
    # 2. What does not fit the model.
    lengths = None
    if token_lengths:
        lengths, too_long = measure_lengths(sources, token_lengths, recipe)
        rejected += too_long
    notes = check_labels(sources["train"].examples, task, data.min_examples_per_label, str(data.path))
    # 3. Clusters over all files together, then the split.
    duplicates = _cluster(sources, task, data.near_duplicate_threshold)
    everything = [example for source in sources.values() for example in source.examples]
    described = describe_duplicates(duplicates, everything)
    splits = split_by_cluster(sources["train"].examples, task, shares, recipe.seed, str(data.path))
    splits |= {name: source.examples for name, source in sources.items() if name != "train"}
    removed = remove_leaks(splits, sources)
    rejected += removed
    splits = {name: splits[name] for name in SPLITS}
    _refuse_empty_split(data, splits, removed)
    # 4. The account.
    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "sources": [describe_source(name, _path(data, name), source) for name, source in sources.items()],
        "rows": {
            "read": sum(source.num_read for source in sources.values()),
            "usable": sum(map(len, splits.values())),
            "rejected": len(rejected),
        },
        "rejected": count_kinds(rejected),
        "first_rejected": {r.kind: asdict(r) for r in reversed(rejected)},
        "duplicates": described,
        "splits": {name: len(examples) for name, examples in splits.items()},
        "split_clusters": {name: len({e.cluster for e in examples}) for name, examples in splits.items()},
        "leakage": measure_leakage(splits, task, data.near_duplicate_threshold, len(removed)),
        "labels": label_table(splits, task),
        "lengths": lengths,
        "notes": notes,
    }
    write_prepared(folder, splits, rejected, report)
    return Prepared(splits, report)


def shares_of(data: DataConfig) -> dict[str, float]:
    """Split name -> share, of the splits that come from data.path."""
    shares = {}
    if data.validation_path is None:
        shares["validation"] = data.validation_size
    if data.test_path is None:
        shares["test"] = data.test_size
    rest = 1 - sum(shares.values())
    assert rest > 0, "the recipe refuses sizes that leave nothing to train on"
    return {"train": rest, **shares}


def _path(data: DataConfig, name: str) -> Path:
    path = {"train": data.path, "validation": data.validation_path, "test": data.test_path}[name]
    assert path is not None
    return path


def _read_sources(data: DataConfig, task: Task) -> dict[str, Examples]:
    """File role -> its examples; "train" is data.path, whatever is split off from it."""
    sources = {"train": read_examples(data, task, data.path)}
    for name, path in (("validation", data.validation_path), ("test", data.test_path)):
        if path is not None:
            sources[name] = read_examples(data, task, path, id_prefix=f"{name}:")
    return sources


def _cluster(sources: Mapping[str, Examples], task: Task, threshold: float) -> Duplicates:
    """Number the clusters of all files' examples, and write the number into them."""
    everything = [example for source in sources.values() for example in source.examples]
    duplicates = find_duplicates(everything, task, threshold)
    clusters = iter(duplicates.clusters)
    for source in sources.values():
        source.examples = [replace(example, cluster=next(clusters)) for example in source.examples]
    return duplicates


def remove_leaks(splits: dict[str, list[Example]], sources: Mapping[str, Examples]) -> list[Rejection]:
    """Take out of train what is near-duplicate of validation or test, and of validation what is of test.

    Only files of their own can cause it; rows split from one file are split by cluster.
    """
    removed: list[Rejection] = []
    for name, guarded in (("validation", ("test",)), ("train", ("validation", "test"))):
        owners = {e.cluster: (other, e.id) for other in guarded for e in splits[other]}
        kept = [example for example in splits[name] if example.cluster not in owners]
        source = sources.get(name, sources["train"])
        for example in splits[name]:
            if example.cluster in owners:
                other, identity = owners[example.cluster]
                reason = f"near-duplicate of the {other} row {identity!r}: removed from {name}"
                removed.append(Rejection(example.line, f"leak into {other}", reason, "", source.name))
        splits[name] = kept
    return removed


def _refuse_empty_split(
    data: DataConfig, splits: Mapping[str, Sequence[Example]], removed: Sequence[Rejection]
) -> None:
    if empty := [name for name, examples in splits.items() if not examples]:
        found = ", ".join(f"{name} {len(examples)}" for name, examples in splits.items())
        own = [str(path) for path in (data.validation_path, data.test_path) if path is not None]
        cause, fix = "", "Add rows, or change data.test_size and data.validation_size."
        if removed:
            cause = f" after {len(removed)} rows were removed that are near-duplicates of rows in {' or '.join(own)}"
            fix = "Name a test table with other rows, or leave data.test_path out, so that the test is split off."
        raise DataError(f"{data.path}: the split {name_some(empty)} has no examples{cause} ({found}). {fix}")


def measure_leakage(
    splits: Mapping[str, Sequence[Example]], task: Task, threshold: float, num_removed: int
) -> dict[str, Any]:
    """Similarity across the splits, measured again on what was split."""
    similar = across_splits(splits, task, threshold)
    pairs = sum(found.pairs for found in similar.values())
    assert pairs == 0, f"{pairs} near-duplicate pairs cross the split: {similar}"
    return {
        "threshold": threshold,
        "pairs": pairs,
        "highest_similarity": {"-".join(names): round(found.highest, 4) for names, found in similar.items()},
        "removed": num_removed,
    }


# -- length ------------------------------------------------------------------------------------


def measure_lengths(
    sources: Mapping[str, Examples], token_lengths: TokenLengths, recipe: Recipe
) -> tuple[dict[str, Any], list[Rejection]]:
    """Token lengths of all examples; what data.on_too_long: drop leaves out is taken from the sources."""
    limit, choice = recipe.train.max_length, recipe.data.on_too_long
    with progress("counting tokens", sum(len(s.examples) for s in sources.values())) as bar:
        measured = {name: [_length(e, token_lengths, bar) for e in s.examples] for name, s in sources.items()}
    lengths = np.array([length for column in measured.values() for length in column])
    above: list[tuple[str, Example, int]] = [
        (name, example, length)
        for name, source in sources.items()
        for example, length in zip(source.examples, measured[name], strict=True)
        if length > limit
    ]
    described = {
        "min": int(lengths.min()),
        **{f"p{q}": int(np.percentile(lengths, q, method="higher")) for q in (50, 90, 99)},
        "max": int(lengths.max()),
        "max_length": limit,
        "above": len(above),
        "on_too_long": choice,
    }
    if not above or choice == "truncate":
        return described, []
    if choice == "refuse":
        raise DataError(_too_long(above, limit, int(lengths.max()), recipe.data))
    dropped = [
        Rejection(e.line, "too long", f"{length} tokens, train.max_length is {limit}", "", sources[name].name)
        for name, e, length in above
    ]
    for name, source in sources.items():
        source.examples = [e for e, n in zip(source.examples, measured[name], strict=True) if n <= limit]
    if not sources["train"].examples:
        raise DataError(f"every example is longer than train.max_length {limit}. Set it to {described['max']}.")
    return described, dropped


def _length(example: Example, token_lengths: TokenLengths, bar: Progress) -> int:
    bar.advance()
    return token_lengths(example)


def _too_long(above: Sequence[tuple[str, Example, int]], limit: int, longest: int, data: DataConfig) -> str:
    places = name_some([f"{_path(data, name).name}:{e.line} ({length} tokens)" for name, e, length in above])
    return (
        f"{len(above)} example{'s are' if len(above) > 1 else ' is'} longer than train.max_length {limit}: {places}. "
        f"Choose one: train.max_length: {longest} (keeps all), data.on_too_long: truncate (cuts the inputs), or "
        "data.on_too_long: drop (leaves them out, and says so)."
    )


# -- files -------------------------------------------------------------------------------------


def describe_source(role: str, path: Path, source: Examples) -> dict[str, Any]:
    table = source.table
    return {
        "role": role,
        "path": str(path),
        "sha256": table.sha256,
        "format": table.format,
        "encoding": table.encoding,
        "columns": table.columns,
        "rows_read": source.num_read,
        "rows_rejected": len(source.rejected),
        "notes": source.notes,
    }


def write_prepared(
    folder: Path, splits: Mapping[str, Sequence[Example]], rejected: Sequence[Rejection], report: Mapping[str, Any]
) -> None:
    """Every file whole or absent; report.json last, so that it stands only beside complete splits."""
    ensure_folder(folder)
    (folder / "report.json").unlink(missing_ok=True)
    for name, examples in splits.items():
        write_jsonl(folder / f"{name}.jsonl", (_to_json(example) for example in examples))
    write_jsonl(folder / "rejected.jsonl", (rejection.to_json() for rejection in rejected))
    write_json(folder / "report.json", report)


def _to_json(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "line": example.line,
        "cluster": example.cluster,
        "inputs": dict(example.inputs),
        "output": example.output,
        "reasoning": dict(example.reasoning),
    }


def load_prepared(folder: Path) -> Prepared:
    """What `prepare` wrote. Raises RunError if the folder holds no complete preparation."""
    try:
        report = read_json(folder / "report.json")
        splits = {name: [Example(**row) for row in read_jsonl(folder / f"{name}.jsonl")] for name in SPLITS}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{folder}: holds no complete prepared data ({error}). Run: afina prepare RECIPE.yaml"
        ) from error
    counts = {name: len(examples) for name, examples in splits.items()}
    if counts != report.get("splits"):
        raise RunError(
            f"{folder}: the splits hold {counts} examples, but report.json says {report.get('splits')}. "
            "Run: afina prepare RECIPE.yaml"
        )
    return Prepared(splits, report)
