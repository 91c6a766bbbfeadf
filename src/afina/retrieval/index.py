"""All products of a catalogue, found by words: BM25 over title and content (tantivy), on disk.

Comes in: a question as a user wrote it. Goes out: the products that answer it best, with scores. It knows nothing of
models, prompts or runs; how sure a hit is stands in support.py.

Scores are BM25 (Robertson & Zaragoza 2009) of each field by itself, added up, the title's TITLE_WEIGHT times. Both
fields weigh a word by one rarity, that in the field where it is commoner: small words are rare in titles, and would
count there as if they told anything. On 3,954 public products with questions that name them whole, in part, misspelt or
in other words, weight 4 with one rarity finds as many as weight 3 with two, and more of those that quote the content;
stems find more of those with another ending.

A word that stands in hundreds of thousands of products costs as much to look up as it tells little. So the telling
words find (`_telling`), and all words rank what they found: on 1.4 million products as many are found as with all, in a
quarter of the time.

Two indexes of the same products answer the same, in whatever pieces they were built: equal scores are ordered by uid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from afina.retrieval.building import build, open_words
from afina.retrieval.passage import Hit, Passage
from afina.retrieval.record import WORDS, Record, check_files, usable_record
from afina.retrieval.spelling import meant
from afina.retrieval.words import FRAME_WEIGHT, MAX_TERMS, Term, import_tantivy, question_words

TITLE_WEIGHT = 4.0
REPAIRED, MOST_REPAIRED = 0.7, 3  # weight of a word that was written otherwise; how many in a question
MORE = 11  # hits looked at beyond those asked for: all words may rank them otherwise than the telling ones
MOST = 4_096  # excluded products that are counted with, and equal ones
COST = 60_000  # entries of words' lists that are read to find hits
SURE_WORDS, SURE_COST = 4, 300_000  # the same for the most telling words: all may be common
EQUAL = 1e-5  # scores nearer than this share are equal: they are sums in single precision
DIGITS = 4
"""Of a score."""


class ProductIndex:
    """An index that was opened. Safe for several threads. num_products: how many it holds."""

    def __init__(self, folder: Path, record: Record, index: Any) -> None:
        self.folder, self.record = folder, record
        self.num_products = record.num_products
        self._searcher, self._schema = index.searcher(), index.schema
        self._tantivy = import_tantivy()

    @classmethod
    def build(
        cls, folder: Path, shards: Sequence[Path], *, catalogue_key: str, tell: Callable[[str], None] = print
    ) -> ProductIndex:
        """Make `folder` the index of these Parquet shards (columns uid, title, content), and open it.

        Goes on where a killed call stopped; adds new shards only; says why where all is built anew.
        Errors: building.py.
        """
        build(folder, shards, catalogue_key=catalogue_key, tell=tell)
        return cls.open(folder, catalogue_key=catalogue_key)

    @classmethod
    def open(cls, folder: Path, *, catalogue_key: str | None = None) -> Self:
        """The finished index in `folder`; every byte of it is read once and checked.

        Raises RunError where there is none, or one that is damaged, not finished, of another version, or of another
        catalogue than `catalogue_key`.
        """
        import_tantivy()
        record = usable_record(folder, catalogue_key)
        check_files(folder / WORDS, record.files)
        return cls(folder, record, open_words(folder))

    def search(self, question: str, k: int, *, exclude: Collection[str] = ()) -> list[Hit]:
        """The best `k` products that share a word with the question, best first; fewer or none if fewer do.

        exclude: uids that are passed over. Any text is a question; none raises.
        """
        clauses = self._clauses(self.terms(question)) if k > 0 else []
        if not clauses:
            return []
        passed, limit = frozenset(exclude), k + MORE + min(len(exclude), MOST)
        while True:
            found, all_found = self._found(clauses, limit)
            hits = [hit for hit in found if hit.passage.uid not in passed]
            if all_found or len(hits) >= k or limit >= k + 2 * MOST:
                return _ordered(hits)[:k]
            limit *= 2

    def _found(self, clauses: Sequence[Clause], limit: int) -> tuple[list[Hit], bool]:
        """The `limit` best hits by the telling clauses, ranked by all of them; and whether these are all there are.

        Of the last ones those with equal scores are left out together: which of them come first is chance.
        """
        telling = _telling(clauses)
        found = self._searcher.search(self._any(telling), limit, count=False).hits
        all_found = len(found) < limit
        if not all_found:
            found = [pair for pair in found if not _equal(pair[0], found[-1][0])]
        passages = {_place(address): self._passage(address) for _, address in found}
        if len(telling) < len(clauses) and passages:
            kinds, occur = self._tantivy.Query, self._tantivy.Occur
            uids = [passage.uid for passage in passages.values()]
            among = kinds.const_score_query(kinds.term_set_query(self._schema, "uid", uids), 0.0)
            query = kinds.boolean_query([(occur.Must, among), (occur.Should, self._any(clauses))])
            found = self._searcher.search(query, len(uids), count=False).hits
        hits = [Hit(passages[_place(at)], float(score)) for score, at in found if _place(at) in passages]
        return hits, all_found

    def get(self, uid: str) -> Passage | None:
        """The product of that uid."""
        if any("\ud800" <= letter <= "\udfff" for letter in uid):
            return None  # half a character: in no file
        query = self._tantivy.Query.term_query(self._schema, "uid", uid, "basic")
        found = self._searcher.search(query, 1, count=False).hits
        return self._passage(found[0][1]) if found else None

    def terms(self, question: str) -> list[Term]:
        """What is looked for: the MAX_TERMS most telling words of the question, in its order, missing ones included."""
        words = question_words(question)
        terms = [self.term(word, weight) for word, weight in words.items()]
        missing = [term.text for term in terms if not any(term.found) and term.weight == 1][:MOST_REPAIRED]
        terms = [self._meant(term) if term.text in missing else term for term in terms]
        telling = sorted(terms, key=lambda term: term.weight * self.rarity(term), reverse=True)[:MAX_TERMS]
        kept = {term.text for term in telling}
        return [term for term in terms if term.text in kept]

    def term(self, word: str, weight: float = 1.0) -> Term:
        """A word as the index keeps them, and how many products have it."""
        return Term(word, weight, (self._count("title", word), self._count("content", word)))

    def _meant(self, term: Term) -> Term:
        """The word of titles that was probably meant by one that no product has."""
        other = meant(term.text, lambda word: self._count("title", word))
        return term if other is None else replace(self.term(other, REPAIRED), written=term.text)

    def rarity(self, term: Term) -> float:
        """How much a word tells: its inverse document frequency, as BM25 has it. Higher for those nowhere found."""
        return idf(max(term.found), self.num_products)

    def _count(self, field: str, word: str) -> int:
        return int(self._searcher.doc_freq(field, word))

    def _clauses(self, terms: Sequence[Term]) -> list[Clause]:
        """One for each word and each field that has it, the most telling first.

        What frames a product is sought in titles alone: "What is" may belong to one, and tells nothing of a content.
        """
        clauses: list[Clause] = []
        for term in terms:
            tells = term.weight * self.rarity(term)
            for field, found, factor in zip(("title", "content"), term.found, (TITLE_WEIGHT, 1.0), strict=True):
                in_frame = term.weight <= FRAME_WEIGHT
                if found and not (in_frame and field == "content"):
                    boost = factor * tells / idf(found, self.num_products)
                    clauses.append(Clause(field, term.text, found, tells, boost, in_frame))
        return sorted(clauses, key=lambda clause: (-clause.tells, clause.found))

    def _any(self, clauses: Sequence[Clause]) -> Any:
        """Products that have any of the words, scored by all they have."""
        kinds, should = self._tantivy.Query, self._tantivy.Occur.Should
        return kinds.boolean_query(
            [
                (should, kinds.boost_query(kinds.term_query(self._schema, one.field, one.word, "freq"), one.boost))
                for one in clauses
            ]
        )

    def _passage(self, address: Any) -> Passage:
        stored = self._searcher.doc(address)
        return Passage(*(stored.get_first(name) for name in ("uid", "title", "content")))


@dataclass(frozen=True)
class Clause:
    """A word in a field. found: products that have it there. tells: its rarity, weighed. boost: of its BM25 score.

    in_frame: it stands around the product in the question (words.py).
    """

    field: str
    word: str
    found: int
    tells: float
    boost: float
    in_frame: bool


def _telling(clauses: Sequence[Clause]) -> list[Clause]:
    """The clauses that find; the others only rank what these found.

    Of the SURE_WORDS most telling words up to SURE_COST, of further ones up to COST, one at least. Words around the
    product are never among the sure ones, unless the question has no others.
    """
    cost, chosen, words = 0, list[Clause](), dict[str, None]()
    for clause in clauses:
        words.setdefault(clause.word)
        sure = len(words) <= SURE_WORDS and not clause.in_frame
        if not chosen or cost + clause.found <= (SURE_COST if sure else COST):
            chosen.append(clause)
            cost += clause.found
    return chosen


def _place(address: Any) -> tuple[int, int]:
    return address.segment_ord, address.doc


def idf(found: int, total: int) -> float:
    """ln(1 + (N - n + 0.5) / (n + 0.5)): above 0, up to ln(2N + 2)."""
    return math.log(1 + (total - found + 0.5) / (found + 0.5))


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= EQUAL * max(abs(a), abs(b))


def _ordered(hits: Sequence[Hit]) -> list[Hit]:
    """Best first; runs of equal scores by uid, and with the first one's score."""
    runs: list[list[Hit]] = []
    for hit in hits:
        if runs and _equal(runs[-1][0].score, hit.score):
            runs[-1].append(hit)
        else:
            runs.append([hit])
    return [
        Hit(hit.passage, round(run[0].score, DIGITS))
        for run in runs
        for hit in sorted(run, key=lambda h: h.passage.uid)
    ]
