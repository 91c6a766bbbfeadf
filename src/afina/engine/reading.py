"""One forward pass: new tokens of each row in, logits at the asked places out.

`Reader` knows a model and what was proven on it once: whether its head is a plain product (then logits are
made only at the asked places and for the asked ids), and whether our own cache gives its own logits (then
rows are read without padding, guesses can be taken back and a shared beginning reused). What is not proven is
done the model's own way. Knows nothing of answers or grammars.

Shapes: B rows, K new tokens, N asked places, U asked ids, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from afina.engine.rowcache import RowCache, Shape

# Of the vocabulary, above which the whole head is cheaper than gathering its rows.
GATHERED_SHARE = 0.25
# About so many tokens can be read for what a pass costs whatever it reads: going through the layers, fetching the
# weights. On two CPU cores 10 to 20, for models of 10 to 135 million weights; a GPU is idle below hundreds.
PASS_TOKENS = {"cpu": 16.0, "gpu": 512.0}


@dataclass
class Scores:
    """What the model says at N places. Either hidden states and the plain head, or logits."""

    hidden_NH: torch.Tensor | None
    logits_NV: torch.Tensor | None
    head: Any

    def at(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """float32 logits for each (place, ids) pair."""
        if self.logits_NV is not None:
            return [self._whole(self.logits_NV[n], ids) for n, ids in asked]
        assert self.hidden_NH is not None, "one of the two is there"
        wanted = [n for n, (_, ids) in enumerate(asked) if len(ids) <= GATHERED_SHARE * self.head.weight.shape[0]]
        found: list[np.ndarray] = [np.empty(0)] * len(asked)
        if wanted:
            ids_U = np.unique(np.concatenate([asked[n][1] for n in wanted]))
            logits_NU = self._gathered([asked[n][0] for n in wanted], ids_U)
            for row, n in enumerate(wanted):
                found[n] = logits_NU[row, np.searchsorted(ids_U, asked[n][1])]
        for n in sorted(set(range(len(asked))) - set(wanted)):
            place, ids = asked[n]
            found[n] = self._whole(self.head(self.hidden_NH[place]), ids)
        return found

    def whole(self, places: Sequence[int]) -> np.ndarray:
        """float32 logits of the whole vocabulary, one row for each place."""
        if self.logits_NV is not None:
            chosen_NV = self.logits_NV[list(places)]
        else:
            assert self.hidden_NH is not None, "one of the two is there"
            chosen_NV = self.head(self.hidden_NH[list(places)])
        return chosen_NV.float().cpu().numpy()

    def _gathered(self, places: list[int], ids_U: np.ndarray) -> np.ndarray:
        assert self.hidden_NH is not None, "called with hidden states"
        index = torch.from_numpy(ids_U).to(self.hidden_NH.device)
        bias = None if self.head.bias is None else self.head.bias[index]
        logits_NU = torch.nn.functional.linear(self.hidden_NH[places], self.head.weight[index], bias)
        return logits_NU.float().cpu().numpy()

    @staticmethod
    def _whole(logits_V: torch.Tensor, ids: np.ndarray) -> np.ndarray:
        return logits_V[torch.from_numpy(ids).to(logits_V.device)].float().cpu().numpy()


class Memory(Protocol):
    """What a batch's rows have read.

    rewinds: whether a row may go back to an earlier position. pass_tokens: see PASS_TOKENS.
    """

    rewinds: bool

    @property
    def pass_tokens(self) -> float: ...

    def read(self, fresh: list[list[int]], starts: list[int], asked: list[list[int]]) -> Scores:
        """One pass over each row's new tokens, which continue it at position `starts[b]`.

        asked: per row, which of its new tokens to give the scores after; rows in order, flattened.
        """
        ...

    def select(self, rows: list[int]) -> None:
        """Forget the other rows."""
        ...


@dataclass
class RowMemory:
    """Reads through our own cache and, where the head is plain, makes logits only where they are asked for."""

    reader: Reader
    cache: RowCache
    rewinds: bool = True

    @property
    def pass_tokens(self) -> float:
        return PASS_TOKENS["cpu" if self.reader.device.type == "cpu" else "gpu"]

    def read(self, fresh: list[list[int]], starts: list[int], asked: list[list[int]]) -> Scores:
        reader = self.reader
        counts = [len(tokens) for tokens in fresh]
        positions_BK, mask = self.cache.enter(starts, counts, reader.device, reader.dtype)
        width = max(counts)
        ids_BK = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in fresh], device=reader.device)
        options = {"position_ids": positions_BK, "attention_mask": mask, "past_key_values": self.cache}
        rows = [b for b, places in enumerate(asked) for _ in places]
        columns = [k for places in asked for k in places]
        if reader.head is not None:
            decoder = reader.causal.get_decoder()
            hidden_BKH = decoder(input_ids=ids_BK, use_cache=True, **options).last_hidden_state
            return Scores(hidden_BKH[rows, columns], None, reader.head)
        kept = sorted(set(columns))
        options["logits_to_keep"] = torch.tensor(kept, device=reader.device)
        logits_BKV = reader.model(input_ids=ids_BK, use_cache=True, **options).logits
        return Scores(None, logits_BKV[rows, [kept.index(k) for k in columns]], None)

    def select(self, rows: list[int]) -> None:
        self.cache.select(rows)


@dataclass
class OwnMemory:
    """Reads as any causal model can: through its own cache, aligned to the right, padding masked for ever."""

    model: Any
    pad_id: int
    cache: Any = None
    mask_BC: torch.Tensor = field(default_factory=lambda: torch.zeros((0, 0), dtype=torch.long))
    rewinds: bool = False
    pass_tokens: float = 0.0

    def read(self, fresh: list[list[int]], starts: list[int], asked: list[list[int]]) -> Scores:
        width = max(len(tokens) for tokens in fresh)
        ids_BK = torch.full((len(fresh), width), self.pad_id, dtype=torch.long)
        new_BK = torch.zeros((len(fresh), width), dtype=torch.long)
        for n, tokens in enumerate(fresh):
            if tokens:
                ids_BK[n, width - len(tokens) :] = torch.tensor(tokens)
                new_BK[n, width - len(tokens) :] = 1
        if self.cache is None:
            self.mask_BC = torch.zeros((len(fresh), 0), dtype=torch.long)
        positions_BK = (self.mask_BC.sum(1, keepdim=True) + new_BK.cumsum(1) - 1).clamp(min=0)
        self.mask_BC = torch.cat([self.mask_BC, new_BK], dim=1)
        device = self.model.device
        output = self.model(
            input_ids=ids_BK.to(device),
            attention_mask=self.mask_BC.to(device),
            position_ids=positions_BK.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        for places, tokens in zip(asked, fresh, strict=True):
            assert places == ([len(tokens) - 1] if tokens else []), "only the last token's logits are made"
        return Scores(None, output.logits[[b for b, places in enumerate(asked) if places], -1], None)

    def select(self, rows: list[int]) -> None:
        if self.cache is not None:
            self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
            self.mask_BC = self.mask_BC[rows]


@dataclass(frozen=True)
class Proof:
    """What holds for a model. shape: of its cache where ours gives its logits, else None."""

    plain_head: bool
    shape: Shape | None


_PROOFS: WeakKeyDictionary[Any, Proof] = WeakKeyDictionary()


class Reader:
    """A model, and how it may be read. The first Reader of a model proves it; later ones know."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head: Any = None
        self.shape: Shape | None = None
        if not isinstance(model, torch.nn.Module):
            return
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, model.dtype
        if (proof := _PROOFS.get(model)) is None:
            with torch.inference_mode():
                proof = _PROOFS[model] = self._prove()
        self.head = self._plain_head() if proof.plain_head else None
        self.shape = proof.shape

    def memory(self, pad_id: int, *, own_cache: bool = False) -> Memory:
        """An empty memory for one batch. own_cache: the model's own way, come what may."""
        if self.shape is None or own_cache:
            return OwnMemory(self.model, pad_id)
        return RowMemory(self, RowCache(self.shape))

    def _plain_head(self) -> Any:
        head = getattr(self.causal, "get_output_embeddings", lambda: None)()
        return head if type(head) is torch.nn.Linear else None  # a quantised or adapted one is another class

    def _prove(self) -> Proof:
        """Compare both short ways with the model's own logits, on tokens that mean nothing."""
        vocabulary = int(self.causal.get_input_embeddings().weight.shape[0])
        tokens = torch.randint(0, vocabulary, (14,), generator=torch.Generator().manual_seed(0)).tolist()
        ids_BK = torch.tensor([tokens], device=self.device)
        expected_KV = self.model(input_ids=ids_BK, use_cache=False).logits[0]
        plain, self.head = False, self._plain_head()
        if self.head is not None:
            try:
                hidden_KH = self.causal.get_decoder()(input_ids=ids_BK, use_cache=False).last_hidden_state[0]
                plain = _close(self.head(hidden_KH), expected_KV)
            except (AttributeError, TypeError, RuntimeError):
                plain = False
        self.head = self.head if plain else None
        try:
            self.shape = Shape.of(self.causal.config)
            if self.shape is not None and not self._cache_is_right(tokens, expected_KV):
                self.shape = None
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError):
            self.shape = None
        return Proof(plain, self.shape)

    def _cache_is_right(self, tokens: list[int], expected_KV: torch.Tensor) -> bool:
        """Two rows of unlike lengths, wrong guesses taken back, a beginning shared, against one plain pass."""
        vocabulary = expected_KV.shape[1]
        ids = np.arange(min(vocabulary, 64))
        wrong = [(token + 1) % vocabulary for token in tokens]
        assert self.shape is not None, "called with a shape to prove"
        shared = RowMemory(self, RowCache(self.shape))
        shared.read([tokens[:4]], [0], [[3]])
        memory = RowMemory(self, RowCache(self.shape))
        memory.cache.begin(*shared.cache.first(4, 2))
        found = memory.read([tokens[4:6] + wrong[6:9], tokens[4:9]], [4, 4], [[1], [4]])
        both = found.at([(0, ids), (1, ids)])
        found = memory.read([tokens[6:14], tokens[9:11]], [6, 9], [[0, 7], [1]])
        both += found.at([(0, ids), (1, ids), (2, ids)])
        places = [5, 8, 6, 13, 10]
        expected = [expected_KV[n, : len(ids)] for n in places]
        return all(_close(torch.from_numpy(a).to(b.dtype), b.cpu()) for a, b in zip(both, expected, strict=True))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    # bfloat16 keeps 8 bits: sums in another order differ by a few parts in 256, a wrong mask by the whole scale.
    scale = expected.float().abs().max().clamp(min=1e-6)
    tolerance = 0.05 if expected.dtype != torch.float32 else 1e-3
    return bool((found.float() - expected.float()).abs().max() <= tolerance * scale)
