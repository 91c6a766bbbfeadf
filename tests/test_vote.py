"""The vote: majorities against plain references, ties as stated, failures left out, votes of votes."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from afina.core import schema as schemas
from afina.core.errors import RecipeError
from afina.core.predictor import Inputs, Prediction, Usage
from afina.core.strategy_config import PromptConfig
from afina.core.task import Task
from afina.engine.loader import BaseSpec, load_spec
from afina.engine.renderer import prompt_style
from afina.strategies.local_chat import LocalChat
from afina.strategies.majority import Ballot, decide
from afina.strategies.prompting import Prompting
from afina.strategies.vote import Vote

LABELS = ["bom", "ruim", "neutro"]


def task_of(output: Any, **more: Any) -> Task:
    return Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand(output)), **more)


def majority_of(output: Any, answers: Sequence[Any], sure: Sequence[dict[str, float]] | None = None) -> Any:
    beliefs = sure or [{} for _ in answers]
    return decide(task_of(output), [Ballot(a, b) for a, b in zip(answers, beliefs, strict=True)])


class Said:
    """A predictor with prepared answers: the same for every row."""

    def __init__(self, name: str, prediction: Prediction) -> None:
        self.name, self.prediction = name, prediction

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        return [self.prediction for _ in inputs]


def said(*outputs: Any, **more: Any) -> list[Said]:
    return [Said(f"v{n}", Prediction(output, **more)) for n, output in enumerate(outputs)]


class Draws:
    """A sampler whose answer is decided by the row's text and the number of the draw; keeps what it was asked."""

    name = "draws"

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], float]] = []

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        return self.sample(inputs, [0], 0.0)[0]

    def sample(
        self, inputs: Sequence[Inputs], samples: Sequence[int], temperature: float, *, label: str | None = None
    ) -> list[list[Prediction]]:
        self.asked.append((list(samples), temperature))
        return [[Prediction({"a": LABELS[(len(row["x"]) * n) % 3]}, usage=Usage(1)) for row in inputs] for n in samples]


# -- single values ----------------------------------------------------------------------------------


def test_a_majority_of_hand_worked_labels() -> None:
    found = majority_of({"a": LABELS, "b": "bool"}, [
        {"a": "bom", "b": True}, {"a": "ruim", "b": False}, {"a": "ruim", "b": False}, {"a": "ruim", "b": True},
        {"a": "neutro", "b": False},
    ])  # fmt: skip
    assert found.output == {"a": "ruim", "b": False}
    assert found.agreement == {"a": 3 / 5, "b": 3 / 5}
    assert found.shares["a"] == {"bom": 1 / 5, "ruim": 3 / 5, "neutro": 1 / 5}
    assert found.shares["b"] == {"True": 2 / 5, "False": 3 / 5}
    assert found.whole is None


def test_the_majority_need_not_be_anybodys_whole_answer() -> None:
    answers = [{"a": "bom", "b": "x"}, {"a": "bom", "b": "y"}, {"a": "ruim", "b": "y"}]
    assert majority_of({"a": LABELS, "b": ["x", "y"]}, answers).output == {"a": "bom", "b": "y"}


@pytest.mark.parametrize(
    ("sure", "winner"),
    [
        ([0.9, 0.5, 0.4, 0.6], "bom"),  # 0.9 + 0.5 against 0.4 + 0.6
        ([0.2, 0.5, 0.4, 0.6], "ruim"),
        ([0.5, 0.5, 0.4, 0.6], "bom"),  # equal sums: the first in the schema
        ([0.9, 0.5, None, None], "ruim"),  # who states none counts as sure
    ],
)
def test_ties_go_by_summed_confidence_then_by_the_schemas_order(sure: list[float | None], winner: str) -> None:
    answers = [{"a": "bom"}, {"a": "bom"}, {"a": "ruim"}, {"a": "ruim"}]
    beliefs = [{} if p is None else {"a": p} for p in sure]
    assert majority_of({"a": LABELS}, answers, beliefs).output == {"a": winner}
    assert majority_of({"a": LABELS}, answers[::-1], beliefs[::-1]).output == {"a": winner}
    # Neither the order of the votes nor of a dict's keys: "bom" would stand last here.
    if sure == [0.5, 0.5, 0.4, 0.6]:
        assert majority_of({"a": LABELS[::-1]}, answers, beliefs).output == {"a": "ruim"}


