"""Answers from a catalogue that show their sources.

question.py    what a user types -> one clean line
passages.py    products -> lines of a prompt, and labels for the sentences that may be cited
prompt.py      question and passages -> one part of the grounded task, which fits the model
lessons.py     training rows -> such questions with gold answers (neighbours.py: which distractors)
grounded.py    the predictor: search, support, model, check
checking.py    what was cited -> sources that are real
manifest.py    assistant.json beside afina.json
"""

from __future__ import annotations

from afina.strategies.grounded.answer import Answer, Source
from afina.strategies.grounded.grounded import Grounded

__all__ = ["Answer", "Grounded", "Source"]
