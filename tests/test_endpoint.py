"""A chat model at a provider: structured answers by every form there is, nothing made up, all that is asked counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Call, FaultyServer, Says, answer, error, faulty_server
from hypothesis import given
from hypothesis import strategies as st

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Usage
from afina.core.schema import from_shorthand, normalise
from afina.core.strategy_config import ModelConfig
from afina.providers import pacing, reading, wording
from afina.providers.asking import Asker
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import AnswerCache
from afina.providers.client import NO_KEY, ProviderError, connect, find_provider
from afina.providers.endpoints import connect_model, find_chat_price, find_endpoint
from afina.providers.prices import FREE, Price
from afina.strategies.chat_model import Ask, ChatModel
from afina.strategies.endpoint import Endpoint

KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "GROQ_API_KEY", "MARITACA_API_KEY", "OLLAMA_API_KEY")
PRICE = Price("m", "a test", "today", input=1000.0, output=1000.0)  # $0.001 a token
LABELS = normalise(
    from_shorthand({"polaridade": ["positivo", "negativo"], "nota": "int(0..10)", "motivo?": "text(40)"})
)
GOOD = {"polaridade": "positivo", "nota": 7}
CLEAN = json.dumps(GOOD)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def endpoint(served: FaultyServer, folder: Path, *, tell: Any = lambda line: None, **options: Any) -> Endpoint:
    cache = AnswerCache(folder / "answers.sqlite")
    asker = Asker(
        connect(find_provider(served.url)), cache, PRICE, Budget(None, cache.spent_usd), batch=False, tell=tell
    )
    return Endpoint("gpt", "m", asker, **options)


def ask(text: str = "q", schema: Any = LABELS, **more: Any) -> Ask:
    system = {"role": "system", "content": "Classifique."}
    return Ask((system, {"role": "user", "content": text}), schema, **more)


# -- the ladder of forms ----------------------------------------------------------------------------------


def refuses(*forms: str) -> Any:
    """A provider that takes none of these forms of response_format."""

    def say(call: Call) -> Says:
        form = (call.body.get("response_format") or {"type": "text"})["type"]
        if form in forms:
            return error(400, f"response_format of type '{form}' is not supported with this model", param=None)
        return answer(CLEAN)

    return say


def forms_of(served: FaultyServer) -> list[str]:
    return [(call.body.get("response_format") or {"type": "text"})["type"] for call in served.calls]


@pytest.mark.parametrize(
    ("refused", "tried"),
    [
        ((), ["json_schema"]),
        (("json_schema",), ["json_schema", "json_object"]),
        (("json_schema", "json_object"), ["json_schema", "json_object", "text"]),
    ],
)
def test_auto_falls_down_the_ladder_once(refused: tuple[str, ...], tried: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    with faulty_server(refuses(*refused)) as served:
        model: ChatModel = endpoint(served, tmp_path, tell=told.append)
        replies = [model.ask([ask(f"q{i}")])[0] for i in range(3)]
        assert forms_of(served) == tried + [tried[-1]] * 2  # remembered
        last = served.calls[-1].body["messages"]
    assert [reply.value for reply in replies] == [GOOD] * 3
    assert len(told) == len(refused)
    # Where the provider does not hold the answer to the schema, the model is told it.
    assert ("JSON Schema" in last[0]["content"]) == bool(refused)
    assert last[-1] == {"role": "user", "content": "q2"}


def test_a_model_that_is_not_to_be_told_is_not(tmp_path: Path) -> None:
    with faulty_server(refuses("json_schema", "json_object")) as served:
        endpoint(served, tmp_path, describe=False).ask([ask()])
        assert forms_of(served) == ["json_schema", "text"]
        assert served.calls[-1].body["messages"] == list(ask().messages)


def test_an_answer_is_known_by_our_request_and_not_by_the_dialect(tmp_path: Path) -> None:
    with faulty_server(refuses("json_schema", "json_object")) as served:
        first = endpoint(served, tmp_path).ask([ask()])
        asked = len(served.calls)
        assert endpoint(served, tmp_path).ask([ask()]) == first
        assert len(served.calls) == asked


def test_a_form_that_was_asked_for_by_name_is_kept(tmp_path: Path) -> None:
    with faulty_server(refuses("json_schema")) as served:
        with pytest.raises(ProviderError, match=r"Set structured: auto where json_schema is not taken"):
            endpoint(served, tmp_path, structured="json_schema").ask([ask()])
        for form in ("json_object", "text"):
            assert endpoint(served, tmp_path / form, structured=form).ask([ask()])[0].value == GOOD
            assert "JSON Schema" in served.calls[-1].body["messages"][0]["content"]
        assert forms_of(served) == ["json_schema", "json_object", "text"]


def test_one_schema_that_is_refused_does_not_cost_the_others_theirs(tmp_path: Path) -> None:
    other = normalise(from_shorthand({"emocao": ["raiva", "alegria"]}))

    def say(call: Call) -> Says:
        shape = call.body.get("response_format") or {}
        if "polaridade" in json.dumps(shape):
            return error(400, "Invalid schema for response_format 'answer': too hard.", param="response_format")
        return answer('{"emocao": "raiva"}' if "outra" in call.text else CLEAN)

    with faulty_server(say) as served:
        model = endpoint(served, tmp_path)
        assert model.ask([ask()])[0].value == GOOD
        assert model.ask([ask("outra", other)])[0].value == {"emocao": "raiva"}
        assert forms_of(served) == ["json_schema", "json_schema", "json_object", "json_schema"]  # once without limits


def test_limits_are_sent_and_left_out_where_they_are_refused(tmp_path: Path) -> None:
    schema = normalise(from_shorthand({"texto": "text(40)", "nota": "number(0..1)"}))

    def say(call: Call) -> Says:
        if "maxLength" in json.dumps(call.body["response_format"]):
            return error(400, "Invalid schema for response_format 'answer': 'maxLength' is not permitted.")
        return answer('{"texto": "oi", "nota": 0.5}')

    with faulty_server(say) as served:
        model = endpoint(served, tmp_path)
        assert [model.ask([ask(f"q{i}", schema)])[0].value for i in range(2)] == [{"texto": "oi", "nota": 0.5}] * 2
        sent = [call.body["response_format"]["json_schema"]["schema"]["properties"] for call in served.calls]
    assert sent[0] == {
        "texto": {"type": "string", "maxLength": 40},
        "nota": {"type": "number", "minimum": 0, "maximum": 1},
    }
    assert sent[1:] == [{"texto": {"type": "string"}, "nota": {"type": "number"}}] * 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("seed", "Unrecognized request argument supplied: seed"),
        ("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model."),
        ("max_completion_tokens", "Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead."),
    ],
)
def test_a_setting_that_is_refused_is_left_out_or_renamed(key: str, said: str, tmp_path: Path) -> None:
    told: list[str] = []

    def say(call: Call) -> Says:
        return error(400, said, "unsupported_parameter") if key in call.body else answer(CLEAN)

    with faulty_server(say) as served:
        model = endpoint(served, tmp_path, tell=told.append)
        replies = model.ask([ask(temperature=0.7, sample=i) for i in range(3)])
        assert [reply.value for reply in replies] == [GOOD] * 3
        taken = [call.body for call in served.calls if key not in call.body]
        assert len(taken) == 3  # samples are told apart, though the provider does not see the seed
        assert all("max_tokens" in body or "max_completion_tokens" in body for body in taken)
        asked = len(served.calls)
        assert endpoint(served, tmp_path).ask([ask(temperature=0.7, sample=2)]) == [replies[2]]
        assert len(served.calls) == asked
    assert len(told) == 1


def test_a_limit_that_is_too_large_is_no_name_to_change(tmp_path: Path) -> None:
    with faulty_server(error(400, "max_completion_tokens is too large: 9000.", "invalid_value")) as served:
        reply = endpoint(served, tmp_path, max_tokens=9000).ask([ask()])[0]
        assert len(served.calls) == 1
    assert "too large" in (reply.error or "")


def test_samples_are_drawn_anew_and_equal_questions_are_not(tmp_path: Path) -> None:
    with faulty_server(answer(CLEAN)) as served:
        model = endpoint(served, tmp_path)
        model.ask([ask(temperature=0.7, sample=i % 3) for i in range(6)])
        assert sorted(call.body["seed"] for call in served.calls) == [0, 1, 2]
        model.ask([ask(sample=i) for i in range(3)])  # at temperature 0 there is one answer
        assert len(served.calls) == 4
        assert "seed" not in served.calls[-1].body


# -- invalid answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (answer('{"polaridade": "meh", "nota": 7}'), "'polaridade' is 'meh', expected one of"),
        (answer('{"polaridade": "positivo"}'), "lacks 'nota'"),
        (answer("I would say it is positive."), "the answer is no JSON"),
        (answer(""), "the answer is empty"),
        (answer(None, refusal="I cannot judge news."), "the model refused: I cannot judge news."),
        (answer('{"polaridade": "posi', finish_reason="length"), "cut off after 5 tokens"),
        (answer(CLEAN, finish_reason="length"), "cut off"),
        (answer(None, finish_reason="content_filter"), "the model refused"),
        (error(400, "Failed to generate JSON.", "json_validate_failed", failed_generation='{"nota": 7'), "no JSON"),
    ],
)
def test_an_invalid_answer_is_asked_again_with_what_is_wrong(bad: Says, why: str, tmp_path: Path) -> None:
    with faulty_server([bad, answer(CLEAN, prompt=20)]) as served:
        reply = endpoint(served, tmp_path).ask([ask()])[0]
        assert len(served.calls) == 2
        added = served.calls[1].body["messages"][2:]
    assert reply.value == GOOD
    assert (reply.usage.requests, reply.usage.repairs) == (2, 0)
    assert why in added[-1]["content"]
    assert added[-1]["content"].endswith("Answer again with valid JSON only.")
    assert [turn["role"] for turn in added[:-1]] in ([], ["assistant"])
    assert reply.latency_s > 0


def test_what_stays_invalid_is_an_error_and_never_a_value(tmp_path: Path) -> None:
    def say(call: Call) -> Says:
        return answer(CLEAN if "good" in call.body["messages"][1]["content"] else "nota 11")

    with faulty_server(say) as served:
        model = endpoint(served, tmp_path, retries=2)
        replies = model.ask([ask("bad"), ask("good"), ask("bad too")])
        assert len(served.calls) == 3 + 2 + 2
        again = endpoint(served, tmp_path, retries=2).ask([ask("bad"), ask("good"), ask("bad too")])
        assert len(served.calls) == 7  # bad answers were paid as well
    assert [reply.value for reply in replies] == [None, GOOD, None]
    assert "no JSON" in (replies[0].error or "")
    assert replies[0].usage == Usage(30, 15, 0, pytest.approx(0.045), 3, 0)
    assert replies[1].usage == Usage(10, 5, 0, pytest.approx(0.015), 1, 0)
    assert again == replies


def test_plain_text(tmp_path: Path) -> None:
    with faulty_server([answer(""), answer("  Bom dia. ")]) as served:
        reply = endpoint(served, tmp_path).ask([ask(schema=None)])[0]
        assert "response_format" not in served.calls[0].body
        assert served.calls[1].body["messages"][-1]["content"].endswith("Answer again.")
    assert (reply.value, reply.usage.requests) == ("Bom dia.", 2)


@pytest.mark.parametrize(
    ("shorthand", "value"),
    [(["a", "b"], "b"), ("bool", True), ("int(0..5)", 3), ([["x", "y"]], ["x"]), ("text", "oi")],
)
def test_answers_that_are_no_objects(shorthand: Any, value: Any, tmp_path: Path) -> None:
    schema = normalise(from_shorthand(shorthand))
    with faulty_server(answer(json.dumps({"answer": value}))) as served:
        reply = endpoint(served, tmp_path).ask([ask(schema=schema)])[0]
        sent = served.calls[0].body["response_format"]["json_schema"]
    assert reply.value == value
    assert sent["strict"] is True
    assert sent["schema"]["required"] == ["answer"]
    assert "type" in sent["schema"]["properties"]["answer"]


# -- repair -----------------------------------------------------------------------------------------------

REPAIRED = [
    f"```json\n{CLEAN}\n```",
    f"Sure! Here it is:\n{CLEAN}\nAnything else?",
    f"<think>Is {{it}} good? {{'polaridade': 'negativo', 'nota': 1}}</think>\n{CLEAN}",
    '{"polaridade": "positivo", "nota": 7,}',
    "{'polaridade': 'positivo', 'nota': 7}",
    '{polaridade: "positivo", nota: 7}',
    '{"polaridade": "positivo" "nota": 7}',
    '// my answer\n{"polaridade": "positivo", /* high */ "nota": 7}',
    f"{CLEAN}\n\n{CLEAN}",
    '{"polaridade": "positivo", "nota": 7, "motivo": null,}',
]
NOT_REPAIRED = [
    "",
    "positivo 7",
    '{"polaridade": "positivo", "nota": }',
    '{"polaridade": "positivo", "nota"}',
    '{"polaridade": "positivo"',
    '{"polaridade": "positivo", "nota": 7',  # half an answer: more may have followed
    "{polaridade, nota: 7}",
    '{"polaridade": "positivo", "nota": "seven"}',
    '{"polaridade": "positivo", "nota": 70}',
    '{"polaridade": "positivo", "nota": 7, "outra": 1}',
    f'{CLEAN} or rather {{"polaridade": "negativo", "nota": 2}}',
    "{}",
    "[" * 100_000,
    "{" * 100_000,
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("text", REPAIRED)
def test_repairs(text: str) -> None:
    assert reading.read(text, LABELS) == reading.Read(GOOD, repaired=True)


@pytest.mark.parametrize("text", NOT_REPAIRED, ids=range(len(NOT_REPAIRED)))
def test_what_cannot_be_repaired_is_said(text: str) -> None:
    with pytest.raises(DataError) as caught:
        reading.read(text, LABELS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_clean_answers_are_not_called_repaired() -> None:
    assert reading.read(f" {CLEAN}\n", LABELS) == reading.Read(GOOD)
    assert reading.read('{"nota": 7, "polaridade": "positivo", "motivo": null}', LABELS) == reading.Read(GOOD)


def test_a_repair_makes_nothing_up() -> None:
    """json_repair alone would give an empty text, a null, a name without its value."""
    free = normalise(from_shorthand({"texto": "text", "lista": [["a", "b"]], "certo": "bool"}))
    assert reading.read("{'texto': '', 'lista': [], 'certo': True}", free).value == {
        "texto": "",
        "lista": [],
        "certo": True,
    }
    for text in (
        "{'texto': , 'lista': [], 'certo': true}",
        "{'texto': 'x', 'lista': , 'certo': true}",
        "{'texto': 'x', 'lista': ['a'], 'certo': }",
        "{'texto': 'x', 'lista': ['a'], 'certo'}",
    ):
        with pytest.raises(DataError):
            reading.read(text, free)


@given(st.text(max_size=200), st.integers(0, 60), st.integers(0, 60))
def test_whatever_a_model_writes_is_a_value_of_the_schema_or_an_error(noise: str, cut: int, place: int) -> None:
    text = (CLEAN[:place] + noise + CLEAN[place:])[: len(noise) + cut]
    try:
        found = reading.read(text, LABELS)
    except DataError:
        return
    assert schemas.problems(found.value, LABELS) is None
    assert found.value["polaridade"] in text
    assert str(found.value["nota"]) in text


def test_repairs_are_counted(tmp_path: Path) -> None:
    with faulty_server(answer(REPAIRED[0])) as served:
        reply = endpoint(served, tmp_path).ask([ask()])[0]
        assert len(served.calls) == 1
    assert (reply.value, reply.usage.requests, reply.usage.repairs) == (GOOD, 1, 1)


# -- providers --------------------------------------------------------------------------------------------


def model_config(**raw: Any) -> ModelConfig:
    return ModelConfig.model_validate({"model": "m", **raw})


def test_providers_by_name() -> None:
    assert find_endpoint("groq").base_url == "https://api.groq.com/openai/v1"
    assert find_endpoint("groq").key_variable == "GROQ_API_KEY"
    assert find_endpoint("groq", "MINE").key_variable == "MINE"
    assert find_endpoint("maritaca").base_url == "https://chat.maritaca.ai/api"
    assert (find_endpoint("ollama").is_local, find_endpoint("ollama").limit_key) == (True, "max_tokens")
    assert find_endpoint("openai").key_variable == "OPENAI_API_KEY"
    assert find_endpoint("http://127.0.0.1:8000").base_url == "http://127.0.0.1:8000/v1"
    for text in ("grok", "ollma"):
        with pytest.raises(ProviderError, match=r"Did you mean (groq|ollama)\?"):
            find_endpoint(text)
    with pytest.raises(ProviderError, match="without \\? and #"):
        find_endpoint("https://example.org/v1?api-key=abc")


def connected(folder: Path, cap: float | None = None, **raw: Any) -> Asker:
    return connect_model(model_config(**raw), AnswerCache(folder / "answers.sqlite"), Budget(cap))


def test_a_server_on_this_machine_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFINA_API_KEY")
    with faulty_server(answer(CLEAN)) as served:
        found = connected(tmp_path, provider=served.url, concurrency=3, cap=0.0)
        assert (found.num_threads, found.price, found.batch) == (3, FREE, False)
        assert Endpoint("x", "m", found).ask([ask()])[0].value == GOOD
        assert served.calls[0].headers["authorization"] == f"Bearer {NO_KEY}"
    with faulty_server(error(401, "Who are you?")) as served:
        wants = r"wants a key: Who are you\? Set it \(export AFINA_API_KEY=\.\.\.\)"
        with pytest.raises(ProviderError, match=wants):
            Endpoint("x", "m", connected(tmp_path, provider=served.url)).ask([ask()])
        # One that the recipe names is wanted.
        with pytest.raises(ProviderError, match="MINE is not set"):
            connected(tmp_path, provider=served.url, api_key_env="MINE")
    for name in ("openai", "groq", "maritaca", "https://example.org"):
        with pytest.raises(ProviderError, match="_API_KEY is not set"):
            connected(tmp_path, provider=name)


def test_a_cap_without_a_price_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_of_nobody")
    assert connected(tmp_path, provider="groq").price is None
    with pytest.raises(BudgetError, match=r"no price of m at groq is known, so the cap cannot be kept\. Name a file"):
        connected(tmp_path, provider="groq", cap=1.0)
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 0.5, output: 1.0}, half: {input: 1.0}}")
    found = connected(tmp_path, provider="groq", cap=1.0, prices=str(prices))
    assert found.price is not None
    assert found.price.output == 1.0
    with pytest.raises(BudgetError):  # half a price is none
        connected(tmp_path, provider="groq", cap=1.0, prices=str(prices), model="half")


def test_base_models_cost_less_than_what_is_made_from_them() -> None:
    openai = find_endpoint("openai")
    base = find_chat_price(openai, model_config(provider="openai", model="gpt-4o-mini"))
    tuned = find_chat_price(openai, model_config(provider="openai", model="ft:gpt-4o-mini-2024-07-18:me::x"))
    assert base is not None
    assert tuned is not None
    assert (base.input, base.output, tuned.input, tuned.output) == (0.15, 0.60, 0.30, 1.20)
    groq = find_endpoint("groq")
    assert find_chat_price(groq, model_config(provider="groq", model="gpt-4o")) is None  # OpenAI's prices are OpenAI's


def test_strict_schemas_name_the_type_of_their_labels() -> None:
    sent = wording.schema_format(normalise({"type": "object", "properties": {"a": {"enum": ["x", 1, True, None]}}}))
    kinds = sent["json_schema"]["schema"]["properties"]["a"]["anyOf"][0]["type"]
    assert kinds == ["boolean", "integer", "null", "string"]


@pytest.mark.slow
def test_the_real_server_holds_its_model_to_the_schema(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`afina serve` as the provider, its smallest model as the one that is asked."""
    monkeypatch.setenv("AFINA_API_KEY", server.key)
    asker = connected(tmp_path, provider=server.base_url, concurrency=3)
    told: list[str] = []
    asker.tell = asker.dialect.tell = told.append
    model = Endpoint("nano", "afina/nano", asker, max_tokens=200)
    schema = normalise(from_shorthand({"polaridade": ["positivo", "negativo"], "nota": "int(0..10)", "certo?": "bool"}))
    replies = model.ask([ask(f"Chove {i}.", schema, temperature=0.5 * (i % 2), sample=i) for i in range(6)])
    assert [reply.error for reply in replies] == [None] * 6
    assert all(schemas.problems(reply.value, schema) is None for reply in replies)
    assert [(reply.usage.requests, reply.usage.repairs) for reply in replies] == [(1, 0)] * 6
    assert told == []
    with pytest.raises(ProviderError, match="404"):
        Endpoint("none", "no-such-model", asker).ask([ask()])
