"""The pool of models: one load for many who ask, shared weights, memory within its budget, nobody held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from afina.core.chat import Conversation, Message
from afina.core.errors import ModelError
from afina.core.storage import write_json
from afina.engine.generation import Delta, Generation
from afina.engine.loader import BaseSpec, load_base, load_specialist, resolve, save_base_spec
from afina.engine.sampling import Sampling
from afina.engine.shapes import Text
from afina.server.config import Alias, ServerConfig
from afina.server.errors import ApiError
from afina.server.places import Places
from afina.server.pool import ModelPool, Served
from afina.server.store import Store
from afina.server.tables import Model
from afina.server.weights import Weights

NANO = resolve("afina/nano")
SAMPLING = Sampling(temperature=0, max_tokens=12)
QUESTION = Conversation((Message("user", "O que é isto?"),))


def adapter(folder: Path, seed: int) -> Path:
    """An adapter on nano, as a job leaves it, that changes what it says."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.6)
    tuned.peft_config["default"].base_model_name_or_path = "afina/nano"  # type: ignore[union-attr]
    tuned.save_pretrained(str(folder))
    save_base_spec(folder, BaseSpec("afina/nano"))
    return finished(folder)


def whole(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return finished(folder)


def finished(folder: Path) -> Path:
    AutoTokenizer.from_pretrained(NANO).save_pretrained(str(folder))
    write_json(folder / "served.json", {"style": "chat", "method": "supervised", "base_name": "afina/nano"})
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for n in range(3):
        adapter(root / f"jobs/a{n}", n)
    whole(root / "jobs/w0", 0)
    whole(root / "jobs/w1", 1)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'afina.db'}")
    with store.session() as session:
        for name in ("a0", "a1", "a2", "w0", "w1", "gone"):
            row = {
                "created_at": 1,
                "owned_by": "afina",
                "job_id": "ftjob-1",
                "step": 1,
                "parent": "gpt-4o-mini-2024-07-18",
            }
            session.add(Model(name=f"ft:{name}", base="gpt-4o-mini-2024-07-18", folder=f"jobs/{name}", **row))
    yield store
    store.close()


@pytest.fixture
def pool(root: Path, store: Store) -> Iterator[ModelPool]:
    pool = ModelPool(ServerConfig(), store, Places(root))
    yield pool
    pool.close()


def say(served: Served, conversation: Conversation = QUESTION, sampling: Sampling = SAMPLING) -> str:
    """A greedy answer."""
    deltas: list[Delta] = []
    errors: list[Exception] = []
    done = threading.Event()

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        if delta.finish:
            done.set()

    def on_error(error: Exception) -> None:
        errors.append(error)
        done.set()

    served.submit(Generation(served.chat.prompt(conversation), Text(), sampling, on_delta, on_error))
    assert done.wait(60)
    if errors:
        raise errors[0]
    return "".join(delta.text for delta in deltas)


