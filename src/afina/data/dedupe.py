"""Near-duplicate clusters: MinHash LSH proposes pairs, the true Jaccard similarity decides.

Comes in: texts of examples. Goes out: a cluster number for each example, and what was found. Word
3-grams; texts of few words are compared by 5-grams of characters. Knows nothing of files or splits.

Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import itertools
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from afina.core.predictor import Example
from afina.core.schema import dumps
from afina.core.task import Task

NUM_PERMUTATIONS = 128
MINHASH_SEED = 1
WORDS_PER_SHINGLE, CHARACTERS_PER_SHINGLE = 3, 5
# Texts of 8 to 11 words are compared both ways, so that a pair on either side of the border is found.
FEWEST_WORDS, SHORT_BELOW = 8, 12
MISSED = 1e-3  # share of pairs at the threshold that LSH may fail to propose


class _Plain(dict[int, str]):
    """Code point -> itself, space for punctuation, nothing for invisible characters."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = " " if category[0] in "PZ" or category == "Cc" else "" if category == "Cf" else chr(code)
        return self[code]


_PLAIN = _Plain()


def normalise_text(text: str) -> str:
    """Folded case, compatible forms (NFKC), no punctuation, single spaces; digits and emoji stay.

    A text of punctuation alone stays as it is: "?!" and "..." are not the same.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PLAIN).split()) or folded.strip()


def _hashed(pieces: set[str]) -> frozenset[int]:
    return frozenset(zlib.crc32(piece.encode("utf-8", "replace")) for piece in pieces)


def word_shingles(text: str) -> frozenset[int]:
    """Hashes of the 3-grams of words of a normalised text; empty for short texts."""
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return frozenset()
    n = WORDS_PER_SHINGLE
    return _hashed({" ".join(words[i : i + n]) for i in range(len(words) - n + 1)})


def character_shingles(text: str) -> frozenset[int]:
    """Hashes of the 5-grams of characters of a normalised text; empty for texts of many words."""
    if text.count(" ") + 1 >= SHORT_BELOW:
        return frozenset()
    n = CHARACTERS_PER_SHINGLE
    return _hashed({text[i : i + n] for i in range(max(1, len(text) - n + 1))})


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Size of the intersection over size of the union, in [0, 1]."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0


def lsh_bands(threshold: float) -> tuple[int, int]:
    """(bands, rows): the most selective that miss at most MISSED of the pairs at the threshold."""
    for rows in range(NUM_PERMUTATIONS, 0, -1):
        bands = NUM_PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return NUM_PERMUTATIONS, 1


class ShingleIndex:
    """LSH over shingle sets, in one of the two ways of cutting a text. Sets that are empty are left out."""

    def __init__(self, threshold: float) -> None:
        bands, rows = lsh_bands(threshold)
        # At threshold 1 there is one band; datasketch wants two.
        self._params = (max(2, bands), rows if bands >= 2 else NUM_PERMUTATIONS // 2)
        self._lsh = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=self._params)
        self._blank = MinHash(num_perm=NUM_PERMUTATIONS, seed=MINHASH_SEED, hashfunc=int)

    def signature(self, shingles: frozenset[int]) -> MinHash:
        signature = self._blank.copy()
        signature.update_batch(shingles)
        return signature

    def add(self, key: tuple[int, Any], signature: MinHash) -> None:
        self._lsh.insert(key, signature, check_duplication=False)

    def candidates(self, signature: MinHash) -> list[tuple[int, Any]]:
        """Keys that may be similar, in no order: nothing that is made of them depends on it."""
        return self._lsh.query(signature)  # type: ignore[return-value]


class Components:
    """Union-find with path halving; the smallest member names its component."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)


@dataclass
class Duplicates:
    """What clustering found. clusters: number of each example's cluster, from 0 in order of appearance.

    exact: examples whose normalised inputs stood before; near: other examples that joined an earlier one.
    conflicts: groups of examples with the same normalised inputs and different outputs.
    """

    clusters: list[int]
    exact: int = 0
    near: int = 0
    largest: int = 0
    conflicts: list[list[int]] = field(default_factory=list)

    @property
    def num_clusters(self) -> int:
        return len(set(self.clusters))


