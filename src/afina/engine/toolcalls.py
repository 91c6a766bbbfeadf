"""Free text that may turn out to be tool calls: seen from its first tokens, before a wrong one is written.

A text that begins with OPENING, white space before and behind its brace apart, is one of calls. Until it is sure that a
text is none, tokens that would complete the opening and go on otherwise than calls do are forbidden; so whatever begins
as calls can be handed to the grammar of calls. Knows bytes of tokens, and nothing of schemas.
"""

from __future__ import annotations

import numpy as np

from afina.engine.codec import Codec

OPENING = '{"tool_calls"'
_OPENING = OPENING.encode()
_SPACE = frozenset(b" \t\r\n\v\f\x1c\x1d\x1e\x1f")


class FreeText:
    """The beginning of one answer. forced: how calls begin, OPENING and what must follow it.

    free: what is forbidden in free text anyway (-inf or 0 for each id of the vocabulary).
    """

    def __init__(self, codec: Codec, forced: str, free: np.ndarray) -> None:
        self._codec, self._forced, self._free = codec, forced.encode(), free
        self._matched = 0  # bytes of the opening
        self.undecided = True

    def forbidden(self) -> np.ndarray:
        """For each id of the vocabulary, -inf if it may not come next."""
        wrong = [
            token
            for token, rest in _completing(self._codec, self._matched)
            if not self._forced.startswith(_OPENING + rest) and token < len(self._free)
        ]
        if not wrong:
            return self._free
        forbidden = self._free.copy()
        forbidden[wrong] = -np.inf
        return forbidden

    def read(self, token: int) -> str | None:
        """The next token; once the text is one of calls, what of `forced` is written."""
        matched, rest = _advance(self._matched, self._codec.token_bytes(token))
        self.undecided = matched is not None and rest is None
        if matched is not None:
            self._matched = matched
        return None if rest is None else (_OPENING + rest).decode()


def _advance(matched: int, text: bytes) -> tuple[int | None, bytes | None]:
    """How much of the opening is matched after `text`; None if it cannot be one. And what follows, once it is whole."""
    for at, byte in enumerate(text):
        if matched < 2 and byte in _SPACE:
            continue
        if byte != _OPENING[matched]:
            return None, None
        matched += 1
        if matched == len(_OPENING):
            return matched, text[at + 1 :]
    return matched, None


def _completing(codec: Codec, matched: int) -> list[tuple[int, bytes]]:
    """Tokens that complete the opening from here, and what they add to it."""
    known = codec.completing_openings
    if matched not in known:
        last = _OPENING[-1:] if matched < 2 else _OPENING[matched:]
        found = ((token, _advance(matched, text)[1]) for token, text in enumerate(codec.all_bytes) if last in text)
        known[matched] = [(token, rest) for token, rest in found if rest is not None]
    return known[matched]
