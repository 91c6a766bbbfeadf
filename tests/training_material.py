"""Tiny models and examples that the training tests share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from afina.core.train_config import TrainConfig
from afina.engine.encoded import Encoded
from afina.engine.loader import LoadedModel, load_spec
from afina.training.facts import model_facts
from afina.training.machine import Gpu, Machine
from afina.training.planner import resolve
from afina.training.settings import Settings

VOCABULARY = 128
EOS = 1


def tiny_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Llama of 30k parameters with a byte-like tokenizer, saved as a model folder."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **changes,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=256, bos_token_id=0, eos_token_id=EOS, pad_token_id=2, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = ["<bos>", "<eos>", "<pad>"] + [chr(33 + i) for i in range(VOCABULARY - 3)]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def examples(count: int, seed: int = 0) -> list[Encoded]:
    """Prompts of uneven length; the answer is two tokens that the first prompt token decides, then eos."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        kind = draw.choice([10, 20])
        prompt = [0, kind, *[draw.randint(30, VOCABULARY - 1) for _ in range(draw.randint(3, 20))]]
        n = len(prompt)
        choices: dict[int, tuple[int, ...] | None] = {n: (11, 21), n + 1: None}
        made.append(Encoded((*prompt, kind + 1, kind + 2, EOS), n, choices))
    return made


def here(**changes: Any) -> Machine:
    """A machine that is the same wherever the tests run."""
    values: dict[str, Any] = {
        "cores": 2,
        "memory_bytes": 16 << 30,
        "available_bytes": 12 << 30,
        "disk_free_bytes": 100 << 30,
        "cpu": "test",
        "cpu_features": (),
        "gpus": (),
        "bf16": False,
        "bitsandbytes": True,
        "system": "test",
    }
    return Machine(**{**values, **changes})


def gpu(memory: int = 16 << 30, capability: tuple[int, int] = (8, 0)) -> Gpu:
    return Gpu("test", memory, memory, capability)


def settings_for(model: Path, data: list[Encoded], **train: Any) -> Settings:
    config = TrainConfig(base_model=str(model), **train)
    return resolve(config, model_facts(str(model)), [len(e.input_ids) for e in data], here())


def load(settings: Settings) -> LoadedModel:
    return load_spec(settings.base, "cpu")
