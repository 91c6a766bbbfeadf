"""Prompts hold what they should and nothing else; answers find their way back to the task's parts."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afina.core import schema as schemas
from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example, Usage
from afina.core.recipe_file import make_recipe
from afina.core.schema import Schema
from afina.core.strategy_config import PromptConfig
from afina.core.task import Task
from afina.core.task_config import load_task
from afina.engine.spoken import describe
from afina.providers import wording
from afina.strategies.chat_model import Ask, Reply
from afina.strategies.classical import Vectorisers
from afina.strategies.examples import Choose, Examples, Shot, Wanted
from afina.strategies.prompting import Prompting

HOW: tuple[Choose, ...] = ("fixed", "random", "nearest")
WORDS = ["casa", "rio", "preço", "governo", "jogo", "chuva", "vitória", "perda", "festa", "luto", "crime", "prêmio"]
SENTENCE = {"polaridade": ["positivo", "negativo", "neutro"], "emocao": ["alegria", "medo", "neutro"]}


class Clerk:
    """A chat model that keeps what it is asked, and answers with the first value that each schema allows."""

    name = "clerk"

    def __init__(self, *, describe: bool = True) -> None:
        self.describe = describe
        self.asked: list[Ask] = []
        self.errors: dict[int, str] = {}  # number of the question -> what goes wrong with it

    def ask(self, asks: Sequence[Ask], *, label: str | None = None) -> list[Reply]:
        self.asked = list(asks)
        return [self._reply(number, ask) for number, ask in enumerate(asks)]

    def _reply(self, number: int, ask: Ask) -> Reply:
        usage = Usage(prompt_tokens=10, completion_tokens=3, requests=1)
        if number in self.errors:
            return Reply(error=self.errors[number], usage=usage, latency_s=0.5)
        value = "texto" if ask.schema is None else _first_value(ask.schema, str(number))
        found = {field.path: 0.75 for field in schemas.fields(ask.schema or {"type": "string"})}
        return Reply(value, None, found, usage, 0.5, truncated=number == 1)


def _first_value(schema: Schema, text: str) -> Any:
    labels = schemas.labels_of(schema)
    if labels is not None:
        return labels[0]
    if schema["type"] == "object":
        return {key: _first_value(inner, text) for key, inner in schema["properties"].items()}
    return {"string": f"porque {text}", "array": []}[schema["type"]]


def task_of(output: Any, **more: Any) -> Task:
    inputs = more.pop("inputs", ["f1", "f2"])
    raw = {"task": {"instruction": "Classifique.", "inputs": inputs, "output": output, **more}, "data": {"path": "x"}}
    return load_task(make_recipe(raw).task)


def in_parts(**more: Any) -> Task:
    parts = {"f1": {"texto": "f1"}, "f2": {"texto": "f2"}}
    return task_of({"f1": SENTENCE, "f2": SENTENCE}, parts=parts, **more)


def rows_of(task: Task, number: int, *, seed: int = 0, reasoning: bool = False) -> list[Example]:
    """Examples of random words and labels; every third is in the cluster of the one before."""
    rng = random.Random(seed)
    found: list[Example] = []
    for n in range(number):
        inputs = {name: " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 9))) for name in task.inputs}
        output = _random_value(task.output, rng)
        rationale = {part.key: f"razão {n} {part.key}" for part in task.parts} if reasoning else {}
        found.append(Example(str(n), inputs, output, rationale, n + 1, cluster=n - (n % 3 == 2)))
    return found


def _random_value(schema: Schema, rng: random.Random) -> Any:
    labels = schemas.labels_of(schema)
    if labels is not None:
        return rng.choice(labels)
    if schema["type"] == "object":
        return {key: _random_value(inner, rng) for key, inner in schema["properties"].items()}
    return " ".join(rng.choice(WORDS) for _ in range(3))


def prompting(
    task: Task, model: Clerk, strategy: str, train: Sequence[Example] = (), *, seed: int = 7, **config: Any
) -> Prompting:
    return Prompting("mine", task, model, PromptConfig(strategy=strategy, **config), train, seed)  # type: ignore[arg-type]


def shown(ask: Ask) -> list[tuple[str, str]]:
    """The examples of a question as (user, assistant) texts."""
    middle = [message for message in ask.messages if message["role"] != "system"][:-1]
    assert [message["role"] for message in middle] == ["user", "assistant"] * (len(middle) // 2)
    return [(middle[n]["content"], middle[n + 1]["content"]) for n in range(0, len(middle), 2)]


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [task_of(SENTENCE), in_parts(), in_parts(reasoning="pensamento"), task_of("text"), task_of(["a", "b"])],
    ids=["whole", "parts", "reasoning", "text", "label"],
)
def test_tuned_model_is_asked_as_it_was_trained(task: Task) -> None:
    rows = rows_of(task, 6, reasoning=True)
    model = Clerk(describe=False)
    prompting(task, model, "zero-shot").predict([row.inputs for row in rows])
    lines = wording.training_lines(task, rows)
    assert len(model.asked) == len(lines) == 6 * len(task.parts)
    assert [list(ask.messages) for ask in model.asked] == [line["messages"][:-1] for line in lines]
    expected = [None if task.free_text else part.schema for _ in rows for part in task.parts]
    assert [ask.schema for ask in model.asked] == expected


def test_model_that_was_not_tuned_is_told_the_format() -> None:
    task, model = in_parts(reasoning="pensamento"), Clerk()
    row = {"f1": "um", "f2": "dois"}
    prompting(task, model, "zero-shot", instruction="Diga o tom.").predict([row])
    assert len(model.asked) == 2
    for ask, text in zip(model.asked, ("um", "dois"), strict=True):
        system, user = ask.messages
        assert ask.schema == task.output["properties"]["f1"]  # labels alone: reasoning is asked for by cot
        assert system["content"] == "Diga o tom.\n\n" + describe(ask.schema, "json")
        assert user["content"] == f"texto: {text}"


def test_few_shot_shows_examples_of_train_in_the_form_of_an_answer() -> None:
    task, model = in_parts(), Clerk()
    train = rows_of(task, 30)
    prompting(task, model, "few-shot", train, k=5).predict([{"f1": "casa no rio", "f2": "preço da obra"}])
    gold = {(f"texto: {row.inputs[key]}", schemas.dumps(row.output[key])) for row in train for key in ("f1", "f2")}
    assert len(model.asked) == 2
    for ask in model.asked:
        assert len(shown(ask)) == 5
        assert set(shown(ask)) <= gold
        assert all(list(json.loads(answer)) == ["polaridade", "emocao"] for _, answer in shown(ask))
    both = {question for ask in model.asked for question, _ in shown(ask)}
    assert {bool(both & {f"texto: {row.inputs[key]}" for row in train}) for key in ("f1", "f2")} == {True}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("task", [in_parts(), task_of(SENTENCE)], ids=["parts", "whole"])
def test_no_row_sees_itself_or_its_cluster(task: Task, how: Choose) -> None:
    """Rows of train are asked, as a teacher is: then their own labels are among the examples."""
    train = rows_of(task, 24)
    train[9] = replace(train[9], inputs=train[18].inputs)  # the same row again, elsewhere
    train[5] = replace(train[5], cluster=-1)  # never clustered
    model = Clerk()
    prompting(task, model, "few-shot", train, k=64, choose=how).predict([row.inputs for row in train])
    number, steps = 0, len(task.parts)
    for n, row in enumerate(train):
        twins = [other for other in train if other.inputs == row.inputs]
        clusters = {twin.cluster for twin in twins} - {-1}
        hidden = [other for other in train if other.cluster in clusters or other in twins]
        for ask in model.asked[n * steps : (n + 1) * steps]:
            questions = {question for question, _ in shown(ask)}
            for other in hidden:
                for part in task.parts:
                    assert wording.question(task, part, other.inputs)[-1]["content"] not in questions
            assert len(shown(ask)) == min(64, steps * (len(train) - len(hidden)))
            number += 1
    assert number == 24 * steps


def test_near_spelling_of_a_row_is_the_row() -> None:
    task = task_of(SENTENCE)
    train = [
        *rows_of(task, 9),
        Example("x", {"f1": "Caiu a casa!", "f2": "Sim."}, _random_value(task.output, random.Random(1))),
    ]
    model = Clerk()
    prompting(task, model, "few-shot", train, k=64).predict([{"f1": "caiu  a CASA", "f2": "sim"}])
    assert len(shown(model.asked[0])) == 9


def test_examples_need_labelled_rows() -> None:
    train = [replace(row, output=None) for row in rows_of(in_parts(), 4)]
    with pytest.raises(DataError, match="mine: none of the 4 training examples has an answer to show for 'f1'"):
        prompting(in_parts(), Clerk(), "few-shot", train)


# -- reasoning --------------------------------------------------------------------------------


def test_cot_asks_for_reasoning_first_and_takes_it_out_again() -> None:
    task, model = in_parts(), Clerk()
    train = rows_of(task, 8, reasoning=True)
    one = prompting(task, model, "cot", train, k=3).predict([{"f1": "a", "f2": "b"}])[0]
    assert len(model.asked) == 2
    for ask in model.asked:
        assert ask.schema is not None
        assert list(ask.schema["properties"]) == ask.schema["required"] == ["reasoning", "polaridade", "emocao"]
        assert describe(ask.schema, "json") in ask.messages[0]["content"]
        answers = [json.loads(answer) for _, answer in shown(ask)]
        assert [list(answer) for answer in answers] == [["reasoning", "polaridade", "emocao"]] * 3
        assert all(answer["reasoning"].startswith("razão ") for answer in answers)
    assert one.output == {key: {"polaridade": "positivo", "emocao": "alegria"} for key in ("f1", "f2")}
    assert one.reasoning == {"f1": "porque 0", "f2": "porque 1"}
    assert one.confidence == {f"{key}.{name}": 0.75 for key in ("f1", "f2") for name in ("polaridade", "emocao")}


def test_cot_uses_the_tasks_own_name_for_reasoning_once() -> None:
    task, model = in_parts(reasoning="pensamento"), Clerk()
    one = prompting(task, model, "cot").predict([{"f1": "a", "f2": "b"}])[0]
    assert [ask.schema for ask in model.asked] == [part.schema for part in task.parts]
    assert set(one.reasoning) == {"f1", "f2"}
    assert one.output["f1"] == {"polaridade": "positivo", "emocao": "alegria"}


@pytest.mark.parametrize(("output", "value"), [(["sim", "não"], "sim"), ("text", "porque 0"), ([["x", "y"]], [])])
def test_cot_wraps_an_answer_that_is_no_object(output: Any, value: Any) -> None:
    task = replace(task_of("text"), output=_no_object(output), free_text=output == "text")
    model = Clerk()
    train = [replace(row, output=value, reasoning={"": "pois"}) for row in rows_of(task, 3)]
    one = prompting(task, model, "cot", train, k=2).predict([{"f1": "a", "f2": "b"}])[0]
    schema = model.asked[0].schema
    assert schema is not None
    assert list(schema["properties"]) == ["reasoning", "answer"]
    assert [json.loads(answer) for _, answer in shown(model.asked[0])] == [{"reasoning": "pois", "answer": value}] * 2
    assert (one.output, one.reasoning, one.confidence) == (value, {"": "porque 0"}, {"": 0.75})


def _no_object(output: Any) -> Schema:
    if output == "text":
        return {"type": "string"}
    if isinstance(output[0], list):
        return {"type": "array", "items": {"enum": output[0]}, "uniqueItems": True}
    return {"enum": output}


def test_examples_without_reasoning_are_not_shown_in_cot_unless_none_has_one() -> None:
    task, model = task_of(SENTENCE), Clerk()
    train = [replace(row, reasoning={} if n % 2 else {"": f"pois {n}"}) for n, row in enumerate(rows_of(task, 12))]
    some = prompting(task, model, "cot", train, k=64)
    some.predict([{"f1": "a", "f2": "b"}])
    assert sorted(json.loads(answer)["reasoning"] for _, answer in shown(model.asked[0])) == sorted(
        f"pois {n}" for n in range(0, 12, 2)
    )
    assert some.notes == ["mine: 6 of 12 training examples have no reasoning; not shown."]
    none = prompting(task, model, "cot", [replace(row, reasoning={}) for row in train], k=64)
    none.predict([{"f1": "a", "f2": "b"}])
    assert [list(json.loads(answer)) for _, answer in shown(model.asked[0])] == [["polaridade", "emocao"]] * 12
    assert none.notes == ["mine: no training example has reasoning, so examples are shown with labels only."]


def test_reasoning_may_not_be_called_as_a_field() -> None:
    with pytest.raises(RecipeError, match="reasoning_field: 'emocao' is already a field of the answer of 'f1'"):
        prompting(in_parts(), Clerk(), "cot", reasoning_field="emocao")
    with pytest.raises(RecipeError, match="'answer' is already a field"):
        prompting(task_of("text"), Clerk(), "cot", reasoning_field="answer")


# -- predictions ------------------------------------------------------------------------------


def test_predictions_sum_their_parts_and_say_which_failed() -> None:
    task, model = in_parts(), Clerk()
    model.errors = {3: "cut off"}
    found = prompting(task, model, "zero-shot").predict([{"f1": "a", "f2": "b"}, {"f1": "c", "f2": "d"}])
    assert [one.error for one in found] == [None, "f2: cut off"]
    assert [one.truncated for one in found] == [True, False]
    assert found[1].output is None
    assert found[1].confidence == {}
    for one in found:
        assert one.usage == Usage(prompt_tokens=20, completion_tokens=6, requests=2)
        assert one.latency_s == 1.0


def test_answer_that_the_task_does_not_take_is_an_error() -> None:
    class Liar(Clerk):
        def _reply(self, number: int, ask: Ask) -> Reply:
            return Reply({"polaridade": "azul", "emocao": "medo"})

    one = prompting(task_of(SENTENCE), Liar(), "zero-shot").predict([{"f1": "a", "f2": "b"}])[0]
    assert one.output is None
    assert one.error is not None
    assert "azul" in one.error


def test_samples_are_asked_with_their_numbers() -> None:
    task, model = in_parts(), Clerk()
    strategy = prompting(task, model, "zero-shot", temperature=0.2)
    rows = [{"f1": str(n), "f2": "b"} for n in range(3)]
    found = strategy.sample(rows, [4, 9], 0.7)
    assert [len(one) for one in found] == [3, 3]
    assert Counter((ask.sample, ask.temperature) for ask in model.asked) == {(4, 0.7): 6, (9, 0.7): 6}
    assert [ask.messages[-1]["content"] for ask in model.asked[::2]] == ["texto: 0", "texto: 1", "texto: 2"] * 2
    strategy.predict(rows)
    assert {(ask.sample, ask.temperature) for ask in model.asked} == {(0, 0.2)}
    assert strategy.predict([]) == []


def test_plain_text() -> None:
    task, model = task_of("text"), Clerk()
    train = rows_of(task, 5)
    one = prompting(task, model, "few-shot", train, k=2).predict([{"f1": "a", "f2": "b"}])[0]
    ask = model.asked[0]
    assert (one.output, ask.schema) == ("texto", None)
    assert ask.messages[0]["content"] == "Classifique."
    assert {answer for _, answer in shown(ask)} <= {row.output for row in train}


# -- choosing ---------------------------------------------------------------------------------


def shots_of(number: int, seed: int, num_labels: tuple[int, ...] = (3,)) -> list[Shot]:
    rng = random.Random(seed)
    return [
        Shot(
            texts=(" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))), rng.choice(WORDS)),
            labels=tuple(str(min(rng.randrange(one), rng.randrange(one))) for one in num_labels),
            cluster=n // 2,
            user=f"q{n}",
            assistant=f"a{n}",
        )
        for n in range(number)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_nearest_are_those_of_brute_force(seed: int) -> None:
    shots = shots_of(60, seed)
    shots[40] = replace(shots[7], cluster=40)  # a tie
    asked = [Wanted(shot.texts, frozenset({shot.cluster})) for shot in shots_of(30, seed + 100)]
    asked += [Wanted(("", "")), Wanted(("zzz", "casa")), Wanted(shots[3].texts, frozenset({1}))]
    found = Examples(shots, "nearest", 4, 0).choose(asked)
    vectorisers = Vectorisers([shot.texts for shot in shots])
    matrix = vectorisers.transform([shot.texts for shot in shots]).toarray()
    assert len(found) == len(asked) == 33
    for row, chosen in zip(asked, found, strict=True):
        one = vectorisers.transform([row.texts]).toarray()[0]
        norms = np.linalg.norm(matrix, axis=1) * (np.linalg.norm(one) or 1)
        cosine = np.round(matrix @ one / norms, 9)
        allowed = [n for n, shot in enumerate(shots) if shot.cluster not in row.clusters and shot.texts != row.texts]
        best = sorted(allowed, key=lambda n: (-cosine[n], n))[:4]
        assert chosen == [shots[n] for n in reversed(best)]


def test_random_is_decided_by_the_row_and_reaches_all() -> None:
    shots = shots_of(40, 1)
    asked = [Wanted((f"texto {n % 100}",)) for n in range(200)]
    found = Examples(shots, "random", 3, 5).choose(asked)
    assert found[:100] == found[100:]
    assert all(len({shot.user for shot in chosen}) == 3 for chosen in found)
    counts = Counter(shot.user for chosen in found[:100] for shot in chosen)
    assert len(counts) == 40  # 300 draws: each of 40 is missed with a probability of 0.0004
    assert found != Examples(shots, "random", 3, 6).choose(asked)
    few = Examples(shots[:5], "random", 4, 5).choose([Wanted(("a",), frozenset({0}))])
    assert sorted(shot.user for shot in few[0]) == ["q2", "q3", "q4"]


@pytest.mark.parametrize("seed", range(5))
def test_fixed_are_the_same_for_all_and_balanced(seed: int) -> None:
    shots = shots_of(300, seed)
    chooser = Examples(shots, "fixed", 10, seed)
    found = chooser.choose([Wanted(("um",)), Wanted(("dois",))])
    assert found[0] == found[1]
    assert sorted(Counter(shot.labels for shot in found[0]).values()) == [3, 3, 4]
    assert found != Examples(shots, "fixed", 10, seed + 1).choose([Wanted(("um",)), Wanted(("dois",))])
    hidden = found[0][2]
    without = chooser.choose([Wanted(("um",), frozenset({hidden.cluster}))])[0]
    kept = [shot for shot in found[0] if shot.cluster != hidden.cluster]
    assert (without[: len(kept)], len(without)) == (kept, 10)


def test_fixed_balances_each_field() -> None:
    shots = shots_of(400, 3, (3, 4))
    chosen = Examples(shots, "fixed", 12, 1).choose([Wanted(("um",))])[0]
    for field, number in ((0, 3), (1, 4)):
        counts = Counter(shot.labels[field] for shot in chosen)
        assert len(counts) == number
        assert max(counts.values()) - min(counts.values()) <= 1


def test_fewer_examples_than_wanted_are_all_shown() -> None:
    shots = shots_of(3, 0)
    for how in HOW:
        chosen = Examples(shots, how, 8, 0).choose([Wanted(("outro", "texto"))])[0]
        assert sorted(shot.user for shot in chosen) == ["q0", "q1", "q2"]
        assert Examples([], how, 8, 0).choose([Wanted(("a",))]) == [[]]
