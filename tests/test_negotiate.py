"""The debate: its stop rule in hand-worked debates, what is asked of whom, what stands when a speaker fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.core import schema as schemas
from afina.core.errors import DataError
from afina.core.predictor import Example, Usage
from afina.core.strategy_config import NegotiateConfig
from afina.core.task import Task
from afina.engine.loader import BaseSpec, load_spec
from afina.engine.renderer import prompt_style
from afina.strategies.chat_model import Ask, Reply
from afina.strategies.local_chat import LocalChat
from afina.strategies.negotiate import Negotiation
from afina.strategies.vote import Vote

LABELS = ["bom", "ruim", "neutro"]
Rule = Callable[[Ask], Any]


class RuleModel:
    """A chat model whose answers a rule makes. A rule's value must be of the question's schema; None is a failure.

    calls: what it was asked, call by call.
    """

    def __init__(self, name: str, rule: Rule, *, describe: bool = True) -> None:
        self.name, self.describe, self.rule = name, describe, rule
        self.calls: list[list[Ask]] = []

    def ask(self, asks: Sequence[Ask], *, label: str | None = None) -> list[Reply]:
        self.calls.append(list(asks))
        return [self._reply(one) for one in asks]

    def _reply(self, ask: Ask) -> Reply:
        assert ask.schema is not None
        assert ask.messages[-1]["role"] == "user"
        value, usage = self.rule(ask), Usage(10, 2, requests=1)
        if value is None:
            return Reply(error=f"{self.name} is down", usage=usage, latency_s=0.25)
        assert schemas.problems(value, ask.schema) is None, f"{value} is not of {ask.schema}"
        assert list(value) == [key for key in ask.schema["properties"] if key in value], "keys out of their order"
        return Reply(value, usage=usage, latency_s=0.25)


def script(name: str, *values: Any) -> RuleModel:
    """Says these values, one per call; for tests of one row with one part."""
    left = iter(values)
    return RuleModel(name, lambda ask: next(left))


def proposal(label: str, why: str = "p") -> dict[str, Any]:
    return {"reasoning": why, "a": label}


def judgement(agree: bool, label: str, why: str = "j") -> dict[str, Any]:
    return {"reasoning": why, "agree": agree, "a": label}


def task_of(output: Any, **more: Any) -> Task:
    return Task("t", "Classifique.", {"x": "x"}, schemas.normalise(schemas.from_shorthand(output)), **more)


def debated(generator: RuleModel, discriminator: RuleModel, rounds: int = 3, output: Any = None) -> Any:
    config = NegotiateConfig(strategy="negotiate", rounds=rounds)
    predictor = Negotiation("n", task_of(output or {"a": LABELS}), generator, discriminator, config, [], 0)
    (found,) = predictor.predict([{"x": "texto"}])
    return found


# -- the stop rule --------------------------------------------------------------------------------------


def test_agreement_at_once() -> None:
    generator, discriminator = script("g", proposal("bom", "gostou")), script("d", judgement(True, "bom", "sim"))
    found = debated(generator, discriminator)
    assert found.output == {"a": "bom"}
    assert found.confidence == {"a": 1.0}
    assert found.reasoning == {"": "gostou"}
    assert found.usage == Usage(20, 4, requests=2)
    assert found.latency_s == 0.5
    head = {"part": "", "turn": 1, "speaker": "generator", "model": "g"}
    assert found.trace == [
        {**head, "reasoning": "gostou", "answer": {"a": "bom"}},
        {**head, "turn": 2, "speaker": "discriminator", "model": "d", "reasoning": "sim", "answer": {"a": "bom"},
         "agree": True, "outcome": "agreed"},
    ]  # fmt: skip
    json.dumps(found.trace)


def test_an_equal_answer_is_agreement_whatever_the_verdict_says() -> None:
    found = debated(script("g", proposal("bom")), script("d", judgement(False, "bom")))
    assert (found.output, len(found.trace), found.trace[-1]["outcome"]) == ({"a": "bom"}, 2, "agreed")


def test_a_verdict_of_agreement_ends_it_and_the_share_says_that_the_answers_differ() -> None:
    found = debated(script("g", proposal("bom")), script("d", judgement(True, "ruim")))
    assert (found.output, len(found.trace)) == ({"a": "bom"}, 2)
    assert found.confidence == {"a": 0.5}


def test_taking_the_others_answer_over_ends_it_without_asking_again() -> None:
    generator = script("g", proposal("bom"), proposal("ruim", "de fato"))
    discriminator = script("d", judgement(False, "ruim"))
    found = debated(generator, discriminator)
    assert found.output == {"a": "ruim"}
    assert found.reasoning == {"": "de fato"}
    assert found.confidence == {"a": 2 / 3}  # turns 2 and 3 of 3
    assert [len(generator.calls), len(discriminator.calls)] == [2, 1]
    assert found.trace[-1]["outcome"] == "agreed"


def test_a_third_answer_is_judged_in_the_next_round() -> None:
    generator = script("g", proposal("bom"), proposal("neutro"))
    discriminator = script("d", judgement(False, "ruim"), judgement(True, "neutro"))
    found = debated(generator, discriminator)
    assert found.output == {"a": "neutro"}
    assert found.confidence == {"a": 2 / 4}
    assert [entry["speaker"] for entry in found.trace] == ["generator", "discriminator"] * 2


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_without_agreement_the_generator_has_the_last_word(rounds: int) -> None:
    generator = RuleModel("g", lambda ask: proposal("bom"))
    discriminator = RuleModel("d", lambda ask: judgement(False, "ruim"))
    found = debated(generator, discriminator, rounds)
    assert found.output == {"a": "bom"}
    assert len(found.trace) == 2 * rounds + 1
    assert found.trace[-1]["outcome"] == f"no agreement in {rounds} rounds; the last proposal stands"
    assert found.confidence == {"a": (rounds + 1) / (2 * rounds + 1)}
    assert [len(generator.calls), len(discriminator.calls)] == [rounds + 1, rounds]


def test_fields_are_compared_one_by_one_and_sets_without_order() -> None:
    shape = {"a": LABELS, "s": [["p", "q"]], "t": "text"}
    same = {"a": "bom", "s": ["q", "p"], "t": "um  dia"}
    found = debated(
        script("g", {"reasoning": "", "a": "bom", "s": ["p", "q"], "t": "um dia"}),
        script("d", {"reasoning": "", "agree": False, **same}),
        output=shape,
    )
    assert found.trace[-1]["outcome"] == "agreed"
    found = debated(
        script("g", {"reasoning": "", **same}, {"reasoning": "", **same, "t": "noite"}),
        script("d", {"reasoning": "", "agree": False, **same, "s": ["q"]}),
        rounds=1,
        output=shape,
    )
    assert found.output == {"a": "bom", "s": ["p", "q"], "t": "noite"}
    assert found.confidence == {"a": 1.0, "s": 2 / 3, "t": 1 / 3}


SAID = st.lists(st.tuples(st.sampled_from(LABELS), st.booleans()), min_size=41, max_size=41)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), SAID)
def test_the_stop_rule_is_that_of_a_plain_loop(rounds: int, said: list[tuple[str, bool]]) -> None:
    """Turn n says said[n]; the reference is the rule as its docstring states it, without classes."""
    spoken: list[str] = []
    for turn in range(2 * rounds + 1):
        label, verdict = said[turn]
        spoken.append(label)
        if (turn % 2 and verdict) or (turn and spoken[turn - 1] == label):
            break
    final = spoken[-1] if len(spoken) % 2 else spoken[-2]
    generator = script("g", *(proposal(label) for label, _ in said[::2]))
    discriminator = script("d", *(judgement(verdict, label) for label, verdict in said[1::2]))
    found = debated(generator, discriminator, rounds)
    assert [entry["answer"]["a"] for entry in found.trace] == spoken
    assert found.output == {"a": final}
    assert found.confidence["a"] == spoken.count(final) / len(spoken)


# -- failures ----------------------------------------------------------------------------------------


def test_a_generator_that_fails_at_first_leaves_no_answer() -> None:
    found = debated(script("g", None), script("d"))
    assert found.output is None
    assert found.error == "g is down"
    assert found.usage == Usage(10, 2, requests=1)
    assert found.trace[0]["error"] == "g is down"
    assert found.trace[0]["outcome"] == "the generator failed; there is no answer"


def test_a_speaker_that_fails_later_leaves_the_last_proposal() -> None:
    found = debated(script("g", proposal("bom", "w")), script("d", None))
    assert (found.output, found.reasoning, found.error) == ({"a": "bom"}, {"": "w"}, None)
    assert found.confidence == {"a": 0.5}  # nobody confirmed it
    assert found.trace[-1]["outcome"] == "the discriminator failed; the last proposal stands"
    found = debated(script("g", proposal("bom"), None), script("d", judgement(False, "ruim")))
    assert found.output == {"a": "bom"}
    assert found.confidence == {"a": 1 / 3}
    assert found.trace[-1]["outcome"] == "the generator failed; the last proposal stands"
    assert len(found.trace) == 3


def parts_task() -> Task:
    shown = {"f1": (("frase", "y1"),), "f2": (("frase", "y2"),)}
    output = schemas.normalise(schemas.from_shorthand({"f1": {"a": LABELS}, "f2": {"a": LABELS}}))
    return Task("t", "Classifique.", {"y1": "y1", "y2": "y2"}, output, part_inputs=shown)


def about(ask: Ask) -> str:
    """The text that the question is about."""
    return ask.messages[-1]["content"].splitlines()[0].removeprefix("frase: ")


def test_open_debates_of_all_rows_and_parts_are_asked_together() -> None:
    generator = RuleModel("g", lambda ask: None if "falha" in about(ask) else proposal("bom"))
    discriminator = RuleModel("d", lambda ask: judgement(False, "ruim" if "duvida" in about(ask) else "bom"))
    config = NegotiateConfig(strategy="negotiate", rounds=2)
    predictor = Negotiation("n", parts_task(), generator, discriminator, config, [], 0)
    rows = [{"y1": "certo", "y2": "duvida"}, {"y1": "duvida", "y2": "falha"}, {"y1": "certo 2", "y2": "certo 3"}]
    first, second, third = predictor.predict(rows)
    assert [[about(ask) for ask in call] for call in generator.calls] == [
        ["certo", "duvida", "duvida", "falha", "certo 2", "certo 3"],
        ["duvida"],  # of the first row: the second one has no answer any more
        ["duvida"],
    ]
    assert [[about(ask) for ask in call] for call in discriminator.calls] == [
        ["certo", "duvida", "certo 2", "certo 3"],
        ["duvida"],
    ]
    assert first.output == {"f1": {"a": "bom"}, "f2": {"a": "bom"}}
    assert first.confidence == {"f1.a": 1.0, "f2.a": 3 / 5}
    assert first.reasoning == {"f1": "p", "f2": "p"}
    assert [entry["part"] for entry in first.trace] == ["f1"] * 2 + ["f2"] * 5
    assert second.error == "f2: g is down"
    assert second.trace[0]["outcome"] == "left open; another part of the row has no answer"
    assert third.confidence == {"f1.a": 1.0, "f2.a": 1.0}
    assert first.usage == Usage(70, 14, requests=7)
    assert predictor.predict([]) == []


# -- what is asked ---------------------------------------------------------------------------------------


def test_each_reads_the_question_and_what_the_other_said() -> None:
    generator = script("g", proposal("bom", "porque gostou"), proposal("ruim"))
    discriminator = script("d", judgement(False, "ruim", "ironia clara"))
    debated(generator, discriminator)
    (opening,), (again,) = generator.calls
    ((judging,),) = discriminator.calls
    first, second, judged = (one.messages[-1]["content"] for one in (opening, again, judging))
    assert first == "x: texto"
    assert judged == 'x: texto\n\nThe other reader\'s answer: {"reasoning":"porque gostou","a":"bom"}'
    assert second.startswith("x: texto\n\nYour answer: {")
    assert second.endswith('The other reader\'s answer: {"reasoning":"ironia clara","a":"ruim"}')
    assert list(judging.schema["properties"]) == ["reasoning", "agree", "a"]  # type: ignore[index]
    assert judging.schema["required"] == ["reasoning", "agree", "a"]  # type: ignore[index]
    system = judging.messages[0]["content"]
    assert system.startswith('Classifique.\n\nJSON: {"reasoning": "...", "agree": true | false, "a": "bom" | "ruim"')
    assert 'say in "agree"' in system
    assert [one.sample for one in (opening, judging, again)] == [0, 0, 0]


def test_a_model_that_knows_the_format_is_not_told_it() -> None:
    generator, discriminator = script("g", proposal("bom")), script("d", judgement(True, "bom"))
    generator.describe = discriminator.describe = False
    debated(generator, discriminator)
    assert generator.calls[0][0].messages[0]["content"] == "Classifique."
    assert "JSON" not in discriminator.calls[0][0].messages[0]["content"]


def test_the_tasks_own_reasoning_and_taken_names() -> None:
    task = task_of({"reasoning": "bool", "agree": LABELS}, reasoning="pensamento")
    plain = task_of({"reasoning": "bool", "agree": LABELS})
    config = NegotiateConfig(strategy="negotiate")
    for one, name in ((task, "pensamento"), (plain, "reasoning_")):
        value = {"reasoning": True, "agree": "bom"}
        generator = script("g", {name: "w", **value})
        discriminator = script("d", {name: "j", "agree_": True, **value})
        (found,) = Negotiation("n", one, generator, discriminator, config, [], 0).predict([{"x": ""}])
        assert found.output == {"reasoning": True, "agree": "bom"}
        assert found.reasoning == {"": "w"}
        assert 'say in "agree_"' in discriminator.calls[0][0].messages[0]["content"]


@pytest.mark.parametrize("free_text", [True, False])
def test_answers_that_are_no_object_stand_beside_their_reasoning(free_text: bool) -> None:
    output = {"type": "string"} if free_text else {"enum": LABELS}
    task = Task("t", "i", {"x": "x"}, output, free_text=free_text)
    generator = script("g", {"reasoning": "w", "answer": "bom"})
    discriminator = script("d", {"reasoning": "j", "agree": False, "answer": "bom"})
    config = NegotiateConfig(strategy="negotiate")
    (found,) = Negotiation("n", task, generator, discriminator, config, [], 0).predict([{"x": ""}])
    assert (found.output, found.confidence, found.trace[-1]["outcome"]) == ("bom", {"": 1.0}, "agreed")


def test_both_speakers_are_shown_the_nearest_examples() -> None:
    texts = {"gato preto": "bom", "cachorro": "ruim", "gato branco": "neutro"}
    train = [Example(str(n), {"x": text}, {"a": label}) for n, (text, label) in enumerate(texts.items())]
    generator, discriminator = script("g", proposal("bom")), script("d", judgement(True, "bom"))
    config = NegotiateConfig(strategy="negotiate", k=2)
    predictor = Negotiation("n", task_of({"a": LABELS}), generator, discriminator, config, train, 0)
    predictor.predict([{"x": "um gato"}])
    for model in (generator, discriminator):
        _, *shown, asked = model.calls[0][0].messages
        assert [one["role"] for one in shown] == ["user", "assistant"] * 2
        assert {one["content"] for one in shown[::2]} == {"x: gato preto", "x: gato branco"}
        assert asked["content"].startswith("x: um gato")
    assert len(predictor.notes) == 1  # no example has reasoning
    with pytest.raises(DataError, match="n: none of the 0 training examples"):
        Negotiation("n", task_of({"a": LABELS}), generator, discriminator, config, [], 0)


def test_samples_are_debates_of_their_own_and_can_be_voted_on() -> None:
    """The draw's number decides: the third sample is of another mind."""
    generator = RuleModel("g", lambda ask: proposal("ruim" if ask.sample >= 2_000 else "bom"))
    discriminator = RuleModel("d", lambda ask: judgement(True, "bom"))
    config = NegotiateConfig(strategy="negotiate", rounds=1)
    negotiation = Negotiation("n", task_of({"a": LABELS}), generator, discriminator, config, [], 0)
    (found,) = Vote("v", task_of({"a": LABELS}), negotiation, n=3, temperature=0.5).predict([{"x": ""}])
    assert found.output == {"a": "bom"}
    assert found.confidence == {"a": 2 / 3}
    assert [len(entry["trace"]) for entry in found.trace] == [2, 2, 2]
    assert [(ask.sample, ask.temperature) for ask in generator.calls[0]] == [(0, 0.5), (1_000, 0.5), (2_000, 0.5)]
    assert [ask.sample for ask in discriminator.calls[0]] == [1, 1_001, 2_001]


@pytest.mark.slow
def test_a_debate_of_a_real_model_with_itself() -> None:
    loaded = load_spec(BaseSpec("afina/nano"))
    loaded.model.eval()
    model = LocalChat("nano", loaded, prompt_style(loaded.tokenizer, "auto", "afina/nano"), max_text_tokens=16)
    config = NegotiateConfig(strategy="negotiate", rounds=2)
    task = parts_task()
    predictor = Negotiation("n", task, model, model, config, [], 0)
    rows = [{"y1": "Adorei o filme.", "y2": "Que dia horrível."}, {"y1": "Choveu.", "y2": ""}]
    found = predictor.predict(rows)
    for one in found:
        assert one.error is None
        assert schemas.problems(one.output, task.output) is None
        assert set(one.confidence) == {"f1.a", "f2.a"}
        for part in ("f1", "f2"):
            turns = [entry for entry in one.trace if entry["part"] == part]
            final = [entry for entry in turns if entry["speaker"] == "generator"][-1]
            assert 2 <= len(turns) <= 5
            assert one.output[part] == final["answer"]
            assert one.reasoning[part] == final["reasoning"]
    assert len(found) == 2
    assert [one.output for one in predictor.predict(rows)] == [one.output for one in found]
