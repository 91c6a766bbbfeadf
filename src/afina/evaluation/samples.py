"""Some test rows with every system's answer, side by side, for a person to read.

Comes in: the test and the systems' answers to it. Goes out: the section `samples` of report.json. The rows are drawn by
the seed, not chosen: what is read is what a user would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.core.predictor import Example, Prediction
from afina.evaluation.chrf import chrf, counts
from afina.evaluation.overlap import rouge_l, words
from afina.evaluation.system import SystemRun
from afina.evaluation.text_rows import said, sources_of

SAMPLES_VERSION = 1
NUM_ROWS = 12
MAX_CHARACTERS = 2_000  # of one text as it is kept; a content may have 200,000


def side_by_side(
    test: Sequence[Example], systems: Sequence[SystemRun], seed: int, num_rows: int = NUM_ROWS
) -> dict[str, Any]:
    """Rows in the order of the test, each with its inputs, its gold text and the systems' answers (of the first seed).

    An answer: system, output ("" where it failed), error, chrf and rouge_l against the gold text, refused, and sources
    (uid, title, quote, score) where its trace holds them.
    """
    drawn = np.random.default_rng(seed).permutation(len(test))[:num_rows]
    rows = [
        {
            "id": test[at].id,
            "inputs": {name: shortened(text) for name, text in test[at].inputs.items()},
            "gold": shortened(str(test[at].output)),
            "answers": [answer(system.name, str(test[at].output), system.predictions[at]) for system in systems],
        }
        for at in sorted(drawn.tolist())
    ]
    return {"version": SAMPLES_VERSION, "num_test": len(test), "seed": seed, "rows": rows}


def answer(system: str, gold: str, prediction: Prediction) -> dict[str, Any]:
    """One system's answer to one row."""
    text = said(prediction)
    return {
        "system": system,
        "output": shortened(text),
        "error": prediction.error,
        "chrf": float(chrf(counts([gold], [text])[0])),
        "rouge_l": rouge_l(words(gold), words(text)),
        "refused": any(step.get("refused") is True for step in prediction.trace),
        "sources": _sources(prediction),
    }


def _sources(prediction: Prediction) -> list[dict[str, Any]]:
    """What the trace says of its sources; else their names alone."""
    told = sources_of(prediction) or [{"uid": uid} for uid in prediction.sources]
    return [{key: one.get(key) for key in ("uid", "title", "quote", "score")} for one in told]


def shortened(text: str) -> str:
    """At most MAX_CHARACTERS, and writable: half a surrogate pair, which JSON may hold, is no character."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS].rstrip()} […]"
