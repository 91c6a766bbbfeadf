"""Training rows -> questions with passages and their gold answers: how a model learns to cite instead of to recite.

Comes in: rows of title and content, the recipe's settings. Goes out: `Lesson`s, or training tokens. The passages are
the row's own and others like it (hard negatives), shuffled; in a share of them its own is missing, and the right answer
is that it is absent. Distractors come from the rows that are given alone: training rows for training, validation rows
for validation. Near-duplicates of a row, and products of the same name, are no distractors: they would be right too.

The gold answer is extractive: the first sentences of the content, which are cited, are also what is said. A small model
can learn to copy; what it says beyond that, nobody could vouch for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from afina.core.catalogue_config import SourcesConfig
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.engine.encoded import Encoded
from afina.engine.renderer import Renderer
from afina.retrieval.passage import Passage
from afina.strategies.grounded.neighbours import neighbours
from afina.strategies.grounded.passages import Quote
from afina.strategies.grounded.prompt import ABSENT, Asked, ask, grounded_renderer
from afina.strategies.grounded.question import question_about

MORE_NEIGHBOURS = 12  # are looked for than are shown: some are near-duplicates
ENOUGH_CHARS = 80  # a shorter sentence is followed by the next one
FEWER_SHARE = 0.2  # of the questions, with fewer passages than usual: a search does not always find as many
ROUGH_SHARE = 0.5  # of the questions, not worded as the template and the title are

PassageOf = Callable[[Example], Passage]


@dataclass(frozen=True)
class Lesson:
    """One question to learn. gold: uid of the passage that answers it; None where it is absent."""

    row: Example
    question: str
    passages: tuple[Passage, ...]
    gold: str | None


def passage_of(row: Example) -> Passage:
    """The product of a title -> content row."""
    return Passage(row.id, next(iter(row.inputs.values()), ""), str(row.output))


def grounded_lessons(
    rows: Sequence[Example],
    config: SourcesConfig,
    questions: Sequence[str],
    seed: int,
    *,
    of: PassageOf = passage_of,
) -> list[Lesson]:
    """A question for `context_share` of the rows, in their order; the same for the same rows and seed.

    of: the whole product of a row, where the row's output is cut to the length of an answer.
    """
    chosen = [n for n, row in enumerate(rows) if takes_part(row, config, seed)]
    passages = [of(row) for row in rows]
    found = neighbours(passages, chosen, config.passages + MORE_NEIGHBOURS)
    made: list[Lesson] = []
    for number, near in zip(chosen, found, strict=True):
        draw = random.Random(f"{seed} passages {rows[number].id}")
        others = _distractors(rows, passages, number, near, config.passages, draw)
        made.append(_lesson(rows[number], passages[number], others, config, questions, draw))
    return made


def takes_part(row: Example, config: SourcesConfig, seed: int) -> bool:
    """Whether a row is learned with passages; the others are learned by heart."""
    return random.Random(f"{seed} context {row.id}").random() < config.context_share


def _distractors(
    rows: Sequence[Example],
    passages: Sequence[Passage],
    number: int,
    near: Sequence[int],
    count: int,
    draw: random.Random,
) -> list[Passage]:
    """The most similar ones that are another product, filled up with any."""
    own, name = rows[number], passages[number].title.casefold().strip()

    def other(n: int) -> bool:
        same = rows[n].cluster == own.cluster >= 0 or rows[n].id == own.id
        return not same and passages[n].title.casefold().strip() != name

    chosen = [n for n in near if other(n)][:count]
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        n = draw.randrange(len(rows))
        if n not in chosen and other(n):
            chosen.append(n)
    return [passages[n] for n in chosen]


def _lesson(
    row: Example,
    own: Passage,
    others: list[Passage],
    config: SourcesConfig,
    questions: Sequence[str],
    draw: random.Random,
) -> Lesson:
    absent = draw.random() < config.absent_share and bool(others)
    count = config.passages if draw.random() >= FEWER_SHARE else draw.randint(1, config.passages)
    shown = others[:count] if absent else [own, *others[: count - 1]]
    draw.shuffle(shown)
    question = question_about(rough(own.title, draw), questions, draw.randrange(1 << 31))
    return Lesson(row, question, tuple(shown), None if absent else own.uid)


def rough(title: str, draw: random.Random) -> str:
    """A title as users write it: small letters, a word left out, in quotes, or as it is."""
    if draw.random() >= ROUGH_SHARE:
        return title
    words = title.split()
    kind = draw.choice(["lower", "drop", "quotes"])
    if kind == "drop" and len(words) > 3:
        left = draw.randrange(1, len(words))
        return " ".join(words[:left] + words[left + 1 :])
    return f'"{title}"' if kind == "quotes" else title.lower()


# -- gold answers ---------------------------------------------------------------------------------


def gold_answer(renderer: Renderer, asked: Asked, gold: str | None, max_sources: int, max_text_tokens: int) -> Any:
    """What to learn: a value of the part's schema; None where the gold passage has nothing to cite."""
    if gold is None:
        return ABSENT
    own = [quote for quote in asked.shown.quotes if asked.shown.passages[quote.passage].uid == gold]
    cited = _telling(own, asked, max_sources)
    if not cited:
        return None
    text = renderer.shorten(" ".join(quote.text for quote in cited), max_text_tokens)
    return {"sources": [quote.label for quote in cited], "answer": text} if text else None


def _telling(own: Sequence[Quote], asked: Asked, max_sources: int) -> list[Quote]:
    """The first sentences, until they say enough; one that only repeats the title says nothing."""
    cited: list[Quote] = []
    for quote in own:
        title = asked.shown.passages[quote.passage].title.casefold()
        if quote.text.casefold().strip(" .") in title and len(own) > 1:
            continue
        cited.append(quote)
        if len(cited) >= max_sources or sum(len(q.text) for q in cited) >= ENOUGH_CHARS:
            break
    return cited


def encode_lessons(
    renderer: Renderer,
    lessons: Sequence[Lesson],
    config: SourcesConfig,
    *,
    max_length: int,
    max_text_tokens: int,
) -> list[Encoded]:
    """Training tokens. renderer: of any task of the same model. Lessons that do not fit are left out."""
    grounded = grounded_renderer(renderer)
    found: list[Encoded] = []
    for lesson in lessons:
        try:
            asked = ask(
                grounded, lesson.question, lesson.passages, config, max_length=max_length,
                max_text_tokens=max_text_tokens,
            )  # fmt: skip
        except DataError:
            continue
        gold = gold_answer(grounded, asked, lesson.gold, config.max_sources, max_text_tokens)
        one = None if gold is None else grounded.encode(asked.part, Example(lesson.row.id, asked.inputs, gold))
        if one is not None and len(one.input_ids) <= max_length:
            found.append(one)
    return found
