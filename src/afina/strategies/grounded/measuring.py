"""Questions about products that the catalogue holds and that it does not: what they show of an assistant.

Comes in: rows that are not learned from. Goes out: how well the index supports each kind, from which
`retrieval.support.choose_min_support` chooses; and answers as `evaluation.citations` judges them. A product is made
absent by passing it over in the search, and with it all that are near-duplicates of it or have its name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from afina.core.predictor import Example
from afina.evaluation.citations import Cited
from afina.retrieval.index import ProductIndex
from afina.retrieval.support import support
from afina.strategies.grounded.answer import Answer
from afina.strategies.grounded.question import one_line, question_about

SAME_NAME = 64  # hits looked through for products of the same name


@dataclass(frozen=True)
class Probe:
    """A question about a product. right: its uid and those of others of its name. alike: all that has to be passed over
    for it to be absent."""

    row: Example
    question: str
    right: frozenset[str]
    alike: frozenset[str]


@dataclass(frozen=True)
class Supports:
    """In [0, 1], one for each row. present: its product is in the index; absent: it is not."""

    present: tuple[float, ...]
    absent: tuple[float, ...]


def make_probes(
    index: ProductIndex,
    rows: Sequence[Example],
    questions: Sequence[str],
    seed: int,
    alike: Mapping[str, Collection[str]] | None = None,
) -> list[Probe]:
    """A question for each row; the same for the same rows and seed.

    rows: their ids are uids of the index. questions: templates. alike: uid -> uids of its near-duplicates, where they
    are known for the whole catalogue.
    """
    made: list[Probe] = []
    for row in rows:
        title = next(iter(row.inputs.values()), "")
        question = question_about(title, questions, f"{seed} probe {row.id}")
        name = one_line(title).casefold()
        found = index.search(question, SAME_NAME)
        same = {hit.passage.uid for hit in found if one_line(hit.passage.title).casefold() == name}
        right = frozenset({row.id, *same})
        made.append(Probe(row, question, right, right.union((alike or {}).get(row.id, ()))))
    return made


def measure_supports(
    index: ProductIndex,
    rows: Sequence[Example],
    questions: Sequence[str],
    seed: int,
    passages: int,
    alike: Mapping[str, Collection[str]] | None = None,
) -> Supports:
    """Of the questions of `make_probes`. rows: of validation. passages: that the model is shown at most."""
    present: list[float] = []
    absent: list[float] = []
    for probe in make_probes(index, rows, questions, seed, alike):
        present.append(support(index, probe.question, index.search(probe.question, passages)))
        others = index.search(probe.question, passages, exclude=probe.alike)
        absent.append(support(index, probe.question, others))
    return Supports(tuple(present), tuple(absent))


def judged(answers: Sequence[Answer], right: Sequence[Collection[str]], index: ProductIndex) -> list[Cited]:
    """Answers as they are judged. right: for each, uids of the products asked for; none for an absent one."""
    return [
        Cited(
            gold=frozenset(gold),
            cited=tuple(source.uid for source in answer.sources),
            refused=answer.refused,
            verbatim=tuple(
                (passage := index.get(source.uid)) is not None
                and passage.content[source.start : source.end] == source.quote
                for source in answer.sources
            ),
            failed=answer.prediction.error is not None,
        )
        for answer, gold in zip(answers, right, strict=True)
    ]
