"""Words and vectors together: what either finds, ranked by both.

Comes in: a question. Goes out: hits as ProductIndex gives them, with the scores of reciprocal-rank fusion. Vectors find
what was said in other words or in another language that the model knows; words find names and numbers. How sure a hit
is stays a matter of words (support.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from afina.retrieval.embedding import SentenceModel
from afina.retrieval.fusion import reciprocal_rank_fusion
from afina.retrieval.index import ProductIndex
from afina.retrieval.passage import Hit
from afina.retrieval.vectors import VectorIndex, build_vectors

VECTORS = "vectors"  # folder beside the words'
DEPTH = 50  # hits of each kind that are ranked together


class DenseIndex(ProductIndex):
    """A ProductIndex that searches by vectors too."""

    vectors: VectorIndex

    @classmethod
    def build_dense(
        cls,
        folder: Path,
        shards: Sequence[Path],
        *,
        model: str,
        catalogue_key: str,
        tell: Callable[[str], None] = print,
    ) -> DenseIndex:
        """Make `folder` the index of these shards, words and vectors, and open it. model: as of SentenceModel.

        Goes on where a killed call stopped. Raises what ProductIndex.build and SentenceModel do.
        """
        loaded = SentenceModel(model)
        ProductIndex.build(folder, shards, catalogue_key=catalogue_key, tell=tell)
        build_vectors(folder / VECTORS, shards, loaded, tell)
        return cls._open(folder, loaded, catalogue_key)

    @classmethod
    def open_dense(cls, folder: Path, *, model: str, catalogue_key: str | None = None) -> DenseIndex:
        """The finished index in `folder`. Raises RunError as ProductIndex.open, and for vectors of another model."""
        return cls._open(folder, SentenceModel(model), catalogue_key)

    @classmethod
    def _open(cls, folder: Path, model: SentenceModel, catalogue_key: str | None) -> DenseIndex:
        index = cls.open(folder, catalogue_key=catalogue_key)
        index.vectors = VectorIndex.open(folder / VECTORS, model)
        return index

    def search(self, question: str, k: int, *, exclude: Collection[str] = ()) -> list[Hit]:
        """The best `k` products by words and vectors, best first. Any text is a question; none raises."""
        if k < 1:
            return []
        depth = max(k, DEPTH)
        by_words = super().search(question, depth, exclude=exclude)
        passed = frozenset(exclude)
        nearest = self.vectors.search(question, depth + min(len(passed), DEPTH))
        by_vectors = [uid for uid, _ in nearest if uid not in passed][:depth]
        passages = {hit.passage.uid: hit.passage for hit in by_words}
        hits: list[Hit] = []
        for uid, score in reciprocal_rank_fusion([list(passages), by_vectors])[:k]:
            passage = passages.get(uid) or self.get(uid)
            assert passage is not None, f"the vectors hold {uid!r}, the words do not"
            hits.append(Hit(passage, round(score, 6)))
        return hits
