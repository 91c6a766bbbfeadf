"""Answers from a catalogue with their sources: search, look whether that is enough, ask the model, check what it cites.

Comes in: questions. Goes out: `Answer`s and predictions in which every source stands in the catalogue, or a refusal.
How the index searches and how the model was trained is not known here.

What guesses answers elsewhere (`engine.draft`) is left off: a text can not be guessed, and to guess the sources saves
four passes of fifty. The beginning that all prompts share is read once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, DataError, ModelError, RunError
from afina.core.predictor import Inputs, Prediction, Usage
from afina.core.schema import problems
from afina.engine import decode
from afina.engine.decode import Made, field_confidence, write_answers
from afina.engine.prefix import Prefixes
from afina.engine.reading import Reader
from afina.engine.renderer import Renderer
from afina.engine.writer import Writer
from afina.retrieval.dense import DenseIndex
from afina.retrieval.index import ProductIndex
from afina.retrieval.passage import Hit
from afina.retrieval.support import HITS, support
from afina.strategies.finetuned import Specialist
from afina.strategies.grounded.answer import Answer, OnPassages, OnText, Refusal, Source
from afina.strategies.grounded.checking import sources_of
from afina.strategies.grounded.manifest import Settings, fingerprint, read_manifest
from afina.strategies.grounded.prompt import ABSENT, Asked, ask, grounded_renderer
from afina.strategies.grounded.question import Question, question_about, read_question
from afina.strategies.grounded.quoting import quoted_text, quoting
from afina.strategies.grounded.scores import source_scores
from afina.strategies.grounded.streaming import TellingWriter

INDEX = "index"  # of a run folder
# Of the best support, that a product needs to be shown beside it. One that only names another product in its text, in
# order to be cited for it, gets half of what its words would count in a title (retrieval/support.py).
NEAR_BEST = 0.8
PROBES = ("a", "Z", "9", "“")  # passages that begin unlike: what their prompts share, the instruction says


@dataclass(frozen=True)
class _Found:
    """A question after the search. asked: None where the model need not be asked."""

    question: Question
    hits: tuple[Hit, ...]
    support: float
    asked: Asked | None
    seconds: float

    @property
    def note(self) -> str | None:
        if self.asked is None or not self.asked.question_cut:
            return self.question.note
        read = len(self.question.text) - self.asked.question_cut
        return f"The question is longer than the model reads; its first {read:,} characters were read."


def open_index(folder: Path, settings: Settings) -> ProductIndex:
    """With vectors beside the words where the specialist was made with them. Raises RunError, MachineError."""
    if settings.dense is None:
        return ProductIndex.open(folder, catalogue_key=settings.catalogue_key)
    return DenseIndex.open_dense(folder, model=settings.dense, catalogue_key=settings.catalogue_key)


class Grounded:
    """A core Predictor that answers from an index. Safe for several threads; the model answers one call at a time.

    model, renderer: of a specialist that was trained with passages; the renderer's own task does not matter.
    """

    def __init__(
        self,
        index: ProductIndex,
        model: Any,
        renderer: Renderer,
        settings: Settings,
        *,
        name: str = "sources",
        reuse_prefix: bool = True,
    ) -> None:
        self.name, self.index, self.model, self.settings = name, index, model, settings
        self.renderer = grounded_renderer(renderer)
        self._config = settings.config
        context = int(getattr(model.config, "max_position_embeddings", None) or 2048)
        self.max_length = min(context, settings.max_length)
        tokenizer = renderer.codec.tokenizer
        self._pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self._reuse_prefix, self._prefixes = reuse_prefix, None if not reuse_prefix else Prefixes(Reader(model))
        self._lock = threading.Lock()
        self._began = False

    @classmethod
    def load(
        cls, run: str | Path, *, index: ProductIndex | None = None, specialist: Specialist | None = None
    ) -> Grounded:
        """From a run folder, or a specialist's folder with the index beside it.

        index, specialist: those already open. Raises RunError (no assistant or no index there, an index of another
        catalogue) or ModelError (damaged, or made under another prompt).
        """
        folder = Path(run)
        if (folder / "specialist").is_dir():
            folder = folder / "specialist"
        settings, trained = read_manifest(folder)
        wanted = settings.catalogue_key
        if index is not None and wanted is not None and index.record.catalogue_key != wanted:
            raise RunError(
                f"{index.folder}: is the index of another catalogue ({index.record.catalogue_key}) than {folder} was "
                f"trained for ({wanted}). Name the run's own index, or build it again: afina index RECIPE."
            )
        if index is None:
            index = open_index(folder.parent / INDEX, settings)
        specialist = specialist or Specialist.load(folder)
        renderer = specialist.predictor.renderer
        if fingerprint(renderer) != trained:
            raise ModelError(
                f"{folder}: questions would be put otherwise than in training (fingerprint {fingerprint(renderer)}, "
                f"trained with {trained}): the tokenizer, its chat template or this version of Afina changed. Restore "
                "them, or train again."
            )
        return cls(index, specialist.predictor.model, renderer, settings, reuse_prefix=specialist.manifest.reuse_prefix)

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, question: str, *, on_text: OnText | None = None, on_passages: OnPassages | None = None) -> Answer:
        """One answer. on_passages: told what was found before the model is asked. on_text: told the answer's text as
        far as it stands, after every source or token; the last time, all of it. What they raise ends the answer.

        Raises DataError for what is no question, ModelError where no answer could be made.
        """
        found = self._find(read_question(question))
        if on_passages is not None:
            on_passages(found.hits)
        answer = self._answer(found, self._write([found], on_text)[0])
        if answer.prediction.error is not None:
            raise ModelError(answer.prediction.error)
        if on_text is not None:
            on_text(answer.text)
        return answer

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        """One prediction per row, in order: the answer's text, uids as sources, the sources in the trace.

        A row has a `question`, or the title, about which one of the templates asks.
        """
        questions: list[str | AfinaError] = []
        for row in inputs:
            try:
                questions.append(self._question(row))
            except DataError as error:
                questions.append(error)
        return [answer.prediction for answer in self._answers(questions, ())]

    def answers(self, questions: Sequence[str], without: Sequence[Collection[str]] = ()) -> list[Answer]:
        """As `ask`, many at once, in order; what cannot be answered says so in its prediction.

        without: for each question, uids that are passed over as if the catalogue had them not.
        """
        return self._answers(questions, without)

    def _answers(self, questions: Sequence[str | AfinaError], without: Sequence[Collection[str]]) -> list[Answer]:
        found: list[_Found | AfinaError] = []
        for number, question in enumerate(questions):
            try:
                if isinstance(question, AfinaError):
                    raise question
                found.append(self._find(read_question(question), without[number] if without else ()))
            except AfinaError as error:
                found.append(error)
        written = iter(self._write([one for one in found if isinstance(one, _Found)], None))
        return [
            self._answer(one, next(written)) if isinstance(one, _Found) else _failed(question, one)
            for question, one in zip(questions, found, strict=True)
        ]

    def _question(self, row: Inputs) -> str:
        if "question" in row:
            return row["question"]
        title = row.get(self.settings.title_input, "")
        if not title.strip():
            raise DataError(
                f"the row has neither a question nor a title: found {list(row)}, expected question or "
                f"{self.settings.title_input}."
            )
        return question_about(title, self.settings.questions)

    def _find(self, question: Question, without: Collection[str] = ()) -> _Found:
        """Search, and make the prompt where what was found supports an answer."""
        began = time.perf_counter()
        hits = tuple(self.index.search(question.text, self.settings.passages, exclude=without))
        supports = [support(self.index, question.text, [hit]) for hit in hits]
        value = max(supports[:HITS], default=0.0)  # as support() of all hits together
        asked = None
        if hits and value >= self.settings.min_support:
            # What does not support the question by itself is not shown, whatever its text says.
            least = max(self.settings.min_support, NEAR_BEST * value)
            shown = [hit.passage for hit, own in zip(hits, supports, strict=True) if own >= least]
            asked = ask(
                self.renderer,
                question.text,
                shown,
                self._config,
                max_length=self.max_length,
                max_text_tokens=self.settings.max_text_tokens,
            )
        return _Found(question, hits, value, asked, time.perf_counter() - began)

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, found: Sequence[_Found], on_text: OnText | None) -> list[decode.Answer | None]:
        """What the model says to each; None where it is not asked."""
        asked = [one.asked for one in found if one.asked is not None]
        if not asked:
            return [None for _ in found]
        with self._lock:
            self._read_beginning(asked[0])
            questions = [decode.Question(list(one.ids), partial(self._writer, one, on_text)) for one in asked]
            written = iter(
                write_answers(
                    self.model,
                    questions,
                    batch_size=self.settings.batch_size,
                    pad_id=self._pad_id,
                    prefixes=self._prefixes,
                )
            )
        return [next(written) if one.asked is not None else None for one in found]

    def _writer(self, asked: Asked, on_text: OnText | None) -> Writer:
        limit, codec, answer_format = self.settings.max_text_tokens, self.renderer.codec, self.renderer.answer_format
        walk = self.renderer.walk(asked.part)
        if self.settings.text == "quoted":
            return Writer(codec, quoting(walk, partial(quoted_text, asked), on_text), limit, answer_format)
        if on_text is None:
            return Writer(codec, walk, limit, answer_format)
        return TellingWriter(codec, walk, limit, answer_format, on_text, self.renderer.no_repeat_ngram_size)

    def _read_beginning(self, asked: Asked) -> None:
        if self._prefixes is None or self._began:
            return
        self._began = True
        probes = [{**asked.inputs, "passages": f"\n{probe}"} for probe in PROBES]
        self._prefixes.learn([self.renderer.prompt(asked.part, inputs)[0] for inputs in probes])

    # -- what was written -------------------------------------------------------------------------

    def _answer(self, found: _Found, written: decode.Answer | None) -> Answer:
        if written is None or found.asked is None:
            truncated = found.note is not None
            return self._refused(found, "support", Prediction(latency_s=found.seconds, truncated=truncated))
        usage = Usage(written.prompt_tokens, written.completion_tokens, written.forward_passes)
        truncated = found.note is not None
        prediction = Prediction(usage=usage, latency_s=found.seconds + written.latency_s, truncated=truncated)
        error = written.error
        value: Any = None
        if error is None:
            value = json.loads(written.text)
            error = problems(value, found.asked.part.schema)
        if error is not None:
            return self._of(found, "", (), replace(prediction, error=error))
        sure = _sureness(written.made)
        if value == ABSENT:
            return self._refused(found, "model", replace(prediction, confidence={"": sure}))
        scores = source_scores(self.renderer, found.asked, value, written.made)
        sources = sources_of(found.asked, value["sources"], scores)
        text = value["answer"].strip() or " ".join(source.quote for source in sources)
        prediction = replace(
            prediction,
            output=text,
            confidence={"": round(sure * scores[0], 6)},
            sources=tuple(dict.fromkeys(source.uid for source in sources)),
            trace=tuple(source.to_json() for source in sources),
        )
        return self._of(found, text, sources, prediction)

    def _refused(self, found: _Found, who: Refusal, prediction: Prediction) -> Answer:
        text = found.question.refusal
        return self._of(found, text, (), replace(prediction, output=text), who)

    def _of(
        self,
        found: _Found,
        text: str,
        sources: tuple[Source, ...],
        prediction: Prediction,
        who: Refusal | None = None,
    ) -> Answer:
        return Answer(
            question=found.question.text,
            text=text,
            sources=sources,
            refused=who is not None,
            support=found.support,
            passages=found.hits,
            prediction=prediction,
            refusal=who,
            note=found.note,
        )


def _sureness(made: Sequence[Made]) -> float:
    """Probability of the first decision that was taken: an answer, or that the product is absent; in [0, 1]."""
    return round(field_confidence(made[:1], {}).get("", 1.0), 6)


def _failed(question: str | AfinaError, error: AfinaError) -> Answer:
    asked = question if isinstance(question, str) else ""
    return Answer(asked, "", (), False, 0.0, (), Prediction(error=str(error)))
