"""Free-text answers -> what is counted of each row: overlap with the gold text, with the prompt and with train; loops.

Comes in: test examples, one run's predictions, and the train texts. Goes out: columns to be summed. It knows no
statistics: `text_scores` makes measures of the sums.

A failed answer is an empty text: it scores 0 and is never skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afina.core.predictor import Example, Prediction
from afina.evaluation import chrf
from afina.evaluation.overlap import GRAM, Gram, grams, longest_span, repetition, rouge_l, standing_in, words

COLUMNS = (
    "answers",
    "rouge_l",
    "tokens",
    "words",
    "characters",
    "gold_words",
    "gold_characters",
    "grams",  # 8-grams of the answer
    "copied",  # of them, those that stand in the prompt's texts
    "memorised",  # of them, those that stand in a train text, and neither in the prompt nor in the gold text
    "with_words",
    "span",  # share of the answer's words in its longest span that stands in the prompt
    "with_loop_grams",
    "repetition",
    "empty",
    "cut",
    "unfinished",
)
AT = {name: place for place, name in enumerate(COLUMNS)}
CHRF = slice(len(COLUMNS), len(COLUMNS) + chrf.NUM_COLUMNS)


@dataclass(frozen=True)
class Row:
    """One answer as words. shown: the texts of its prompt. grams: its 8-grams, in order."""

    prediction: Prediction
    text: str
    words: list[str]
    shown: list[list[str]]
    grams: list[Gram]


def said(prediction: Prediction) -> str:
    """The answer's text; "" where there is none."""
    return prediction.output if prediction.error is None and isinstance(prediction.output, str) else ""


def sources_of(prediction: Prediction) -> list[Mapping[str, Any]]:
    """What the answer's trace says that it stands on: steps with a uid and the sentence that is quoted."""
    return [step for step in prediction.trace if step.get("uid") is not None and "quote" in step]


def shown_to(prediction: Prediction) -> list[str]:
    """Texts that stood in the prompt beside the row's inputs: title and content of the `passages` of the trace, and
    what is quoted as a source."""
    passages = [one for step in prediction.trace for one in step.get("passages") or () if isinstance(one, Mapping)]
    told = [(one, key) for one in passages for key in ("title", "content")]
    told += [(one, key) for one in sources_of(prediction) for key in ("title", "quote")]
    return [text for one, key in told if isinstance(text := one.get(key), str)]


def rows_of(test: Sequence[Example], predictions: Sequence[Prediction]) -> list[Row]:
    """Each answer beside the texts that its prompt held: the inputs, and what its trace says."""
    found: list[Row] = []
    for example, prediction in zip(test, predictions, strict=True):
        shown = [words(text) for text in dict.fromkeys((*example.inputs.values(), *shown_to(prediction)))]
        text = said(prediction)
        its_words = words(text)
        found.append(Row(prediction, text, its_words, shown, list(grams(its_words))))
    return found


def seen_in_train(rows: Sequence[Row], train: Sequence[Example]) -> set[Gram]:
    """Which 8-grams of these answers stand in an input or output of train."""
    wanted = {gram for row in rows for gram in row.grams}
    texts = (
        text
        for example in train
        for text in (*example.inputs.values(), example.output)
        if isinstance(text, str) and len(text) >= GRAM
    )
    return standing_in(wanted, texts)


class Golds:
    """The gold texts, made ready once for all systems."""

    def __init__(self, golds: Sequence[str]) -> None:
        self.texts, self.words = list(golds), [words(gold) for gold in golds]
        self._chrf = chrf.counter(self.texts)

    def columns(self, rows: Sequence[Row], seen: set[Gram], max_text_tokens: int | None = None) -> np.ndarray:
        """(N, K): COLUMNS, then chrF's. seen: see `seen_in_train`. max_text_tokens: where an answer was made to end."""
        found = np.zeros((len(rows), CHRF.stop))
        for at, (gold, gold_words, row) in enumerate(zip(self.texts, self.words, rows, strict=True)):
            for name, value in _counted(gold_words, gold, row, seen, max_text_tokens).items():
                found[at, AT[name]] = value
        found[:, CHRF] = self._chrf([row.text for row in rows])
        return found


def _counted(
    gold_words: list[str], gold: str, row: Row, seen: set[Gram], max_text_tokens: int | None
) -> dict[str, float]:
    in_prompt = {gram for text in row.shown for gram in grams(text)}
    own = in_prompt.union(grams(gold_words))
    repeated = repetition(row.words)
    tokens = row.prediction.usage.completion_tokens
    length = len(row.words)
    return {
        "answers": 1,
        "rouge_l": rouge_l(gold_words, row.words),
        "tokens": tokens,
        "words": length,
        "characters": len(row.text),
        "gold_words": len(gold_words),
        "gold_characters": len(gold),
        "grams": len(row.grams),
        "copied": sum(gram in in_prompt for gram in row.grams),
        "memorised": sum(gram in seen and gram not in own for gram in row.grams),
        "with_words": length > 0,
        "span": longest_span(row.words, row.shown) / length if length else 0,
        "with_loop_grams": repeated is not None,
        "repetition": repeated or 0,
        "empty": not row.text.strip(),
        "cut": row.prediction.truncated,
        # The tokens of an answer with sources are those of the sources too: where its text ended is not known.
        "unfinished": max_text_tokens is not None and tokens >= max_text_tokens and not row.prediction.sources,
    }
