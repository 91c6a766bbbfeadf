"""Which examples a prompt shows: the same for all rows, drawn by row, or those alike in words.

Comes in: worked examples of one question (`Shot`), and the rows that are asked. Goes out: at most k examples for each
row, in the order in which they stand in the prompt. All is deterministic. What a row may not see is left out: examples
of its own near-duplicate cluster, and those with its own texts. Knows nothing of messages or models.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from sklearn.preprocessing import normalize

from afina.core.storage import digest
from afina.data.dedupe import normalise_text
from afina.strategies.classical import Vectorisers

Choose = Literal["fixed", "random", "nearest"]
CHUNK = 256  # rows whose similarities to all examples are held at once
DECIMALS = 9  # of similarities that count: sums in another order may not break ties


@dataclass(frozen=True)
class Shot:
    """One worked example.

    texts: its inputs as shown. labels: values by which fixed examples are balanced, one per field. cluster: number of
    its near-duplicate cluster; -1 if it is in none. user, assistant: the turns that show it.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    cluster: int
    user: str
    assistant: str


@dataclass(frozen=True)
class Wanted:
    """A row that examples are wanted for. clusters: those that it may not see."""

    texts: tuple[str, ...]
    clusters: frozenset[int] = frozenset()


class Examples:
    """Chooses from `shots`, whose order settles ties.

    how: "fixed": the same for all rows, labels balanced as far as they can be; where a row may not see one of them, the
    next in line stands in. "random": drawn for each row by its texts, so equal rows get equal examples. "nearest": by
    cosine of TF-IDF of words and characters, the most similar last, next to the question.
    k: how many; fewer where there are not so many. seed: for fixed and random.
    """

    def __init__(self, shots: Sequence[Shot], how: Choose, k: int, seed: int) -> None:
        self.shots, self.how, self.k, self.seed = list(shots), how, k, seed
        self._of_cluster: dict[int, list[int]] = defaultdict(list)
        self._of_texts: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, shot in enumerate(self.shots):
            self._of_cluster[shot.cluster].append(index)
            self._of_texts[_plain(shot.texts)].append(index)
        self._balanced = _Line(balanced(self.shots, seed))

    def choose(self, rows: Sequence[Wanted]) -> list[list[Shot]]:
        """For each row its examples, in the order of the prompt."""
        if not self.shots or not self.k:
            return [[] for _ in rows]
        unseen = [self._unseen(row) for row in rows]
        if self.how == "nearest":
            found = self._nearest(rows, unseen)
        elif self.how == "random":
            found = [self._random(row, hidden) for row, hidden in zip(rows, unseen, strict=True)]
        else:
            found = [self._balanced.first(self.k, hidden) for hidden in unseen]
        return [[self.shots[index] for index in chosen] for chosen in found]

    def _unseen(self, row: Wanted) -> set[int]:
        """Indices of the shots that this row may not see."""
        hidden = set(self._of_texts.get(_plain(row.texts), ()))
        for cluster in row.clusters - {-1}:
            hidden.update(self._of_cluster.get(cluster, ()))
        return hidden

    def _random(self, row: Wanted, hidden: set[int]) -> list[int]:
        # Half a surrogate pair, which JSON can say, has no bytes to hash.
        said = [text.encode("utf-8", "replace").decode() for text in row.texts]
        rng = random.Random(digest([self.seed, said]))
        number = len(self.shots)
        if number - len(hidden) <= max(number // 2, 2 * self.k):
            left = [index for index in range(number) if index not in hidden]
            return rng.sample(left, min(self.k, len(left)))
        found: dict[int, None] = {}
        while len(found) < self.k:
            index = rng.randrange(number)
            if index not in hidden:
                found[index] = None
        return list(found)

    # -- alike in words ---------------------------------------------------------------------------

    @cached_property
    def _vectors(self) -> tuple[Vectorisers, Any]:
        """The vectorisers, and (F, N) features of the shots, each of length 1."""
        texts = [shot.texts for shot in self.shots]
        vectorisers = Vectorisers(texts)
        shots_NF: Any = normalize(vectorisers.transform(texts))
        return vectorisers, shots_NF.T.tocsr()

    def _nearest(self, rows: Sequence[Wanted], unseen: Sequence[set[int]]) -> list[list[int]]:
        vectorisers, shots_FN = self._vectors
        found: list[list[int]] = []
        for start in range(0, len(rows), CHUNK):
            asked = rows[start : start + CHUNK]
            features = normalize(vectorisers.transform([row.texts for row in asked]))
            alike_RN = np.round((features @ shots_FN).toarray(), DECIMALS)
            for alike_N, hidden in zip(alike_RN, unseen[start : start + CHUNK], strict=True):
                alike_N[list(hidden)] = -1.0
                found.append(_best(alike_N, min(self.k, len(self.shots) - len(hidden)))[::-1])
        return found


def _best(scores_N: np.ndarray, k: int) -> list[int]:
    """Indices of the k highest, the highest first, ties by order."""
    if k <= 0:
        return []
    least = np.partition(scores_N, -k)[-k]
    candidates = np.flatnonzero(scores_N >= least)
    return candidates[np.argsort(-scores_N[candidates], kind="stable")][:k].tolist()


def _plain(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(normalise_text(text) for text in texts)


# -- balanced ---------------------------------------------------------------------------------------


def balanced(shots: Sequence[Shot], seed: int) -> Iterator[int]:
    """Indices of all shots, each next one of labels that were had least so far, summed over the fields; ties by a
    shuffled order."""
    order = list(range(len(shots)))
    random.Random(seed).shuffle(order)
    waiting: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in order:
        waiting[shots[index].labels].append(index)
    queues = {labels: iter(indices) for labels, indices in waiting.items()}
    left = {labels: len(indices) for labels, indices in waiting.items()}
    had: Counter[tuple[int, str]] = Counter()
    while left:
        labels = min(left, key=lambda labels: sum(had[place] for place in enumerate(labels)))
        had.update(enumerate(labels))
        yield next(queues[labels])
        left[labels] -= 1
        if not left[labels]:
            del left[labels]


class _Line:
    """What an iterator gives, kept, and asked for no further than needed."""

    def __init__(self, source: Iterator[int]) -> None:
        self._source, self._kept = source, list[int]()

    def first(self, k: int, hidden: set[int]) -> list[int]:
        """The first k that are not hidden."""
        found: list[int] = []
        at = 0
        while len(found) < k:
            if at == len(self._kept):
                following = next(self._source, None)
                if following is None:
                    break
                self._kept.append(following)
            if self._kept[at] not in hidden:
                found.append(self._kept[at])
            at += 1
        return found
