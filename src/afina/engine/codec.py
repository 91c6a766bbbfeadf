"""Text to tokens and back, so that text can never become a control token.

Comes in: a fast Hugging Face tokenizer. Goes out: token ids of trusted template text (control tokens
are control tokens), of a user's text (control tokens are plain text) and of answer text. Knows nothing
of tasks, grammars or models.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

import llguidance.hf
import numpy as np
from tokenizers import Tokenizer

from afina.core.errors import ModelError
from afina.core.storage import digest

CONTROL_LIKE = re.compile(r"^(<.*>|\[[A-Z_/ 0-9]+\])$", re.DOTALL)
# Short answer texts whose tokens are kept: up to this many characters, this many texts.
KNOWN_LENGTH, KNOWN_TEXTS = 128, 10_000


class Codec:
    """Tokens of one tokenizer.

    Two runs of text are tokenised by themselves only where a control token or the border between
    forced and chosen text stands between them; training and serving share these borders.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; answers cannot end."
            )
        self.eos = int(tokenizer.eos_token_id)
        # Kept by those who make them: compiled grammars (writer.py), tokens that complete an opening (toolcalls.py).
        self.grammars: dict[str, Any] = {}
        self.completing_openings: dict[int, list[tuple[int, bytes]]] = {}
        self._forbidden: dict[tuple[frozenset[int], int], np.ndarray] = {}
        self._known: dict[str, list[int]] = {}
        self._json = json.loads(tokenizer.backend_tokenizer.to_str())
        self._json["truncation"] = self._json["padding"] = None

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the vocabulary, the merges, the control tokens or the chat template."""
        return digest([self._json, self.tokenizer.chat_template or ""])

    @cached_property
    def _plain(self) -> Tokenizer:
        """A copy to which control tokens are plain text."""
        copy = json.loads(json.dumps(self._json))
        for token in copy["added_tokens"]:
            # Some control tokens are not marked special (<think>, <tool_call>); white-space runs stay as they are.
            token["special"] = token["special"] or bool(CONTROL_LIKE.match(token["content"]))
        plain = Tokenizer.from_str(json.dumps(copy))
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def lexer(self) -> llguidance.LLTokenizer:
        """The tokenizer as llguidance sees it: for grammars, and for text that continues other text."""
        return llguidance.hf.from_tokenizer(self.tokenizer)

    @cached_property
    def _control(self) -> dict[str, dict[str, Any]]:
        return {t["content"]: t for t in self._json["added_tokens"]}

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that may never stand in an answer: special and control-like tokens."""
        return frozenset(
            t["id"] for t in self._json["added_tokens"] if t["special"] or CONTROL_LIKE.match(t["content"])
        )

    @cached_property
    def text_ids(self) -> np.ndarray:
        """All ids that stand for text, ascending."""
        return np.array([i for i in range(self.lexer.vocab_size) if self._is_text(i)], dtype=np.int64)

    @cached_property
    def answer_ids(self) -> np.ndarray:
        """`text_ids` and the end of the sequence, ascending: what may follow in free text."""
        return np.sort(np.append(self.text_ids, self.eos))

    @cached_property
    def grammar_mask(self) -> np.ndarray:
        """True at ids that a grammar may use: neither control tokens nor the end of the sequence."""
        mask = np.ones(self.lexer.vocab_size, dtype=bool)
        mask[[i for i in (*self.control_ids, self.eos) if i < len(mask)]] = False
        return mask

    @cached_property
    def all_bytes(self) -> list[bytes]:
        """`token_bytes` of every id that stands for text; nothing for the others."""
        found = [b""] * self.lexer.vocab_size
        for token in self.text_ids.tolist():
            found[token] = self.token_bytes(token)
        return found

    def forbidden(self, stop_ids: frozenset[int], vocabulary: int) -> np.ndarray:
        """0 for ids of text and for `stop_ids`, -inf for all others of a model's vocabulary; float32. Not to be
        written to."""
        key = (stop_ids, vocabulary)
        if key not in self._forbidden:
            forbidden = np.full(vocabulary, -np.inf, dtype=np.float32)
            allowed = np.append(self.text_ids, list(stop_ids)).astype(np.int64)
            forbidden[allowed[allowed < vocabulary]] = 0
            self._forbidden[key] = forbidden
        return self._forbidden[key]

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; a part of a character, perhaps."""
        return self.lexer.decode_bytes([token])

    def _is_text(self, token: int) -> bool:
        if token in self.control_ids or self.lexer.is_special_token(token):
            return False
        return bool(self.lexer.decode_bytes([token]))

    def completion_prompt(self, text: str) -> list[int]:
        """A plain prompt: what the tokenizer puts before a text (bos, if it does), then the text."""
        ids = self._encoded(text, add_special_tokens=True)
        while ids and ids[-1] == self.eos:  # some tokenizers end every text
            ids.pop()
        return ids

    def chat_prompt(self, pieces: list[tuple[str, bool]]) -> list[int]:
        """Tokens of a rendered chat template, cut into (text, trusted) pieces.

        Control tokens count only in trusted pieces. Text between two of them is tokenised as one, so
        the ids equal those of `apply_chat_template` for every text that holds no control token.
        """
        ids: list[int] = []
        run = ""
        strip_next = False
        for text, trusted in pieces:
            parts = self._split_control(text) if trusted else [text]
            for part in parts:
                token = self._control.get(part) if trusted else None
                if token is None:
                    run += part
                    continue
                run = run.lstrip() if strip_next else run
                ids += self._run(run.rstrip() if token.get("lstrip") else run)
                ids.append(token["id"])
                run, strip_next = "", bool(token.get("rstrip"))
        return ids + self._run(run.lstrip() if strip_next else run)

    def _split_control(self, text: str) -> list[str]:
        if not self._control:
            return [text]
        return [part for part in self._control_pattern.split(text) if part]

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._control, key=len, reverse=True)
        return re.compile("(" + "|".join(re.escape(content) for content in longest_first) + ")")

    def first_control(self, text: str) -> tuple[str, int | None]:
        """The text before the first control token of a trusted text, and that token; None if there is none."""
        before = ""
        for part in self._split_control(text):
            token = self._control.get(part)
            if token is not None and token["id"] in self.control_ids:
                return before, int(token["id"])
            before += part
        return before, None

    def starts_with_control(self, text: str) -> bool:
        """Whether a trusted text begins with a control token."""
        before, token = self.first_control(text)
        return token is not None and not before

    def _run(self, text: str) -> list[int]:
        return self._encoded(text, add_special_tokens=False) if text else []

    def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As a batch of one: the tokenizer lets other threads run meanwhile only for batches."""
        return self._plain.encode_batch_fast([_whole(text)], add_special_tokens=add_special_tokens)[0].ids

    def answer_text(self, text: str) -> list[int]:
        """Tokens of text that continues other text: no bos, no leading space of SentencePiece."""
        if len(text) > KNOWN_LENGTH:
            return self._answer_text(text)
        # The same few labels and keys are written in every answer.
        ids = self._known.get(text)
        if ids is None:
            if len(self._known) >= KNOWN_TEXTS:
                self._known.clear()
            ids = self._known[text] = self._answer_text(text)
        return ids.copy()

    def _answer_text(self, text: str) -> list[int]:
        text = _whole(text)
        ids = self.lexer.tokenize_str(text)
        if self.lexer.decode_bytes(ids) != text.encode() or any(i in self.control_ids for i in ids):
            ids = self.lexer.greedy_tokenize(text)
        if self.lexer.decode_bytes(ids) != text.encode():
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the tokenizer cannot write {text!r}; it lacks the characters. "
                "Choose a base model with byte fallback or a byte-level vocabulary."
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of answer tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.lexer.decode_bytes(ids).decode("utf-8", errors="replace")


def _whole(text: str) -> str:
    """Half a surrogate pair, which is no character, is read as "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
