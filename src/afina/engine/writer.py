"""One answer as it is written: forced tokens appended, choices asked for, one at a time.

`Writer` is the state machine that training and serving share. `need()` appends all that is forced and
returns the next `Decision`, or None when the answer is complete; `take(token)` answers it. Serving
takes the model's favourite among `allowed`; training takes `gold`. So the tokens that are trained are
the tokens that will be written, by construction.

Borders: each run of forced text, each option and each open value is tokenised by itself.

What the model reads and writes (`tokens`) and the answer's JSON (`text`) are the same text in the format
`json`. In `compact` the tokens hold only what is spoken, and the JSON is written beside them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from afina.core.errors import SchemaError
from afina.core.schema import Schema, dumps
from afina.engine.bounds import bounded, bounded_anywhere
from afina.engine.codec import Codec
from afina.engine.grammar import MAX_ITEMS, Choice, Forced, Open, Walk, open_values
from afina.engine.spelling import AnswerFormat

# Tokens that a value at its limit may still take before it must close.
CLOSING_GRACE = 64


@dataclass(frozen=True)
class Decision:
    """A point where more than one token is possible.

    path: the field it decides. allowed: token ids, ascending. is_open: free text or a number rather
    than one of finitely many texts. gold: the token to learn, in training.
    """

    path: str
    allowed: np.ndarray
    is_open: bool
    gold: int | None = None


@dataclass(frozen=True)
class Whole(Open):
    """A JSON value of any schema that llguidance takes, one that no walk can follow among them."""


class Writer:
    """Writes one answer. `tokens` is what the model has said so far; `text` the answer, once it is complete.

    max_items: of arrays that are one open value and have no maxItems; None for no limit.
    no_repeat_ngram_size: free text that is not given never has so many tokens in a row twice; 0 for no such rule.
    """

    def __init__(
        self,
        codec: Codec,
        walk: Walk,
        max_text_tokens: int,
        answer_format: AnswerFormat = "json",
        *,
        max_items: int | None = MAX_ITEMS,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        self.codec = codec
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.tokens: list[int] = []
        self.max_text_tokens, self.max_items = max_text_tokens, max_items
        self.answer_format: AnswerFormat = answer_format
        self._walk = walk
        # The answer in pieces, and which of them wait for the values that are asked for next.
        self._pieces: list[str] = []
        self._places: deque[int] = deque()
        self._pending: Choice | Open | None = None
        self._state: _ChoiceState | _OpenState | None = None
        self._began = 0  # tokens before the value that is being written
        self._queue = self._advance(None)

    @property
    def text(self) -> str:
        """The answer: JSON, or plain text. Values that are not complete are absent."""
        return "".join(self._pieces)

    def need(self) -> Decision | None:
        """The next decision; None when the answer is complete."""
        while True:
            if self._state is None:
                event = self._queue
                if event is None:
                    return None
                if isinstance(event, str):
                    self.tokens += self.codec.answer_text(event)
                    self._queue = self._advance(None)
                    continue
                self._begin(event)
            state = self._state
            assert state is not None
            decision = state.need()
            if decision is None:
                self._end(state)
            elif len(decision.allowed) == 1:
                self.take(int(decision.allowed[0]))
            elif not len(decision.allowed):
                raise SchemaError(f"{decision.path!r}: no value fits the schema.")
            else:
                return decision

    def take(self, token: int) -> bool:
        """Answer the last decision. False if the token only ended a value and was not written."""
        assert self._state is not None, "nothing was asked"
        written = self._state.take(token)
        if written:
            self.tokens.append(token)
        return written

    def _begin(self, event: Choice | Open) -> None:
        self._began = len(self.tokens)
        if isinstance(event, Choice) and event.structural:
            self._state = self._choice(event, ())
            return
        # What follows does not depend on this value: look at it, to know which tokens end the value.
        self._queue = self._advance(None)
        stops = self._first_tokens(self._queue)
        if isinstance(event, Choice):
            self._state = self._choice(event, stops)
        else:
            self._state = _OpenState(
                self.codec, event, stops, self.max_text_tokens, self.max_items, self.no_repeat_ngram_size
            )

    def _choice(self, event: Choice, stops: tuple[int, ...]) -> _ChoiceState:
        return _ChoiceState(self.codec, event, event.said(self.answer_format), stops)

    def _end(self, state: _ChoiceState | _OpenState) -> None:
        place = self._places.popleft()
        if isinstance(state, _OpenState):
            self._pieces[place] = self.codec.decode(self.tokens[self._began :])
        else:
            assert state.chosen is not None, "a choice ends with its answer"
            self._pieces[place] = state.event.options[state.chosen]
            if state.event.structural:
                self._queue = self._advance(state.chosen)
        self._state = None

    def _advance(self, answer: int | None) -> str | Choice | Open | None:
        """What comes next: the forced text up to the next value, that value, or None at the end."""
        if self._pending is not None:
            event, self._pending = self._pending, None
            return event
        text = ""
        while isinstance(event := self._send(answer), Forced):
            self._pieces.append(event.text)
            text += event.said(self.answer_format)
            answer = None
        if event is not None:
            self._places.append(len(self._pieces))
            self._pieces.append("")
        if not text:
            return event
        self._pending = event
        return text

    def _send(self, answer: int | None) -> Forced | Choice | Open | None:
        try:
            return self._walk.send(answer)
        except StopIteration:
            return None

    def _first_tokens(self, event: str | Choice | Open | None) -> tuple[int, ...]:
        """Tokens that show that the value before `event` has ended; the gold one, if known, first."""
        if event is None:
            return (self.codec.eos,)
        if isinstance(event, str):
            return (self.codec.answer_text(event)[0],)
        assert isinstance(event, Choice), "before an open value stands a key, a bracket or a space, which is forced"
        firsts = [self.codec.answer_text(option)[0] for option in event.said(self.answer_format)]
        return tuple(dict.fromkeys([*firsts[event.gold or 0 :][:1], *firsts]))


class _ChoiceState:
    """Walks the options' tokens as a trie. said: the options as the model writes them."""

    def __init__(self, codec: Codec, event: Choice, said: tuple[str, ...], stops: tuple[int, ...]) -> None:
        self.event, self.stops = event, stops
        self._options = [tuple(codec.answer_text(option)) for option in said]
        if len(set(self._options)) != len(self._options):
            raise SchemaError(f"{event.path!r}: two of {said} have the same tokens. Rename a label.")
        self._at = 0
        self._live = list(range(len(self._options)))
        self.chosen: int | None = None

    def need(self) -> Decision | None:
        if self.chosen is not None:
            return None
        ended = [i for i in self._live if len(self._options[i]) == self._at]
        if ended and len(self._live) == 1:
            self.chosen = ended[0]
            return None
        allowed = {self._options[i][self._at] for i in self._live if i not in ended}
        if ended:
            assert self.stops, "what ends a value is known"
            assert not allowed & set(self.stops), f"{self.event.path}: cannot tell where a value ends"
            allowed |= set(self.stops)
        gold = None
        if self.event.gold is not None:
            tokens = self._options[self.event.gold]
            gold = tokens[self._at] if self._at < len(tokens) else self.stops[0]
        return Decision(self.event.path, np.array(sorted(allowed), dtype=np.int64), False, gold)

    def take(self, token: int) -> bool:
        following = [i for i in self._live if self._options[i][self._at : self._at + 1] == (token,)]
        if not following:
            self.chosen = next(i for i in self._live if len(self._options[i]) == self._at)
            return False
        self._live = following
        self._at += 1
        if len(following) == 1 and len(self._options[following[0]]) == self._at:
            self.chosen = following[0]
        return True


