"""How sure a model was of each source it cited.

Comes in: the decisions of one answer. Goes out: a probability for each source. The decisions are laid beside those of a
Writer that is led along the same answer, which knows where one source ends and the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afina.core.schema import dumps
from afina.engine.decode import Made, field_confidence
from afina.engine.renderer import Renderer
from afina.strategies.grounded.prompt import Asked

OPENING = '{"sources":['


def source_scores(renderer: Renderer, asked: Asked, value: Any, made: Sequence[Made]) -> list[float]:
    """Of each source in value["sources"], in order: its probability in [0, 1] among those that could be cited in its
    place, the end of the list included."""
    ends: list[int] = []  # of the answer's JSON text, after each source
    for label in value["sources"]:
        ends.append((ends[-1] + 1 if ends else len(OPENING)) + len(dumps(label)))
    parts: list[list[Made]] = [[] for _ in ends]
    led = renderer.writer(asked.part, 0, value)
    for one in made:
        decision = led.need()
        if decision is None or decision.is_open:
            break
        assert decision.gold is not None, "a led answer knows its way"
        written = sum(len(led.text) >= end for end in ends)
        if decision.path == "sources" and written < len(ends):
            parts[written].append(one)
        led.take(decision.gold)
    return [round(field_confidence(part, {}).get("sources", 1.0), 6) for part in parts]
