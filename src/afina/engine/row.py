"""One answer while it is written: what to read next, what to ask, what the model said.

A row follows a guess's `Script` as long as the model agrees with it, and a `Writer` where there is no guess or
the value is open. Both say the same of the same answer; a script only looks further ahead. Knows nothing of
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from afina.core.errors import SchemaError
from afina.engine.draft import Guess, Script, Scripts, Step
from afina.engine.writer import Writer


@dataclass(frozen=True)
class Made:
    """A decision that the model took. logits: over the allowed ids, ascending; chosen: its index there."""

    path: str
    logits: np.ndarray
    chosen: int
    allowed: np.ndarray
    is_open: bool


@dataclass
class Answer:
    """One written answer.

    text: the answer's text. made: the model's decisions in order (open ones keep no logits).
    guessed, accepted: decisions that were guessed, and of these how many the model agreed with.
    error: why there is no answer, or None.
    """

    text: str = ""
    made: list[Made] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    forward_passes: int = 0
    guessed: int = 0
    accepted: int = 0
    latency_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Question:
    """One answer to write.

    ids: the prompt. writer: makes a fresh Writer. scripts, guess: what the answer may be; None to guess nothing.
    """

    ids: list[int]
    writer: Callable[[], Writer]
    scripts: Scripts | None = None
    guess: Guess | None = None


class Heard(Protocol):
    """What the model said at some places; can be asked again."""

    def at(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """Logits for each (place, ids) pair."""
        ...


class Row:
    """The state of one answer. Positions count from the prompt's first token.

    read: how many of its tokens the model's memory holds; what stands there beyond is forgotten.
    asked: the decisions to ask in the next pass, the first of them not guessed away.
    """

    def __init__(self, index: int, question: Question, answer: Answer, *, drafted: bool) -> None:
        self.index, self.question, self.answer = index, question, answer
        self.read = 0
        self.asked: list[Step] = []
        self._shift = 0  # from a step's `at` to its place in this answer
        self._tokens: list[int] = []  # of the answer, up to the last asked decision at least
        self._chosen: list[int] = []  # tokens of all decisions, as long as there is no writer
        self._finite: list[int] = []  # tokens of the decisions among finitely many texts
        self._writer: Writer | None = None
        self._script: Script | None = None
        self._step = 0
        self._heard: tuple[Heard, int] | None = None  # what the model said after the last token read
        if drafted and question.scripts is not None and question.guess is not None:
            self._script = question.scripts.of(question.guess.value)

    # -- what comes next ------------------------------------------------------------------------

    def ask(self, pass_tokens: float) -> bool:
        """Find the next decisions; False when the answer is complete, or failed.

        pass_tokens: how many tokens of this row could be read for what a further pass costs it.
        """
        if self.answer.error is not None:
            return False
        try:
            self.asked = self._next()
            # What only ended a value was not written: the same place is asked again, of what follows.
            while self.asked and self.position(self.asked[0]) < self.read:
                self.asked = [step for step in self.asked if self.position(step) < self.read]
                assert self._heard is not None, "a place that was read was asked"
                heard, place = self._heard
                self.take(heard, place, heard.at([(place, step.allowed) for step in self.asked]), same_place=True)
                self.asked = self._next()
        except SchemaError as error:
            self.answer.error = str(error)
            self.asked = []
        self.asked = self.asked[: self._reach(pass_tokens)]
        if not self.asked:
            self._finish()
        return bool(self.asked)

    def _next(self) -> list[Step]:
        script, steps = self._script, self._script.steps if self._script else ()
        if self._writer is None and (script is None or (self._step < len(steps) and steps[self._step].is_open)):
            self._write_by_hand()
        if self._writer is None:
            assert script is not None, "a row follows one of the two"
            self._shift, self._tokens = 0, script.tokens
            return list(steps[self._step : script.until_open(self._step)])
        decision = self._writer.need()
        if decision is None:
            return []
        self._tokens, self._shift = self._writer.tokens, 0
        now = Step(len(self._tokens), decision.path, decision.allowed, decision.is_open)
        if script is None or decision.is_open or len(self._finite) >= len(script.finite):
            return [now]
        # The value before was open; from here on the script knows the way again.
        self._step = script.finite[len(self._finite)]
        ahead = list(steps[self._step : script.until_open(self._step)])
        if (ahead[0].path, ahead[0].allowed.tolist()) != (now.path, now.allowed.tolist()):
            self._script = None
            return [now]
        self._shift = len(self._tokens) - ahead[0].at
        self._tokens = self._tokens + script.tokens[ahead[0].at : ahead[-1].at]
        return ahead

    def _reach(self, pass_tokens: float) -> int:
        """How many of the asked decisions to ask at once. Each further one has the tokens before it read now,
        which is lost if the guess fails earlier, and else saves a pass: so as far as that is worth it."""
        guess, sure, known = self.question.guess, 1.0, set[str]()
        for count, (step, following) in enumerate(pairwise(self.asked), 1):
            if guess is not None and step.path not in known:
                known.add(step.path)
                sure *= guess.confidence(step.path)
            if sure * pass_tokens < (1 - sure) * (following.at - step.at):
                return count
        return len(self.asked)

    def _write_by_hand(self) -> None:
        """Bring a Writer to where the script has led."""
        self._writer = self.question.writer()
        for token in self._chosen:
            self._writer.need()
            self._writer.take(token)

    def fresh(self) -> list[int]:
        """The tokens to read next: up to the last asked decision."""
        prompt, end = self.question.ids, self.position(self.asked[-1]) + 1
        if self.read >= len(prompt):
            return self._tokens[self.read - len(prompt) : end - len(prompt)]
        return prompt[self.read :] + self._tokens[: end - len(prompt)]

    def position(self, step: Step) -> int:
        """Of the token after which the model says what comes at this step."""
        return len(self.question.ids) + step.at + self._shift - 1

    # -- what the model said --------------------------------------------------------------------

    def take(self, heard: Heard, first: int, logits: Sequence[np.ndarray], *, same_place: bool = False) -> None:
        """Take the model's favourites at the asked decisions, as far as the guess holds.

        heard, first: who gave the logits, and the number of the first asked decision's place there.
        """
        for count, (step, scores) in enumerate(zip(self.asked, logits, strict=True)):
            best = int(np.argmax(scores))
            token = int(step.allowed[best])
            kept = np.array([log_probability(scores, best)], dtype=np.float32) if step.is_open else scores
            self.answer.made.append(Made(step.path, kept, 0 if step.is_open else best, step.allowed, step.is_open))
            self.read = self.position(step) + 1
            self._heard = (heard, first if same_place else first + count)
            self._record(step, token)
            if step.token >= 0:
                self.answer.guessed += 1
                self.answer.accepted += token == step.token
            if token != step.token:
                if step.token >= 0:
                    self._revise(step.path)
                return

    def _record(self, step: Step, token: int) -> None:
        if not step.is_open:
            self._finite.append(token)
        if self._writer is None:
            self._chosen.append(token)
        else:
            self._writer.need()
            self._writer.take(token)
        self._step += 1

    def _revise(self, path: str) -> None:
        """Another guess that begins as the model decided, or none any more."""
        scripts, guess = self.question.scripts, self.question.guess
        assert scripts is not None, "a guess has its scripts"
        assert guess is not None, "there was something to revise"

        def agrees(value: Any) -> bool:
            script = scripts.of(value)
            return script is not None and script.agrees(self._finite)

        value = guess.revise(path, agrees)
        self._script = None if value is None else scripts.of(value)

    def _finish(self) -> None:
        if self._writer is not None:
            self.answer.text, self.answer.completion_tokens = self._writer.text, len(self._writer.tokens)
        elif self._script is not None:
            self.answer.text, self.answer.completion_tokens = self._script.text, len(self._script.tokens)


def log_probability(logits: np.ndarray, chosen: int) -> float:
    """Natural logarithm of the softmax at one place."""
    shifted = logits - logits.max()
    return float(shifted[chosen] - np.log(np.exp(shifted).sum()))
