"""Clusters -> train, validation and test, each label in its share.

Comes in: examples with cluster numbers, the shares, a seed. Goes out: split name -> examples in file
order. Whole clusters only, so that no near-duplicate crosses. Knows nothing of texts or files.

Iterative stratification: Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data,
ECML PKDD 2011, algorithm 1, with clusters in the place of examples.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.task import Group, Task
from afina.data.table import name_some

SPLITS = ("train", "validation", "test")
NO_LABEL, ABSENT = "(none)", "(absent)"
LARGE = 0.05  # share of the smallest split
SAME = 1e-9  # desires closer than this are equal: they are sums of floating-point shares


def label_text(label: Any) -> str:
    """A label as it stands in tables: text as it is, other values as JSON."""
    return label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)


def group_labels(group: Group, example: Example) -> Iterator[str]:
    """The labels of one example in a group of fields, pooled over its fields; nothing for open values."""
    for field in group.fields:
        if field.labels is None:
            continue
        value = schemas.get(example.output, field.path)
        if value is None and None not in field.labels:
            yield ABSENT
        elif field.multi:
            yield from map(label_text, value) if value else (NO_LABEL,)
        else:
            yield label_text(value)


def label_table(splits: Mapping[str, Sequence[Example]], task: Task) -> dict[str, dict[str, dict[str, int]]]:
    """group -> label -> split -> count; labels of the schema come first, with zeros where unused."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for group in task.groups:
        if group.fields[0].labels is None:
            continue
        known = [label_text(label) for label in group.fields[0].labels]
        counts = {
            name: Counter(t for e in examples for t in group_labels(group, e)) for name, examples in splits.items()
        }
        extra = [label for label in (NO_LABEL, ABSENT) if any(label in c for c in counts.values())]
        table[group.name] = {label: {name: counts[name][label] for name in splits} for label in [*known, *extra]}
    return table


def check_labels(examples: Sequence[Example], task: Task, at_least: int, where: str = "the table") -> list[str]:
    """Notes on labels that never occur. Raises DataError for labels in fewer than `at_least` examples.

    where: the table's name, for the message.
    """
    notes: list[str] = []
    problems: list[str] = []
    for group in task.groups:
        if group.fields[0].labels is None:
            continue
        counts = Counter(label for example in examples for label in set(group_labels(group, example)))
        known = [label_text(label) for label in group.fields[0].labels]
        if unused := [label for label in known if not counts[label]]:
            notes.append(f"{group.name}: no example has {name_some(unused, 20)}; the model cannot learn it")
        for label in known:
            if 0 < counts[label] < at_least:
                lines = [e.line for e in examples if label in set(group_labels(group, e))]
                problems.append(
                    f"{where}: the label {label!r} of {group.name!r} stands in {counts[label]} "
                    f"example{'s' * (counts[label] != 1)} (line {name_some(lines)}), expected at least {at_least}"
                )
    if problems:
        raise DataError(
            "\n".join(problems)
            + "\nMap it to another label under data.labels, remove it from task.output, add examples, "
            "or allow it with data.min_examples_per_label: 0."
        )
    return notes


def split_by_cluster(
    examples: Sequence[Example], task: Task, shares: Mapping[str, float], seed: int, where: str = "the table"
) -> dict[str, list[Example]]:
    """Split whole clusters so that every split has its share of examples and of every label.

    shares: split name -> share, summing to 1. Deterministic in the examples and the seed.
    where: the table's name, for the message.
    Raises DataError when there are too few clusters for every split to have one.
    """
    members: dict[int, list[int]] = {}
    for number, example in enumerate(examples):
        members.setdefault(example.cluster, []).append(number)
    if len(members) < len(shares):
        raise DataError(f"{where}: {_too_few(len(examples), len(members), shares)}")
    clusters = list(members.values())
    counts_CL = _cluster_labels(examples, clusters, task)
    places = _stratify(counts_CL, np.array(list(map(len, clusters))), list(shares.values()), random.Random(seed))
    _fill_empty(places, clusters, len(shares))
    chosen: dict[str, list[Example]] = {}
    for place, name in enumerate(shares):
        numbers = sorted(n for c, cluster in enumerate(clusters) if places[c] == place for n in cluster)
        chosen[name] = [examples[n] for n in numbers]
    return chosen


