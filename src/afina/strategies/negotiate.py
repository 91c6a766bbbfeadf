"""A generator proposes an answer with its reasoning; a discriminator agrees, or proposes otherwise; until they agree.

Comes in: a task, two chat models (which may be one), rows. Goes out: predictions, each with its whole debate as trace.
The rules of a debate stand in `debate.py`; here are the words in which the speakers are asked. All debates of a call go
on side by side, one question to the model for each that is open, all of a turn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afina.core import schema as schemas
from afina.core.predictor import Example, Inputs, Prediction, Usage
from afina.core.strategy_config import NegotiateConfig
from afina.core.task import Task
from afina.engine.spoken import describe
from afina.providers import wording
from afina.strategies.chat_model import Ask, ChatMessage, ChatModel
from afina.strategies.debate import Debate, Speaker, motion_of
from afina.strategies.examples import Shot
from afina.strategies.prompting import ShownExamples, turns

DRAWS = 1_000  # numbers kept for the draws of one sample: more than a debate has turns

AGAIN = (
    "Below the question stand your own answer and that of another reader, who disagrees. Weigh the other reader's "
    "reasoning, then answer the question again: keep what is right, and change what is not."
)
JUDGE = (
    "Below the question stands another reader's answer. Judge it: write your reasoning, say in {agree} whether you "
    "agree with the answer, and give the answer that you hold right."
)


@dataclass(frozen=True)
class _Question:
    """A debate with what it is about. number: of the sample that it belongs to."""

    debate: Debate
    inputs: Inputs
    shots: Sequence[Shot]
    number: int


class Negotiation:
    """Answers each part of a task by a debate of `generator` and `discriminator`, of at most config.rounds rounds.

    confidence: the share of a debate's turns, both speakers', whose value for the field is the final one: how
    undisputed it was, not a calibrated probability. reasoning: that of the proposal that stands. trace: every turn, as
    {"part", "turn" (from 1), "speaker", "model", "reasoning", "answer", "agree" (the discriminator's)}, or with "error"
    instead of what was said; "outcome" on the last turn of each part. usage and latency_s: the sum over the turns.
    train: where the config.k nearest examples come from; nothing else may. notes: what the reader should know of them.
    Raises DataError where examples are wanted and there is none.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        generator: ChatModel,
        discriminator: ChatModel,
        config: NegotiateConfig,
        train: Sequence[Example],
        seed: int,
    ) -> None:
        self.name, self.task, self.config = name, task, config
        self.models: dict[Speaker, ChatModel] = {"generator": generator, "discriminator": discriminator}
        self._motions = [motion_of(task, part) for part in task.parts]
        forms = [motion.form for motion in self._motions]
        self._shown = ShownExamples(name, task, forms, "nearest", config.k, train, seed)
        self.notes = self._shown.notes

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order. label: what the progress bar says; None for no bar."""
        return self.sample(inputs, [0], self.config.temperature, label=label)[0]

    def sample(
        self, inputs: Sequence[Inputs], samples: Sequence[int], temperature: float, *, label: str | None = None
    ) -> list[list[Prediction]]:
        """For each number in `samples` a prediction per row, by debates of its own; equal numbers are the same ones."""
        shots = self._shown.of(inputs)
        rows = [
            [
                _Question(Debate(motion, self.config.rounds), row, shown, number)
                for motion, shown in zip(self._motions, shots[at], strict=True)
            ]
            for number in samples
            for at, row in enumerate(inputs)
        ]
        for turn in range(2 * self.config.rounds + 1):
            # A row of which one part has no answer has none, so its other debates need not be paid for.
            alive = [row for row in rows if not any(question.debate.lost for question in row)]
            going = [question for row in alive for question in row if question.debate.outcome is None]
            if not going:
                break
            speaker: Speaker = "discriminator" if turn % 2 else "generator"
            asks = [self._ask(question, speaker, temperature, turn) for question in going]
            told = f"{label}, turn {turn + 1}" if label is not None else None
            replies = self.models[speaker].ask(asks, label=told)
            for question, reply in zip(going, replies, strict=True):
                question.debate.hear(speaker, reply)
        made = [self._prediction([question.debate for question in row]) for row in rows]
        return [made[at * len(inputs) : (at + 1) * len(inputs)] for at in range(len(samples))]

    def _ask(self, question: _Question, speaker: Speaker, temperature: float, turn: int) -> Ask:
        motion = question.debate.motion
        schema = motion.proposal if speaker == "generator" else motion.judgement
        # A model that is asked the same again, at a temperature, is asked for another draw.
        sample = question.number * DRAWS + turn if temperature > 0 else 0
        return Ask(self._messages(question, speaker), schema, temperature, sample)

    def _messages(self, question: _Question, speaker: Speaker) -> tuple[ChatMessage, ...]:
        """The question, and below it what was said, in one message: a model with a short context cuts its end."""
        motion, debate = question.debate.motion, question.debate
        form = motion.form
        system, asked = wording.question(self.task, form.part, question.inputs)
        told, shown = [system["content"]], [asked["content"]]
        if self.models[speaker].describe:
            told.append(describe(motion.proposal if speaker == "generator" else motion.judgement, "json"))
        proposal, judgement = debate.latest("generator"), debate.latest("discriminator")
        if proposal is not None:
            whose = "Your answer" if speaker == "generator" else "The other reader's answer"
            shown.append(f"{whose}: {form.said(proposal.labels, proposal.reasoning)}")
        if speaker == "discriminator":
            told.append(JUDGE.format(agree=schemas.dumps(motion.agree)))
        elif judgement is not None:
            told.append(AGAIN)
            shown.append(f"The other reader's answer: {form.said(judgement.labels, judgement.reasoning)}")
        return (
            {**system, "content": "\n\n".join(told)},
            *turns(question.shots),
            {**asked, "content": "\n\n".join(shown)},
        )

    def _prediction(self, debates: Sequence[Debate]) -> Prediction:
        names: dict[Speaker, str] = {speaker: model.name for speaker, model in self.models.items()}
        replies = [reply for debate in debates for reply in debate.replies]
        made = Prediction(
            usage=sum((reply.usage for reply in replies), Usage()),
            latency_s=sum(reply.latency_s for reply in replies),
            truncated=any(reply.truncated for reply in replies),
            trace=[entry for debate in debates for entry in debate.trace(names)],
        )
        lost = next((debate for debate in debates if debate.lost), None)
        if lost is not None:
            key = lost.motion.form.part.key
            return replace(made, error=f"{key}: {lost.turns[-1].error}" if key else lost.turns[-1].error)
        final = [turn for debate in debates if (turn := debate.latest("generator")) is not None]
        output = self.task.assemble([turn.labels for turn in final])
        if (problem := schemas.problems(output, self.task.output)) is not None:
            return replace(made, error=problem)
        spoken = zip(debates, final, strict=True)
        return replace(
            made,
            output=schemas.canonical(output, self.task.output),
            confidence={path: share for debate in debates for path, share in debate.confidence().items()},
            reasoning={debate.motion.form.part.key: turn.reasoning for debate, turn in spoken},
        )
