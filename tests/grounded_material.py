"""A small catalogue of our own, and models for it, that the tests of answers with sources share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars
import torch

from afina.core.catalogue_config import ENGLISH_QUESTIONS, PORTUGUESE_QUESTIONS
from afina.core.predictor import Example
from afina.engine.codec import Codec
from afina.engine.loader import BaseSpec, LoadedModel, load_spec
from afina.engine.renderer import Renderer
from afina.retrieval.index import ProductIndex
from afina.retrieval.passage import Passage
from afina.strategies.grounded.manifest import Settings
from afina.strategies.grounded.prompt import GROUNDED

KEY = "catalogue-of-the-tests"
QUESTIONS = (*ENGLISH_QUESTIONS, *PORTUGUESE_QUESTIONS)
KINDS = {
    "Lamp": ("It gives a warm light.", "The shade is made of linen."),
    "Kettle": ("It boils a litre of water in three minutes.", "The handle stays cool."),
    "Backpack": ("It holds a laptop and two books.", "Rain runs off its cloth."),
    "Puzzle": ("It has five hundred pieces.", "Children of eight can solve it."),
    "Teapot": ("It pours four cups.", "The lid never falls."),
    "Drum": ("It is loud enough for a street.", "The skin is a goat's."),
}
MAKERS = ("Aurora", "Boreal", "Cascata", "Duna", "Estrela", "Farol", "Girassol", "Horizonte", "Ipê", "Jangada")


def rows() -> list[Example]:
    """60 products: every maker makes one of each kind."""
    made = [
        Example(
            f"{7 * n:010d}",
            {"title": f"{maker} {kind}"},
            f"{maker} makes this {kind.lower()}. {a} {b}",
            line=n,
            cluster=n,
        )
        for n, (maker, kind, a, b) in enumerate(
            (maker, kind, *texts) for maker in MAKERS for kind, texts in KINDS.items()
        )
    ]
    random.Random(3).shuffle(made)
    return made


def build_index(folder: Path, products: list[Passage], key: str = KEY) -> ProductIndex:
    shard = folder / "shard-00000.parquet"
    polars.DataFrame([vars(product) for product in products]).write_parquet(shard)
    return ProductIndex.build(folder / "index", [shard], catalogue_key=key, tell=lambda line: None)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "passages": 3, "passage_chars": 400, "max_sources": 2, "min_support": 0.0, "questions": QUESTIONS,
        "max_length": 640, "max_text_tokens": 24, "batch_size": 4, "catalogue_key": KEY, "text": "written",
    }  # fmt: skip
    return Settings(**{**values, **changes})


def nano() -> LoadedModel:
    loaded = load_spec(BaseSpec("afina/nano"))
    loaded.model.eval()
    return loaded


def renderer_of(loaded: LoadedModel) -> Renderer:
    return Renderer(GROUNDED, Codec(loaded.tokenizer), "completion")


def leaning(loaded: LoadedModel, *texts: str) -> LoadedModel:
    """The same model with a head that prefers the first token of each text wherever it is allowed."""
    old = loaded.model.get_output_embeddings()
    head = torch.nn.Linear(old.in_features, old.out_features, bias=True, dtype=old.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(old.weight)
        head.bias.zero_()
        for text in texts:
            head.bias[Codec(loaded.tokenizer).answer_text(text)[0]] = 100.0
    loaded.model.config.tie_word_embeddings = False
    loaded.model.set_output_embeddings(head)
    return loaded
