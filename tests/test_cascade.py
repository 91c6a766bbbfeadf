"""The cascade: thresholds against brute force over all of them, and who is asked which rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from afina.core import schema as schemas
from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example, Inputs, Prediction, Usage
from afina.core.strategy_config import PromptConfig
from afina.core.task import Task
from afina.engine.loader import BaseSpec, load_spec
from afina.engine.renderer import prompt_style
from afina.strategies.cascade import ASK_ALWAYS, Cascade, Threshold, choose_threshold, exactly_right, sureness
from afina.strategies.classical import Majority
from afina.strategies.local_chat import LocalChat
from afina.strategies.prompting import Prompting

LABELS = ["bom", "ruim"]
TASK = Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand({"a": LABELS})))
PAIR = Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand({"a": LABELS, "b": ["p", "q"]})))
GOLD = {"a": "bom"}


def row(sure: float | None, right: bool, **more: Any) -> Prediction:
    """An answer to a row whose gold is "bom". sure: None for an answer that states no confidence."""
    return Prediction({"a": "bom" if right else "ruim"}, {} if sure is None else {"a": sure}, **more)


FAILED = Prediction(error="no answer")


def chosen(first: Sequence[Prediction], then: Sequence[Prediction] | None, **aim: float) -> Threshold:
    return choose_threshold(first, then, [GOLD] * len(first), TASK, **aim)


def threshold(value: float) -> Threshold:
    return Threshold(value, 0.0, None, None, True, 1, "")


class Table:
    """A predictor that looks each row's answer up, and keeps what it was asked."""

    def __init__(self, name: str, answers: dict[str, Prediction]) -> None:
        self.name, self.answers = name, answers
        self.asked: list[list[str]] = []

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        self.asked.append([one["x"] for one in inputs])
        return [self.answers[one["x"]] for one in inputs]


def rows(*names: str) -> list[Inputs]:
    return [{"x": name} for name in names]


# -- how sure ---------------------------------------------------------------------------------------


def test_a_whole_answer_is_as_sure_as_the_product_of_its_fields() -> None:
    assert sureness(Prediction({"a": "bom", "b": "p"}, {"a": 0.8, "b": 0.5, "elsewhere": 0.1}), PAIR) == 0.4
    assert sureness(Prediction({"a": "bom", "b": "p"}, {"b": 0.5}), PAIR) == 0.5
    assert sureness(Prediction({"a": "bom", "b": "p"}), PAIR) == -1.0
    assert sureness(Prediction(error="x", confidence={"a": 0.8}), PAIR) == -1.0


