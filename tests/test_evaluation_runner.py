"""The report: its format, its honesty about failures, and what the verdict says and does not say."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from afina.core import schema as schemas
from afina.core.predictor import Example, Inputs, Prediction, Usage
from afina.core.task import Task
from afina.evaluation.runner import SystemRun, evaluate, run_system

POLARITY = ["positivo", "negativo", "neutro"]
SENTENCE = {"polaridade": POLARITY, "emocao": ["medo", "raiva"]}
KINDS = {"f1": SENTENCE, "f2": SENTENCE}
TASK = Task(
    "noticias",
    "i",
    {"f1": "f1", "f2": "f2"},
    schemas.normalise(schemas.from_shorthand(KINDS)),
    part_inputs={"f1": (("frase", "f1"),), "f2": (("frase", "f2"),)},
)


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def answer() -> dict[str, Any]:
        return {"polaridade": POLARITY[rng.integers(3)], "emocao": ["medo", "raiva"][rng.integers(2)]}

    return [
        Example(str(i), {"f1": "a", "f2": "b"}, {"f1": answer(), "f2": answer()}, cluster=i // 2) for i in range(count)
    ]


def answers(rows: Sequence[Example], right: dict[str, float], seed: int) -> list[Prediction]:
    """Predictions that hit each field's gold value with its probability."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        output: dict[str, Any] = {}
        for field in TASK.fields:
            gold, labels = schemas.get(row.output, field.path), list(field.labels or ())
            hit = rng.random() < right[field.keys[-1]]
            others = [label for label in labels if label != gold]
            schemas.assign(output, field.path, gold if hit else others[rng.integers(len(others))])
        sure = {field.path: 0.8 for field in TASK.fields}
        found.append(Prediction(output, sure, usage=Usage(10, 5, 2, 0.01), latency_s=0.1))
    return found


def system(name: str, strategy: str, predictions: list[Prediction]) -> SystemRun:
    return SystemRun(name, strategy, "afina/nano" if strategy == "finetuned" else None, predictions, 2.0, 3.0, 1024)


def report_of(test: list[Example], *rates: tuple[str, dict[str, float]]) -> dict[str, Any]:
    runs = [system(n, n, answers(test, right, i)) for i, (n, right) in enumerate(rates)]
    return evaluate(TASK, test, [], runs, seed=0)


GOOD, POOR = {"polaridade": 0.9, "emocao": 0.7}, {"polaridade": 0.4, "emocao": 0.7}