def expected(model: Any, tokenizer: Any) -> str:
    """The same answer by the long way: no cache, no batch."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "O que é isto?"}], add_generation_prompt=True, return_dict=False
    )
    prompt = len(ids)
    with torch.inference_mode():
        while len(ids) < prompt + 12:
            scores = model(torch.tensor([ids])).logits[0, -1].float()
            scores[[0, *range(2, 8)]] = -torch.inf  # control tokens
            ids.append(int(scores.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(ids[prompt:-1])
    return tokenizer.decode(ids[prompt:])


def test_names_lead_to_models(pool: ModelPool) -> None:
    served = pool.get("gpt-4o-mini")
    assert (served.name, served.base_name, served.context) == ("gpt-4o-mini-2024-07-18", "afina/nano", 2048)
    assert served.chat.style == "chat"
    assert pool.get("davinci-002").chat.style == "completion"
    assert pool.get("afina/nano").codec is served.codec
    for name in ("nobody", "ft:nobody", "ft:gpt-4o-mini-2024-07-18:afina::abcdefgh", ""):
        with pytest.raises(ApiError) as error:
            pool.get(name)
        assert (error.value.status, error.value.code) == (404, "model_not_found")
        assert error.value.message == f"The model `{name}` does not exist or you do not have access to it."
    with pytest.raises(ModelError, match="no such folder"):
        pool.get("ft:gone")


def test_adapters_share_their_base_and_answer_as_alone(pool: ModelPool, root: Path) -> None:
    base = load_base("afina/nano")
    wanted = {"afina/nano": expected(base.model, base.tokenizer)}
    for n in range(3):
        alone = load_specialist(root / f"jobs/a{n}")
        wanted[f"ft:a{n}"] = expected(alone.model, alone.tokenizer)
    other = load_specialist(root / "jobs/w0")
    wanted["ft:w0"] = expected(other.model, other.tokenizer)
    assert len(set(wanted.values())) == 5

    names = list(wanted)
    assert {name: say(pool.get(name)) for name in names} == wanted
    handles = {name: pool.get(name) for name in names}
    assert len({id(one.codec) for name, one in handles.items() if name != "ft:w0"}) == 1
    # All at once, so that they take turns; each with a prompt that another has read.
    found: list[tuple[str, str]] = []
    clients = [
        threading.Thread(target=lambda name=name: found.append((name, say(handles[name]))))
        for name in names
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(found) == 20
    assert all(answer == wanted[name] for name, answer in found)


def test_those_who_ask_together_load_once(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[BaseSpec] = []
    original = Weights.__init__

    def slow(self: Weights, spec: BaseSpec) -> None:
        loaded.append(spec)
        time.sleep(0.2)
        original(self, spec)

    monkeypatch.setattr(Weights, "__init__", slow)
    found: list[Served] = []
    clients = [
        threading.Thread(target=lambda name=name: found.append(pool.get(name)))
        for name in ("gpt-4o", "gpt-4o-mini", "ft:a0", "ft:a1", "ft:a0", "ft:w0", "ft:w0")
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(found) == 7
    assert len(loaded) == 2


def test_a_model_that_loads_holds_up_no_other(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    nano = pool.get("afina/nano")
    hold, begun = threading.Event(), threading.Event()
    original = Weights.__init__

    def waits(self: Weights, spec: BaseSpec) -> None:
        begun.set()
        assert hold.wait(30)
        original(self, spec)

    monkeypatch.setattr(Weights, "__init__", waits)
    loading = threading.Thread(target=lambda: pool.get("ft:w0"))
    loading.start()
    assert begun.wait(30)
    assert say(nano)
    assert say(pool.get("gpt-4o"))
    assert loading.is_alive()
    hold.set()
    loading.join()


def test_a_failed_load_is_tried_again(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Weights.__init__

    def fails(self: Weights, spec: BaseSpec) -> None:
        raise ModelError("the disk is away")

    monkeypatch.setattr(Weights, "__init__", fails)
    for _ in range(2):
        with pytest.raises(ModelError, match="disk"):
            pool.get("ft:w0")
    monkeypatch.setattr(Weights, "__init__", original)
    assert say(pool.get("ft:w0"))


def test_memory_stays_within_its_budget(root: Path, store: Store) -> None:
    nano_bytes = Weights(BaseSpec("afina/nano")).num_bytes
    config = ServerConfig(
        memory_budget_bytes=nano_bytes + 2**20, aliases={"other": Alias(base_model=str(root / "jobs/w1"))}
    )
    pool = ModelPool(config, store, Places(root))
    try:
        held = pool.get("ft:a0")
        first = say(held)
        say(pool.get("ft:w0"))
        assert loaded(pool) == {"jobs/a0"}  # w0 had no room, and went when nobody used it
        say(pool.get("other"))
        assert say(held) == first  # in use, it was never unloaded
        del held
        say(pool.get("ft:w0"))
        assert "jobs/a0" not in loaded(pool)
        assert say(pool.get("ft:a0")) == first
        say(pool.get("ft:a1"))
        say(pool.get("ft:a2"))
        assert len(pool._weights) <= 2
    finally:
        pool.close()


def loaded(pool: ModelPool) -> set[str]:
    root = pool.places.root
    while any(future.result().batcher.busy for future in pool._engines.values()):
        time.sleep(0.01)  # an answer is told of its end before its row is free
    pool._make_room(0)
    names = [str(t.adapter or t.spec.name) for t in pool._engines]
    return {str(Path(name).relative_to(root)) if name.startswith(str(root)) else name for name in names}


def test_a_deleted_model_ends_with_its_last_user(pool: ModelPool, store: Store) -> None:
    held = pool.get("ft:a1")
    kept = pool.get("ft:a0")
    first, other = say(held), say(kept)
    with store.session() as session:
        session.delete(session.query(Model).filter_by(name="ft:a1").one())
    pool.forget("ft:a1")
    pool.forget("ft:a1")
    pool.forget("never seen")
    with pytest.raises(ApiError):
        pool.get("ft:a1")
    assert say(held) == first
    del held
    pool.forget("ft:a1")
    assert not pool._retired
    assert say(kept) == other
    assert say(pool.get("afina/nano")) != other


def test_too_many_who_wait_are_refused(root: Path, store: Store) -> None:
    pool = ModelPool(ServerConfig(max_waiting=3, max_rows=1), store, Places(root))
    try:
        served = pool.get("afina/nano")
        started = threading.Event()
        generations = [
            Generation([0, 5], Text(), Sampling(logit_bias={1: -100}), lambda _: started.set(), lambda _: None)
            for _ in range(5)
        ]
        served.submit(generations[0])
        assert started.wait(30)
        for generation in generations[1:4]:
            served.submit(generation)
        with pytest.raises(ApiError) as error:
            served.submit(generations[4])
        assert (error.value.status, error.value.headers) == (503, {"Retry-After": "1"})
        for generation in generations:
            generation.cancel()
        assert patiently(served)
    finally:
        pool.close()


def patiently(served: Served) -> str:
    """What is said as soon as those who were cancelled have left."""
    for _ in range(1000):
        try:
            return say(served)
        except ApiError:
            time.sleep(0.01)
    raise AssertionError("those who were cancelled never left")


def test_embeddings(pool: ModelPool) -> None:
    served = pool.get("afina/nano")
    texts = [served.codec.completion_prompt(text) for text in ("um gato", "o gato", "economia " * 300, "")]
    vectors = served.embed([*texts * 5])
    assert len(vectors) == 20
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
    for n in range(4):
        assert vectors[n] == pytest.approx(vectors[n + 16], abs=1e-4)
        assert served.embed([texts[n]])[0] == pytest.approx(vectors[n], abs=1e-4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    say(pool.get("ft:a0"))
    assert np.abs(pool.get("ft:a0").embed(texts[:1])[0] - vectors[0]).max() > 1e-3
    assert served.embed(texts[:1])[0] == pytest.approx(vectors[0], abs=1e-4)
