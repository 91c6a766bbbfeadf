"""nano's tokenizer on a Llama of half a million random parameters: a real model wherever its answers do not matter.

Training it, writing it and loading it take milliseconds, so a test of jobs, kills or requests waits for what it tests.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NANO = Path(str(resources.files("afina"))) / "assets" / "nano"
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,  # a random model with tied ones repeats its last token for ever
}


def small_model(folder: Path, seed: int = 0) -> Path:
    """A model folder as nano's. Seeds torch's generator."""
    torch.manual_seed(seed)
    config = LlamaConfig.from_pretrained(NANO, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(NANO / name, folder)
    return folder