def test_true_is_not_one_and_null_is_a_label() -> None:
    found = decide(
        Task("t", "i", {}, schemas.normalise({"enum": [1, True, None]})), [Ballot(v, {}) for v in (1, True, True, None)]
    )
    assert found.output is True
    assert found.shares[""] == {"1": 0.25, "True": 0.5, "None": 0.25}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=15))
def test_labels_are_scipys_mode(codes: list[int]) -> None:
    """scipy.stats.mode takes the smallest of the commonest: the first label in the schema's order."""
    labels = [f"r{n}" for n in range(5)]
    found = majority_of({"a": labels}, [{"a": labels[c]} for c in codes])
    mode = stats.mode(np.array(codes))
    assert found.output == {"a": labels[int(mode.mode)]}
    assert found.agreement["a"] == mode.count / len(codes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=15))
def test_numbers_are_the_median_that_somebody_said(values: list[int]) -> None:
    found = majority_of({"a": "int"}, [{"a": v} for v in values]).output["a"]
    if len(values) % 2:
        assert found == np.median(values)
    counts = Counter(values)
    low, high = statistics.median_low(values), statistics.median_high(values)
    assert found == (high if counts[high] > counts[low] else low)


def test_texts_are_compared_without_white_space_and_given_as_they_were_said() -> None:
    found = majority_of({"a": "text"}, [{"a": "um  dia "}, {"a": "outro"}, {"a": "um dia"}, {"a": "um  dia "}])
    assert found.output == {"a": "um  dia "}
    assert found.agreement == {"a": 3 / 4}
    assert found.shares == {}
    tied = majority_of({"a": "text"}, [{"a": "b"}, {"a": "a"}])
    assert tied.output == {"a": "a"}
    assert majority_of({"a": "text"}, [{"a": "b"}, {"a": "a"}], [{"a": 0.9}, {"a": 0.8}]).output == {"a": "b"}


def test_plain_text_and_lone_labels_are_voted_on() -> None:
    whole = Task("t", "i", {"x": "x"}, {"type": "string"}, free_text=True)
    assert decide(whole, [Ballot(t, {}) for t in ("a b", "c", "a b")]).output == "a b"
    lone = Task("t", "i", {"x": "x"}, {"enum": LABELS})
    assert decide(lone, [Ballot(t, {}) for t in ("ruim", "bom", "ruim")]).agreement == {"": 2 / 3}


# -- sets, presence, unions ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=9))
def test_sets_hold_what_more_than_half_hold(sets: list[set[str]]) -> None:
    answers = [{"s": sorted(one, reverse=True)} for one in sets]
    found = majority_of({"s": [["a", "b", "c", "d"]]}, answers)
    hot = np.array([[label in one for label in "abcd"] for one in sets])
    assert found.output["s"] == [label for label, share in zip("abcd", hot.mean(axis=0), strict=True) if share > 0.5]
    assert found.shares["s"] == {label: float(share) for label, share in zip("abcd", hot.mean(axis=0), strict=True)}
    assert found.agreement["s"] == sum(one == set(found.output["s"]) for one in sets) / len(sets)


def test_sets_keep_to_their_least_and_most_items() -> None:
    labels = {"enum": ["a", "b", "c", "d"]}

    def chosen(votes: list[list[str]], **limits: int) -> list[str]:
        schema = schemas.normalise({"type": "array", "items": labels, "uniqueItems": True, **limits})
        found = decide(Task("t", "i", {}, schema), [Ballot(v, {}) for v in votes])
        assert schemas.problems(found.output, schema) is None
        assert found.whole is None
        return found.output

    assert chosen([["b"], ["c"], ["b"], ["d"], ["a"]], minItems=1) == ["b"]  # none has a majority; b was said most
    assert chosen([["b"], ["c"], ["d"]], minItems=2) == ["b", "c"]
    three = [["b", "c", "d"], ["b", "c", "d"], ["d", "c"]]
    assert chosen(three, maxItems=2, minItems=2) == ["c", "d"]  # b has two of three votes, the others have three


