"""The majority of several answers: one strategy asked several times at a temperature, or several strategies.

Self-consistency (Wang et al. 2022, arXiv:2203.11171) is the first of the two with a chain of thought below it. Comes
in: voters. Goes out: predictions whose confidence is how far the voters agree. How a field's majority is found and how
ties are broken stands in `majority.py`; how a voter comes to its answer is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from afina.core import schema as schemas
from afina.core.errors import RecipeError
from afina.core.predictor import Inputs, Prediction, Predictor, Usage
from afina.core.schema import Field
from afina.core.task import Task
from afina.strategies import majority


@runtime_checkable
class Sampler(Protocol):
    """What gives other answers when it is asked again at a temperature."""

    name: str

    def sample(
        self, inputs: Sequence[Inputs], samples: Sequence[int], temperature: float, *, label: str | None = None
    ) -> list[list[Prediction]]:
        """For each number in `samples` a prediction per row, in order; equal numbers are the same draw."""
        ...


class Vote:
    """The field-by-field majority of `voters`: a Sampler asked for samples 0 to n - 1, or predictors asked once each.

    A voter that fails, or whose answer is not of the task, is left out; where all fail, the row fails.
    confidence: the share of the remaining votes that have the chosen value, which is agreement, not a calibrated
    probability. probabilities: the shares of all labels. reasoning: of each part, that of the first voter of those that
    agree most with the majority there. trace: an entry per vote, as {"voter", "sample" (of a Sampler), "output",
    "confidence", "reasoning", "trace", "error"} without what is empty, and {"whole_answer_of", "because"} where the
    fields' majorities made no valid answer together. usage and latency_s: the voters' sums; whoever asks voters side by
    side waits as long as for the slowest.

    n, temperature: of a Sampler; they have no effect on predictors. Raises RecipeError where there is nothing to count.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        voters: Sampler | Sequence[Predictor],
        *,
        n: int = 5,
        temperature: float = 0.7,
    ) -> None:
        self.name, self.task, self.voters, self.n, self.temperature = name, task, voters, n, temperature
        if isinstance(voters, Sequence):
            if not voters:
                raise RecipeError(f"{name}: found no voters, expected at least one strategy. Name some under of.")
        elif not isinstance(voters, Sampler):
            raise RecipeError(
                f"{name}: {getattr(voters, 'name', voters)!r} gives the same answer however often it is asked, so its "
                "votes decide nothing. Name a strategy that asks a model, or several strategies, under of."
            )
        elif n < 1 or temperature <= 0:
            raise RecipeError(
                f"{name}: n is {n} and temperature {temperature}; expected n of at least 1, and a temperature above 0, "
                "or else all answers are the same."
            )

    def predict(self, inputs: Sequence[Inputs], *, label: str | None = None) -> list[Prediction]:
        """One prediction per row, in order. label: what the progress bar says; None for no bar."""
        if not inputs:
            return []
        if isinstance(self.voters, Sequence):
            heads: list[dict[str, Any]] = [{"voter": voter.name} for voter in self.voters]
            columns = [voter.predict(inputs) for voter in self.voters]
        else:
            heads = [{"voter": self.voters.name, "sample": sample} for sample in range(self.n)]
            columns = self.voters.sample(inputs, range(self.n), self.temperature, label=label)
        for head, column in zip(heads, columns, strict=True):
            assert len(column) == len(inputs), f"{head} gave {len(column)} predictions for {len(inputs)} rows"
        return [self._decide(heads, [column[row] for column in columns]) for row in range(len(inputs))]

    def _decide(self, heads: Sequence[Mapping[str, Any]], asked: Sequence[Prediction]) -> Prediction:
        votes = [self._checked(prediction) for prediction in asked]
        trace = [{**head, **_entry(vote)} for head, vote in zip(heads, votes, strict=True)]
        made = Prediction(
            usage=sum((vote.usage for vote in votes), Usage()),
            latency_s=sum(vote.latency_s for vote in votes),
            truncated=any(vote.truncated for vote in votes),
            sources=tuple(_once(source for vote in votes for source in vote.sources)),
            trace=trace,
        )
        valid = [(head, vote) for head, vote in zip(heads, votes, strict=True) if vote.error is None]
        if not valid:
            return replace(made, error=f"none of {len(votes)} votes is an answer; the first: {votes[0].error}")
        found = majority.decide(self.task, [majority.Ballot(vote.output, vote.confidence) for _, vote in valid])
        if found.whole is not None:
            trace.append({"whole_answer_of": dict(valid[found.whole][0]), "because": found.problem})
        return replace(
            made,
            output=found.output,
            confidence=found.agreement,
            probabilities=found.shares,
            reasoning=self._reasoning([vote for _, vote in valid], found.output),
        )

    def _checked(self, vote: Prediction) -> Prediction:
        """The vote, or why it does not count."""
        problem = None if vote.error is not None else schemas.problems(vote.output, self.task.output)
        return vote if problem is None else replace(vote, output=None, error=problem)

    def _reasoning(self, votes: Sequence[Prediction], output: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in _once(part for vote in votes for part in vote.reasoning):
            fields = [field for field in self.task.fields if _is_under(field, part)]
            said = [vote for vote in votes if part in vote.reasoning]
            closest = max(said, key=lambda vote: majority.num_agreeing(fields, vote.output, output))
            found[part] = closest.reasoning[part]
        return found


def _is_under(field: Field, part: str) -> bool:
    return not part or field.path == part or field.path.startswith(f"{part}.")


def _once(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order in which they come."""
    return list(dict.fromkeys(texts))


def _entry(vote: Prediction) -> dict[str, Any]:
    """A vote as the trace keeps it."""
    if vote.error is not None:
        return {"error": vote.error} | ({"trace": list(vote.trace)} if vote.trace else {})
    said = {
        "confidence": dict(vote.confidence),
        "reasoning": dict(vote.reasoning),
        "trace": list(vote.trace),
    }
    return {"output": vote.output, **{name: value for name, value in said.items() if value}}
