"""An answer whose text is the sentences that it cites: the grammar forces it, no model writes it.

Comes in: the walk of a grounded answer. Goes out: the same walk, in which the text follows from the sources. A model of
ten million weights that writes what it cites miscopied 31 of 60 answers, in 45 passes instead of 2; and where the gold
answers are the cited sentences (lessons.py), there is nothing else for it to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from afina.core.schema import dumps
from afina.engine.grammar import Choice, Forced, Open, Walk
from afina.strategies.grounded.answer import OnText
from afina.strategies.grounded.prompt import ANSWER_FORMAT, Asked
from afina.strategies.grounded.scores import OPENING


def quoted_text(asked: Asked, labels: Sequence[str]) -> str:
    """The cited sentences, in the order of the passages."""
    return " ".join(asked.quote(label).text for label in labels)


def quoting(inner: Walk, text_of: Callable[[Sequence[str]], str], on_text: OnText | None = None) -> Walk:
    """inner: the walk of a grounded answer. text_of: the text for the sources' labels. on_text: told it source by
    source."""
    assert ANSWER_FORMAT == "json", "what was written so far is read as JSON"
    written, answer = "", None
    while True:
        try:
            event = inner.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(event, Open):
            text = text_of(json.loads(written + '"}')["sources"])
            event = Forced(dumps(text)[1:])
        answer = yield event
        if isinstance(event, Choice):
            assert answer is not None, "all choices of a grounded answer are structural"
            written += event.options[answer]
        elif isinstance(event, Forced):
            written += event.text
        if on_text is not None and isinstance(event, Choice) and written.startswith(OPENING):
            on_text(text_of(json.loads(written.removesuffix("]") + "]}")["sources"]))
