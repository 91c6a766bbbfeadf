"""Metrics against scikit-learn's, and the rule that a failed answer is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, precision_recall_fscore_support

from afina.core import schema as schemas
from afina.core.predictor import Prediction
from afina.core.task import Task
from afina.evaluation import metrics

LABELS = ["a", "b", "c", "d", "e"]


def make_task(output: Any, **options: Any) -> Task:
    return Task("t", "i", {"x": "x", "y": "y"}, schemas.normalise(schemas.from_shorthand(output)), **options)


def group(task: Task, index: int = 0) -> metrics.Unit:
    return metrics.units(task)[1][index]


def test_single_label_metrics_equal_scikit_learn() -> None:
    task, cases = make_task({"k": LABELS}), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(1, 40))
        usable = int(rng.integers(1, 6))  # some labels never occur
        gold = [LABELS[i] for i in rng.integers(usable, size=size)]
        guess = [LABELS[i] for i in rng.integers(5, size=size)]
        failed = rng.random(size) < 0.1
        predictions = [
            Prediction(error="no") if bad else Prediction({"k": g}) for g, bad in zip(guess, failed, strict=True)
        ]
        guess = ["" if bad else g for g, bad in zip(guess, failed, strict=True)]  # a class of its own: never right
        coded = metrics.encode(group(task), [{"k": g} for g in gold], predictions)
        sums = coded.columns().sum(axis=0)
        scored = metrics.labels_in_gold(coded.unit, coded.labels, [{"k": g} for g in gold])
        assert [label for label, yes in zip(LABELS, scored, strict=True) if yes] == sorted(set(gold))
        expected = f1_score(gold, guess, labels=sorted(set(gold)), average="macro", zero_division=0)
        assert metrics.macro_f1(scored)(sums) == pytest.approx(expected, abs=1e-12)
        assert metrics.accuracy(sums) == pytest.approx(np.mean(np.array(gold) == np.array(guess)))
        table = precision_recall_fscore_support(gold, guess, labels=LABELS, zero_division=0)
        mine = [[row[k] for row in metrics.per_label(coded)] for k in ("precision", "recall", "f1", "support")]
        assert np.allclose(np.array(table), np.array(mine))
        counts = metrics.confusion(coded)
        assert counts["matrix"] == confusion_matrix(gold, guess, labels=LABELS).tolist()
        assert sum(counts["wrong"]) == failed.sum()
        cases += 1
    assert cases == 100


def test_multi_label_metrics_equal_scikit_learn() -> None:
    task, cases = make_task({"k": [LABELS]}), 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        gold, guess = rng.integers(2, size=(2, int(rng.integers(1, 30)), 5)).astype(bool)
        sets = [[{"k": [x for x, yes in zip(LABELS, row, strict=True) if yes]} for row in m] for m in (gold, guess)]
        coded = metrics.encode(group(task), sets[0], [Prediction(s) for s in sets[1]])
        sums = coded.columns().sum(axis=0)
        scored = np.ones(5, dtype=bool)
        macro, micro = (f1_score(gold, guess, average=kind, zero_division=0) for kind in ("macro", "micro"))
        assert metrics.macro_f1(scored)(sums) == pytest.approx(macro, abs=1e-12)
        assert metrics.micro_f1(sums) == pytest.approx(micro, abs=1e-12)
        assert metrics.accuracy(sums) == pytest.approx((gold == guess).all(axis=1).mean())
        cases += 1
    assert cases == 50


def test_a_failed_prediction_counts_as_wrong_everywhere() -> None:
    task = make_task({"k": ["a", "b"], "n": "number(0..10)", "m": [["p", "q"]]})
    golds = [{"k": "a", "n": 2.0, "m": []}] * 2
    right = Prediction(golds[0], confidence={"k": 0.9}, probabilities={"k": {"a": 0.9, "b": 0.1}})
    label, number, several = (
        metrics.encode(unit, golds, [right, Prediction(error="broken")]) for unit in metrics.units(task)[1]
    )
    for coded in (label, number, several):
        assert metrics.accuracy(coded.columns().sum(axis=0)) == 0.5
    assert number.error.tolist() == [0.0, 8.0]  # the far end of 0..10
    assert metrics.confusion(label)["wrong"] == [1, 0]
    assert metrics.brier(label) == pytest.approx((0.1**2 + 0.1**2 + 1.0) / 2)


def test_a_value_outside_the_schema_is_wrong_and_types_are_told_apart() -> None:
    task = make_task({"k": "bool"})
    coded = metrics.encode(group(task), [{"k": True}] * 4, [Prediction({"k": v}) for v in (True, 1, "true", None)])
    assert coded.right.tolist() == [True, False, False, False]
    assert coded.predicted.sum() == 1


def test_absent_optional_value_is_a_label() -> None:
    task = make_task({"k?": ["a", "b"]})
    coded = metrics.encode(group(task), [{}, {"k": "a"}], [Prediction({}), Prediction({})])
    assert coded.labels == ("a", "b", None)
    assert coded.right.tolist() == [True, False]
    assert [row["f1"] for row in metrics.per_label(coded)] == [0.0, 0.0, pytest.approx(2 / 3)]


def test_equal_parts_are_pooled_and_equal_names_are_told_apart() -> None:
    kinds = {"f": {"k": ["a", "b"]}, "g": {"k": ["a", "b"]}, "h": {"k": ["c", "d"]}, "i": {"k": ["c", "d"]}}
    task = make_task(kinds, part_inputs=dict.fromkeys(kinds, (("s", "x"),)))
    fields, groups = metrics.units(task)
    assert [unit.name for unit in fields] == ["f.k", "g.k", "h.k", "i.k"]
    assert [unit.name for unit in groups] == ["k (f.k…)", "k (h.k…)"]
    gold = {"f": {"k": "a"}, "g": {"k": "b"}, "h": {"k": "c"}, "i": {"k": "d"}}
    coded = metrics.encode(groups[0], [gold, gold], [Prediction(gold), Prediction(gold)])
    assert coded.example.tolist() == [0, 0, 1, 1]
    assert coded.gold_codes().tolist() == [0, 1, 0, 1]


def test_calibration_error_by_hand_and_brier_equals_scikit_learn() -> None:
    confidence = np.array([0.0, 1 / 15, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, False, True])
    bins = metrics.reliability(confidence, right)
    assert [b["count"] for b in bins] == [2] + [0] * 12 + [0, 3]
    expected = 2 / 5 * abs(1 / 30 - 1 / 2) + 3 / 5 * abs(2.9 / 3 - 2 / 3)
    assert metrics.expected_calibration_error(confidence, right) == pytest.approx(expected)
    assert metrics.expected_calibration_error(np.array([]), np.array([])) is None

    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(3), size=40)
    gold = [LABELS[i] for i in rng.integers(3, size=40)]
    task = make_task({"k": LABELS[:3]})
    predictions = [
        Prediction({"k": "a"}, probabilities={"k": dict(zip(LABELS, row.tolist(), strict=False))}) for row in table
    ]
    coded = metrics.encode(group(task), [{"k": g} for g in gold], predictions)
    assert metrics.brier(coded) == pytest.approx(brier_score_loss(gold, table, labels=LABELS[:3], scale_by_half=False))