def test_report_holds_what_others_read_and_is_strict_json() -> None:
    test = examples(60)
    report = report_of(test, ("finetuned", GOOD), ("majority", POOR))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {"version", "task", "num_test", "verdict", "systems", "tests", "method"} <= set(report)
    assert (report["task"], report["num_test"], report["num_clusters"]) == ("noticias", 60, 30)
    assert report["groups"]["polaridade"] == ["f1.polaridade", "f2.polaridade"]
    first = report["systems"][0]
    wanted = {
        "name", "strategy", "base_model", "exact_match", "exact_match_ci", "valid_rate", "latency_p50_s",
        "latency_p95_s", "answers_per_s", "prompt_tokens", "completion_tokens", "forward_passes", "cost_usd",
        "train_seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert wanted <= set(first)
    assert (first["answers_per_s"], first["prompt_tokens"]) == (30.0, 10.0)
    assert first["cost_usd"] == pytest.approx(0.6)
    assert set(first["fields"]) == {"polaridade", "emocao", *(field.path for field in TASK.fields)}
    for entry in first["fields"].values():
        assert {"accuracy", "accuracy_ci", "macro_f1", "macro_f1_ci", "ece", "brier", "support"} <= set(entry)
        assert entry["accuracy_ci"][0] <= entry["accuracy"] <= entry["accuracy_ci"][1]
        assert sum(b["count"] for b in entry["reliability"]) == entry["support"]
    pooled, parts = first["fields"]["polaridade"], [first["fields"][f"f{i}.polaridade"] for i in (1, 2)]
    assert pooled["support"] == 120
    assert pooled["accuracy"] == pytest.approx(sum(p["accuracy"] for p in parts) / 2)
    exact = np.mean([p.output == e.output for p, e in zip(answers(test, GOOD, 0), test, strict=True)])
    assert first["exact_match"] == pytest.approx(exact)


def test_equal_arguments_give_an_equal_report() -> None:
    one, two = (report_of(examples(30), ("finetuned", GOOD), ("tfidf", POOR)) for _ in range(2))
    assert one == two


def test_the_family_of_tests_and_its_correction() -> None:
    report = report_of(examples(60), ("majority", POOR), ("finetuned", GOOD), ("tfidf", GOOD))
    assert len(report["tests"]) == 2 * (2 * 2 + 1)
    assert {test["a"] for test in report["tests"]} == {"finetuned"}
    assert [t["metric"] for t in report["tests"]].count("exact_match") == 2
    for test in report["tests"]:
        assert set(test) == {"a", "b", "field", "metric", "difference", "ci", "p", "p_holm"}
        assert test["ci"][0] <= test["difference"] <= test["ci"][1]
        assert test["p"] <= test["p_holm"] <= 1
    assert "family of 10 tests" in report["method"]


def test_failed_and_invalid_answers_lower_the_valid_rate_and_are_wrong() -> None:
    test = examples(20)
    predictions = [Prediction(e.output) for e in test]
    predictions[0] = Prediction(error="the server was gone")
    predictions[1] = Prediction({"f1": {"polaridade": "ótimo"}})
    entry = evaluate(TASK, test, [], [system("s", "finetuned", predictions)], 0)["systems"][0]
    assert (entry["valid_rate"], entry["exact_match"], entry["num_failed"]) == (0.9, 0.9, 1)
    assert entry["fields"]["f1.polaridade"]["accuracy"] == 0.9
    assert entry["fields"]["f1.polaridade"]["ece"] is None  # no confidence was given


def test_verdict_says_better_no_difference_and_worse() -> None:
    test = examples(120)
    text = report_of(test, ("majority", POOR), ("finetuned", GOOD))["verdict"]
    assert text.startswith("100 % of 120 answers are valid.\nThe specialist is better than the majority answer on ")
    assert "polaridade (accuracy +0." in text
    better, undecided = text.split("\nNo difference from the majority answer shown on ")
    assert "emocao" not in better
    assert undecided.startswith("emocao (accuracy ")
    assert re.search(r"^emocao \(accuracy [+-]0\.\d\d \[[+-]0\.\d\d, [+-]0\.\d\d\]", undecided)
    assert "In brackets: 95 % intervals." in text
    assert "worse" not in text
    assert "corrected for all 5 comparisons (Holm)" in text

    text = report_of(test, ("tfidf", GOOD), ("finetuned", POOR))["verdict"]
    assert "The specialist is worse than TF-IDF on polaridade (accuracy -0." in text
    assert "better" not in text

    text = report_of(test, ("zero-shot", GOOD), ("finetuned", GOOD))["verdict"]
    assert "No difference from the base model zero-shot shown on polaridade" in text
    assert "better" not in text
    assert "worse" not in text


def test_verdict_says_what_cannot_be_told() -> None:
    perfect = {"polaridade": 1.0, "emocao": 1.0}
    tiny = report_of(examples(6), ("majority", {"polaridade": 0.0, "emocao": 0.0}), ("finetuned", perfect))
    assert "With 3 independent test items" in tiny["verdict"]
    assert "better than" not in tiny["verdict"]
    assert tiny["systems"][1]["exact_match_ci"] == pytest.approx([0.025 ** (1 / 3), 1.0])
    assert "compared with no other system" in report_of(examples(40), ("finetuned", GOOD))["verdict"]
    assert "No specialist is among the systems" in report_of(examples(40), ("majority", POOR))["verdict"]
    assert "only 20 independent items" in report_of(examples(40), ("finetuned", GOOD))["verdict"]
    assert evaluate(TASK, examples(4), [], [], 0)["verdict"].startswith("No system answered")


def test_valid_is_rounded_down() -> None:
    test = examples(3000)
    predictions = [Prediction(e.output) for e in test[:-1]] + [Prediction(error="x")]
    assert "99.9 % of 3000 answers" in evaluate(TASK, test, [], [system("s", "finetuned", predictions)], 0)["verdict"]


def test_a_smaller_error_of_a_number_is_better() -> None:
    task = Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand({"n": "number(0..10)"})))
    rng = np.random.default_rng(0)
    test = [Example(str(i), {"x": ""}, {"n": float(v)}) for i, v in enumerate(rng.uniform(2, 8, size=60))]
    near, far = ([Prediction({"n": e.output["n"] + d}) for e in test] for d in (0.1, 1.5))
    report = evaluate(task, test, [], [system("a", "finetuned", near), system("b", "tfidf", far)], 0)
    assert [(t["field"], t["metric"]) for t in report["tests"]] == [("n", "mae")]
    assert "better than TF-IDF on n (mean absolute error -1.40, p = " in report["verdict"]


@dataclasses.dataclass
class Slow:
    name: str = "slow"
    train_seconds: float = 7.0
    lost: int = 0

    def predict(self, inputs: Sequence[Inputs]) -> list[Prediction]:
        time.sleep(0.05)
        return [Prediction({"k": "a"}) for _ in inputs[self.lost :]]


def test_run_system_measures_and_hides_nothing() -> None:
    run = run_system(Slow(), examples(3), "majority", base_model="afina/nano")
    assert run.wall_s >= 0.05
    assert (run.name, run.train_seconds, run.base_model, len(run.predictions)) == ("slow", 7.0, "afina/nano", 3)
    assert run.peak_memory_bytes is None or run.peak_memory_bytes > 1_000_000
    with pytest.raises(AssertionError, match="gave 2 predictions for 3 examples"):
        run_system(Slow(lost=1), examples(3), "majority")
