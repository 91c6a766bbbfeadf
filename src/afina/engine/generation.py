"""One answer on its way to whoever asked: text that can be shown, piece by piece.

Comes in: tokens as they are chosen, from the engine's thread. Goes out: deltas whose text is whole characters, never
holds a stop text nor the beginning of one. Knows nothing of models or grammars.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from afina.engine.sampling import Sampling

if TYPE_CHECKING:
    from afina.engine.shapes import Shape

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Token:
    """text: its bytes, perhaps a part of a character. logprob: natural logarithm; 0.0 for a forced token.

    top: the best tokens at this place as (id, bytes, logprob), best first.
    """

    id: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True)
class Delta:
    """tokens: only where log-probabilities were asked for; those whose text is shown by now.

    finish: why the answer ended; None while it goes on. Nothing follows a delta that has it.
    """

    text: str
    tokens: tuple[Token, ...]
    finish: Finish | None


class Generation:
    """One answer that is asked for.

    ids: the prompt; a `Prompt` of chat.py also names white space around the answer that is not shown.
    on_delta, on_error: called by the engine's thread, and may not wait; after an error nothing else is called.
    The numbers grow while it runs; `cached_tokens` of the prompt were not read again.
    """

    def __init__(
        self,
        ids: list[int],
        shape: Shape,
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.ids, self.shape, self.sampling = ids, shape, sampling
        self.on_delta, self.on_error = on_delta, on_error
        self.lead: str = getattr(ids, "lead", "")
        self.trail: str = getattr(ids, "trail", "")
        self.prompt_tokens = len(ids)
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.cancelled = False

    def cancel(self) -> None:
        """Stop soon, and say no more. May be called by any thread, at any time."""
        self.cancelled = True


class TextStream:
    """Bytes of tokens in, text that can be shown out.

    stops: texts that end it. lead: left out where the text begins with it; trail: where it ends with it.
    `stopped` once a stop text was read; what follows is ignored.
    """

    def __init__(self, stops: Sequence[str] = (), lead: str = "", trail: str = "") -> None:
        self.stopped = False
        self._stops = [_StopText(stop) for stop in stops if stop]
        self._lead, self._trail = lead, trail
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded and not yet shown
        self._read = self._shown = 0  # characters that were decoded, and taken away
        self._tokens: list[tuple[int, Token]] = []  # and where each of them ends

    def feed(self, piece: bytes, token: Token | None = None) -> None:
        """The next token's bytes. token: to hand out when they are shown."""
        if self.stopped:
            return
        text = self._decoder.decode(piece)
        self._held += text
        self._read += len(text)
        if token is not None:
            self._tokens.append((self._read, token))
        if self._stops:
            self._look_for_stops(text)

    def take(self) -> tuple[str, tuple[Token, ...]]:
        """What can be shown by now, once."""
        return self._show(len(self._held) if self.stopped else len(self._held) - self._doubtful())

    def end(self, *, own_end: bool) -> tuple[str, tuple[Token, ...]]:
        """The rest. own_end: the answer ended by itself. Bytes that are no whole character are left out."""
        if own_end and not self.stopped and self._trail:
            self._held = self._held.removesuffix(self._trail)
        shown = self._show(len(self._held))
        # Tokens without characters of their own belong to the text before them.
        rest = () if self.stopped else tuple(token for _, token in self._tokens)
        self._tokens = []
        return shown[0], shown[1] + rest

    def _show(self, count: int) -> tuple[str, tuple[Token, ...]]:
        if self._shown == 0 and self._lead and count:
            if len(self._held) < len(self._lead) and self._lead.startswith(self._held) and not self.stopped:
                return "", ()
            if self._held.startswith(self._lead) and count >= len(self._lead):
                self._held, self._shown = self._held[len(self._lead) :], len(self._lead)
                count -= len(self._lead)
        text, self._held = self._held[:count], self._held[count:]
        self._shown += count
        done = 0
        while done < len(self._tokens) and self._tokens[done][0] <= self._shown:
            done += 1
        tokens = tuple(token for _, token in self._tokens[:done])
        del self._tokens[:done]
        return text, tokens

    def _doubtful(self) -> int:
        """How many characters at the end may belong to a stop text or the trail."""
        most = max((stop.matched for stop in self._stops), default=0)
        for length in range(min(len(self._trail), len(self._held)), most, -1):
            if self._held.endswith(self._trail[:length]):
                return length
        return most

    def _look_for_stops(self, text: str) -> None:
        for at, character in enumerate(text, self._read - len(text)):
            longest = max(len(stop.text) if stop.step(character) else 0 for stop in self._stops)
            if longest:
                end = at + 1 - longest
                self._held = self._held[: max(0, end - (self._read - len(self._held)))]
                self.stopped = True
                return


class _StopText:
    """Knuth, Morris and Pratt's search, a character at a time: whatever the stop text, a step costs the same."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._back = [0] * len(text)
        length = 0
        for i in range(1, len(text)):
            while length and text[i] != text[length]:
                length = self._back[length - 1]
            length += text[i] == text[length]
            self._back[i] = length

    def step(self, character: str) -> bool:
        """Whether the text is complete with this character."""
        while self.matched and character != self.text[self.matched]:
            self.matched = self._back[self.matched - 1]
        self.matched += character == self.text[self.matched]
        if self.matched == len(self.text):
            self.matched = 0
            return True
        return False