def _too_few(num_examples: int, num_clusters: int, shares: Mapping[str, float]) -> str:
    names = ", ".join(shares)
    if num_clusters == 1 and num_examples > 1:
        return (
            f"all {num_examples} usable rows are near-duplicates of one another, so {names} would hold the same text. "
            "Add other rows, or raise data.near_duplicate_threshold if they are not alike."
        )
    return (
        f"found {num_examples} usable rows in {num_clusters} near-duplicate clusters, expected at least {len(shares)} "
        f"clusters, one each for {names}. Add rows, or name data.test_path and data.validation_path."
    )


def _cluster_labels(examples: Sequence[Example], clusters: Sequence[Sequence[int]], task: Task) -> np.ndarray:
    """Clusters x labels: how often each label of each group stands in each cluster."""
    columns: dict[tuple[str, str], int] = {}
    cells = [
        (c, columns.setdefault((group.name, label), len(columns)))
        for c, cluster in enumerate(clusters)
        for number in cluster
        for group in task.groups
        for label in group_labels(group, examples[number])
    ]
    counts_CL = np.zeros((len(clusters), len(columns)))
    for c, column in cells:
        counts_CL[c, column] += 1
    return counts_CL


def _stratify(counts_CL: np.ndarray, sizes_C: np.ndarray, shares: Sequence[float], rng: random.Random) -> np.ndarray:
    """The split's number of every cluster."""
    places_C = np.full(len(sizes_C), -1)
    desired_SL = np.outer(shares, counts_CL.sum(axis=0))
    desired_S = np.array(shares) * sizes_C.sum()
    remaining_L = counts_CL.sum(axis=0)
    order = list(range(len(sizes_C)))
    rng.shuffle(order)
    # Clusters that fill much of the smallest split come first, while there is room for them. The others stay
    # shuffled: the first to come go to the largest split, and duplicates would all end there.
    large = LARGE * min(shares) * sizes_C.sum()
    order.sort(key=lambda c: -sizes_C[c] if sizes_C[c] > large else 0)

    def place(c: int, wish_S: np.ndarray) -> None:
        best = np.flatnonzero(wish_S >= wish_S.max() - SAME)
        best = best[desired_S[best] >= desired_S[best].max() - SAME]
        s = int(best[rng.randrange(len(best))])
        places_C[c] = s
        desired_SL[s] -= counts_CL[c]
        desired_S[s] -= sizes_C[c]
        remaining_L[:] -= counts_CL[c]

    while (remaining_L > 0).any():
        # The rarest label first: the frequent ones can still be balanced with what is left.
        label = int(np.argmin(np.where(remaining_L > 0, remaining_L, np.inf)))
        for c in order:
            if places_C[c] < 0 and counts_CL[c, label]:
                place(c, desired_SL[:, label])
    for c in order:
        if places_C[c] < 0:
            place(c, desired_S)
    return places_C


def _fill_empty(places_C: np.ndarray, clusters: Sequence[Sequence[int]], num_splits: int) -> None:
    """Where a share is smaller than one cluster, give that split the smallest cluster of the largest split."""
    for s in range(num_splits):
        if not (places_C == s).any():
            donors = [c for c in range(len(clusters)) if (places_C == places_C[c]).sum() > 1]
            donor_split = Counter(int(places_C[c]) for c in donors).most_common(1)[0][0]
            smallest = min((c for c in donors if places_C[c] == donor_split), key=lambda c: (len(clusters[c]), c))
            places_C[smallest] = s
