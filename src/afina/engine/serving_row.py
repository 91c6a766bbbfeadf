"""One answer of a running batch: what to read next, what to ask, what its request is told.

Between a `Speaker`, which knows what may come, a `Sampler`, which chooses, and a `TextStream`, which knows what can be
shown. Knows nothing of tensors or other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from afina.engine.codec import Codec
from afina.engine.generation import Delta, Finish, Generation, TextStream, Token
from afina.engine.sampling import Chosen, Sampler
from afina.engine.shapes import Need, speaker

if TYPE_CHECKING:
    from afina.engine.reading import Scores


@dataclass
class Heard:
    """What the model said after a row's last token; can be asked again. place: the row's number there."""

    scores: Scores
    place: int


class ServingRow:
    """ids: prompt and answer so far. read: how many of them the model has read.

    need: what is asked after the last of them; None before `begin` and at the end. Raises SchemaError where the shape
    cannot be held to.
    """

    def __init__(
        self, generation: Generation, codec: Codec, stop_ids: frozenset[int], vocabulary: int, context: int
    ) -> None:
        sampling = generation.sampling
        self.generation, self._codec = generation, codec
        self.ids: list[int] = list(generation.ids) or [codec.eos]  # something must be read before anything is said
        self.read = 0
        self.need: Need | None = None
        self.heard: Heard | None = None
        self.finish: Finish | None = None
        self.limit = min(sampling.max_tokens, context - len(self.ids))
        self._speaker = speaker(generation.shape, codec, stop_ids, vocabulary, generation.lead)
        self._sampler = Sampler(sampling, vocabulary)
        self._stream = TextStream(sampling.stop, generation.lead, generation.trail)
        self._written = 0  # tokens of the speaker that were looked at
        self._chosen: Chosen | None = None

    @property
    def most_tokens(self) -> int:
        """How long this row can become."""
        return len(self.generation.ids) + self.limit

    @property
    def fresh(self) -> int:
        """How many tokens wait to be read."""
        return len(self.ids) - self.read

    def begin(self) -> None:
        """Write what is forced at the beginning, and find the first need."""
        if self.limit <= 0:
            self._end("length")
        else:
            self._go_on()
        self.tell()

    def take(self, scores: np.ndarray) -> None:
        """Choose the next token. scores: of the need's ids, or of the whole vocabulary."""
        assert self.need is not None, "nothing was asked"
        if self.need.forbidden is not None:
            scores = scores + self.need.forbidden
        self._chosen = self._sampler.choose(scores, self.need.ids)
        self._speaker.take(self._chosen.token)
        self._go_on()

    def tell(self) -> None:
        """Hand out what can be shown by now, and how it ended if it has."""
        if self.finish is None:
            text, tokens = self._stream.take()
        else:
            text, tokens = self._stream.end(own_end=self.finish != "length")
        if (text or tokens or self.finish) and not self.generation.cancelled:
            self.generation.on_delta(Delta(text, tokens, self.finish))

    def _go_on(self) -> None:
        """Append what was written, up to the limit or a stop text; then find out what is needed next."""
        # A limit that is reached here spares the question of what would follow.
        if self._append() or self._ends_here():
            return
        self.need = self._speaker.need()
        if self._append():
            return
        if self.need is None:
            self._end(self._speaker.ending)
        elif self.generation.completion_tokens >= self.limit:
            self._end("length")

    def _ends_here(self) -> bool:
        """Whether free text has come to its limit; structure may still be complete, or end with a chosen token."""
        full = self.generation.completion_tokens >= self.limit
        if full and self.need is not None and self.need.ids is None:
            self._end("length")
        return self.finish is not None

    def _append(self) -> bool:
        """Take over the speaker's new tokens; whether the answer ends with them."""
        tokens = self._speaker.tokens
        for token in tokens[self._written :]:
            if self.generation.completion_tokens >= self.limit:
                self._end("length")
                return True
            self._written += 1
            self.ids.append(token)
            self.generation.completion_tokens += 1
            piece = self._codec.token_bytes(token)
            self._stream.feed(piece, self._shown(token, piece))
            if self._stream.stopped:
                self._end("stop")
                return True
        return False

    def _shown(self, token: int, piece: bytes) -> Token | None:
        """The token as log-probabilities show it. One that only ended a value is written as the first that follows."""
        wanted = self.generation.sampling.top_logprobs
        if wanted is None:
            return None
        chosen, self._chosen = self._chosen, None
        if chosen is None or chosen.token != token:
            return Token(token, piece, 0.0, ((token, piece, 0.0),) if wanted else ())
        top = tuple((one, self._codec.token_bytes(one), logprob) for one, logprob in chosen.top)
        return Token(token, piece, chosen.logprob, top)

    def _end(self, finish: Finish) -> None:
        self.finish, self.need = finish, None
