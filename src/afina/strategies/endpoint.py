"""A chat model at a provider: structured questions in, checked values out.

Comes in: questions. Goes out: a reply each, in order: a value of the schema, or the reason why there is none.
An answer that is refused, cut off or invalid is asked again with what was wrong with it; it is never made up. Money,
cache, pauses and what the provider does not take are the `Asker`'s. Confidences are not known: a provider's logprobs
are not normalised over what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from afina.core.errors import DataError
from afina.core.predictor import Usage
from afina.providers import reading, wording
from afina.providers.asking import Asker, Estimate
from afina.providers.cache import Answer
from afina.providers.dialect import Body, Fall
from afina.providers.names import is_fine_tune
from afina.strategies.chat_model import Ask, Reply

Structured = Literal["auto", "json_schema", "json_object", "text"]
CUT_OFF = ("length", "max_tokens")
LONGEST_SHOWN = 4000  # characters of an invalid answer that are shown to the model again


class Endpoint:
    """model: its name at the provider. structured: how answers are held to a schema; auto: the strictest way that the
    provider takes. describe: tell the model the schema where the provider does not hold it to one. max_tokens: of one
    answer. retries: how often a question is asked again after an invalid answer.
    """

    def __init__(
        self,
        name: str,
        model: str,
        asker: Asker,
        *,
        structured: Structured = "auto",
        describe: bool = True,
        max_tokens: int = 1024,
        retries: int = 2,
    ) -> None:
        self.name, self.model, self.asker = name, model, asker
        self.structured, self.describe = structured, describe
        self.max_tokens, self.retries = max_tokens, retries

    def ask(self, asks: Sequence[Ask], *, label: str | None = None) -> list[Reply]:
        """A reply each, in order. Raises ProviderError and BudgetError for what concerns them all."""
        turns = [_Turn(ask) for ask in asks]
        open_turns = turns
        for round_number in range(self.retries + 1):
            said = label if not label or not round_number else f"{label}, asked again"
            bodies = [self._body(turn.ask, turn.added) for turn in open_turns]
            answers = self.asker.ask(bodies, said, fall=self._fall)
            open_turns = [turn for turn, answer in zip(open_turns, answers, strict=True) if turn.takes(answer)]
            if not open_turns:
                break
        return [turn.reply for turn in turns]

    def estimate(self, asks: Sequence[Ask], answer_tokens: int = 64) -> Estimate:
        """What asking will cost, if no answer is invalid. answer_tokens: that one answer has, about."""
        return self.asker.estimate([self._body(ask, []) for ask in asks], answer_tokens)

    @property
    def _fall(self) -> Fall:
        if self.structured != "auto":
            return Fall.NEVER
        return Fall.TOLD if self.describe else Fall.SILENT

    def _body(self, ask: Ask, added: Sequence[dict[str, str]]) -> Body:
        """Our own request, by which the answer is kept; the provider's dialect is the Asker's."""
        messages = [dict(message) for message in ask.messages]
        body: Body = {"model": self.model, "max_completion_tokens": self.max_tokens}
        body["temperature"] = float(ask.temperature)
        if ask.schema is not None:
            if self.structured in ("auto", "json_schema"):
                body["response_format"] = wording.schema_format(ask.schema, limits=not is_fine_tune(self.model))
            elif self.describe:
                messages = wording.with_schema(messages, wording.as_object(ask.schema))
            if self.structured == "json_object":
                body["response_format"] = {"type": "json_object"}
        if ask.temperature > 0:
            body["seed"] = ask.sample  # also tells the samples apart in the cache
        return body | {"messages": [*messages, *added]}


@dataclass
class _Turn:
    """One question on its way to a reply. added: what was said since: invalid answers, and what was wrong with them."""

    ask: Ask
    added: list[dict[str, str]] = field(default_factory=list)
    reply: Reply = field(default_factory=lambda: Reply(error="not asked"))

    def takes(self, answer: Answer) -> bool:
        """Take an answer in. Returns whether the question has to be asked again."""
        usage = Usage(answer.prompt_tokens, answer.completion_tokens, 0, answer.cost_usd or 0.0, requests=1)
        usage, latency_s = self.reply.usage + usage, self.reply.latency_s + answer.latency_s
        if answer.error is not None:  # the provider refuses the question: the same one would be refused again
            self.reply = Reply(error=answer.error, usage=usage, latency_s=latency_s)
            return False
        try:
            value, repaired = self._value(answer)
        except DataError as error:
            problem = str(error)
            self.reply = Reply(error=problem, usage=usage, latency_s=latency_s)
            self.added += self._objection(answer.content or "", problem)
            return True
        self.reply = Reply(value, usage=usage + Usage(repairs=int(repaired)), latency_s=latency_s)
        return False

    def _value(self, answer: Answer) -> tuple[Any, bool]:
        """What the answer means, and whether it was repaired. Raises DataError for none."""
        content = (answer.content or "").strip()
        if answer.refused or answer.finish_reason == "content_filter":
            raise DataError(f"the model refused: {' '.join(content.split())[:200] or 'no reason given'}")
        if answer.finish_reason in CUT_OFF:
            raise DataError(f"the answer was cut off after {answer.completion_tokens} tokens")
        if not content:
            raise DataError("the answer is empty")
        if self.ask.schema is None:
            return content, False
        found = reading.read(content, self.ask.schema)
        return found.value, found.repaired

    def _objection(self, content: str, problem: str) -> list[dict[str, str]]:
        """The invalid answer and what is wrong with it, as turns of the conversation."""
        wanted = "Answer again" if self.ask.schema is None else "Answer again with valid JSON only"
        objection = {"role": "user", "content": f"This cannot be used: {problem}. {wanted}."}
        if not content.strip():  # some providers take no empty turn; two of the user's are one to them
            return [objection]
        return [{"role": "assistant", "content": content[:LONGEST_SHOWN]}, objection]