def test_presence_is_voted_on_before_the_value() -> None:
    optional = {"a?": LABELS}
    found = majority_of(optional, [{"a": "bom"}, {"a": "ruim"}, {"a": "ruim"}, {}, {}])
    assert found.output == {"a": "ruim"}
    assert found.agreement == {"a": 2 / 5}  # of all votes
    assert found.shares["a"] == {"bom": 1 / 5, "ruim": 2 / 5, "neutro": 0.0}
    found = majority_of(optional, [{"a": "bom"}, {}, {}])
    assert found.output == {}
    assert found.agreement == {"a": 2 / 3}
    assert majority_of(optional, [{"a": "bom"}, {}]).output == {"a": "bom"}  # a tie: what is there goes first
    assert majority_of(optional, [{"a": "bom"}, {}], [{"a": 0.6}, {"a": 0.7}]).output == {}


def test_fields_below_an_absent_object_go_with_it() -> None:
    shape = {"extra?": {"one": "int(1..3)", "two?": ["p", "q"]}, "b": "bool"}
    answers: list[Any] = [
        {"extra": {"one": 3, "two": "q"}, "b": True},
        {"extra": {"one": 2}, "b": True},
        {"extra": {"one": 2, "two": "q"}, "b": True},
        {"b": False},
    ]
    found = majority_of(shape, answers)
    assert found.output == {"extra": {"one": 2, "two": "q"}, "b": True}
    assert found.agreement == {"extra.one": 0.5, "extra.two": 0.5, "b": 0.75}
    gone = majority_of(shape, [*answers[:1], answers[3], answers[3]])
    assert gone.output == {"b": False}
    assert gone.agreement == {"extra.one": 2 / 3, "extra.two": 2 / 3, "b": 2 / 3}


def test_unions_first_choose_the_branch() -> None:
    schema = schemas.normalise({"anyOf": [{"type": "null"}, {"type": "number"}, {"type": "string"}]})
    task = Task("t", "i", {}, schema)

    def chosen(*values: Any) -> Any:
        return decide(task, [Ballot(v, {}) for v in values]).output

    assert chosen(1.0, 2.0, 9.0, None, None) == 2.0
    assert chosen(None, None, 3.5) is None
    assert chosen("x", "y", "x", 1.0, None) == "x"
    either = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"enum": LABELS}}}]}
    objects = Task("t", "i", {}, schemas.normalise(either))
    votes: list[Any] = ["s", {"a": "bom"}, {"a": "ruim"}, {"a": "ruim"}, "s"]
    assert decide(objects, [Ballot(v, {}) for v in votes]).output == {"a": "ruim"}


def test_where_majorities_make_no_valid_answer_the_closest_whole_one_is_taken() -> None:
    """A list that may repeat its labels and wants more of them than there are: its set of labels is too short."""
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 4}
    schema = schemas.normalise({
        "type": "object", "properties": {"tags": tags, "c": {"enum": LABELS}}, "required": ["tags", "c"],
    })  # fmt: skip
    task = Task("t", "i", {"x": "x"}, schema)
    outputs = [{"tags": ["b", "b", "b"], "c": "bom"}, {"tags": ["a", "b", "a"], "c": "ruim"},
               {"tags": ["a", "b", "b"], "c": "bom"}, {"tags": ["b", "a", "b"], "c": "bom"}]  # fmt: skip
    (found,) = Vote("v", task, said(*outputs)).predict([{"x": "1"}])
    assert found.output == {"tags": ["a", "b", "b"], "c": "bom"}  # as close as the fourth; first by its text
    assert found.confidence == {"tags": 0.75, "c": 0.75}
    assert len(found.trace) == 5
    assert found.trace[-1]["whole_answer_of"] == {"voter": "v2"}
    assert "has 2 items" in found.trace[-1]["because"]
    surer = [*said(*outputs[:3]), Said("sure", Prediction(outputs[3], {"c": 1.0, "tags": 1.0}))]
    hesitant = [Said(v.name, Prediction(v.prediction.output, {"tags": 0.5})) for v in surer[:3]]
    (found,) = Vote("v", task, [*hesitant, surer[3]]).predict([{"x": "1"}])
    assert found.trace[-1]["whole_answer_of"] == {"voter": "sure"}


