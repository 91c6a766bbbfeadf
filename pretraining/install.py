"""Puts a pretrained model into the package: `python pretraining/install.py build/nano`.

Copies weights, configuration and tokenizer, and writes the model card from `figures.json`. Refuses a
model above 20 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "src" / "afina" / "assets" / "nano"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "figures.json",
)
LIMIT_BYTES = 20_000_000

CARD = """---
language: [pt, en]
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# afina/nano

A tiny bilingual Llama (Brazilian Portuguese, English) that comes with Afina, so that the whole product runs and can
be tested without a GPU and without a network. It is a base to be fine-tuned on a narrow task, no assistant: by itself
it writes plausible fragments and knows little.

| | |
|---|---|
| architecture | Llama, {layers} layers, hidden {hidden}, {heads} heads, vocabulary {vocab}, tied embeddings |
| parameters | {parameters:,} ({megabytes:.1f} MB in bf16) |
| tokenizer | byte-level BPE of its own; every byte is a token, so no text is out of vocabulary |
| control tokens | `<|bos|>`, `<|eos|>`, `<|pad|>` (all distinct), `<|system|>`, `<|user|>`, `<|assistant|>` |
| context | trained on windows of 512 tokens; positions up to {positions} |
| tokens seen | {tokens_seen:,} ({passes:.2f} passes over {stream:,} weighted tokens) |
| optimizer | Muon on the matrices of the layers, AdamW on the rest; warm-up, constant, cool-down |

## Bits per byte on held-out documents

Whole documents were held out, and training documents that share lines with them were dropped
({dropped} of them). `xz -9e` packs the same documents, joined into one file.

| | documents | bytes | afina/nano | `xz -9e` | fewer bits |
|---|---|---|---|---|---|
{rows}

## Data and licences

Public-domain novels and plays (ELTeC-por, Machado de Assis, LitBank), essays (Essay-BR, MIT), simplified news and
science (PorSimples, CC BY 4.0), tweets and newspaper sentences of Universal Dependencies (CC BY 4.0), FaQuAD contexts
(CC BY 4.0), the Portuguese and English documentation of Python (CC0 / PSF), React and Vue (CC BY 4.0) and Rust
(MIT / Apache-2.0), XED subtitles in both languages (CC BY 4.0), presidential addresses (public domain). Translation
pairs are the only text in the form of a chat. No text of any task that Afina ships or tests was used. The weights are
our own and Apache-2.0.

## Limits

Much of the Portuguese is 19th-century prose. The model repeats what such text says of people and peoples. It follows no
instructions, knows no facts you should rely on, and is to be judged only after fine-tuning, on your own test rows:
that is what `afina run` does.

Made by the recipe in `pretraining/`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    size = (source / "model.safetensors").stat().st_size
    if size > LIMIT_BYTES:
        raise SystemExit(f"{source}: the weights are {size:,} bytes, at most {LIMIT_BYTES:,} fit the package")
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, TARGET / name)
    figures = json.loads((source / "figures.json").read_text())
    config = json.loads((source / "config.json").read_text())
    names = {"pt": "Portuguese", "en": "English"}
    rows = "\n".join(
        f"| {names[language]} | {row['documents']} | {row['bytes']:,} | **{row['bits_per_byte']:.2f}** "
        f"| {row['xz_9e_bits_per_byte']:.2f} | {1 - row['bits_per_byte'] / row['xz_9e_bits_per_byte']:.0%} |"
        for language, row in figures["held_out"].items()
    )
    card = CARD.format(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        parameters=figures["parameters"],
        megabytes=size / 1e6,
        tokens_seen=figures["tokens_seen"],
        passes=figures["tokens_seen"] / figures["stream_tokens"],
        stream=figures["stream_tokens"],
        dropped=figures["documents_dropped_for_leakage"],
        rows=rows,
    )
    (TARGET / "README.md").write_text(card)
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
