"""The one renderer: a task's question as prompt tokens, an example as training tokens.

The only caller of a chat or completion template. Training takes `encode`, serving takes `prompt`; both
build the same prompt, and the answer's tokens come from the `Writer` that serving uses. `fingerprint`
goes into the manifest; serving under another fingerprint is an error.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import Any, Literal

from afina.core.errors import DataError, ModelError
from afina.core.predictor import Example, Inputs
from afina.core.schema import dumps
from afina.core.storage import digest
from afina.core.task import Part, Task
from afina.engine.codec import Codec
from afina.engine.encoded import Encoded
from afina.engine.grammar import MISSING, Walk, walk, walk_text
from afina.engine.spelling import AnswerFormat, spell
from afina.engine.spoken import describe, read, say
from afina.engine.writer import Writer

Style = Literal["chat", "completion"]
# A text of private-use characters marks where a user's text stands in a rendered template.
MARK = "\ue0f1%d\ue0f2"
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|\n")
WORD_END = re.compile(r"\S(?=\s)")


class Renderer:
    """Prompts and training texts of one task for one tokenizer.

    style: "chat" puts the question into the tokenizer's chat template, "completion" writes plain text.
    show_schema: name the fields and labels in the prompt, as a model that was not tuned needs it.
    answer_format: "json" has the model write the JSON itself, "compact" only its free choices. Plain text
        is the same in both.
    """

    def __init__(
        self,
        task: Task,
        codec: Codec,
        style: Style,
        *,
        show_schema: bool = False,
        answer_format: AnswerFormat = "json",
        no_repeat_ngram_size: int = 0,
    ) -> None:
        if style == "chat" and not codec.tokenizer.chat_template:
            raise ModelError(
                f"{codec.tokenizer.name_or_path}: has no chat template, but chat_template: chat was asked for. "
                "Use chat_template: completion."
            )
        self.task, self.show_schema = task, show_schema
        self.style: Style = style
        self.answer_format: AnswerFormat = answer_format
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.codec = codec

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the tokens of prompt and answer but the example."""
        version = ["renderer-1"] if self.answer_format == "json" else ["renderer-1", "compact-1"]
        return digest([self.codec.fingerprint, self.style, self.task.to_json(), *version])

    # -- prompts --------------------------------------------------------------------------------

    def prompt(
        self, part: Part, inputs: Inputs, max_tokens: int | None = None, prefix: str | None = None
    ) -> tuple[list[int], int]:
        """Prompt ids, and how many characters of the inputs were cut to fit in `max_tokens`.

        prefix: a first line before the instruction, for a second task.
        """
        shown = part.shown(inputs)
        ids = self._prompt_ids(part, shown, prefix)
        if max_tokens is None or len(ids) <= max_tokens:
            return ids, 0
        total = sum(len(text) for _, text in shown)
        # The longest texts give way first: find the largest common length limit that fits.
        low, high = 0, max(len(text) for _, text in shown)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._prompt_ids(part, [(n, t[:middle]) for n, t in shown], prefix)) <= max_tokens:
                low = middle
            else:
                high = middle - 1
        cut = [(name, text[:low]) for name, text in shown]
        ids = self._prompt_ids(part, cut, prefix)
        if len(ids) > max_tokens:
            raise DataError(
                f"the instruction alone takes {len(ids)} tokens, but {max_tokens} are left for the prompt. "
                "Shorten task.instruction, or raise train.max_length."
            )
        return ids, total - sum(len(text) for _, text in cut)

    def messages(self, part: Part, shown: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """The question as chat messages."""
        return [{"role": "user", "content": self.question(part, shown)}]

    def question(self, part: Part, shown: Sequence[tuple[str, str]]) -> str:
        """The question as text: instruction, answer format where it is shown, named inputs."""
        blocks = [self.task.instruction]
        if self.show_schema and not self.task.free_text:
            blocks.append(self.describe(part))
        blocks.append("\n".join(f"{name}: {text}" for name, text in shown))
        return "\n\n".join(blocks)

    def describe(self, part: Part) -> str:
        """The answer's format in words, for a model that was not tuned."""
        return describe(part.schema, self.answer_format)

    def _prompt_ids(self, part: Part, shown: Sequence[tuple[str, str]], prefix: str | None = None) -> list[int]:
        question = self.question(part, shown) if prefix is None else f"{prefix}\n\n{self.question(part, shown)}"
        if self.style == "completion":
            return self.codec.completion_prompt(question + "\n\n")
        for content in (question, question.strip()):  # many templates trim what they are given
            if (pieces := self._chat_pieces(content)) is not None:
                return self.codec.chat_prompt(pieces)
        raise ModelError(
            f"{self.codec.tokenizer.name_or_path}: its chat template rewrites what the user says, so the user's text "
            "cannot be kept apart from control tokens. Use chat_template: completion."
        )

    def _chat_pieces(self, content: str) -> list[tuple[str, bool]] | None:
        """The rendered template as (text, trusted) pieces; None if it does not hold `content` as given."""
        mark = MARK % 1
        rendered = self._render([{"role": "user", "content": mark}])
        before, found, after = rendered.partition(mark)
        if not found or self._render([{"role": "user", "content": content}]) != before + content + after:
            return None
        return [(before, True), (content, False), (after, True)]

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self.codec.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    # -- answers --------------------------------------------------------------------------------

    def walk(self, part: Part, gold: Any = MISSING) -> Walk:
        """The walk of a part's answer."""
        return walk_text(gold) if self.task.free_text else walk(part.schema, gold)

    def writer(self, part: Part, max_text_tokens: int, gold: Any = MISSING) -> Writer:
        walk, size = self.walk(part, gold), self.no_repeat_ngram_size
        return Writer(self.codec, walk, max_text_tokens, self.answer_format, no_repeat_ngram_size=size)

    def label_texts(self, labels: Sequence[Any]) -> list[str]:
        """What the model says for each label of an enum, from the point where it chooses."""
        texts = [dumps(label) for label in labels]
        if self.answer_format == "compact":
            return list(spell(tuple(texts)))
        return [text[1:] for text in texts] if all(text.startswith('"') for text in texts) else texts

    def answer_text(self, part: Part, example: Example) -> str | None:
        """What the model should say for one part of an example; None if it has no gold answer."""
        gold = self.task.part_answer(part, example)
        if gold is None or self.task.free_text:
            return gold
        return say(part.schema, gold, self.answer_format)

    def parse(self, part: Part, text: str) -> Any:
        """The value that an answer's text means; the inverse of `answer_text`.

        Raises DataError for a text that is no answer.
        """
        return text if self.task.free_text else read(part.schema, text, self.answer_format)

    def encode(self, part: Part, example: Example, max_tokens: int | None = None) -> Encoded | None:
        """One part of an example as training tokens; None if it has no gold answer.

        max_tokens: cut the inputs so that the whole text fits.
        """
        gold = self.task.part_answer(part, example)
        if gold is None:
            return None
        return self._encoded(part, example.inputs, self.writer(part, 0, gold), max_tokens)

    def encode_rationale(
        self, part: Part, example: Example, prefix: str, max_tokens: int | None = None
    ) -> Encoded | None:
        """A part's rationale as a second task: the same question behind another beginning, the rationale as the answer.

        prefix: the first line of its prompt, which tells the two tasks apart. None if the part has no rationale.
        """
        text = example.rationale(part.key)
        if text is None:
            return None
        return self._encoded(part, example.inputs, Writer(self.codec, walk_text(text), 0), max_tokens, prefix)

    def _encoded(
        self, part: Part, inputs: Inputs, writer: Writer, max_tokens: int | None, prefix: str | None = None
    ) -> Encoded:
        """writer: of a gold answer."""
        positions: dict[int, tuple[tuple[int, ...] | None, str]] = {}
        while (decision := writer.need()) is not None:
            assert decision.gold is not None, "a gold answer decides everything"
            allowed = None if decision.is_open else tuple(int(i) for i in decision.allowed)
            positions.setdefault(len(writer.tokens), (allowed, decision.path))
            writer.take(decision.gold)
        answer = [*writer.tokens, self.codec.eos]
        room = None if max_tokens is None else max_tokens - len(answer)
        prompt, cut = self.prompt(part, inputs, room, prefix)
        return Encoded(
            input_ids=(*prompt, *answer),
            num_prompt=len(prompt),
            choices={len(prompt) + at: allowed for at, (allowed, _) in positions.items()},
            fields={len(prompt) + at: path for at, (_, path) in positions.items()},
            truncated=cut,
        )

    def shorten(self, text: str, max_tokens: int) -> str:
        """A text as far as it fits into `max_tokens` tokens: to the end of a sentence, or else of a word.

        Counted as the text is written inside a JSON answer, its quotes included.
        """
        if self._fits(text, max_tokens):
            return text
        for ends in (SENTENCE_END, WORD_END):
            places = [match.end() for match in ends.finditer(text)]
            found = bisect.bisect_left(places, True, key=lambda end: not self._fits(text[:end].rstrip(), max_tokens))
            if found:
                return text[: places[found - 1]].rstrip()
        return ""

    def _fits(self, text: str, max_tokens: int) -> bool:
        return len(self.codec.answer_text(dumps(text))) <= max_tokens

    def encode_text(self, text: str, max_tokens: int) -> list[Encoded]:
        """Plain text as language-modelling examples: pieces of at most `max_tokens`, the last with eos."""
        ids = [*self.codec.completion_prompt(text), self.codec.eos]
        pieces = [ids[i : i + max_tokens] for i in range(0, len(ids), max_tokens)]
        return [Encoded(tuple(piece), num_prompt=1) for piece in pieces if len(piece) > 8]


def prompt_style(tokenizer: Any, setting: Literal["auto", "chat", "completion"], name: str) -> Style:
    """The style that a recipe's `chat_template` means for a tokenizer.

    auto: chat where the tokenizer has a template, except for `afina/nano`, whose template few tokens
    of its pretraining have seen.
    """
    if setting != "auto":
        return setting
    return "chat" if tokenizer.chat_template and name != "afina/nano" else "completion"