# -- properties ---------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {
    "a": LABELS,
    "s": [["p", "q", "r"]],
    "n": "number(0..10)",
    "t?": "text(12)",
    "o?": {"i": "int(0..3)", "f?": "bool"},
}
SUBSETS = st.sets(st.sampled_from("pqr")).map(sorted)
ANSWERS = st.fixed_dictionaries(
    {"a": st.sampled_from(LABELS), "s": SUBSETS, "n": st.sampled_from([0.0, 0.5, 3.0, 10.0])},
    optional={
        "t": st.sampled_from(["x", "x ", "y", ""]),
        "o": st.fixed_dictionaries({"i": st.integers(0, 3)}, optional={"f": st.booleans()}),
    },
)
BELIEFS = st.dictionaries(st.sampled_from(["a", "s", "n", "t", "o.i", "o.f"]), st.floats(0, 1), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_vote_is_valid_and_its_order_does_not_matter(data: st.DataObject) -> None:
    votes = [Ballot(*one) for one in data.draw(st.lists(st.tuples(ANSWERS, BELIEFS), min_size=1, max_size=7))]
    task = task_of(SHAPE)
    found = decide(task, votes)
    again = decide(task, data.draw(st.permutations(votes)))
    assert schemas.problems(found.output, task.output) is None
    assert found.whole is None
    assert (again.output, again.agreement, again.shares) == (found.output, found.agreement, found.shares)
    assert set(found.agreement) == {"a", "s", "n", "t", "o.i", "o.f"}
    # Shares are counts over the number of votes.
    assert all(
        (Fraction(share).limit_denominator(7) * len(votes)).denominator == 1 for share in found.agreement.values()
    )
    if all(vote.output == votes[0].output for vote in votes):
        assert found.output == votes[0].output
        assert set(found.agreement.values()) == {1.0}


# -- the predictor ------------------------------------------------------------------------------------


def test_a_sampler_is_asked_once_for_samples_zero_to_n() -> None:
    draws = Draws()
    found = Vote("v", task_of({"a": LABELS}), draws, n=4, temperature=0.6).predict([{"x": "a"}, {"x": "aaa"}])
    assert draws.asked == [([0, 1, 2, 3], 0.6)]
    assert [one.output for one in found] == [{"a": "bom"}, {"a": "bom"}]  # codes 0, 1, 2, 0 and 0, 0, 0, 0
    assert [one.confidence for one in found] == [{"a": 0.5}, {"a": 1.0}]
    assert [entry["sample"] for entry in found[0].trace] == [0, 1, 2, 3]
    assert found[0].trace[1] == {"voter": "draws", "sample": 1, "output": {"a": "ruim"}}
    assert found[0].usage == Usage(4)
    assert Vote("v", task_of({"a": LABELS}), draws).predict([]) == []


def test_failures_are_left_out_and_kept_in_the_trace() -> None:
    task = task_of({"a": LABELS})
    voters = [
        Said("one", Prediction({"a": "ruim"}, {"a": 0.7}, usage=Usage(1, 2, cost_usd=0.1), latency_s=0.5)),
        Said("two", Prediction(error="time is up", usage=Usage(5, cost_usd=0.2), latency_s=2.0)),
        Said("three", Prediction({"a": "péssimo"})),
    ]
    (found,) = Vote("v", task, voters).predict([{"x": ""}])
    assert found.output == {"a": "ruim"}
    assert found.confidence == {"a": 1.0}
    assert found.usage == Usage(6, 2, cost_usd=0.1 + 0.2)
    assert found.latency_s == 2.5
    assert found.trace[0] == {"voter": "one", "output": {"a": "ruim"}, "confidence": {"a": 0.7}}
    assert found.trace[1] == {"voter": "two", "error": "time is up"}
    assert "'a' is 'péssimo', expected one of" in found.trace[2]["error"]
    (none,) = Vote("v", task, voters[1:]).predict([{"x": ""}])
    assert none.output is None
    assert none.error == "none of 2 votes is an answer; the first: time is up"
    assert len(none.trace) == 2
    assert none.usage == Usage(5, cost_usd=0.2)
    json.dumps(found.trace)


def test_each_parts_reasoning_is_that_of_a_voter_who_agrees_there() -> None:
    shown = {"f1": (("x", "x"),), "f2": (("x", "x"),)}
    task = task_of({"f1": {"a": LABELS}, "f2": {"a": LABELS}}, reasoning="r", part_inputs=shown)

    def voter(n: int, first: str, second: str) -> Said:
        output = {"f1": {"a": first}, "f2": {"a": second}}
        return Said(f"v{n}", Prediction(output, reasoning={"f1": f"r{n} f1", "f2": f"r{n} f2"}))

    voters = [voter(0, "ruim", "ruim"), voter(1, "bom", "neutro"), voter(2, "bom", "bom"), voter(3, "bom", "bom")]
    (found,) = Vote("v", task, voters).predict([{"x": ""}])
    assert found.output == {"f1": {"a": "bom"}, "f2": {"a": "bom"}}
    assert found.reasoning == {"f1": "r1 f1", "f2": "r2 f2"}


def test_votes_are_voters_too() -> None:
    task = task_of({"a": LABELS})
    inner = Vote("inner", task, Draws(), n=3)
    outer = Vote("outer", task, [inner, *said({"a": "neutro"}, {"a": "bom"})])
    (found,) = outer.predict([{"x": "a"}])
    # The inner vote is a tie of all three labels, so bom with an agreement of 1/3; v0 and v1 are sure.
    assert found.output == {"a": "bom"}
    assert found.trace[0]["voter"] == "inner"
    assert found.trace[0]["confidence"] == {"a": 1 / 3}
    assert len(found.trace[0]["trace"]) == 3
    assert found.usage == Usage(3)


def test_what_cannot_be_counted_is_refused() -> None:
    task = task_of({"a": LABELS})
    with pytest.raises(RecipeError, match=r"v: 'v0' gives the same answer however often it is asked.*under of"):
        Vote("v", task, said({"a": "bom"})[0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="v: found no voters"):
        Vote("v", task, [])
    with pytest.raises(RecipeError, match=r"n is 3 and temperature 0"):
        Vote("v", task, Draws(), n=3, temperature=0)


@pytest.mark.slow
def test_a_vote_of_a_real_models_chains_of_thought() -> None:
    loaded = load_spec(BaseSpec("afina/nano"))
    loaded.model.eval()
    model = LocalChat("nano", loaded, prompt_style(loaded.tokenizer, "auto", "afina/nano"), max_text_tokens=16)
    task = task_of({"a": LABELS})
    cot = Prompting("cot", task, model, PromptConfig(strategy="cot"), [], 0)
    rows = [{"x": "Adorei o filme."}, {"x": "Que dia horrível."}, {"x": "Choveu."}]
    vote = Vote("v", task, cot, n=5, temperature=1.0)
    found = vote.predict(rows)
    drawn = cot.sample(rows, range(5), 1.0)
    for row, one in enumerate(found):
        answers = [drawn[sample][row].output["a"] for sample in range(5)]
        assert [entry["output"]["a"] for entry in one.trace] == answers
        assert one.confidence["a"] == max(Counter(answers).values()) / 5
        assert one.output["a"] in LABELS
        assert one.reasoning[""]
    assert [one.output for one in vote.predict(rows)] == [one.output for one in found]
    assert len(found) == 3
