"""One debate about one part of one row: who said what, when it ends, and what then stands.

Comes in: replies of a generator and a discriminator, in turns. Goes out: the outcome, the answer's confidence, the
trace. Whom they come from and what they were asked is not known here.

The rules:

- A round is a proposal of the generator and a judgement of the discriminator, which says whether it agrees and which
  answer it holds right.
- They agree when the discriminator says so, or when a proposal and the latest answer of the discriminator are equal in
  every scored field: the discriminator wrote the same answer, or the generator took its answer over. Then the debate
  ends, and the proposal is the answer.
- After the last round without agreement the generator hears the last judgement, too, and what it then proposes is the
  answer. So a debate has at most 2 * rounds + 1 turns, and each answer was judged, or has heard all judgements.
- A speaker that fails ends the debate: the last proposal stands, or if there is none, there is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from afina.core import schema as schemas
from afina.core.schema import Field, Schema
from afina.core.task import Part, Task
from afina.strategies.chat_model import Reply
from afina.strategies.majority import agrees
from afina.strategies.prompting import ANSWER, Form, form_of

Speaker = Literal["generator", "discriminator"]
AGREED = "agreed"


@dataclass(frozen=True)
class Motion:
    """How both sides answer one part of a task.

    form: of the proposals, reasoning first. agree: name of the discriminator's verdict, which stands behind its
    reasoning. judgement: schema of what the discriminator writes: reasoning, verdict, the answer that it holds right.
    """

    form: Form
    agree: str
    judgement: Schema

    @cached_property
    def proposal(self) -> Schema:
        """The schema of what the generator writes."""
        assert self.form.schema is not None, "with reasoning there is always a schema"
        return self.form.schema

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The scored fields, under their paths in the part's answer."""
        return tuple(schemas.fields(self.form.labels))

    def path(self, leaf: Field) -> str:
        """Where a field stands in the whole answer."""
        return ".".join(name for name in (self.form.part.key, leaf.path) if name)


def motion_of(task: Task, part: Part) -> Motion:
    labels: Schema = task.output["properties"][part.key] if part.key else task.output
    taken = set(labels["properties"]) if labels.get("type") == "object" else {ANSWER}
    reasoning = _free(task.reasoning or "reasoning", taken)
    agree = _free("agree", taken | {reasoning})
    form = form_of(task, part, reasoning)
    assert form.schema is not None, "with reasoning there is always a schema"
    properties = dict(form.schema["properties"])
    said = {reasoning: properties.pop(reasoning), agree: {"type": "boolean"}, **properties}
    required = [reasoning, agree, *form.schema["required"][1:]]
    return Motion(form, agree, {**form.schema, "properties": said, "required": required})


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Turn:
    """What was said. labels: the answer without reasoning; None where the speaker failed. agrees: the verdict."""

    speaker: Speaker
    reasoning: str = ""
    labels: Any = None
    agrees: bool | None = None
    error: str | None = None


@dataclass
class Debate:
    """rounds: most exchanges of proposal and judgement. outcome: why it ended; None while it goes on."""

    motion: Motion
    rounds: int
    turns: list[Turn] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    outcome: str | None = None

    def latest(self, speaker: Speaker) -> Turn | None:
        """What the speaker last said, failures left out."""
        return next((turn for turn in reversed(self.turns) if turn.speaker == speaker and turn.error is None), None)

    @property
    def lost(self) -> bool:
        """It ended without an answer."""
        return self.outcome is not None and self.latest("generator") is None

    def hear(self, speaker: Speaker, reply: Reply) -> None:
        """Take the next turn, and see whether it ends the debate."""
        assert self.outcome is None, "the debate has ended"
        turn = self._turn(speaker, reply)
        self.replies.append(reply)
        self.turns.append(turn)
        proposal, judgement = self.latest("generator"), self.latest("discriminator")
        if turn.error is not None:
            stands = "the last proposal stands" if proposal else "there is no answer"
            self.outcome = f"the {speaker} failed; {stands}"
        elif proposal is not None and judgement is not None and (turn.agrees or self._equal(proposal, judgement)):
            self.outcome = AGREED
        elif len(self.turns) > 2 * self.rounds:
            self.outcome = f"no agreement in {self.rounds} rounds; the last proposal stands"

    def _turn(self, speaker: Speaker, reply: Reply) -> Turn:
        wanted = self.motion.proposal if speaker == "generator" else self.motion.judgement
        problem = reply.error if reply.error is not None else schemas.problems(reply.value, wanted)
        if problem is not None:
            return Turn(speaker, error=problem)
        verdict = reply.value[self.motion.agree] if speaker == "discriminator" else None
        value = {name: inner for name, inner in reply.value.items() if name in self.motion.proposal["properties"]}
        reasoning, labels = self.motion.form.read(value)
        return Turn(speaker, reasoning or "", labels, verdict)

    def _equal(self, one: Turn, other: Turn) -> bool:
        return all(agrees(leaf, one.labels, other.labels) for leaf in self.motion.fields)

    def confidence(self) -> dict[str, float]:
        """Field path in the whole answer -> share of all turns whose value there is the final one.

        Both speakers' turns count; a failed one holds no value.
        """
        final = self.latest("generator")
        assert final is not None, "there is no answer to be sure of"
        valid = [turn for turn in self.turns if turn.error is None]
        return {
            self.motion.path(leaf): sum(agrees(leaf, turn.labels, final.labels) for turn in valid) / len(self.turns)
            for leaf in self.motion.fields
        }

    def trace(self, models: Mapping[Speaker, str]) -> list[dict[str, Any]]:
        """One JSON-ready entry per turn; the last one says how the debate ended. models: names of the speakers."""
        entries: list[dict[str, Any]] = []
        for number, turn in enumerate(self.turns, 1):
            entry: dict[str, Any] = {"part": self.motion.form.part.key, "turn": number, "speaker": turn.speaker}
            entry["model"] = models[turn.speaker]
            if turn.error is not None:
                entry["error"] = turn.error
            else:
                entry |= {"reasoning": turn.reasoning, "answer": turn.labels}
                entry |= {} if turn.agrees is None else {"agree": turn.agrees}
            entries.append(entry)
        entries[-1]["outcome"] = self.outcome or "left open; another part of the row has no answer"
        return entries
