"""Models for the benchmarks: known shapes with random weights, and afina/nano with its own.

A name comes in, a model folder goes out, built once. What a step costs depends on the shape and not on what the
weights know, so no weights are downloaded. All have nano's tokenizer, whose 8192 tokens every vocabulary here holds.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20261122
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Shape:
    """A Llama's dimensions. like: the public model that has them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    like: str
    tied: bool = True


SHAPES = {
    "13m": Shape(384, 6, 6, 6, 1024, 8192, "none; about afina/nano's size"),
    "135m": Shape(576, 30, 9, 3, 1536, 49152, "SmolLM2-135M"),
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, "Llama-3.2-1B"),
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, "Llama-3.1-8B", tied=False),
}
NAMES = ("nano", *SHAPES)


def make_shape(name: str, folder: Path) -> Path:
    """The model folder of a shape: folder/name, made if it is not there whole. nano stays where the package has it.

    Weights: bfloat16, normal with standard deviation 0.02, norms 1, by a fixed seed.
    """
    from afina.engine.loader import resolve

    nano = Path(resolve("afina/nano"))
    if name == "nano":
        return nano
    place = folder / name
    if (place / "config.json").exists():
        return place
    staging = folder / f".{name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    _save(SHAPES[name], staging)
    for file in TOKENIZER_FILES:
        shutil.copyfile(nano / file, staging / file)
    shutil.rmtree(place, ignore_errors=True)
    staging.rename(place)
    return place


def llama_config(shape: Shape) -> Any:
    """The transformers configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )


def _save(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # so that 8B takes 16 GB of memory and not 32
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(llama_config(shape))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
