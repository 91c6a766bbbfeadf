"""Continuous batching changes when an answer comes, and nothing else."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import NANO, tiny_llama
from test_engine_shapes import WEATHER, Told, asked
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from afina.core.errors import MachineError, SchemaError
from afina.engine.batching import Batcher, InferenceThread
from afina.engine.chat import ChatFormat
from afina.engine.codec import Codec
from afina.engine.generation import Generation
from afina.engine.prefix import RecentTexts
from afina.engine.reading import Reader
from afina.engine.sampling import Sampling
from afina.engine.shapes import JsonObject, JsonSchema, Shape, Text, ToolCalls

SCHEMA = {
    "type": "object",
    "properties": {
        "polaridade": {"enum": ["positivo", "negativo", "neutro"]},
        "nota": {"type": "integer", "minimum": 0, "maximum": 10},
        "resumo": {"type": "string", "maxLength": 24},
    },
    "required": ["polaridade", "nota", "resumo"],
    "additionalProperties": False,
}
SHAPES: list[Shape] = [
    Text(), JsonSchema(SCHEMA), JsonObject(), ToolCalls((WEATHER,), True), ToolCalls((WEATHER,), False),
]  # fmt: skip
WORDS = ["a", "história", "de", "uma", "casa", "no", "Brasil", "que", "foi", "vendida", "por", "dois", "homens", "1889"]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoTokenizer.from_pretrained(NANO))


@pytest.fixture(scope="module")
def nano() -> Any:
    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def own_way(codec: Codec) -> Any:
    """A model with a state besides keys and values, which our cache does not hold."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], max_position_embeddings=2048, eos_token_id=1,
        bos_token_id=0, pad_token_id=2,
    )  # fmt: skip
    model = Lfm2ForCausalLM(config).eval()
    assert Reader(model).shape is None
    return model


def made(model: Any, codec: Codec, **options: Any) -> Batcher:
    return Batcher(model, codec, frozenset({codec.eos}), **options)


def finish(batcher: Batcher) -> None:
    while batcher.step():
        pass


def prompts(codec: Codec, number: int, *, longest: int = 60, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest))) for _ in range(number)]
    return [codec.completion_prompt(text) for text in texts]


def alone(model: Any, codec: Codec, ids: list[int], shape: Shape, sampling: Sampling) -> Told:
    batcher = made(model, codec)
    generation, told = asked(ids, shape, sampling)
    batcher.submit(generation)
    finish(batcher)
    assert not told.errors
    return told


# -- the same answers -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["text", "schema", "mixed"])
def test_answers_are_those_made_alone(nano: Any, codec: Codec, which: str) -> None:
    """Random arrivals, prompts of unlike lengths, long ones in pieces, slots that are freed and taken again."""
    rng = random.Random(which)
    shapes = {"text": SHAPES[:1], "schema": SHAPES[1:2], "mixed": SHAPES}[which]
    chosen = [(ids, rng.choice(shapes)) for ids in prompts(codec, 24, longest=90, seed=5)]
    sampling = Sampling(temperature=0, max_tokens=45, top_logprobs=0)
    expected = [alone(nano, codec, ids, shape, sampling) for ids, shape in chosen]

    batcher = made(nano, codec, max_rows=6, prefill_tokens=150)
    waiting = [asked(ids, shape, sampling) for ids, shape in chosen]
    told = [one for _, one in waiting]
    most = 0
    while waiting or batcher.busy:
        for _ in range(rng.randint(0, 6)):
            if waiting:
                batcher.submit(waiting.pop(0)[0])
        batcher.step()
        most = max(most, batcher.num_rows)
    assert (4 if which == "text" else 2) <= most <= 6
    for one, wanted in zip(told, expected, strict=True):
        assert not one.errors
        assert (one.text, one.finish) == (wanted.text, wanted.finish)
        # float32 sums in another order differ by some 1e-6 of a logit.
        assert [t.logprob for t in one.tokens] == pytest.approx([t.logprob for t in wanted.tokens], abs=1e-3)
    assert len({one.text for one in told}) > 3


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(nano: Any, codec: Codec) -> None:
    ids = prompts(codec, 1)[0]
    settings = Sampling(seed=11, temperature=1.2, top_p=0.9, max_tokens=30, presence_penalty=0.5)
    wanted = [alone(nano, codec, ids, shape, settings).text for shape in SHAPES]
    batcher = made(nano, codec)
    others = [asked(other, Text(), Sampling(max_tokens=20)) for other in prompts(codec, 9, seed=3)]
    ours = [asked(ids, shape, settings) for shape in SHAPES]
    everybody = [*others, *ours]
    random.Random(0).shuffle(everybody)
    for generation, _ in everybody:
        batcher.submit(generation)
        batcher.step()
    finish(batcher)
    assert [told.text for _, told in ours] == wanted
    another = alone(nano, codec, ids, Text(), Sampling(seed=12, temperature=1.2, max_tokens=30))
    assert another.text != wanted[0]


