"""Which unlabelled texts hold rows that must stay unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from afina.data.dedupe import word_shingles

MIN_SHINGLES = 4  # shorter texts are phrases that many texts share


def contained_in(unseen: Sequence[str], texts: Sequence[str], threshold: float) -> list[bool]:
    """For each of `texts`: does it hold at least `threshold` of the word 3-grams of some unseen text?

    Containment, not similarity: a summary that quotes one test sentence is a leak however long it is.
    """
    owners: dict[int, list[int]] = {}
    sizes: list[int] = []
    for text in dict.fromkeys(unseen):
        shingles = word_shingles(text)
        if len(shingles) < MIN_SHINGLES:
            continue
        for shingle in shingles:
            owners.setdefault(shingle, []).append(len(sizes))
        sizes.append(len(shingles))
    found: list[bool] = []
    for text in texts:
        hits = Counter(owner for shingle in word_shingles(text) for owner in owners.get(shingle, ()))
        found.append(any(count >= threshold * sizes[owner] for owner, count in hits.items()))
    return found
