"""Guessing and reuse change the number of passes and nothing else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_engine import NANO, random_schema, tiny_llama, usable_schemas
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from afina.core import schema as schemas
from afina.core.errors import ModelError
from afina.core.predictor import Example
from afina.core.schema import Schema
from afina.core.task import Task
from afina.engine.codec import Codec
from afina.engine.decode import Answer, Question, field_confidence, write_answers
from afina.engine.draft import Guess, Scripts
from afina.engine.prefix import Prefixes
from afina.engine.reading import Reader
from afina.engine.renderer import Renderer
from afina.strategies.drafter import WEIGHTS, AnswerDrafter, build_drafter
from afina.strategies.local import LocalPredictor

MAX_TEXT_TOKENS = 5
EMOTIONS = ["alegria", "tristeza", "raiva", "nojo", "medo", "surpresa", "desprezo", "neutro"]
LABELS = schemas.normalise(
    schemas.from_shorthand({k: {"p": ["positivo", "negativo", "neutro"], "e": EMOTIONS} for k in ("f1", "f2", "f3")})
)


@dataclass
class Told:
    """A guess that is told what to say: first `value`, then, in turn, those of `others` that agree."""

    value: Any
    others: list[Any] = field(default_factory=list)
    num_revised: int = 0

    def confidence(self, path: str) -> float:
        return 1.0

    def revise(self, path: str, agrees: Callable[[Any], bool]) -> Any | None:
        self.num_revised += 1
        return next((value for value in self.others if agrees(value)), None)


@dataclass
class Corrected:
    """A guess that changes the field where it was wrong, and keeps the rest."""

    value: Any

    def confidence(self, path: str) -> float:
        return 0.9

    def revise(self, path: str, agrees: Callable[[Any], bool]) -> Any | None:
        for label in ("positivo", "negativo", *EMOTIONS):
            value = copy.deepcopy(self.value)
            schemas.assign(value, path, label)
            if agrees(value):
                self.value = value
                return value
        return None


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoTokenizer.from_pretrained(NANO))


def random_value(schema: Schema, rng: random.Random) -> Any:
    """Some value of a schema; free texts and numbers as good as it goes."""
    labels = schemas.labels_of(schema)
    if labels is not None:
        return rng.choice(labels)
    if "anyOf" in schema:
        return random_value(rng.choice(schema["anyOf"]), rng)
    if schema["type"] == "object":
        kept = [k for k in schema["properties"] if k in schema["required"] or rng.random() < 0.5]
        return {k: random_value(schema["properties"][k], rng) for k in kept}
    if schema["type"] == "array":
        inner = schemas.labels_of(schema["items"])
        low, high = schema.get("minItems", 0), schema.get("maxItems", 3)
        if inner is not None and schema.get("uniqueItems"):
            count = rng.randint(low, len(inner))
            return [label for label in inner if label in rng.sample(inner, count)][:count]
        return [random_value(schema["items"], rng) for _ in range(rng.randint(low, high))]
    if schema["type"] == "string":
        return {"date": "2026-01-02", "uuid": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "time": "10:00:00Z"}.get(
            schema.get("format", ""), "abc"
        )
    return 1


def same(one: Answer, other: Answer) -> None:
    """Equal but for rounding, and for what it cost."""
    assert (one.text, one.error, one.completion_tokens) == (other.text, other.error, other.completion_tokens)
    assert [(m.path, m.chosen, m.is_open) for m in one.made] == [(m.path, m.chosen, m.is_open) for m in other.made]
    for mine, theirs in zip(one.made, other.made, strict=True):
        assert mine.allowed.tolist() == theirs.allowed.tolist()
        # fp32 sums in another order; the logits of these models are of the size of 10
        assert mine.logits == pytest.approx(theirs.logits, abs=1e-3)
    # 1e-4 as wanted: what the user sees
    assert field_confidence(one.made, {}) == pytest.approx(field_confidence(other.made, {}), abs=1e-4)


def question(renderer: Renderer, text: str, scripts: Scripts | None = None, guess: Guess | None = None) -> Question:
    part = renderer.task.parts[0]
    ids = renderer.prompt(part, {"f1": text})[0]
    return Question(ids, lambda: renderer.writer(part, MAX_TEXT_TOKENS), scripts, guess)


def scripts_of(renderer: Renderer) -> Scripts:
    part = renderer.task.parts[0]
    return Scripts(part.schema, lambda *gold: renderer.writer(part, MAX_TEXT_TOKENS, *gold))


def texts(rng: random.Random, count: int) -> list[str]:
    return ["palavra " * rng.randint(0, 12) + rng.choice(["", "é", "fim."]) for _ in range(count)]


@pytest.mark.slow
def test_500_random_cases_are_answered_alike_with_and_without_a_guess(codec: Codec) -> None:
    """Random schemas, models and guesses: right, right at first, random, revised at random, of other schemas."""
    rng = random.Random(3)
    models = [tiny_llama(8192, seed) for seed in range(6)]
    cases, accepted, passes = 0, 0, [0, 0]
    for number, schema in enumerate(usable_schemas(125)):
        renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, schema), codec, "completion")
        rows, scripts, model = texts(rng, 4), scripts_of(renderer), models[number % 6]
        plain = write_answers(model, [question(renderer, text) for text in rows], batch_size=(1, 4, 16)[number % 3])
        right = [json.loads(answer.text) for answer in plain]
        pool = [*right, *(random_value(schema, rng) for _ in range(6))]
        foreign = random_value(random_schema(rng), rng)
        guesses = [Told(right[0]), Told(pool[5], pool), Told(pool[6], rng.sample(pool, 5)), Told(foreign, pool[4:])]
        asked = [question(renderer, *one) for one in zip(rows, [scripts] * 4, guesses, strict=True)]
        prefixes = Prefixes(Reader(model))
        prefixes.learn([one.ids for one in asked])
        batch_size = (16, 4, 1, 1)[number % 4]
        guessed = write_answers(model, asked, batch_size=batch_size, prefixes=prefixes if number % 2 else None)
        for one, other in zip(plain, guessed, strict=True):
            same(one, other)
        cases += len(rows)
        accepted += sum(answer.accepted for answer in guessed)
        passes[0] += sum(answer.forward_passes for answer in plain)
        passes[1] += sum(answer.forward_passes for answer in guessed)
    assert cases == 500
    assert accepted > 300  # guesses were not all refused
    assert passes[1] < passes[0]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_right_guess_takes_one_pass(codec: Codec, batch_size: int) -> None:
    renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, LABELS), codec, "completion")
    model, rows, scripts = tiny_llama(8192, 1), texts(random.Random(0), 16), scripts_of(renderer)
    plain = write_answers(model, [question(renderer, text) for text in rows], batch_size=batch_size)
    guesses = [Told(json.loads(answer.text)) for answer in plain]
    asked = [question(renderer, text, scripts, guess) for text, guess in zip(rows, guesses, strict=True)]
    guessed = write_answers(model, asked, batch_size=batch_size)
    assert min(answer.forward_passes for answer in plain) >= 6
    assert [answer.forward_passes for answer in guessed] == [1] * 16
    assert [answer.accepted for answer in guessed] == [len(answer.made) for answer in guessed]
    for one, other in zip(plain, guessed, strict=True):
        same(one, other)


def test_a_wrong_guess_costs_no_more_passes_than_none(codec: Codec) -> None:
    renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, LABELS), codec, "completion")
    model, rows, scripts = tiny_llama(8192, 1), texts(random.Random(0), 4), scripts_of(renderer)
    plain = write_answers(model, [question(renderer, text) for text in rows], batch_size=4)
    right = [json.loads(answer.text) for answer in plain]
    wrong = [
        {k: {"p": other_than(v["p"], "positivo"), "e": other_than(v["e"], "raiva")} for k, v in value.items()}
        for value in right
    ]
    guesses = [Told(value) for value in wrong]
    asked = [question(renderer, text, scripts, guess) for text, guess in zip(rows, guesses, strict=True)]
    for one, other in zip(plain, write_answers(model, asked, batch_size=4), strict=True):
        same(one, other)
        assert other.guessed >= 1
        assert other.accepted < other.guessed
        assert other.forward_passes <= one.forward_passes
    assert [guess.num_revised for guess in guesses] == [1] * 4  # after that there was nothing left to revise


def other_than(label: str, other: str) -> str:
    return other if label != other else "neutro"


def test_a_guess_goes_on_after_free_text(codec: Codec) -> None:
    """The text is written token by token, the labels after it are guessed: one pass for all of them."""
    output = {"porque": "text", **{k: ["positivo", "negativo", "neutro"] for k in "abcd"}}
    schema = schemas.normalise(schemas.from_shorthand(output))
    renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, schema), codec, "completion")
    model, scripts = tiny_llama(8192, 4), scripts_of(renderer)
    (plain,) = write_answers(model, [question(renderer, "a")], batch_size=1)
    guess = Told({**json.loads(plain.text), "porque": "outra coisa"})
    (guessed,) = write_answers(model, [question(renderer, "a", scripts, guess)], batch_size=1)
    same(plain, guessed)
    num_open = sum(made.is_open for made in plain.made)
    assert guessed.forward_passes == num_open + 1 < plain.forward_passes


def test_a_value_that_the_engine_could_not_write_has_no_script(codec: Codec) -> None:
    schema = schemas.normalise(
        {"type": "object", "properties": {"m": {"type": "array", "items": {"enum": ["a", "b"]}}}}
    )
    renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, schema), codec, "completion")
    scripts = scripts_of(renderer)
    assert scripts.of({"m": ["a", "b"]}) is not None
    longest = scripts.of({"m": ["a"] * 33})
    assert longest is not None
    assert json.loads(longest.text) == {"m": ["a"] * 32}  # no more items are served
    assert scripts.of({"m": ["c"]}) is None
    assert scripts.of({"n": 1}) is None
    assert scripts.of(3) is None


def families() -> Iterable[tuple[str, Any]]:
    torch.manual_seed(0)
    yield "llama", tiny_llama(8192, 5)
    sizes: dict[str, Any] = {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    gemma = Gemma3TextConfig(
        **sizes, num_hidden_layers=4, num_key_value_heads=1, head_dim=16, sliding_window=8, initializer_range=0.5,
        layer_types=["sliding_attention", "full_attention"] * 2, max_position_embeddings=2048,
    )  # fmt: skip
    yield "gemma 3, whose layers look back on 8 tokens", Gemma3ForCausalLM(gemma).eval()
    capped = copy.deepcopy(gemma)
    capped.final_logit_softcapping = 5.0
    yield "gemma 3, whose head is no plain product", Gemma3ForCausalLM(capped).eval()
    gpt2 = GPT2Config(vocab_size=8192, n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.5)
    yield "gpt 2, whose positions are learned", GPT2LMHeadModel(gpt2).eval()
    eager = tiny_llama(8192, 6)
    eager.set_attn_implementation("eager")
    yield "llama, eager attention", eager
    adapter = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    yield "llama with an adapter", get_peft_model(tiny_llama(8192, 9), adapter).eval()
    yield "llama, bfloat16", tiny_llama(8192, 7).to(torch.bfloat16)


@pytest.mark.parametrize(("name", "model"), families(), ids=lambda v: v if isinstance(v, str) else "")
def test_our_cache_gives_each_family_its_own_logits(codec: Codec, name: str, model: Any) -> None:
    """Ours against one plain pass over prompt and answer, with wrong guesses, in a batch, a beginning shared."""
    reader = Reader(model)
    assert reader.shape is not None
    assert (reader.head is None) == ("no plain product" in name)
    renderer = Renderer(Task("t", "Diga o que é.", {"f1": "f1"}, LABELS), codec, "completion")
    rng = random.Random(1)
    rows, scripts, prefixes = texts(rng, 5), scripts_of(renderer), Prefixes(Reader(model))
    plain = write_answers(model, [question(renderer, text) for text in rows], batch_size=1)
    nearly = [json.loads(answer.text) for answer in plain]
    for value in nearly:
        schemas.assign(value, f"f{rng.randint(1, 3)}.e", rng.choice(EMOTIONS))
    asked = [question(renderer, text, scripts, Corrected(value)) for text, value in zip(rows, nearly, strict=True)]
    assert prefixes.learn([one.ids for one in asked]) >= 4
    answers = write_answers(model, asked, batch_size=5, prefixes=prefixes)
    assert sum(answer.accepted for answer in answers) > 5
    assert all(answer.guessed == len(answer.made) for answer in answers)
    for one, answer in zip(asked, answers, strict=True):
        script = scripts.of(json.loads(answer.text))
        assert script is not None
        with torch.no_grad():
            logits_TV = model(torch.tensor([one.ids + script.tokens])).logits[0].float()
        assert len(script.steps) == len(answer.made)
        for step, made in zip(script.steps, answer.made, strict=True):
            expected = logits_TV[len(one.ids) + step.at - 1][torch.from_numpy(step.allowed)]
            # fp32 sums in another order; bfloat16 keeps 8 bits
            assert made.logits == pytest.approx(expected.numpy(), abs=0.25 if "bfloat16" in name else 1e-3)


def test_a_model_with_another_memory_is_read_its_own_way(codec: Codec) -> None:
    """Here each embedding knows those before it in the same pass, as a recurrent state would: our cache is refused,
    and a guess changes nothing. The head is still plain."""
    model = tiny_llama(8192, 1)
    model.model.embed_tokens.register_forward_hook(lambda module, ids, found: found + 0.5 * found.cumsum(1))
    reader = Reader(model)
    assert reader.shape is None
    assert reader.head is model.lm_head
    renderer = Renderer(Task("t", "Diga.", {"f1": "f1"}, LABELS), codec, "completion")
    plain = write_answers(model, [question(renderer, "a")], batch_size=1)
    guess = Corrected(json.loads(plain[0].text))
    guessed = write_answers(model, [question(renderer, "a", scripts_of(renderer), guess)], batch_size=1)
    same(plain[0], guessed[0])
    assert guessed[0].guessed == 0
    assert Prefixes(reader).learn([[5, 6, 7, 8, 9]]) == 0


def test_a_beginning_is_reused_only_as_far_as_a_prompt_begins_with_it(codec: Codec) -> None:
    model = tiny_llama(8192, 8)
    prefixes = Prefixes(Reader(model))
    assert prefixes.learn([[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 11]]) == 5
    assert prefixes.learn([[1, 2], [1, 2]]) == 0  # too short to pay
    longer = prefixes.shared([[5, 6, 7, 8, 9, 12], [5, 6, 7, 8, 9]])
    assert longer is not None
    assert longer.length == 4  # the second prompt's last token is left to read
    assert prefixes.shared([[5, 6, 7, 8, 9, 12], [4, 6, 7, 8, 9, 12]]) is None
    small = Prefixes(Reader(model), max_bytes=prefixes.num_bytes)
    small.learn([[1, 2, 3, 4, 5]])
    small.learn([[2, 2, 3, 4, 5]])
    assert small.shared([[1, 2, 3, 4, 5, 6]]) is None
    assert small.shared([[2, 2, 3, 4, 5, 6]]) is not None


# Everything that a guess may be of: labels, an optional field, a list of labels, a text, a number.
MIXED = {
    "p": ["positivo", "negativo", "neutro"],
    "n?": "int(0..12)",
    "t": "text(8)",
    "m": [EMOTIONS],
    "q": "number(0..1)",
    "b": "bool",
}


@pytest.mark.parametrize("output", [MIXED, {"e": EMOTIONS, "p": ["positivo", "negativo", "neutro"]}, EMOTIONS])
def test_a_learned_drafter_changes_passes_and_no_prediction(codec: Codec, tmp_path: Path, output: Any) -> None:
    """Learned from a model's own answers, kept in a folder, read again; also for rows it has not seen."""
    schema = schemas.normalise(schemas.from_shorthand(output))
    task = Task("t", "Classifique a frase.", {"f1": "f1", "f2": "f2"}, schema)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()

    def predictor(batch_size: int, **options: Any) -> LocalPredictor:
        return LocalPredictor(
            "x", model, codec.tokenizer, task, style="completion", batch_size=batch_size, max_text_tokens=4, **options
        )

    words = ["lucro", "queda", "alta", "greve", "safra", "crise", "bolsa", "juros", "perda", "ganho"]
    rows = [{"f1": f"{a} com {b}", "f2": b} for a in words for b in words if a != b][::5]
    plain = predictor(4, reuse_prefix=False)
    build_drafter(task, plain, [Example(str(n), row) for n, row in enumerate(rows[:12])]).save(tmp_path)
    drafter = AnswerDrafter.load(tmp_path)
    assert drafter is not None
    expected = plain.predict(rows)
    assert len(rows) == 18
    for batch_size in (1, 4):
        found = predictor(batch_size, drafter=drafter).predict(rows)
        for one, other in zip(expected, found, strict=True):
            assert one.output == other.output
            assert one.error is other.error is None
            assert one.usage.completion_tokens == other.usage.completion_tokens
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)  # as wanted of the whole engine
            for path, shares in one.probabilities.items():
                assert shares == pytest.approx(other.probabilities[path], abs=1e-4)
        if batch_size == 1:
            assert sum(p.usage.forward_passes for p in found) <= sum(p.usage.forward_passes for p in expected)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="answers come without guesses"):
        AnswerDrafter.load(tmp_path)
    assert AnswerDrafter.load(tmp_path / "nowhere") is None
