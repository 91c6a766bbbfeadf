"""A model on this machine that is asked in chat messages: every answer is held to its schema by the engine.

Comes in: questions as messages. Goes out: values, with the probability of each field's value among all that the schema
allows. At temperature 0 the most likely answer; above, a draw from what the model says of the allowed tokens, decided
by the question and the number of the sample. Knows nothing of tasks.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch

from afina.core.chat import Conversation, Message, Role
from afina.core.errors import DataError
from afina.core.predictor import Usage
from afina.core.progress import progress
from afina.core.schema import Schema, fields
from afina.core.storage import digest
from afina.engine.batching import Batcher
from afina.engine.chat import BLOCK, NAMES, ChatFormat, Prompt
from afina.engine.codec import Codec
from afina.engine.decode import Answer, Made, Question, field_confidence, write_answers
from afina.engine.draft import Step
from afina.engine.generation import Delta, Generation
from afina.engine.grammar import Forced, Walk, open_values, walk
from afina.engine.loader import LoadedModel
from afina.engine.prefix import Prefixes, begin
from afina.engine.reading import Memory, Reader, RowMemory
from afina.engine.renderer import Style
from afina.engine.row import Heard, Row, log_probability
from afina.engine.sampling import Sampler, Sampling
from afina.engine.shapes import Text
from afina.engine.spoken import describe
from afina.engine.writer import Writer
from afina.strategies.chat_model import Ask, ChatMessage, Reply

NUMBER_TOKENS = 24  # that a number takes at most
FEWEST_TOGETHER = 4  # questions of one beginning that are worth a batch of their own


@dataclass(frozen=True)
class _Asked:
    """One question as tokens. seed: of its draws."""

    ask: Ask
    ids: Prompt
    truncated: bool
    seed: int


class LocalChat:
    """A `ChatModel` around a loaded model.

    style: "chat" uses the tokenizer's template, "completion" writes the speakers' names. batch_size: answers at once.
    max_text_tokens: of each free text, which then is brought to its end. Questions longer than the context lose their
    earliest examples first, then the end of the last message; never the instruction.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        style: Style,
        *,
        batch_size: int = 16,
        max_text_tokens: int = 256,
        describe: bool = True,
    ) -> None:
        self.name, self.describe = name, describe
        self.model, self.max_text_tokens = loaded.model, max_text_tokens
        self.codec = Codec(loaded.tokenizer)
        self.format = ChatFormat(self.codec, style)
        self.context = int(getattr(self.model.config, "max_position_embeddings", None) or 2048)
        self._pad_id = loaded.pad_token_id
        self._reader = Reader(self.model)
        self._prefixes = Prefixes(self._reader)
        # Rows of a state that is no cache of keys and values cannot leave a batch one by one.
        self.batch_size = batch_size if self._reader.shape is not None else 1

    def ask(self, asks: Sequence[Ask], *, label: str | None = None) -> list[Reply]:
        """A reply each, in order. label: what the progress bar says; None for no bar."""
        keys = [_key(one) for one in asks]
        questions = dict(zip(keys, asks, strict=True))
        if label is None:
            replies = self._replies(questions, None)
        else:
            with progress(label, len(questions), "answers") as bar:
                replies = self._replies(questions, bar.advance)
        return [replies[key] for key in keys]

    def _replies(self, questions: Mapping[str, Ask], done: Callable[[int], None] | None) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        asked: dict[str, _Asked] = {}
        for key, ask in questions.items():
            try:
                ids, truncated = self._prompt(ask)
                asked[key] = _Asked(ask, ids, truncated, int(key, 16))
            except DataError as error:
                replies[key] = Reply(error=str(error))
        if done is not None:
            done(len(replies))
        for keys in self._together(asked):
            batch = [asked[key] for key in keys]
            if batch[0].ask.schema is None:
                found = self._texts(batch, done)
            else:
                self._read_beginning([one.ids for one in batch])
                write = self._draw if batch[0].ask.temperature > 0 else self._best
                found = [_reply(one, answer) for one, answer in zip(batch, write(batch, done), strict=True)]
            replies |= zip(keys, found, strict=True)
        return replies

    def _together(self, asked: Mapping[str, _Asked]) -> Iterator[list[str]]:
        """Questions that are answered in one way and begin alike; the few of rare beginnings in one group."""

        def way(key: str) -> str:
            ask = asked[key].ask
            return "text" if ask.schema is None else "draw" if ask.temperature > 0 else "best"

        def opening(key: str) -> str:
            return f"{way(key)} {asked[key].ask.messages[0]['content']}"

        rare: dict[str, list[str]] = {}
        for _, group in groupby(sorted(asked, key=opening), opening):
            keys = list(group)
            if len(keys) < FEWEST_TOGETHER:
                rare.setdefault(way(keys[0]), []).extend(keys)
            else:
                yield keys
        yield from rare.values()

    # -- prompts ----------------------------------------------------------------------------------

    def _prompt(self, ask: Ask) -> tuple[Prompt, bool]:
        """What the model reads, and whether something was left out. Raises DataError where nothing would be left."""
        room = self.context - self._reserved(ask.schema)
        messages = list(ask.messages)
        ids = self._ids(messages)
        if len(ids) <= room:
            return ids, False
        num_fixed = next((n for n, one in enumerate(messages) if one["role"] != "system"), len(messages))
        fixed, rest = messages[:num_fixed], messages[num_fixed:]
        # An example is left out whole: from its question to before the next one.
        starts = [n for n, one in enumerate(rest) if n == 0 or one["role"] == "user"]
        kept = _first(len(starts) - 1, lambda n: len(self._ids([*fixed, *rest[starts[n] :]])) <= room)
        turns = rest[starts[kept] :]
        if len(ids := self._ids([*fixed, *turns])) <= room:
            return ids, True
        text = turns[-1]["content"]

        def shortened(num_cut: int) -> list[ChatMessage]:
            return [*fixed, *turns[:-1], {**turns[-1], "content": text[: len(text) - num_cut]}]

        num_cut = _first(len(text), lambda n: len(self._ids(shortened(n))) <= room)
        if len(ids := self._ids(shortened(num_cut))) > room:
            raise DataError(
                f"the instruction alone takes {len(ids)} tokens, but {room} of {self.name}'s {self.context} are left "
                "for the question. Shorten the instruction, or choose a model with a longer context."
            )
        return ids, True

    def _ids(self, messages: Sequence[ChatMessage]) -> Prompt:
        turns = tuple(Message(cast(Role, one["role"]), one["content"]) for one in messages)
        return self.format.prompt(Conversation(turns))

    def _reserved(self, schema: Schema | None) -> int:
        """Tokens kept free for the answer: its format, and every open value at its limit; at most half."""
        if schema is None:
            return min(self.context // 2, self.max_text_tokens + 8)
        text = {"string", "array"}
        open_tokens = sum(
            self.max_text_tokens if one.schema.get("type") in text else NUMBER_TOKENS for one in open_values(schema)
        )
        return min(self.context // 2, len(self.codec.answer_text(describe(schema))) + open_tokens + 8)

    def _read_beginning(self, prompts: Sequence[list[int]]) -> None:
        """Read once what these prompts begin with: the instruction, and examples that are the same for all."""
        if any(ids != prompts[0] for ids in prompts):
            self._prefixes.learn(prompts)

    # -- answers of a schema ----------------------------------------------------------------------

    def _question(self, asked: _Asked) -> Question:
        assert asked.ask.schema is not None, "plain text is written otherwise"
        return Question(list(asked.ids), partial(self._writer, asked.ask.schema))

    def _writer(self, schema: Schema) -> Writer:
        return Writer(self.codec, _after(self.format.lead, walk(schema)), self.max_text_tokens)

    def _best(self, asked: Sequence[_Asked], done: Callable[[int], None] | None) -> list[Answer]:
        return write_answers(
            self.model,
            [self._question(one) for one in asked],
            batch_size=self.batch_size,
            pad_id=self._pad_id,
            prefixes=self._prefixes,
            done=done,
        )

    def _draw(self, asked: Sequence[_Asked], done: Callable[[int], None] | None) -> list[Answer]:
        """As `write_answers`, but each token is drawn, and a prompt that several rows share is read once."""
        answers = [Answer(prompt_tokens=len(one.ids)) for one in asked]
        order = sorted(range(len(asked)), key=lambda n: (len(asked[n].ids), asked[n].ids))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            began = time.perf_counter()
            rows = [_DrawnRow(self._question(asked[n]), answers[n], asked[n]) for n in chosen]
            with torch.inference_mode():
                self._run(self._read_once(rows), rows)
            for n in chosen:
                answers[n].latency_s = (time.perf_counter() - began) / len(chosen)
            if done is not None:
                done(len(chosen))
        return answers

    def _read_once(self, rows: Sequence[_DrawnRow]) -> Memory:
        """A memory in which equal prompts were read together, up to their last token."""
        memory = self._reader.memory(self._pad_id)
        if not isinstance(memory, RowMemory):
            return memory
        prompts = [list(ids) for ids, _ in groupby(row.question.ids for row in rows)]
        shared = self._prefixes.shared(prompts)
        known = 0
        if shared is not None:
            known = shared.length
            begin(memory, shared, len(prompts))
        for row in rows:
            row.read = known
        if len(prompts) < len(rows):
            fresh = [ids[known:-1] for ids in prompts]
            if all(fresh):
                memory.read(fresh, [known] * len(prompts), [[len(ids) - 1] for ids in fresh])
                for row in rows:
                    row.read = len(row.question.ids) - 1
                    row.answer.forward_passes += 1
            memory.select([prompts.index(row.question.ids) for row in rows])
        return memory

    @staticmethod
    def _run(memory: Memory, rows: list[_DrawnRow]) -> None:
        while going := [n for n, row in enumerate(rows) if row.ask(memory.pass_tokens)]:
            if len(going) < len(rows):
                memory.select(going)
                rows = [rows[n] for n in going]
            places = [[row.position(row.asked[0]) - row.read] for row in rows]
            scores = memory.read([row.fresh() for row in rows], [row.read for row in rows], places)
            logits = scores.at([(n, row.asked[0].allowed) for n, row in enumerate(rows)])
            for n, row in enumerate(rows):
                row.answer.forward_passes += 1
                row.take(scores, n, logits[n : n + 1])

    # -- plain text -------------------------------------------------------------------------------

    def _texts(self, asked: Sequence[_Asked], done: Callable[[int], None] | None) -> list[Reply]:
        batcher = Batcher(
            self.model,
            self.codec,
            self.format.stop_ids,
            max_rows=self.batch_size,
            context=self.context,
            pad_id=self._pad_id,
        )
        # A model without turns would go on with the next question.
        stop = () if self.format.style == "chat" else (BLOCK + NAMES["user"].rstrip(),)
        texts = [_Text(one, done) for one in asked]
        began = time.perf_counter()
        for text in texts:
            sampling = Sampling(
                temperature=text.asked.ask.temperature,
                seed=text.asked.seed,
                max_tokens=self.max_text_tokens,
                stop=stop,
                top_logprobs=0,
            )
            text.generation = Generation(text.asked.ids, Text(), sampling, text.add, text.fail)
            batcher.submit(text.generation)
        while batcher.step():
            pass
        seconds = (time.perf_counter() - began) / max(1, len(texts))
        return [replace(text.reply(), latency_s=seconds) for text in texts]


class _DrawnRow(Row):
    """A row whose tokens are drawn from what is allowed, instead of the best being taken."""

    def __init__(self, question: Question, answer: Answer, asked: _Asked) -> None:
        super().__init__(0, question, answer, drafted=False)
        self._sampler = Sampler(Sampling(temperature=asked.ask.temperature, seed=asked.seed), 0)

    def take(self, heard: Heard, first: int, logits: Sequence[np.ndarray], *, same_place: bool = False) -> None:
        step, scores = self.asked[0], logits[0]
        at = self._sampler.choose(scores, None).token
        self.answer.made.append(_made(step, scores, at))
        self.read = self.position(step) + 1
        self._heard = (heard, first)
        self._record(step, int(step.allowed[at]))


class _Text:
    """A free answer as it comes in."""

    generation: Generation

    def __init__(self, asked: _Asked, done: Callable[[int], None] | None) -> None:
        self.asked, self._done = asked, done
        self._text, self._logprob = "", 0.0
        self._error: str | None = None

    def add(self, delta: Delta) -> None:
        self._text += delta.text
        self._logprob += sum(token.logprob for token in delta.tokens)
        if delta.finish is not None and self._done is not None:
            self._done(1)

    def fail(self, error: Exception) -> None:
        self._error = str(error)
        if self._done is not None:
            self._done(1)

    def reply(self) -> Reply:
        usage = Usage(prompt_tokens=self.generation.prompt_tokens, completion_tokens=self.generation.completion_tokens)
        usage = replace(usage, forward_passes=usage.completion_tokens + 1)
        if self._error is not None:
            return Reply(error=self._error, usage=usage, truncated=self.asked.truncated)
        confidence = {"": min(1.0, math.exp(self._logprob))}
        return Reply(self._text.strip(), None, confidence, usage, truncated=self.asked.truncated)


def _made(step: Step, scores: np.ndarray, at: int) -> Made:
    if step.is_open:  # keeps no logits but that of its token
        scores, at = np.array([log_probability(scores, at)], dtype=np.float32), 0
    return Made(step.path, scores, at, step.allowed, step.is_open)


def _after(lead: str, rest: Walk) -> Walk:
    """White space that the format has before answers, then the answer."""
    if lead:
        yield Forced(lead, lead)
    yield from rest


def _key(ask: Ask) -> str:
    sample = ask.sample if ask.temperature > 0 else 0
    # Half a surrogate pair, which JSON can say, has no bytes to hash.
    said = [[one["role"], one["content"].encode("utf-8", "replace").decode()] for one in ask.messages]
    return digest([said, ask.schema, ask.temperature, sample])


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number from 0 to `most` for which something holds that holds for all greater ones, or `most`."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _reply(asked: _Asked, answer: Answer) -> Reply:
    usage = Usage(answer.prompt_tokens, answer.completion_tokens, answer.forward_passes)
    made = Reply(usage=usage, latency_s=answer.latency_s, truncated=asked.truncated)
    if answer.error is not None:
        return replace(made, error=answer.error)
    schema = cast(dict[str, Any], asked.ask.schema)
    found = field_confidence(answer.made, {})
    # What the schema leaves no choice about is certain.
    confidence = {field.path: found.get(field.path, 1.0) for field in fields(schema)}
    return replace(made, value=json.loads(answer.text), confidence=confidence)
