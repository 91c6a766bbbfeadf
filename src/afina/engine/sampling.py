"""Scores of the allowed tokens -> the next token, and how probable it was.

Comes in: one request's `Sampling` and float32 scores. Goes out: a token. Each request owns its random generator, so a
seed gives the same answer whatever is generated beside it. Knows nothing of models, grammars or text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from afina.core.errors import ModelError

BLOCK = 256  # weights that are summed at once, in looking for a place among them
COLDEST = 1e-4  # below, the best token is taken: float32 has no room for such divisions


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    temperature: 0 takes the best. top_p: of the probability, what the best tokens must hold together to be all that
    is drawn from. presence_penalty, frequency_penalty: taken from the scores of tokens that were chosen before, once
    and for each time. logit_bias: token id -> added to its score. max_tokens: of the answer, forced ones included.
    stop: texts that end an answer and are not part of it. top_logprobs: None if no log-probabilities are asked for,
    else how many of the best tokens to tell beside the chosen one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 1 << 20
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Chosen:
    """logprob: natural logarithm, among all that was allowed, at temperature 1, after bias and penalties; 0.0 where it
    was not asked for. top: the best (token, logprob), best first."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The choices of one answer. vocabulary: how many scores a model gives."""

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self.sampling = sampling
        # numpy takes no negative seed.
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)
        self._penalises = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._seen: set[int] = set()
        self._shift: np.ndarray | None = None  # added to the scores of the whole vocabulary
        if self._penalises or sampling.logit_bias:
            self._shift = np.zeros(vocabulary, dtype=np.float32)
            for token, bias in sampling.logit_bias.items():
                if 0 <= token < vocabulary:
                    self._shift[token] = bias

    def choose(self, scores: np.ndarray, ids: np.ndarray | None) -> Chosen:
        """The next token. scores: of `ids`, ascending; of the whole vocabulary if that is None, -inf where forbidden.

        Raises ModelError for scores that are no numbers.
        """
        if self._shift is not None:
            scores = scores + (self._shift if ids is None else self._shift[ids])
        best = int(np.argmax(scores))
        if not np.isfinite(scores[best]):
            raise ModelError("the model's scores are not finite, so no token can be chosen. Its weights are damaged.")
        at = best if self.sampling.temperature < COLDEST else self._draw(scores, best)
        token = at if ids is None else int(ids[at])
        chosen = self._told(token, at, scores, ids) if self.sampling.top_logprobs is not None else Chosen(token)
        if self._penalises:
            self._count(token)
        return chosen

    def _draw(self, scores: np.ndarray, best: int) -> int:
        weights = np.exp((scores - scores[best]) / np.float32(self.sampling.temperature))
        among = None
        if self.sampling.top_p < 1:
            among = _nucleus(weights, self.sampling.top_p)
            weights = weights[among]
        at = _at_share(weights, self._random.random())
        return at if among is None else int(among[at])

    def _told(self, token: int, at: int, scores: np.ndarray, ids: np.ndarray | None) -> Chosen:
        best = scores.max()
        whole = float(best) + float(np.log(np.exp(scores - best).sum(dtype=np.float64)))
        count = min(self.sampling.top_logprobs or 0, len(scores))
        top = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        top = top[np.lexsort((top, -scores[top]))]
        told = [(int(i if ids is None else ids[i]), float(scores[i]) - whole) for i in top if np.isfinite(scores[i])]
        return Chosen(token, float(scores[at]) - whole, tuple(told))

    def _count(self, token: int) -> None:
        assert self._shift is not None, "made for penalties"
        self._shift[token] -= self.sampling.frequency_penalty
        if token not in self._seen:
            self._seen.add(token)
            self._shift[token] -= self.sampling.presence_penalty


def _at_share(weights: np.ndarray, share: float) -> int:
    """The index at which the sum of weights, counted from the first, passes a share of the whole. A share of 0 to 1,
    drawn evenly, so finds each index as often as its weight says."""
    starts = np.arange(0, len(weights), BLOCK)
    blocks = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    wanted = share * float(blocks[-1])
    block = min(int(blocks.searchsorted(wanted, side="right")), len(blocks) - 1)
    before = float(blocks[block - 1]) if block else 0.0
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    at = int(inside.cumsum(dtype=np.float64).searchsorted(wanted - before, side="right"))
    # Rounding may lead past the end, or to what cannot be chosen.
    return block * BLOCK + (at if at < len(inside) and inside[at] > 0 else int(inside.argmax()))


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the fewest weights that hold `top_p` of the whole; always one at least."""
    total = float(weights.sum(dtype=np.float64))
    # All smaller ones together hold less than what may be missing, so none of them is needed.
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    reached = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(reached, top_p * total, side="left")) + 1
    return np.sort(order[:count])