def test_log_probabilities_are_the_models_own(nano: Any, codec: Codec) -> None:
    ids = prompts(codec, 1)[0]
    told = alone(nano, codec, ids, Text(), Sampling(temperature=0, max_tokens=8, top_logprobs=5))
    allowed = [*codec.text_ids.tolist(), codec.eos]
    with torch.inference_mode():
        for n, token in enumerate(told.tokens):
            before = [*ids, *(one.id for one in told.tokens[:n])]
            logits = nano(torch.tensor([before])).logits[0, -1]
            outside = torch.ones_like(logits, dtype=torch.bool)
            outside[allowed] = False
            best = torch.log_softmax(logits.masked_fill(outside, -torch.inf), 0).topk(5)
            assert token.id == best.indices[0]
            assert token.logprob == pytest.approx(float(best.values[0]), abs=1e-3)
            assert [one for one, _, _ in token.top] == best.indices.tolist()
            assert [p for _, _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert len(told.tokens) == 8


def test_models_that_keep_a_state_are_served_their_own_way(own_way: Any, codec: Codec) -> None:
    rng = random.Random(2)
    sampling = Sampling(temperature=0, max_tokens=12)
    chosen = [(ids, rng.choice(SHAPES)) for ids in prompts(codec, 10, seed=8)]
    batcher = made(own_way, codec, max_rows=4, prefill_tokens=20)
    told: list[Told] = []
    for ids, shape in chosen:
        generation, one = asked(ids, shape, sampling)
        told.append(one)
        batcher.submit(generation)
        batcher.step()
    finish(batcher)
    for (ids, shape), one in zip(chosen, told, strict=True):
        assert one.text == alone(own_way, codec, ids, shape, sampling).text
        if isinstance(shape, Text):
            with torch.inference_mode():
                logits = own_way(torch.tensor([ids])).logits[0, -1]
            allowed = torch.tensor([*codec.text_ids.tolist(), codec.eos])
            first = int(allowed[logits[allowed].argmax()])
            assert one.text.startswith(codec.decode([first]).strip("\ufffd"))


def test_a_whole_model_in_bfloat16_answers(codec: Codec) -> None:
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.bfloat16).eval()
    told = alone(model, codec, prompts(codec, 1)[0], JsonSchema(SCHEMA), Sampling(temperature=0, max_tokens=60))
    assert told.finish == "stop"


# -- what was read before ---------------------------------------------------------------------


