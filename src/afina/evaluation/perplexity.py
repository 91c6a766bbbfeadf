"""How likely a local model finds the gold texts: nats per token, and bits per byte.

Comes in: a causal language model (transformers' call: input ids in, logits out) and the gold texts as training tokens
behind their prompts. Goes out: losses, row by row and in all. It knows neither tokenizer nor task.

Perplexity per token compares models of one tokenizer only: longer tokens are harder to guess. Bits per byte divides the
same loss by what the text weighs in UTF-8, so a base model and a tuned one, or two with different tokenizers, can be
held against each other. The end of the text is not counted: it is no byte of it.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

CELLS = 32_000_000  # logits of one pass: 128 MB in float32


class GoldTokens(Protocol):
    """A prompt, the gold text behind it, and one token that ends it; `engine.encoded.Encoded` is one."""

    @property
    def input_ids(self) -> tuple[int, ...]: ...

    @property
    def num_prompt(self) -> int: ...


def perplexity(
    model: Any, rows: Sequence[GoldTokens | None], texts: Sequence[str], *, max_length: int | None = None
) -> dict[str, Any] | None:
    """The loss on the gold texts, given their prompts; for `SystemRun.perplexity`.

    rows: in the order of the test; None where a row cannot be written in the model's tokens. texts: the gold texts.
    max_length: tokens that the model can read; longer rows are left out, never cut.
    Returns nats_per_token, bits_per_byte, num_tokens, num_bytes, and `rows`: (nats, tokens, bytes), or None for a row
    left out. None where all are.
    """
    assert len(rows) == len(texts), f"{len(rows)} rows of tokens but {len(texts)} texts"
    usable = [at for at, row in enumerate(rows) if row is not None and _is_scored(row, max_length) and texts[at]]
    found: list[list[float] | None] = [None] * len(rows)
    for batch in _batches(model, rows, sorted(usable, key=lambda at: len(_ids(rows[at])))):
        for at, nats in zip(batch, _nats(model, [_row(rows[at]) for at in batch]), strict=True):
            row = _row(rows[at])
            found[at] = [nats, len(_ids(row)) - row.num_prompt, len(texts[at].encode("utf-8", "surrogatepass"))]
    scored = [row for row in found if row is not None]
    if not scored:
        return None
    nats, tokens, size = (math.fsum(row[place] for row in scored) for place in range(3))
    return {
        "nats_per_token": nats / tokens,
        "bits_per_byte": nats / size / math.log(2),
        "num_tokens": int(tokens),
        "num_bytes": int(size),
        "rows": found,
    }


def _row(row: GoldTokens | None) -> GoldTokens:
    assert row is not None, "rows without tokens are left out"
    return row


def _ids(row: GoldTokens | None) -> tuple[int, ...]:
    """Prompt and text, without the end."""
    return _row(row).input_ids[:-1]


def _is_scored(row: GoldTokens, max_length: int | None) -> bool:
    ids = _ids(row)
    return 0 < row.num_prompt < len(ids) and (max_length is None or len(ids) <= max_length)


def _batches(model: Any, rows: Sequence[GoldTokens | None], order: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together, as many as their logits allow."""
    vocabulary = int(model.config.vocab_size)
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) + 1) * len(_ids(rows[at])) * vocabulary > CELLS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _nats(model: Any, rows: Sequence[GoldTokens]) -> list[float]:
    """Of each row's text behind its prompt. Padded at the right, where no position before it can see."""
    import torch  # `import afina` stays light

    longest = max(len(_ids(row)) for row in rows)
    ids_BT = torch.tensor([[*_ids(row), *[0] * (longest - len(_ids(row)))] for row in rows], device=model.device)
    mask_BT = torch.tensor([[1] * len(_ids(r)) + [0] * (longest - len(_ids(r))) for r in rows], device=model.device)
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        found: list[float] = []
        for row, logits_TV, ids_T in zip(rows, logits_BTV, ids_BT, strict=True):
            first, end = row.num_prompt, len(_ids(row))
            losses = torch.nn.functional.cross_entropy(
                logits_TV[first - 1 : end - 1].float(), ids_T[first:end], reduction="none"
            )
            found.append(float(losses.double().sum()))
    return found
