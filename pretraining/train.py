"""Pretrains `afina/nano`: `python pretraining/train.py --data ../shared/data/pretrain --out build/nano`.

1. tokenizer, 2. token stream, 3. training with Muon on the matrices and AdamW on the rest,
4. bits per byte on held-out documents beside `xz -9e`, 5. the model folder with its figures.
Killed, it continues from `checkpoint.pt`; SIGUSR1 starts the cool-down at once.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from corpus import Corpus, load
from tokenizer import save as save_tokenizer
from tokenizer import train as train_tokenizer
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 0
CONTEXT = 512  # tokens of one training sequence
MAX_POSITIONS = 2048
BATCH = 16  # sequences of one step
PEAK_LR = 4e-3
WARMUP_STEPS = 100
COOLDOWN = 0.3  # share of all steps, at the end, over which the rate falls to zero
PIECE = 2048  # tokens: longer documents are cut so that sources mix within a batch


def build_config() -> LlamaConfig:
    """9.9 million parameters: 19.7 MB in bf16."""
    return LlamaConfig(
        vocab_size=8192,
        hidden_size=320,
        intermediate_size=832,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def token_stream(corpus: Corpus, tokenizer: Tokenizer) -> np.ndarray:
    """All training documents and translation pairs as one row of uint16, pieces shuffled."""
    bos, eos = tokenizer.token_to_id("<|bos|>"), tokenizer.token_to_id("<|eos|>")
    user, assistant = tokenizer.token_to_id("<|user|>"), tokenizer.token_to_id("<|assistant|>")
    rng = random.Random(SEED)
    pieces: list[np.ndarray] = []
    for start in range(0, len(corpus.train), 256):
        for encoded in tokenizer.encode_batch(corpus.train[start : start + 256], add_special_tokens=False):
            ids = np.array([bos, *encoded.ids, eos], dtype=np.uint16)
            pieces += [ids[i : i + PIECE] for i in range(0, len(ids), PIECE)]
    # Translation pairs, both ways round, are the only text with the roles of a chat.
    texts = [text for pair in corpus.pairs for text in pair]
    encoded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    for english, portuguese in zip(encoded[::2], encoded[1::2], strict=True):
        first, second = (english, portuguese) if rng.random() < 0.5 else (portuguese, english)
        pieces.append(np.array([bos, user, *first, assistant, *second, eos], dtype=np.uint16))
    rng.shuffle(pieces)
    return np.concatenate(pieces)


def bits_per_byte(model: torch.nn.Module, tokenizer: Tokenizer, documents: list[str]) -> float:
    """Bits the model needs per UTF-8 byte of whole documents, read in windows of CONTEXT tokens."""
    nats = num_bytes = 0.0
    with torch.no_grad():
        for document in documents:
            ids = [*tokenizer.encode(document).ids, tokenizer.token_to_id("<|eos|>")]
            num_bytes += len(document.encode())
            for start in range(0, len(ids) - 1, CONTEXT):
                window = torch.tensor([ids[start : start + CONTEXT + 1]])
                logits = model(window[:, :-1], use_cache=False).logits.float()
                nats += float(torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum"))
    return nats / math.log(2) / num_bytes


def xz_bits_per_byte(documents: list[str]) -> float:
    """What `xz -9e` needs for the same bytes, joined into one file (which helps xz)."""
    raw = "\n".join(documents).encode()
    packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / len(raw)


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024; arXiv 2502.16982) for the matrices of the layers, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate(step: int, cooldown_at: int, num_steps: int) -> float:
    """Share of the peak rate: linear warm-up, constant, linear cool-down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    if step < cooldown_at:
        return 1.0
    return max(0.0, (num_steps - step) / max(1, num_steps - cooldown_at))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=30e6, help="training tokens in all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)

    # 1-2. Corpus, tokenizer, stream
    corpus = load(args.data, SEED)
    print(
        f"{len(corpus.train)} documents, {len(corpus.pairs)} pairs, {corpus.dropped} dropped, held out "
        f"{ {k: (len(v), sum(len(d.encode()) for d in v)) for k, v in corpus.held_out.items()} }",
        flush=True,
    )
    if not (args.out / "tokenizer.json").exists():
        sample = corpus.train[::2] + [t for pair in corpus.pairs[::4] for t in pair]
        save_tokenizer(train_tokenizer(sample), args.out, MAX_POSITIONS)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    if not (args.out / "stream.npy").exists():
        np.save(args.out / "stream.npy", token_stream(corpus, tokenizer))
    stream = np.load(args.out / "stream.npy", mmap_mode="r")
    num_steps = int(args.tokens / (BATCH * CONTEXT))
    print(f"stream {len(stream):,} tokens, {num_steps} steps, {args.tokens / len(stream):.2f} passes", flush=True)

    # 3. Train
    model = LlamaForCausalLM(build_config())
    opts = optimizers(model)
    step, cooldown_at = 0, int(num_steps * (1 - COOLDOWN))
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        step, cooldown_at, num_steps = state["step"], state["cooldown_at"], state["num_steps"]

    def start_cooldown(*_: object) -> None:
        nonlocal cooldown_at, num_steps
        if step < cooldown_at:
            cooldown_at, num_steps = step, int(step / (1 - COOLDOWN))
            print(f"cool-down from step {step} to {num_steps}", flush=True)

    signal.signal(signal.SIGUSR1, start_cooldown)

    @torch.compile
    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch, labels=batch, use_cache=False).loss

    num_windows = len(stream) // CONTEXT
    began, smoothed, last_saved = time.time(), None, time.time()
    first_step = step
    while step < num_steps:
        epoch, at = divmod(step * BATCH, num_windows - BATCH)
        order = np.random.default_rng(SEED + epoch).permutation(num_windows)[at : at + BATCH]
        batch = np.stack([stream[i * CONTEXT : (i + 1) * CONTEXT] for i in order]).astype(np.int64)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = PEAK_LR * rate(step, cooldown_at, num_steps)
        loss = loss_of(torch.from_numpy(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        smoothed = loss.item() if smoothed is None else 0.95 * smoothed + 0.05 * loss.item()
        if step % 20 == 0:
            speed = (step - first_step) * BATCH * CONTEXT / (time.time() - began)
            left = (num_steps - step) * BATCH * CONTEXT / speed / 60
            print(f"step {step}/{num_steps} loss {smoothed:.3f} {speed:.0f} tokens/s {left:.0f} min left", flush=True)
        if time.time() - last_saved > 300 or step == num_steps:
            state = {
                "model": model.state_dict(),
                "opts": [o.state_dict() for o in opts],
                "step": step,
                "cooldown_at": cooldown_at,
                "num_steps": num_steps,
            }
            torch.save(state, args.out / "checkpoint.tmp")
            (args.out / "checkpoint.tmp").replace(checkpoint)
            last_saved = time.time()

    # 4-5. Measure what is shipped: the bf16 weights
    model = model.to(torch.bfloat16).eval()
    model.save_pretrained(args.out)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": step * BATCH * CONTEXT,
        "stream_tokens": len(stream),
        "documents_dropped_for_leakage": corpus.dropped,
        "held_out": {},
    }
    for language, held_out in corpus.held_out.items():
        figures["held_out"][language] = {
            "documents": len(held_out),
            "bytes": sum(len(d.encode()) for d in held_out),
            "bits_per_byte": round(bits_per_byte(model, tokenizer, held_out), 4),
            "xz_9e_bits_per_byte": round(xz_bits_per_byte(held_out), 4),
        }
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
