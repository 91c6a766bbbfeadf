"""Ways to answer a batch of requests with one model, each as its users would write it.

Comes in: a model folder, as `specialist.py` makes it. Goes out: a function from requests to what was written. All
tokenise the same prompt text (or fill the same template) inside the function, and read the answer back as a value;
what can be kept between requests (compiled grammars, tokenizer tables) is made before. Nothing here is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rivals.misses import MissingDrafter
from rivals.specialist import Row

MAX_NEW_TOKENS = 250  # the notebook's
MISSES = 0.4  # of the fields; where the drafter is right otherwise, about the passes of nano's varied answers


@dataclass(frozen=True)
class Written:
    """One answer. output: its value, None if the text holds none. num_tokens: generated, the end not counted."""

    output: Any
    num_tokens: int


Answerer = Callable[[Sequence[Row]], list[Written]]


@dataclass(frozen=True)
class Stage:
    """A rival's model and tokenizer; padding on the left, as generation wants it."""

    folder: Path
    model: Any
    tokenizer: Any

    @property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)


def load_stage(folder: Path) -> Stage:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Stage(folder, model, tokenizer)


def read_value(text: str) -> Any:
    """The first JSON value in a text, whatever follows it; None if there is none."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError:
        return None


# -- (a) the notebook's chain ------------------------------------------------------------------


def pipeline_chain(folder: Path, *, stops: bool) -> tuple[Answerer, Any]:
    """`pipeline` as the notebook sets it: 250 new tokens, temperature 0.01, which samples.

    stops: end at eos where the model writes it. Without, all 250 tokens, as a model writes them that was trained
    with pad = eos under a collator that hides pad tokens from the loss and so never learnt to stop.
    """
    from transformers import pipeline

    stage = load_stage(folder)
    options: dict[str, Any] = {} if stops else {"min_new_tokens": MAX_NEW_TOKENS}
    pipe: Any = pipeline(
        task="text-generation",
        model=stage.model,
        tokenizer=stage.tokenizer,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=True,
        temperature=0.01,
        return_full_text=False,
        **options,
    )

    def answer(rows: Sequence[Row]) -> list[Written]:
        made = pipe([row.prompt for row in rows], batch_size=len(rows))
        texts = [one[0]["generated_text"] for one in made]
        counts = [len(stage.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
        return [Written(read_value(t), MAX_NEW_TOKENS if not stops else n) for t, n in zip(texts, counts, strict=True)]

    return answer, stage.model


# -- (b), (c) generate -------------------------------------------------------------------------


def generate(folder: Path, *, grammar: str | None = None, exact: bool = False) -> tuple[Answerer, Any]:
    """Greedy `generate`; held to the schema by a library's logits processor, or stopped at the gold answer's length.

    exact: min_new_tokens = max_new_tokens = the tokens of the gold answer (of the longest one in a batch).
    Otherwise it ends when the model, or the grammar, says so.
    """
    stage = load_stage(folder)
    fresh = {"xgrammar": _xgrammar, "llguidance": _llguidance}[grammar](stage) if grammar else list

    def answer(rows: Sequence[Row]) -> list[Written]:
        prompts = stage.tokenizer([row.prompt for row in rows], return_tensors="pt", padding=True)
        count = max(len(row.gold_ids) for row in rows)
        made = stage.model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            do_sample=False,
            max_new_tokens=count if exact else MAX_NEW_TOKENS,
            min_new_tokens=count if exact else None,
            logits_processor=fresh(),
            pad_token_id=stage.tokenizer.pad_token_id,
        )
        width = prompts["input_ids"].shape[1]
        return [_written(stage, ids) for ids in made[:, width:].tolist()]

    return answer, stage.model


def _written(stage: Stage, ids: list[int]) -> Written:
    kept = ids[: ids.index(stage.eos)] if stage.eos in ids else ids
    return Written(read_value(stage.tokenizer.decode(kept, skip_special_tokens=True)), len(kept))


def schema_of(folder: Path) -> dict[str, Any]:
    """The JSON Schema of the answers, from the specialist's manifest."""
    return json.loads((folder / "afina.json").read_text(encoding="utf-8"))["task"]["output"]


