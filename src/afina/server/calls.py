"""An answer's text -> its tool calls, piece by piece as the text arrives.

Comes in: the text that the engine writes under a ToolCalls shape, `{"tool_calls":[{"name":"f","arguments":{...}}]}`,
cut anywhere. Goes out: which call a piece of arguments belongs to. The text of `arguments` passes as it was written.
While it is not yet sure that the text is one of calls, it is held back; plain text is handed through. Knows no wire
format.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

OPENING = re.compile(r'\s*\{\s*"tool_calls"\s*:\s*\[', re.ASCII)
# Every beginning of the opening, white space apart.
OPENING_TEXT = '{"tool_calls":['
# It begins behind the bracket that closes the call before.
NAME_FIELD = re.compile(r'[\s,}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*', re.ASCII)


@dataclass(frozen=True)
class CallPiece:
    """name: set on a call's first piece, which has no arguments yet."""

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True)
class Read:
    """What one piece of text brought: plain text, or pieces of calls."""

    text: str = ""
    calls: tuple[CallPiece, ...] = ()


class CallReader:
    """Reads one answer. `is_calls`: None until the text has shown what it is."""

    def __init__(self) -> None:
        self.is_calls: bool | None = None
        self._held = ""
        self._index = -1
        self._depth = 0  # of brackets within the arguments that are open; 0 between calls
        self._in_string = self._escaped = False

    def feed(self, text: str) -> Read:
        """The next piece of the answer's text."""
        if self.is_calls is False:
            return Read(text)
        self._held += text
        if self.is_calls is None:
            opening = OPENING.match(self._held)
            if opening:
                self.is_calls, self._held = True, self._held[opening.end() :]
            elif OPENING_TEXT.startswith("".join(self._held.split())):
                return Read()
            else:
                self.is_calls = False
                return Read(self._release())
        return Read("", tuple(self._pieces()))

    def end(self) -> Read:
        """What was held back, now that no more follows."""
        return Read() if self.is_calls else Read(self._release())

    def _release(self) -> str:
        held, self._held = self._held, ""
        return held

    def _pieces(self) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        while self._held:
            if self._depth:
                written = self._arguments()
                pieces.append(CallPiece(self._index, None, written))
                continue
            field = NAME_FIELD.match(self._held)
            # A value that begins with no bracket is none of ours; the engine writes arguments as objects.
            if field is None or field.end() == len(self._held) or self._held[field.end()] != "{":
                break
            self._index += 1
            pieces.append(CallPiece(self._index, json.loads(field[1], strict=False), ""))
            self._held = self._held[field.end() :]
            self._depth, self._in_string = -1, False
        return pieces

    def _arguments(self) -> str:
        """Take from what is held as much as belongs to the open arguments."""
        depth = max(self._depth, 0)
        for i, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
                if depth == 0:
                    self._depth = 0
                    written, self._held = self._held[: i + 1], self._held[i + 1 :]
                    return written
        self._depth = depth
        return self._release()