class _OpenState:
    """Free text or a number, kept valid by llguidance; closed when its limit is reached."""

    def __init__(
        self,
        codec: Codec,
        event: Open,
        stops: tuple[int, ...],
        max_tokens: int,
        max_items: int | None,
        no_repeat_ngram_size: int = 0,
    ) -> None:
        is_text = event.kind == "text" or event.schema.get("type") == "string"
        self._ngram = no_repeat_ngram_size if is_text and event.gold is None else 0
        self._following: dict[tuple[int, ...], set[int]] = {}  # n - 1 tokens -> those that came after them
        self._tokens: list[int] = []
        self.codec, self.event, self.stops, self.max_tokens = codec, event, stops, max_tokens
        self._count = 0
        self._done = False
        self._forced: list[int] = []
        self._matcher = None if event.kind == "text" else _matcher(codec, event, max_items)
        self._gold = None if event.gold is None else codec.answer_text(event.gold) if event.gold else []

    def need(self) -> Decision | None:
        if self._done:
            return None
        if self._matcher is None:
            allowed = self.codec.answer_ids
            if self._count >= self.max_tokens and self._gold is None:
                self._done = True
                return None
            return Decision(self.event.path, self._unrepeated(allowed), True, self._gold_token(allowed))
        if self._matcher.is_stopped():
            if self._matcher.is_error():
                raise SchemaError(f"{self.event.path!r}: {self._matcher.get_error()}")
            return None
        if isinstance(self.event, Whole) and (forced := self._forced_token()) is not None:
            return Decision(self.event.path, np.array([forced], dtype=np.int64), True)
        allowed = self._grammar_tokens()
        if self._gold is None and self._count >= self.max_tokens:
            allowed = self._closing(allowed)
            if not len(allowed):
                self._done = True
                return None
        return Decision(self.event.path, self._unrepeated(allowed), True, self._gold_token(allowed))

    def _unrepeated(self, allowed: np.ndarray) -> np.ndarray:
        """Without what would say the same few tokens again, unless nothing else may follow."""
        said = self._following.get(tuple(self._tokens[len(self._tokens) - self._ngram + 1 :])) if self._ngram else None
        if not said or len(self._tokens) < self._ngram - 1:
            return allowed
        rest = np.setdiff1d(allowed, np.array(sorted(said), dtype=np.int64), assume_unique=True)
        return rest if len(rest) else allowed

    def _remember(self, token: int) -> None:
        if self._ngram:
            if len(self._tokens) >= self._ngram - 1:
                before = tuple(self._tokens[len(self._tokens) - self._ngram + 1 :])
                self._following.setdefault(before, set()).add(token)
            self._tokens.append(token)

    def take(self, token: int) -> bool:
        self._remember(token)
        if self._matcher is None:
            self._done = token == self.codec.eos
            self._count += 1
            return not self._done
        # A grammar takes the end of the sequence for one of its own; no value holds it.
        if token == self.codec.eos or (token in self.stops and not self._grammar_allows(token)):
            self._done = True
            return False
        if not self._matcher.consume_token(token):
            reason = self._matcher.get_error().partition("\n")[0]
            if self._matcher.is_error():  # one of llguidance's limits, which the schema is too large for
                raise SchemaError(f"{self.event.path!r}: {reason}")
            raise AssertionError(f"token {token} is not in the grammar: {reason}")
        self._count += 1
        return True

    def _forced_token(self) -> int | None:
        """The next token of text that a whole grammar leaves no choice about."""
        assert self._matcher is not None
        if not self._forced:
            self._forced = self._matcher.compute_ff_tokens()[::-1]
            if any(not self.codec.grammar_mask[token] for token in self._forced):
                self._forced = []
        return self._forced.pop() if self._forced else None

    def _grammar_allows(self, token: int) -> bool:
        assert self._matcher is not None
        return self._matcher.validate_tokens([token]) == 1

    def _grammar_tokens(self) -> np.ndarray:
        """What the grammar allows next; where the value may end, the tokens that show it."""
        assert self._matcher is not None
        mask = llguidance.numpy.allocate_token_bitmask(1, self.codec.lexer.vocab_size)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, mask, 0)
        if self._matcher.is_error():
            raise SchemaError(f"{self.event.path!r}: {self._matcher.get_error()}")
        bits = np.unpackbits(mask[0].view(np.uint8), count=self.codec.lexer.vocab_size, bitorder="little")
        allowed = np.flatnonzero(bits.view(bool) & self.codec.grammar_mask)
        if self._matcher.is_accepting():
            allowed = np.union1d(allowed, np.array(self.stops, dtype=np.int64))
        return allowed

    def _closing(self, allowed: np.ndarray) -> np.ndarray:
        """At its limit, the tokens that bring the value to an end soonest; the end itself where it may be."""
        assert self._matcher is not None
        if self._matcher.is_accepting():
            return np.empty(0, dtype=np.int64)
        if self._count > self.max_tokens + CLOSING_GRACE:
            raise SchemaError(
                f"{self.event.path!r}: the value does not end within {self._count} tokens of its pattern or minimum "
                "length. Raise answer.max_text_tokens, or loosen the schema."
            )
        # The end of a string or array, of a time, of a number; "n" completes an escape.
        for text in ('"', "]", "}", "Z", "0", "n"):
            ids = self.codec.answer_text(text)
            if len(ids) == 1 and ids[0] in allowed:
                return np.array(ids, dtype=np.int64)
        return allowed

    def _gold_token(self, allowed: np.ndarray) -> int | None:
        """The next token of the gold text: its own if the grammar allows it, else the longest that fits."""
        if self._gold is None:
            return None
        if self._count < len(self._gold) and self._gold[self._count] in allowed:
            return self._gold[self._count]
        if self._count >= len(self._gold):
            return self.codec.eos if self._matcher is None else self.stops[0]
        rest = self.codec.lexer.decode_bytes(self._gold[self._count :])
        fitting = [int(i) for i in allowed if rest.startswith(self.codec.lexer.decode_bytes([int(i)]))]
        if not fitting:
            raise SchemaError(f"{self.event.path!r}: the grammar does not allow the text {self.event.gold!r}.")
        best = max(fitting, key=lambda i: len(self.codec.lexer.decode_bytes([i])))
        width = len(self.codec.lexer.decode_bytes([best]))
        rest_ids = (
            self.codec.answer_text(rest[width:].decode("utf-8", errors="surrogateescape")) if rest[width:] else []
        )
        self._gold = [*self._gold[: self._count], best, *rest_ids]
        return best


OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
# Grammars that are kept compiled, for each tokenizer.
COMPILED = 128


@lru_cache(maxsize=256)
def _grammar(schema_text: str) -> str:
    return llguidance.LLMatcher.grammar_from_json_schema(schema_text, overrides=OPTIONS)


def _matcher(codec: Codec, event: Open, max_items: int | None = MAX_ITEMS) -> llguidance.LLMatcher:
    """A matcher at the point where the open value begins."""
    schema = bounded_anywhere(event.schema) if isinstance(event, Whole) else bounded(event.schema, max_items)
    matcher = _compiled(codec, dumps(schema)).deep_copy()
    if matcher.is_error():
        raise SchemaError(f"{event.path!r}: the grammar cannot be built: {matcher.get_error()}")
    if event.opened:
        matcher.consume_tokens(codec.answer_text(event.opened))
        if matcher.is_error():
            raise SchemaError(f"{event.path!r}: no value fits the schema: {matcher.get_error()}")
    return matcher


def _compiled(codec: Codec, schema_text: str) -> llguidance.LLMatcher:
    """A fresh matcher, to be copied."""
    known = codec.grammars
    matcher = known.get(schema_text)
    if matcher is None:
        matcher = llguidance.LLMatcher(codec.lexer, _grammar(schema_text), log_level=0)
        if len(known) >= COMPILED:
            known.clear()
        known[schema_text] = matcher
    return matcher


def check_grammar(codec: Codec, schema: Schema) -> None:
    """Build every grammar of a schema once, so that what cannot be enforced is refused before any work.

    Raises SchemaError.
    """
    for value in open_values(schema):
        _matcher(codec, value)