def _xgrammar(stage: Stage) -> Callable[[], list[Any]]:
    """xgrammar's own processor for transformers; compiled once, a fresh one for each call, as it documents."""
    import xgrammar
    from xgrammar.contrib.hf import LogitsProcessor

    info = xgrammar.TokenizerInfo.from_huggingface(stage.tokenizer, vocab_size=stage.model.config.vocab_size)
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(
        json.dumps(schema_of(stage.folder)), any_whitespace=False, separators=(",", ":"), strict_mode=True
    )
    return lambda: [LogitsProcessor(compiled)]


def _llguidance(stage: Stage) -> Callable[[], list[Any]]:
    """llguidance has no processor for transformers; this is the thin one that its API asks for."""
    import llguidance
    import llguidance.hf

    lexer = llguidance.hf.from_tokenizer(stage.tokenizer, n_vocab=stage.model.config.vocab_size)
    compact: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema_of(stage.folder)), overrides=compact)
    return lambda: [LlguidanceProcessor(llguidance.LLMatcher(lexer, grammar), stage.model.config.vocab_size)]


class LlguidanceProcessor:
    """Masks the scores of each row by its own matcher. One instance for one `generate` call.

    matcher: at the start of the grammar; copied for each row.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self.first, self.vocabulary = matcher, vocabulary
        self.matchers: list[Any] = []
        self.mask: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import llguidance.numpy as masks

        if not self.matchers:
            self.matchers = [self.first.deep_copy() for _ in range(len(input_ids))]
            self.mask = masks.allocate_token_bitmask(len(input_ids), self.vocabulary)
        else:
            for matcher, token in zip(self.matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        for n, matcher in enumerate(self.matchers):
            masks.fill_next_token_bitmask(matcher, self.mask, n)  # a stopped one allows the end alone
        # The scores share their memory with the array.
        masks.apply_token_bitmask_inplace(scores.numpy(), self.mask)
        return scores


# -- (d) the floor -----------------------------------------------------------------------------


def floor(folder: Path) -> tuple[Answerer, Any]:
    """What reading costs: one pass over prompt and gold answer together, no cache, the last position's logits."""
    stage = load_stage(folder)
    pad = stage.tokenizer.pad_token_id

    def answer(rows: Sequence[Row]) -> list[Written]:
        prompts = stage.tokenizer([row.prompt for row in rows])["input_ids"]
        texts = [prompt + row.gold_ids for prompt, row in zip(prompts, rows, strict=True)]
        width = max(map(len, texts))
        ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        with torch.inference_mode():
            stage.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        return [Written(row.gold, 0) for row in rows]

    return answer, stage.model


# -- (e) Afina ---------------------------------------------------------------------------------


def afina(folder: Path, *, misses: float | None = None, **settings: bool) -> tuple[Answerer, Any]:
    """The specialist as its users ask it. settings: `draft`, `reuse_prefix`; as in its manifest when not given.

    misses: share of the fields at which the guess is made wrong on purpose; see misses.py.
    """
    from afina.strategies.finetuned import Specialist

    specialist = Specialist.load(folder, **settings)
    predictor = specialist.predictor
    if misses is not None:
        assert predictor.drafter is not None, "there are no guesses that could miss"
        predictor.drafter = MissingDrafter(predictor.drafter, misses)

    def answer(rows: Sequence[Row]) -> list[Written]:
        predictor.batch_size = len(rows)
        made = specialist.predict([row.inputs for row in rows])
        return [Written(one.output, one.usage.completion_tokens) for one in made]

    return answer, predictor.model


# name -> how to make it ready; answer.py says on which folder and at which batch sizes.
ANSWERERS: dict[str, Callable[[Path], tuple[Answerer, Any]]] = {
    "pipeline": partial(pipeline_chain, stops=True),
    "pipeline-250": partial(pipeline_chain, stops=False),
    "generate": partial(generate, exact=True),
    "generate+xgrammar": partial(generate, grammar="xgrammar"),
    "generate+llguidance": partial(generate, grammar="llguidance"),
    "floor": floor,
    "afina": afina,
    "afina-plain": partial(afina, draft=False, reuse_prefix=False),
    "afina-no-draft": partial(afina, draft=False),
    "afina-no-prefix": partial(afina, reuse_prefix=False),
    "afina-missing": partial(afina, misses=MISSES),
    "afina-compact": afina,
}
