"""What an answer with sources is: its text, and where in the catalogue each part of it stands.

Pure data. How it was made, and how a source was checked, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from afina.core.predictor import Prediction
from afina.retrieval.passage import Hit

Refusal = Literal["support", "model"]
"""Who refused: the index found too little, or the model saw that the product is not among the passages."""
OnText = Callable[[str], None]
OnPassages = Callable[[tuple[Hit, ...]], None]


@dataclass(frozen=True)
class Source:
    """A sentence of one product's text.

    quote: `content[start:end]` of that product, character for character. score: probability in [0, 1] that the model
    gave to this source among all that it was shown; None where a model elsewhere gave none.
    """

    uid: str
    title: str
    quote: str
    start: int
    end: int
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Answer:
    """An answer and all that it stands on.

    text: what to show; the refusal's words where `refused`. sources: none where `refused`. support: in [0, 1], of the
    question by the index. passages: what was found, best first; the model is shown those of them that support
    the question by themselves.
    prediction: the same as evaluation sees it; its `error` says why there is no answer, `text` is "" then.
    refusal: who refused, or None. note: what was done to the question, as one sentence; None for nothing.
    """

    question: str
    text: str
    sources: tuple[Source, ...]
    refused: bool
    support: float
    passages: tuple[Hit, ...]
    prediction: Prediction
    refusal: Refusal | None = None
    note: str | None = None