def example_texts(example: Example, task: Task) -> list[str]:
    """The normalised texts that must not stand on both sides of a split: all inputs, and each part's."""
    texts = ["\n".join(example.inputs[name] for name in task.inputs)]
    if task.part_inputs:
        texts += ["\n".join(text for _, text in part.shown(example.inputs)) for part in task.parts]
    return list(dict.fromkeys(text for text in map(normalise_text, texts) if text))


def find_duplicates(examples: Sequence[Example], task: Task, threshold: float) -> Duplicates:
    """Cluster examples that share a text, or have texts with Jaccard similarity of at least `threshold`."""
    owners: dict[str, int] = {}  # text -> the first example that has it
    whole: dict[str, list[int]] = {}
    components = Components(len(examples))
    for number, example in enumerate(examples):
        texts = example_texts(example, task)
        whole.setdefault(texts[0] if texts else "", []).append(number)
        for text in texts:
            components.join(owners.setdefault(text, number), number)
    for a, b in _near_pairs(list(owners), list(owners.values()), threshold, components):
        components.join(a, b)
    roots = [components.find(number) for number in range(len(examples))]
    numbers = {root: index for index, root in enumerate(dict.fromkeys(roots))}
    exact = sum(len(group) - 1 for group in whole.values())
    conflicts = [group for group in whole.values() if len({dumps(examples[i].output) for i in group}) > 1]
    sizes = np.bincount([numbers[root] for root in roots]) if roots else np.zeros(1, int)
    return Duplicates(
        [numbers[root] for root in roots], exact, len(examples) - len(numbers) - exact, int(sizes.max()), conflicts
    )


def _near_pairs(
    texts: Sequence[str], owners: Sequence[int], threshold: float, components: Components
) -> Iterator[tuple[int, int]]:
    """Pairs of owners with similar texts; pairs that are already in one component are not compared."""
    for cut in (word_shingles, character_shingles):
        index, sets = ShingleIndex(threshold), dict[int, frozenset[int]]()
        for key, text in enumerate(texts):
            shingles = cut(text)
            if not shingles:
                continue
            signature = index.signature(shingles)
            for other, a in index.candidates(signature):
                b = owners[key]
                if components.find(a) != components.find(b) and jaccard(sets[other], shingles) >= threshold:
                    yield a, b
            sets[key] = shingles
            index.add((key, owners[key]), signature)


@dataclass
class Similarity:
    """Between two splits. highest: Jaccard similarity of the most alike texts that LSH proposed.

    pairs: pairs of texts at or above the threshold.
    """

    highest: float = 0.0
    pairs: int = 0


def across_splits(
    splits: Mapping[str, Sequence[Example]], task: Task, threshold: float
) -> dict[tuple[str, str], Similarity]:
    """Look again for near-duplicates between splits, without what clustering remembers.

    Keys are pairs of split names, in the order of `splits`.
    """
    found = {pair: Similarity() for pair in itertools.combinations(splits, 2)}
    texts = [(name, text) for name, examples in splits.items() for e in examples for text in example_texts(e, task)]
    for cut in (word_shingles, character_shingles):
        index, sets = ShingleIndex(threshold), dict[int, frozenset[int]]()
        for key, (name, text) in enumerate(dict.fromkeys(texts)):
            shingles = cut(text)
            if not shingles:
                continue
            signature = index.signature(shingles)
            for other, theirs in index.candidates(signature):
                if theirs != name:
                    similarity = jaccard(sets[other], shingles)
                    pair = found[theirs, name]
                    pair.highest = max(pair.highest, similarity)
                    pair.pairs += similarity >= threshold
            sets[key] = shingles
            index.add((key, name), signature)
    return found


def describe_duplicates(found: Duplicates, examples: Sequence[Example], at_most: int = 20) -> Mapping[str, Any]:
    """For report.json; conflicts are named, the first `at_most` of them."""
    return {
        "clusters": found.num_clusters,
        "exact_duplicates": found.exact,
        "near_duplicates": found.near,
        "largest_cluster": found.largest,
        "conflicting_labels": len(found.conflicts),
        "conflicts": [
            [{"id": examples[i].id, "line": examples[i].line, "output": examples[i].output} for i in group[:5]]
            for group in found.conflicts[:at_most]
        ],
    }
