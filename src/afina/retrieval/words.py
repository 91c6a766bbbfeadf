"""Words as the index keeps them, and a question as the words that are looked for.

Comes in: text. Goes out: its words, small, without accents, and by their stems; of a question, the words that may tell
one product from another, with weights. A question is never read as a query language: quotes, brackets, AND and OR are
what they look like. It knows how to count words in an index only through the function it is given.

Words around the product ("What is ... about?", "Do que se trata ...?") are recognised where they stand, at the
beginning and the end of the question, and count for little: in a catalogue of the other language a word as "trata" is
rare, and what is rare would otherwise decide the search. Between them they count as others do, for there are books
called "What Is Life?".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afina.core.errors import MachineError

ANALYSER = "afina"  # the name that the index's schema knows it by
SETTINGS: dict[str, Any] = {
    "tokenizer": "simple",
    "max_word_bytes": 40,
    "lowercase": True,
    "ascii_fold": True,
    "stemmer": "english",
}
MAX_QUESTION_CHARS = 4_000  # more is read no further: a title has 2,000 at most
MAX_WORDS = 400  # different words that are looked up
MAX_TERMS = 24  # of them, the rarest, that are searched for
FRAME_WEIGHT = 0.1  # of a word around the product, where there are others
_FRAMES = """
what whats which who whom whose where when why how is are was were be been do does did can could would will should
may might please tell me us give show say describe description explain summarise summarize summary about of the a
an i we you in on for to from with and or more some any information info details detail know like want need looking
look find there have has had it its this that these those product products item article features feature main
advantages benefits hi hello thanks
o a os as um uma que qual quais quem onde quando como por porque para pra e é do da dos das de no na nos nas em se
sobre trata tratam fala falam descreva descrever descrevera descricao explique explicar resuma resumir resumo
mostre mostrar fale falar diga dizer conte contar me nos voce voces pode poderia podem gostaria quero queria saber
conhecer informacao informacoes mais algum alguma detalhe detalhes sao tem ha existe isso isto esse este essa esta
produto produtos artigo caracteristicas vantagens principais ola oi obrigado obrigada favor
el la los las un una del al en y cual cuales quien describe describa dime cuentame acerca
"""
FRAMES = frozenset(_FRAMES.split())


@dataclass(frozen=True)
class Term:
    """A word that is looked for. weight: in (0, 1]. found: products that have it in their title and in their content.

    written: how the user wrote it, where no product has it so and `text` was probably meant.
    """

    text: str
    weight: float
    found: tuple[int, int]
    written: str | None = None


@functools.cache
def analysers() -> tuple[Any, Any]:
    """(words by their stems, as the index keeps them; the same words with their endings)."""
    tantivy = import_tantivy()

    def build(*last: Any) -> Any:
        filters = (
            tantivy.Filter.remove_long(SETTINGS["max_word_bytes"] + 1),
            tantivy.Filter.lowercase(),
            tantivy.Filter.ascii_fold(),
            *last,
        )
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for one in filters:
            builder = builder.filter(one)
        return builder.build()

    return build(tantivy.Filter.stemmer(SETTINGS["stemmer"])), build()


def import_tantivy() -> Any:
    """The search library. Raises MachineError where it is not installed."""
    try:
        import tantivy
    except ImportError as error:
        raise MachineError(
            "An index of products needs tantivy, which is not installed. Install it: pip install 'afina[assistant]'."
        ) from error
    return tantivy


def stems(text: str) -> list[str]:
    """The words of a text as the index keeps them, in order."""
    return analysers()[0].analyze(text)


def question_words(question: str) -> dict[str, float]:
    """The question's different words as the index keeps them -> their weights, in order; MAX_WORDS at most."""
    by_stem, whole = analysers()
    text = question[:MAX_QUESTION_CHARS].encode("utf-8", "replace").decode()  # half a character is no word
    words, plain = by_stem.analyze(text), whole.analyze(text)
    first, last = inner(plain)
    weights: dict[str, float] = {}
    for place, word in enumerate(words):
        weight = 1.0 if first <= place < last else FRAME_WEIGHT
        weights[word] = max(weight, weights.get(word, 0.0))
        if len(weights) == MAX_WORDS:
            break
    return weights


def inner(words: Sequence[str]) -> tuple[int, int]:
    """[first, last) of the words between those that only ask; all of them if nothing stands between."""
    first, last = 0, len(words)
    while first < last and words[first] in FRAMES:
        first += 1
    while last > first and words[last - 1] in FRAMES:
        last -= 1
    return (first, last) if first < last else (0, len(words))
