"""Conversations as prompt tokens and as training tokens, with any model's chat template or without one.

Comes in: messages and tools. Goes out: the ids that serving reads, and those that training learns: the same prompt,
then the answer's tokens and the token that ends its turn. What users, tools and assistants say can never become a
control token. `fingerprint` names everything that decides the tokens.
"""

from __future__ import annotations

from typing import Literal

from afina.core.chat import Completion, Conversation
from afina.core.errors import ModelError
from afina.core.storage import digest
from afina.engine.codec import Codec
from afina.engine.encoded import Encoded
from afina.engine.template import LETTERS, Template
from afina.engine.turns import Part, Turn, turns_of

ChatStyle = Literal["chat", "completion"]
# Style "completion": each turn is a block that begins so.
NAMES = {"system": "System: ", "user": "User: ", "assistant": "Assistant:"}
BLOCK = "\n\n"


class Prompt(list[int]):
    """Token ids of a prompt. lead, trail: white space that the format puts around an answer, which the model writes
    and nobody is shown."""

    lead: str = ""
    trail: str = ""


class ChatFormat:
    """How one model holds conversations.

    style: "chat" uses the tokenizer's chat template; "completion" writes plain text with the names of the speakers.
    stop_ids: each of these tokens ends an answer. Raises ModelError where there is no template that can be used.
    """

    def __init__(self, codec: Codec, style: ChatStyle) -> None:
        self.codec = codec
        self.style: ChatStyle = style
        if style == "chat" and not codec.tokenizer.chat_template:
            raise ModelError(f"{codec.tokenizer.name_or_path}: has no chat template. Use style: completion.")
        self._template = Template(codec) if style == "chat" else None
        self.lead = " " if self._template is None else self._template.lead
        self.trail = "" if self._template is None else self._template.trail
        closing = None if self._template is None else self._template.closing
        self._closing = codec.eos if closing is None else closing
        self.stop_ids = frozenset({codec.eos, self._closing})

    @property
    def fingerprint(self) -> str:
        """Changes with the tokenizer, the template and the way tools are written."""
        return digest([self.codec.fingerprint, self.style, "chat-1"])

    def prompt(self, conversation: Conversation) -> Prompt:
        """What the model reads before it answers. Raises ModelError for turns that the template cannot take."""
        prompt = Prompt(self._tokens(turns_of(conversation))[0])
        prompt.lead, prompt.trail = self.lead, self.trail
        return prompt

    def encode(self, conversation: Conversation, max_tokens: int) -> Encoded:
        """A training text. Learned: what the assistant says in messages of weight 1, and that its turn ends there.

        What follows the last learned message is left out. A longer text is cut at its end (`truncated` tokens).
        """
        turns = turns_of(conversation)
        while turns and not any(part.learned for part in turns[-1].parts):
            turns.pop()
        ids, trained = self._tokens(turns[:-1], answer=turns[-1]) if turns else ([], [])
        return _encoded(ids, trained, max_tokens)

    def encode_completion(self, completion: Completion, max_tokens: int) -> Encoded:
        """A text and what follows it, with the end of the sequence."""
        prompt = self.codec.completion_prompt(_clean(completion.prompt))
        answer = [*self.codec.answer_text(_clean(completion.completion)), self.codec.eos]
        ids = prompt + answer
        return _encoded(ids, list(range(len(prompt), len(ids))), max_tokens)

    # -- tokens ---------------------------------------------------------------------------------

    def _tokens(self, turns: list[Turn], answer: Turn | None = None) -> tuple[list[int], list[int]]:
        """Ids of the turns, the opening of the assistant's turn, and the answer if there is one; learned positions."""
        spoken = self._with_template(turns, answer) if self._template else self._as_blocks(turns, answer)
        written = _Written(self.codec, self.lead, self.trail)
        for pieces, said in spoken:
            first, _ = pieces[0]
            written.close(None if self.codec.starts_with_control(first) else self._closing)
            written.read(pieces, plain=self._template is None)
            if said is not None:
                written.say(said)
        if answer is not None:
            written.close(self._closing)
        return written.ids, written.trained

    def _with_template(self, turns: list[Turn], answer: Turn | None) -> list[_Spoken]:
        assert self._template is not None, "style chat"
        fitted = self._template.fitted([*turns, *([answer] if answer else [])])
        last = fitted.pop() if answer else None
        gaps = self._template.gaps("".join(LETTERS[turn.role] for turn in fitted))
        return _spoken([((gap, True), turn) for gap, turn in zip(gaps, [*fitted, last], strict=True)])

    def _as_blocks(self, turns: list[Turn], answer: Turn | None) -> list[_Spoken]:
        blocks = [NAMES["assistant" if turn is None else turn.role] for turn in (*turns, answer)]
        blocks[1:] = [BLOCK + block for block in blocks[1:]]
        return _spoken([((block, False), turn) for block, turn in zip(blocks, (*turns, answer), strict=True)])


# What is read, as (text, trusted) pieces, and what the assistant then says; None where it is to speak.
_Spoken = tuple[list[tuple[str, bool]], Turn | None]


def _spoken(around: list[tuple[tuple[str, bool], Turn | None]]) -> list[_Spoken]:
    """around: each turn with the text before it."""
    found: list[_Spoken] = []
    pieces: list[tuple[str, bool]] = []
    for before, turn in around:
        pieces.append(before)
        if turn is None or turn.role == "assistant":
            found.append((pieces, turn))
            pieces = []
        else:
            pieces.append((turn.text, False))
    return found


class _Written:
    """Token ids as they grow, and which of them are learned. The border between what is read and what is said is one
    of tokens, as it is in serving."""

    def __init__(self, codec: Codec, lead: str, trail: str) -> None:
        self.codec, self.lead, self.trail = codec, lead, trail
        self.ids: list[int] = []
        self.trained: list[int] = []
        self._open = self._learned = False  # an answer waits for the token that ends it; and whether that is learned

    def read(self, pieces: list[tuple[str, bool]], *, plain: bool) -> None:
        if plain and not self.ids:
            self.ids += self.codec.completion_prompt("".join(text for text, _ in pieces))
        elif plain:
            self.ids += self.codec.chat_prompt([("".join(text for text, _ in pieces), False)])
        else:
            self.ids += self.codec.chat_prompt(pieces)

    def say(self, turn: Turn) -> None:
        parts = [*turn.parts]
        parts[0] = Part(self.lead + parts[0].text, parts[0].learned)
        parts[-1] = Part(parts[-1].text + self.trail, parts[-1].learned)
        for part in parts:
            new = self.codec.answer_text(part.text) if part.text else []
            if part.learned:
                self.trained += range(len(self.ids), len(self.ids) + len(new))
            self.ids += new
        self._open, self._learned = True, parts[-1].learned

    def close(self, token: int | None) -> None:
        """End the answer that stands last. token: None if what is read next begins with the token that does."""
        if self._open:
            if self._learned:
                self.trained.append(len(self.ids))
            self.ids += [] if token is None else [token]
        self._open = False


def _encoded(ids: list[int], trained: list[int], max_tokens: int) -> Encoded:
    kept = tuple(at for at in trained if at < max_tokens)
    num_prompt = kept[0] if kept else min(len(ids), max_tokens)
    return Encoded(tuple(ids[:max_tokens]), num_prompt, truncated=max(0, len(ids) - max_tokens), trained_at=kept)


def _clean(text: str) -> str:
    """Half a surrogate pair, which JSON can say, is no character."""
    return text.encode("utf-8", "replace").decode()