def test_the_product_ranks_calibrated_fields_better_than_the_least_of_them() -> None:
    """Six fields that are right as often as they say, each by itself, as in the news recipe."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.4, 1.0, size=(4_000, 6))
    right = (rng.random(sure.shape) < sure).all(axis=1)
    assert 100 < right.sum() < 3_900
    product, least = roc_auc_score(right, sure.prod(axis=1)), roc_auc_score(right, sure.min(axis=1))
    assert product > least + 0.02


def test_exactly_right_is_scikit_learns_accuracy_of_the_whole_answers() -> None:
    rng = np.random.default_rng(1)
    draw = [{"a": str(rng.choice(LABELS)), "b": str(rng.choice(["p", "q"]))} for _ in range(120)]
    golds, predictions = draw[:60], [Prediction(one) for one in draw[60:]]
    found = exactly_right(PAIR, golds, predictions)
    texts = [[json.dumps(one, sort_keys=True) for one in half] for half in (draw[:60], draw[60:])]
    assert found.mean() == accuracy_score(*texts)
    assert not exactly_right(PAIR, golds[:1], [FAILED])[0]


# -- the threshold ------------------------------------------------------------------------------------

#   sure:   0.2    0.4    0.6    0.6    0.9
FIRST = [row(0.2, False), row(0.4, True), row(0.6, False), row(0.6, True), row(0.9, True)]
SURE = [row(None, True)] * 5  # a second strategy that is always right


def test_hand_worked_thresholds_for_an_accuracy() -> None:
    found = chosen(FIRST, SURE, accuracy=0.6)  # the first alone has 3 of 5
    assert (found.value, found.expected_share, found.expected_accuracy, found.reached) == (0.0, 0.0, 0.6, True)
    found = chosen(FIRST, SURE, accuracy=0.8)
    assert (found.value, found.expected_share, found.expected_accuracy) == (0.4, 0.2, 0.8)
    found = chosen(FIRST, SURE, accuracy=0.81)
    assert (found.value, found.expected_share, found.expected_accuracy) == (0.9, 0.8, 1.0)  # both of 0.6 go together
    assert found.num_rows == 5


def test_an_accuracy_out_of_reach_gets_the_best_threshold_and_says_so() -> None:
    worse = [row(None, False)] * 4 + [FAILED]
    found = chosen(FIRST, worse, accuracy=0.9)
    assert (found.value, found.expected_share, found.expected_accuracy, found.reached) == (0.0, 0.0, 0.6, False)
    assert found.told == (
        "an accuracy of 90.0 % was wanted but is not reached by any threshold; the best one: the second is asked only "
        "where the first gives no answer, which are 0 of 5 validation rows (0.0 %); 60.0 % of all answers are right "
        "there (95 % interval 23.1 % to 88.2 %)."
    )


def test_hand_worked_thresholds_for_a_share() -> None:
    for max_share, value, share in [
        (0.0, 0.0, 0.0), (0.19, 0.0, 0.0), (0.2, 0.4, 0.2), (0.4, 0.6, 0.4), (0.6, 0.6, 0.4), (0.8, 0.9, 0.8),
        (1.0, ASK_ALWAYS, 1.0),
    ]:  # fmt: skip
        found = chosen(FIRST, None, max_share=max_share)
        assert (found.value, found.expected_share, found.reached) == (value, share, True)
        assert found.expected_accuracy is None
        assert found.accuracy_interval is None
    found = chosen(FIRST, SURE, max_share=0.4)
    assert found.expected_accuracy == 0.8
    assert "less than 0.6 sure of its whole answer, which are 2 of 5 validation rows (40.0 %)" in found.told


def test_rows_that_the_first_failed_are_sent_whatever_the_threshold() -> None:
    first = [FAILED, row(None, True), row(0.5, True), row(0.7, True)]
    found = chosen(first, None, max_share=0.25)
    assert (found.value, found.expected_share, found.reached) == (0.0, 0.5, False)
    assert "not reached by any threshold" in found.told
    assert chosen([FAILED, FAILED], [FAILED, row(None, True)], accuracy=0.5).expected_accuracy == 0.5


def test_where_the_second_fails_the_firsts_answer_counts() -> None:
    found = chosen([row(0.1, True), row(0.2, False)], [FAILED, row(None, True)], accuracy=1.0)
    assert (found.expected_share, found.expected_accuracy, found.reached) == (1.0, 1.0, True)


def test_the_interval_is_wilsons() -> None:
    """Wilson 1927, by its formula; z is the normal quantile of 0.975."""
    found = chosen(FIRST * 8, None, max_share=0.0)
    assert found.accuracy_interval is None
    found = chosen(FIRST * 8, SURE * 8, accuracy=0.8)
    p, n, z = 0.8, 40, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert found.accuracy_interval == pytest.approx((middle - half, middle + half), abs=1e-12)  # one formula, twice


CASES = st.lists(
    st.tuples(
        st.sampled_from([None, 0.0, 0.1, 0.3, 0.30000000000000004, 0.9, 1.0]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["both", "both", "both", "first failed", "second failed"]),
    ),
    min_size=1,
    max_size=12,
)


def of_case(case: Any) -> tuple[Prediction, Prediction]:
    sure, first, then, who = case
    return (
        FAILED if who == "first failed" else row(sure, first),
        FAILED if who == "second failed" else row(None, then),
    )


@settings(max_examples=100, deadline=None)
@given(CASES, st.floats(0.01, 1), st.floats(0, 1))
def test_thresholds_are_the_best_of_all(cases: list[Any], accuracy: float, max_share: float) -> None:
    """Brute force: the cascade itself is run with every threshold that could make a difference."""
    pairs = [of_case(case) for case in cases]
    first, then = [one for one, _ in pairs], [other for _, other in pairs]
    if all(one.error is not None or not one.confidence for one in first):
        return
    names = [str(n) for n in range(len(pairs))]
    found: dict[float, tuple[int, int]] = {}
    values = sorted({one.confidence["a"] for one in first if one.confidence} | {0.0})
    for value in [*values, *(np.nextafter(v, 2) for v in values), ASK_ALWAYS]:
        second = Table("then", dict(zip(names, then, strict=True)))
        cascade = Cascade(
            "c", TASK, Table("first", dict(zip(names, first, strict=True))), second, threshold(float(value))
        )
        answers = cascade.predict(rows(*names))
        right = int(exactly_right(TASK, [GOLD] * len(pairs), answers).sum())
        found[float(value)] = (sum(len(call) for call in second.asked), right)
    count = len(pairs)

    got = chosen(first, then, accuracy=accuracy)
    assert found[got.value] == (round(got.expected_share * count), round((got.expected_accuracy or 0) * count))
    reaching = [sent for sent, right in found.values() if right / count >= accuracy]
    assert got.reached == bool(reaching)
    best = max(right for _, right in found.values())
    least = min(reaching, default=min(sent for sent, right in found.values() if right == best))
    assert round(got.expected_share * count) == least
    if not reaching:
        assert round((got.expected_accuracy or 0) * count) == best

    got = chosen(first, None, max_share=max_share)
    assert found[got.value][0] == round(got.expected_share * count)
    fitting = [sent for sent, _ in found.values() if sent / count <= max_share]
    assert got.reached == bool(fitting)
    assert round(got.expected_share * count) == (max(fitting) if fitting else min(sent for sent, _ in found.values()))


@settings(max_examples=100, deadline=None)
@given(CASES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_to_want_more_sends_no_less(cases: list[Any], one: float, other: float) -> None:
    low, high = sorted((one, other))
    pairs = [of_case(case) for case in cases]
    first, then = [a for a, _ in pairs], [b for _, b in pairs]
    if all(a.error is not None or not a.confidence for a in first):
        return
    shares = [chosen(first, None, max_share=share).expected_share for share in (low, high)]
    assert shares == sorted(shares)
    found = [chosen(first, then, accuracy=wanted) for wanted in (low, high)]
    if found[1].reached:
        assert found[0].expected_share <= found[1].expected_share
        assert found[0].value <= found[1].value


def test_what_no_threshold_can_be_chosen_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"no labelled row.*data\.validation_size"):
        chosen([], [], accuracy=0.5)
    with pytest.raises(RecipeError, match=r"^teacher: states no confidence.*Put finetuned"):
        choose_threshold([row(None, True), FAILED], None, [GOLD] * 2, TASK, max_share=0.5, first_name="teacher")


# -- the predictor ------------------------------------------------------------------------------------


def test_only_rows_below_the_threshold_are_asked_of_the_second() -> None:
    first = Table("cheap", {"sure": row(0.9, True), "even": row(0.5, True), "low": row(0.49, False), "none": FAILED})
    answers = {"low": row(None, True, reasoning={"": "w"}), "none": row(0.3, True)}
    then = Table("dear", answers)
    cascade = Cascade("c", TASK, first, then, threshold(0.5))
    found = cascade.predict(rows("sure", "low", "even", "none"))
    assert first.asked == [["sure", "low", "even", "none"]]
    assert then.asked == [["low", "none"]]
    assert [one.output for one in found] == [GOLD] * 4
    assert [one.confidence for one in found] == [{"a": 0.9}, {}, {"a": 0.5}, {"a": 0.3}]
    assert found[1].reasoning == {"": "w"}
    assert found[0].trace == [
        {"strategy": "cheap", "answered": True, "output": GOLD, "sureness": 0.9, "threshold": 0.5}
    ]
    assert found[1].trace == [
        {"strategy": "cheap", "answered": False, "output": {"a": "ruim"}, "sureness": 0.49, "threshold": 0.5},
        {"strategy": "dear", "answered": True, "output": GOLD},
    ]
    assert found[3].trace[0] == {
        "strategy": "cheap", "answered": False, "error": "no answer", "sureness": None, "threshold": 0.5,
    }  # fmt: skip
    json.dumps([one.trace for one in found])
    assert [one.error for one in cascade.predict(rows("sure", "even"))] == [None, None]
    assert len(then.asked) == 1  # nobody needs it, so it is not called
    assert cascade.predict([]) == []


def test_what_both_cost_is_summed() -> None:
    paid = {"usage": Usage(10, 2, cost_usd=0.5), "latency_s": 0.25}
    first, then = Table("cheap", {"x": row(0.1, False, **paid)}), Table("dear", {"x": row(None, True, **paid)})
    (found,) = Cascade("c", TASK, first, then, threshold(0.5)).predict(rows("x"))
    assert (found.usage, found.latency_s) == (Usage(20, 4, cost_usd=1.0), 0.5)


def test_no_answer_is_lost_when_the_second_fails() -> None:
    first, then = Table("cheap", {"x": row(0.1, True), "y": FAILED, "z": row(0.9, True)}), Table("dear", {})
    then.answers = {"x": replace(FAILED, usage=Usage(7), error="no money"), "y": replace(FAILED, error="no money")}
    kept, lost, sure = Cascade("c", TASK, first, then, threshold(0.5)).predict(rows("x", "y", "z"))
    assert (kept.output, kept.error, kept.confidence, kept.usage) == (GOLD, None, {"a": 0.1}, Usage(7))
    assert kept.trace[0]["answered"]
    assert kept.trace[1] == {"strategy": "dear", "answered": False, "error": "no money"}
    assert (lost.output, lost.error) == (None, "cheap: no answer; dear: no money")
    assert [entry["answered"] for entry in lost.trace] == [False, False]
    assert sure.error is None


def test_a_first_one_without_confidences_is_named() -> None:
    first, then = Table("hosted", {"x": row(None, True)}), Table("dear", {"x": row(None, True)})
    with pytest.raises(RecipeError, match=r"^hosted: states no confidence in its answers"):
        Cascade("c", TASK, first, then, threshold(0.5)).predict(rows("x"))
    assert then.asked == []


def test_cascades_nest() -> None:
    """An answer of the middle one states no confidence, so it is asked again of the last."""
    first = Table("small", {"x": row(0.1, False), "y": row(0.9, True)})
    middle, last = Table("middle", {"x": row(None, False)}), Table("last", {"x": row(None, True)})
    inner = Cascade("inner", TASK, first, middle, threshold(0.5))
    outer = Cascade("outer", TASK, inner, last, threshold(0.5))
    assert [one.output for one in outer.predict(rows("x", "y"))] == [GOLD, GOLD]
    (found,) = outer.predict(rows("x"))
    assert [entry["strategy"] for entry in found.trace] == ["inner", "last"]
    assert [entry["strategy"] for entry in found.trace[0]["trace"]] == ["small", "middle"]


@pytest.mark.slow
def test_a_real_model_asked_where_the_majority_is_not_sure() -> None:
    loaded = load_spec(BaseSpec("afina/nano"))
    loaded.model.eval()
    model = LocalChat("nano", loaded, prompt_style(loaded.tokenizer, "auto", "afina/nano"))
    asked = Prompting("zero-shot", TASK, model, PromptConfig(strategy="zero-shot"), [], 0)
    texts = ["Adorei.", "Que dia horrível.", "Uma festa linda.", "Perdi tudo.", "Chegou quebrado.", "Recomendo!"]
    train = [Example(str(n), {"x": text}, {"a": LABELS[n % 3 == 0]}) for n, text in enumerate(texts)]
    majority = Majority(TASK, train)
    golds, inputs = [one.output for one in train], [one.inputs for one in train]
    firsts, seconds = asked.predict(inputs), majority.predict(inputs)
    found = choose_threshold(firsts, seconds, golds, TASK, max_share=0.5)
    answers = Cascade("c", TASK, asked, majority, found).predict(inputs)
    assert found.expected_share == 0.5  # a model's confidences are all different
    assert sum(len(one.trace) == 2 for one in answers) == 3
    for first, second, one in zip(firsts, seconds, answers, strict=True):
        expected = first if first.confidence["a"] >= found.value else second
        assert (one.output, one.confidence) == (expected.output, expected.confidence)
    assert float(np.mean(exactly_right(TASK, golds, answers))) == found.expected_accuracy
    assert len(answers) == 6
