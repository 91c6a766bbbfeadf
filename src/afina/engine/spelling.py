"""How the compact answer format spells what a model may choose: labels, names, openings, the end.

Comes in: the JSON texts of finitely many values. Goes out: for each, the text that a model says, such
that none begins another. So an answer read from left to right has one meaning, whatever the tokenizer,
and a tokenizer needs no look at what follows to know that a value has ended. Knows nothing of schemas,
tokens or models.

Every spelling begins with a space: " positivo" is the form in which words stand in running text, where
most vocabularies hold them as one token. (afina/nano: 19 tokens for the ten labels of the news task,
27 without the space, 37 after a newline or a comma.)
"""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from typing import Literal

AnswerFormat = Literal["json", "compact"]

# Closes whatever has no end of its own: a list, an object, a number, a label that begins another.
END = ";"
SPACE = " "
TEXT, OBJECT, LIST = ' "', " {", " ["


@lru_cache(maxsize=4096)
def spell(json_texts: tuple[str, ...]) -> tuple[str, ...]:
    """The spelling of each of some distinct values (labels of one enum, names of one object).

    json_texts: their JSON texts. A text is spelt without quotes where that is clear, another value as in JSON.
    """
    # A text that reads like one of the other values keeps its quotes: "1" beside 1.
    others = {text for text in json_texts if not text.startswith('"')}
    words = [_bare(text, others) for text in json_texts]
    # A word that begins another is closed. In sorted order, what begins with a word follows it at once.
    ordered = sorted(words)
    closed = {word for word, following in itertools.pairwise(ordered) if following.startswith(word)}
    return tuple(SPACE + word + (END if word in closed else "") for word in words)


def _bare(json_text: str, others: set[str]) -> str:
    if not json_text.startswith('"'):
        return json_text
    label = json.loads(json_text)
    clear = json_text == f'"{label}"' and label == label.strip() and END not in label
    return label if clear and label and label[0] not in "{[" and label not in others else json_text
