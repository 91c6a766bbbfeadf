"""How surely the catalogue holds what is asked, and from where on that is enough to answer.

Comes in: a question and what was found for it. Goes out: a number in [0, 1], and a threshold chosen on questions about
products that are there and that are not. It knows nothing of models: whether an answer is right is not judged here.

A search always finds something. What tells a product that is there from its neighbours is which words are missing: of
the question's words, weighed by rarity, how many stand in the title (the number of a model counts more than "steel"),
and of the title's words, how many were asked for. Being a ratio of words, it does not move with the size of the
catalogue, as scores do.

Measured on 4,600 questions over 3,954 public products, English and Portuguese: names whole, in part, misspelt, in
another order; the same with the product and its near duplicates taken out; invented names. Area under the ROC curve:
this measure 0.98; words in title or content by rarity alone 0.95; the BM25 score over that of an ideal title 0.93; the
share of the title that was asked for 0.89; the lead over the second hit 0.80.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from afina.retrieval.index import ProductIndex
from afina.retrieval.passage import Hit, Passage
from afina.retrieval.words import FRAME_WEIGHT, Term, stems

HITS = 3  # the best of them may stand second
READ_CHARS = 5_000  # of a content
RARITY_POWER = 1.5  # 1 forgives a missing number among many words, 3 forgives nothing
IN_CONTENT = 0.5  # what a word in the content counts that is not in the title
MISSPELT = 0.5  # what a word counts that stands there otherwise
TITLE_POWER, TITLE_FLOOR = 0.15, 0.1  # how much the rest of the title weighs; a title of which nothing was asked


def support(index: ProductIndex, question: str, hits: Sequence[Hit]) -> float:
    """How surely one of the first hits is what the question asks for, in [0, 1]; 0 without hits.

    hits: what `index.search` found for the question, best first.
    """
    terms = [term for term in index.terms(question) if term.weight > FRAME_WEIGHT]  # "What is" is missing nowhere
    if not hits or not terms:
        return 0.0
    # A word that nobody wrote so tells as much as one that is nowhere, whatever was meant.
    weights = [_weight(index, term) for term in terms]
    asked = {term.text for term in terms}
    return max(_one(index, terms, weights, asked, hit.passage) for hit in hits[:HITS])


def _weight(index: ProductIndex, term: Term) -> float:
    return index.rarity(replace(term, found=(0, 0)) if term.written else term) ** RARITY_POWER


def _one(
    index: ProductIndex, terms: Sequence[Term], weights: Sequence[float], asked: set[str], passage: Passage
) -> float:
    title, content = set(stems(passage.title)), set(stems(passage.content[:READ_CHARS]))
    found = 0.0
    for term, weight in zip(terms, weights, strict=True):
        place = 1.0 if term.text in title else IN_CONTENT if term.text in content else 0.0
        found += weight * place * (MISSPELT if term.written else 1.0)
    rarities = {word: index.rarity(index.term(word)) for word in sorted(title)}
    share = sum(rarities[word] for word in sorted(title & asked)) / max(sum(rarities.values()), 1e-9)
    return found / sum(weights) * (TITLE_FLOOR + (1 - TITLE_FLOOR) * share) ** TITLE_POWER


# -- how much is enough ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """A question is answered where its support is at least `value`.

    precision: of the answered questions, the share whose product is there; its 95 % Wilson interval beside it (both
    None where none is answered). recall: of the questions whose product is there, the share that is answered. met:
    whether the precision that was asked for is reached; if it cannot be, this is the highest one that can.
    """

    value: float
    precision: float | None
    precision_ci: tuple[float, float] | None
    recall: float
    num_present: int
    num_absent: int
    met: bool


def choose_min_support(
    present: Sequence[float],
    absent: Sequence[float],
    precision: float,
    *,
    by: Literal["estimate", "lower_bound"] = "estimate",
) -> Threshold:
    """The smallest threshold with at least that precision, which is the one that answers most.

    present, absent: supports of questions whose product is and is not in the catalogue. Precision depends on how many
    there are of each: give them as they will be asked.
    by: what must reach `precision`, the share as it was seen or the lower end of its Wilson interval. The smallest of
    many thresholds is lucky in part, so by "estimate" expect a little less on other questions.
    The value lies halfway between the answered and the refused question nearest to it; 0 where all are answered.
    """
    values = np.concatenate([np.asarray(present, dtype=np.float64), np.asarray(absent, dtype=np.float64)])
    assert not len(values) or (values.min() >= 0 and values.max() <= 1), "a support lies in [0, 1]"
    there = np.concatenate([np.ones(len(present), dtype=bool), np.zeros(len(absent), dtype=bool)])
    best: tuple[float, float, Threshold] | None = None
    cuts = np.unique(values)  # ascending
    for at, cut in enumerate(cuts):
        answered = values >= cut
        right, count = int(there[answered].sum()), int(answered.sum())
        interval = wilson(right, count)
        reached = right / count if by == "estimate" else interval[0]
        value = float((cut + cuts[at - 1]) / 2) if at else 0.0
        recall = right / max(1, len(present))
        found = Threshold(value, right / count, interval, recall, len(present), len(absent), reached >= precision)
        if found.met:
            return found
        if best is None or (reached, recall) > best[:2]:
            best = (reached, recall, found)
    return best[2] if best else Threshold(0.0, None, None, 0.0, len(present), len(absent), False)


def wilson(right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's (1927) interval of the share right/count; z: of the level, here 95 %."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
