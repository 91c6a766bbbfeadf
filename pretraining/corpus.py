"""Shared pretraining text -> weighted training documents and held-out documents.

Comes in: the folder of text files (documents separated by `<|doc|>` lines) and of parallel
JSON Lines. Goes out: `Corpus`, with every training document repeated by its source's weight and
every held-out document once. Knows nothing of tokens or models.

Whole documents are held out, never pieces of them, and a training document that shares lines
with a held-out one (the same novel in two collections, the simplified copy of a news item) is
dropped, so that bits per byte are measured on text that was not seen.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

DOC_SEPARATOR = "<|doc|>"
SHARED_LINE_MIN_CHARS = 60
SHARED_LINES_MAX = 0.03  # share of a document's long lines that may stand in a held-out one


@dataclass(frozen=True)
class Source:
    """One file of the corpus.

    weight: how often a document is seen in one pass (0.3: three documents in ten).
    held_out: share of documents kept for measuring, in [0, 1).
    """

    path: str
    language: str
    weight: float
    held_out: float = 0.0


# Most of the Portuguese is 19th-century prose: essays, news, documentation and subtitles weigh more.
SOURCES = (
    Source("pt/essay_br_devtest.txt", "pt", 4, 0.02),
    Source("pt/porsimples_news_science.txt", "pt", 6, 0.02),
    Source("pt/ud_porttinari_folha_devtest.txt", "pt", 6),
    Source("pt/ud_dantestocks_tweets.txt", "pt", 6),
    Source("pt/faquad_contexts.txt", "pt", 4),
    Source("pt/python_docs_ptbr.txt", "pt", 1.2),
    Source("pt/react_docs_ptbr.txt", "pt", 2, 0.02),
    Source("pt/vue_docs_pt.txt", "pt", 2),
    Source("pt/rust_book_ptbr.txt", "pt", 2),
    Source("pt/eltec_por_100_novels.txt", "pt", 0.4, 0.01),
    Source("pt/machado_de_assis_116_obras.txt", "pt", 0.6, 0.02),
    Source("en/litbank_novels.txt", "en", 0.25, 0.03),
    Source("en/nltk_inaugural.txt", "en", 2, 0.05),
    Source("en/nltk_state_union.txt", "en", 2, 0.05),
    Source("en/python_docs_en_msgids.txt", "en", 0.6),
)
PARALLEL = (
    Source("parallel/xed_subtitles_en_ptbr.jsonl", "parallel", 3),
    Source("parallel/python_docs_en_ptbr.jsonl", "parallel", 0.5),
)


@dataclass
class Corpus:
    """train: documents as text, in shuffled order (repeated by weight). pairs: (en, pt) texts.
    held_out: language -> documents. dropped: training documents left out for shared lines."""

    train: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    held_out: dict[str, list[str]] = field(default_factory=lambda: {"pt": [], "en": []})
    dropped: int = 0


def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def _long_lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line) >= SHARED_LINE_MIN_CHARS}


def documents(path: Path) -> list[str]:
    """The documents of one file, without blank ones."""
    parts = path.read_text(encoding="utf-8").split(DOC_SEPARATOR)
    return [part.strip() for part in parts if part.strip()]


def load(root: Path, seed: int = 0) -> Corpus:
    """Read, hold out, drop what leaks, weight and shuffle. Deterministic in `seed`."""
    rng = random.Random(seed)
    corpus = Corpus()
    kept: list[tuple[Source, str]] = []
    for source in SOURCES:
        for document in documents(root / source.path):
            if _unit(document) < source.held_out:
                corpus.held_out[source.language].append(document)
            else:
                kept.append((source, document))
    unseen = set().union(*(_long_lines(d) for docs in corpus.held_out.values() for d in docs))
    for source, document in kept:
        lines = _long_lines(document)
        if lines and len(lines & unseen) / len(lines) > SHARED_LINES_MAX:
            corpus.dropped += 1
            continue
        copies = int(source.weight) + (rng.random() < source.weight % 1)
        corpus.train += [document] * copies
    for source in PARALLEL:
        for line in (root / source.path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if _long_lines(row["pt"] + "\n" + row["en"]) & unseen:
                corpus.dropped += 1
                continue
            copies = int(source.weight) + (rng.random() < source.weight % 1)
            corpus.pairs += [(row["en"], row["pt"])] * copies
    rng.shuffle(corpus.train)
    rng.shuffle(corpus.pairs)
    return corpus
