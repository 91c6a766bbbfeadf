"""Products that are easily taken for another one: the distractors of training.

Comes in: training rows. Goes out: for each row, other rows that its question would find. Only rows that were given can
come out: an index of the whole catalogue would also find those of the test. By words, as the index searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from afina.retrieval.passage import Passage

LEAD_CHARS = 200  # of a content, which are searched beside the title
BLOCK_CELLS = 20_000_000  # similarities held at once, at most: 240 MB
# A word in more rows tells none from another: a share of them, and a number that keeps large tables quick.
COMMON_SHARE, COMMON_ROWS, FEW_ROWS = 0.2, 5_000, 50


def neighbours(passages: Sequence[Passage], wanted: Sequence[int], count: int) -> Iterator[list[int]]:
    """For each of `wanted`, the `count` most similar rows, best first, itself left out; ties by number.

    TF-IDF of title and the content's beginning, cosine. Rows that share no word are left out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [f"{p.title} {p.title} {p.content[:LEAD_CHARS]}" for p in passages]
    try:
        common = int(max(FEW_ROWS, min(COMMON_SHARE * len(texts), COMMON_ROWS)))
        matrix: Any = TfidfVectorizer(sublinear_tf=True, strip_accents="unicode", max_df=common).fit_transform(texts)
    except ValueError:  # no row has a word
        yield from ([] for _ in wanted)
        return
    block_rows = max(1, BLOCK_CELLS // len(texts))
    for start in range(0, len(wanted), block_rows):
        block = list(wanted[start : start + block_rows])
        similar = (matrix[block] @ matrix.T).tocsr()
        for row, number in enumerate(block):
            places = slice(similar.indptr[row], similar.indptr[row + 1])
            others, scores = similar.indices[places], similar.data[places]
            order = np.lexsort((others, -scores))
            yield [int(others[i]) for i in order if others[i] != number][:count]
