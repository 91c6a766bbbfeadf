"""Training files of other programs, from a catalogue's shards: completion, Alpaca, chat and OpenAI fine-tuning.

Comes in: a prepared catalogue, the shards and formats that are wanted, the recipe's words. Goes out: under
formats/<format>/ for each shard one file of the training rows and one of the validation rows; test rows are in none.
Each product is asked for with one of the recipe's questions, drawn by its uid: the same in every format, on every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from afina.catalogue.catalogue import Catalogue
from afina.catalogue.language import guess_language
from afina.catalogue.shards import parse_shards
from afina.core.catalogue_config import TITLE, CatalogueConfig, ExportFormat
from afina.core.progress import progress
from afina.core.storage import atomic_file, explain_write_errors

ENDINGS = {"train": "", "validation": "-validation"}  # of a file's name


@dataclass(frozen=True)
class Exchange:
    """What every format says in its own words. The system's words and the question make the prompt."""

    system: str
    title: str
    question: str
    answer: str


def export(
    catalogue: Catalogue, shards: str | Sequence[int], formats: Sequence[ExportFormat], config: CatalogueConfig
) -> list[Path]:
    """Write the files, and give their paths. Those of other shards, from an earlier call, are removed.

    shards: as '0-4,7', or numbers. Raises DataError for a shard that there is not, MachineError where nothing can be
    written; each file is whole or absent.
    """
    numbers = parse_shards(shards, catalogue.num_shards) if isinstance(shards, str) else list(shards)
    asking = Questions(config)
    written: list[Path] = []
    with progress("exporting", len(numbers), "shards") as bar:
        for number in numbers:
            source = catalogue.file(number)
            rows = polars.read_parquet(source, columns=["uid", "title", "content", "split"])
            for split, ending in ENDINGS.items():
                chosen = rows.filter(polars.col("split") == split)
                exchanges = [asking.exchange(*row) for row in chosen.select("uid", "title", "content").iter_rows()]
                for name in formats:
                    path = catalogue.folder / "formats" / name / f"{source.stem}{ending}.jsonl"
                    written += _write(path, map(WORDINGS[name], exchanges), len(exchanges))
            bar.advance()
    _remove_others(catalogue.folder / "formats", formats, set(written))
    return written


class Questions:
    """Which question a product is asked for with."""

    def __init__(self, config: CatalogueConfig) -> None:
        self._config = config
        by_language: dict[str | None, list[str]] = {}
        for question in config.questions:
            by_language.setdefault(guess_language(question.replace(TITLE, "")), []).append(question)
        # A question whose language cannot be told may be asked in any.
        self._by_language = {
            language: [*questions, *(by_language.get(None, []) if language else [])]
            for language, questions in by_language.items()
        }

    def exchange(self, uid: str, title: str, content: str) -> Exchange:
        return Exchange(self._config.system, title, self.ask(uid, title, content), content)

    def ask(self, uid: str, title: str, content: str) -> str:
        """In the language of the content, where that can be told and there are questions in it."""
        questions = self._by_language.get(guess_language(content), self._config.questions)
        draw = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "big")
        # Not str.format: a title may hold braces.
        return questions[draw % len(questions)].replace(TITLE, title)


# -- wordings --------------------------------------------------------------------------------------


def _completion(exchange: Exchange) -> dict[str, Any]:
    # Whoever trains on it joins the two: without the break the title would run into the description.
    return {"prompt": f"{exchange.title}\n\n", "completion": exchange.answer}


def _alpaca(exchange: Exchange) -> dict[str, Any]:
    return {"instruction": exchange.system, "input": exchange.question, "output": exchange.answer}


def _messages(exchange: Exchange) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    texts = (exchange.system, exchange.question, exchange.answer)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}


WORDINGS: dict[ExportFormat, Callable[[Exchange], dict[str, Any]]] = {
    "completion": _completion,
    "alpaca": _alpaca,
    "chat": _messages,
    "openai": _messages,  # held against data.training_file's rules by a test
}


# -- files -----------------------------------------------------------------------------------------


def _write(path: Path, rows: Iterator[dict[str, Any]], count: int) -> list[Path]:
    """The path, if there was anything to write."""
    if not count:
        return []
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [path]


def _remove_others(folder: Path, formats: Sequence[ExportFormat], written: set[Path]) -> None:
    with explain_write_errors(folder):
        for name in formats:
            for path in (folder / name).glob("shard-*.jsonl"):
                if path not in written:
                    path.unlink()