def test_prompts_that_were_read_are_not_read_again(nano: Any, codec: Codec) -> None:
    chat = ChatFormat(codec, "chat")
    ids = prompts(codec, 1, longest=80, seed=4)[0] * 3
    sampling = Sampling(temperature=0, max_tokens=10)
    recent = RecentTexts()
    batcher = made(nano, codec, recent=recent)

    def answer(prompt: list[int]) -> tuple[str, int]:
        generation, told = asked(prompt, Text(), sampling)
        batcher.submit(generation)
        finish(batcher)
        return told.text, generation.cached_tokens

    first = answer(ids)
    assert first[1] == 0
    assert answer(ids) == (first[0], len(ids) - 1)
    half = [*ids[: len(ids) // 2], *codec.answer_text(" outra coisa")]
    assert answer(half)[1] == len(ids) // 2
    assert answer(half)[0] == alone(nano, codec, half, Text(), sampling).text
    # The next turn of a conversation begins with the prompt and the answer before.
    following = [*ids, *codec.answer_text(first[0]), *codec.answer_text(" e depois?")]
    cached = answer(following)[1]
    assert cached >= len(ids) + 5
    assert answer([*following, 7])[0] == alone(nano, codec, [*following, 7], Text(), sampling).text
    assert recent.num_bytes > 0
    assert chat.stop_ids == {codec.eos}


def test_equal_prompts_that_come_together_are_read_once(nano: Any, codec: Codec) -> None:
    ids = prompts(codec, 1, longest=80, seed=4)[0] * 3
    batcher = made(nano, codec)
    asked_for = [asked(ids, Text(), Sampling(seed=n, max_tokens=6)) for n in range(12)]
    for generation, _ in asked_for:
        batcher.submit(generation)
    finish(batcher)
    assert [generation.cached_tokens for generation, _ in asked_for] == [0] + [len(ids) - 1] * 11
    assert len({told.text for _, told in asked_for}) > 1


def test_recent_texts_keep_within_their_bytes_and_owners() -> None:
    def held(length: int) -> Any:
        return [(torch.ones(2, length, 4), torch.ones(2, length, 4))]

    one = 2 * 2 * 100 * 4 * 4
    recent = RecentTexts(max_bytes=5 * one)
    for n in range(20):
        recent.keep(n % 2, [n, *range(99)], held(100))
        assert recent.num_bytes <= 5 * one
    assert recent.find(1, [19, *range(99), 5])[0] == 100
    assert recent.find(1, [19, *range(50), 5])[0] == 51
    assert recent.find(1, [19, *range(99)])[0] == 99  # one token is left to read
    assert recent.find(0, [19, *range(99)])[0] == 0
    assert recent.find(0, [0, *range(99)])[0] == 0
    before = recent.num_bytes
    recent.keep(1, [19, *range(109)], held(110))
    assert recent.num_bytes < before + one  # in place of what it begins with
    recent.forget(1)
    assert recent.find(1, [19, *range(109)])[0] == 0
    recent.forget(0)
    assert recent.num_bytes == 0
    assert not recent.fits(2 * one)


# -- who comes, waits and leaves --------------------------------------------------------------


def test_a_long_prompt_does_not_hold_up_the_others(nano: Any, codec: Codec) -> None:
    batcher = made(nano, codec, prefill_tokens=64)
    short, told = asked(prompts(codec, 1)[0], Text(), Sampling(temperature=0, max_tokens=60, logit_bias={1: -100}))
    batcher.submit(short)
    for _ in range(3):
        batcher.step()
    long, answer = asked(prompts(codec, 1, seed=9)[0] * 100, Text(), Sampling(temperature=0, max_tokens=2))
    long.ids = long.ids[:1000]
    batcher.submit(long)
    steps = 0
    while not answer.deltas:
        before = short.completion_tokens
        batcher.step()
        steps += 1
        assert short.completion_tokens == before + 1
    assert steps >= 1000 // 64
    finish(batcher)
    assert not told.errors


def test_cancelled_answers_leave_their_rows_and_say_no_more(nano: Any, codec: Codec) -> None:
    batcher = made(nano, codec, max_rows=4)
    all_of_them = [asked(ids, Text(), Sampling(max_tokens=400, logit_bias={1: -100})) for ids in prompts(codec, 9)]
    for generation, _ in all_of_them:
        batcher.submit(generation)
    for _ in range(5):
        batcher.step()
    assert (batcher.num_rows, batcher.num_waiting) == (4, 5)
    for generation, _ in all_of_them[:2] + all_of_them[5:]:
        generation.cancel()
    said = [len(told.deltas) for _, told in all_of_them]
    batcher.step()
    batcher.step()
    assert (batcher.num_rows, batcher.num_waiting) == (3, 0)
    assert [len(told.deltas) for _, told in all_of_them][:2] == said[:2]
    for generation, _ in all_of_them:
        generation.cancel()
    batcher.step()
    assert not batcher.busy
    assert not any(told.errors for _, told in all_of_them)
    assert all(told.finish is None for _, told in all_of_them)


def test_an_error_is_the_one_requests_own(nano: Any, codec: Codec) -> None:
    batcher = made(nano, codec)
    good, told = asked(prompts(codec, 1)[0], Text(), Sampling(temperature=0, max_tokens=20))
    expected = alone(nano, codec, good.ids, Text(), Sampling(temperature=0, max_tokens=20)).text
    bad_schema, one = asked([0, 9], JsonSchema({"type": "object", "properties": {"a": {"not": {}}}}), Sampling())
    bad_token, two = asked([0, 9, 999_999], Text(), Sampling(max_tokens=5))

    def fails(_: Any) -> None:
        raise RuntimeError("the reader has gone")

    three: list[Exception] = []
    bad_reader = Generation([0, 5], Text(), Sampling(max_tokens=5), fails, three.append)
    for generation in (bad_schema, good, bad_token, bad_reader):
        batcher.submit(generation)
    finish(batcher)
    assert (told.text, told.errors) == (expected, [])
    assert isinstance(one.errors[0], SchemaError)
    assert [len(x) for x in (one.errors, two.errors, three)] == [1, 1, 1]
    assert isinstance(two.errors[0], IndexError | RuntimeError)
    assert str(three[0]) == "the reader has gone"
    assert not batcher.busy


def test_keys_and_values_stay_within_their_memory(nano: Any, codec: Codec) -> None:
    token_bytes = 2 * 6 * 320 * 4  # of nano in float32
    batcher = made(nano, codec, cache_bytes=4 * 120 * token_bytes, max_rows=32)
    first = asked([0, 5], Text(), Sampling(temperature=0, max_tokens=20))
    batcher.submit(first[0])
    batcher.step()
    others = [asked(ids, Text(), Sampling(max_tokens=40, logit_bias={1: -100})) for ids in prompts(codec, 12)]
    for generation, _ in others:
        batcher.submit(generation)
    most = 0
    while batcher.step():
        most = max(most, batcher.num_rows)
    assert 2 <= most <= 5
    assert [told.finish for _, told in others] == ["length"] * 12


def test_the_context_ends_answers(nano: Any, codec: Codec) -> None:
    batcher = made(nano, codec, context=40)
    for length, wanted in ((30, 10), (39, 1), (40, 0), (50, 0)):
        generation, told = asked(([0] + prompts(codec, 1)[0] * 40)[:length], Text(), Sampling(logit_bias={1: -100}))
        batcher.submit(generation)
        finish(batcher)
        assert (generation.completion_tokens, told.finish, told.errors) == (wanted, "length", [])


# -- the thread -------------------------------------------------------------------------------


def test_64_clients_at_once(nano: Any, codec: Codec) -> None:
    thread = InferenceThread()
    batchers = [made(nano, codec, max_rows=16), made(tiny_llama(8192, 3), codec)]
    for batcher in batchers:
        thread.attach(batcher)
    thread.start()
    rng = random.Random(1)
    ended: list[str] = []
    lock = threading.Lock()

    def client(n: int) -> None:
        done = threading.Event()
        told = Told()

        def on_delta(delta: Any) -> None:
            told.deltas.append(delta)
            if delta.finish:
                done.set()

        shape = SHAPES[n % len(SHAPES)]
        generation = Generation(all_prompts[n], shape, Sampling(seed=n, max_tokens=15), on_delta, told.errors.append)
        batchers[n % 2].submit(generation)
        assert done.wait(120)
        with lock:
            ended.append(told.text)

    all_prompts = prompts(codec, 64, longest=rng.randint(20, 40))
    clients = [threading.Thread(target=client, args=(n,)) for n in range(64)]
    for one in clients:
        one.start()
    vectors = [thread.call(batchers[0], lambda: batchers[0].embed([[0, 5, 6]])) for _ in range(3)]
    for one in clients:
        one.join()
    assert len(ended) == 64
    assert all(np.linalg.norm(future.result(10)[0]) == pytest.approx(1, abs=1e-5) for future in vectors)
    thread.stop()
    assert not any(batcher.busy for batcher in batchers)


def test_a_stopped_thread_tells_who_waits(nano: Any, codec: Codec) -> None:
    thread = InferenceThread()
    batcher = made(nano, codec, max_rows=1)
    thread.attach(batcher)
    thread.start()
    asked_for = [asked(ids, Text(), Sampling(logit_bias={1: -100})) for ids in prompts(codec, 3)]
    for generation, _ in asked_for:
        batcher.submit(generation)
    while not asked_for[0][1].deltas:
        time.sleep(0.01)
    thread.stop()
    assert all(isinstance(told.errors[0], MachineError) for _, told in asked_for)
    with pytest.raises(MachineError):
        thread.call(batcher, lambda: 1).result(1)


def test_a_model_that_is_being_changed_holds_up_no_other(nano: Any, codec: Codec) -> None:
    thread = InferenceThread()
    changed, other = made(nano, codec), made(tiny_llama(8192, 3), codec)
    thread.attach(changed)
    thread.attach(other)
    thread.start()
    with changed.lock:
        slow, told = asked([0, 5], Text(), Sampling(max_tokens=3))
        quick, answer = asked([0, 5], Text(), Sampling(max_tokens=3))
        changed.submit(slow)
        other.submit(quick)
        for _ in range(500):
            if answer.finish:
                break
            time.sleep(0.01)
        assert answer.finish
        assert not told.deltas
    for _ in range(500):
        if told.finish:
            break
        time.sleep(0.01)
    assert told.finish
    thread.stop()


# -- embeddings -------------------------------------------------------------------------------


def test_embeddings_do_not_depend_on_their_neighbours(nano: Any, own_way: Any, codec: Codec) -> None:
    texts = prompts(codec, 6, seed=6)
    for model in (nano, own_way):
        batcher = made(model, codec)
        together = batcher.embed(texts)
        for ids, vector in zip(texts, together, strict=True):
            assert vector.dtype == np.float32
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            assert batcher.embed([ids])[0] == pytest.approx(vector, abs=1e-4)
        assert len(together) == 6
    with torch.inference_mode():
        hidden = nano(torch.tensor([texts[0]]), output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert made(nano, codec).embed(texts[:1])[0] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-4)


def test_importing_the_engine_needs_no_server() -> None:
    folder = Path(__file__).resolve().parent.parent / "src/afina/engine"
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    assert len(texts) > 20
    assert not any("afina.server" in text for text in texts)
