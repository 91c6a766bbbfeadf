"""Many systems and several seeds: the figures against plain references, the fronts, the recommendation, the pages."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_sample import SYSTEMS, TASK, answers, comparison, labelled_rows, systems, write_comparison
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from afina.cli.table import result_lines
from afina.core import schema as schemas
from afina.core.errors import RecipeError
from afina.core.predictor import Example, Prediction, Usage
from afina.core.storage import write_json
from afina.core.task import Task
from afina.evaluation import metrics, statistics
from afina.evaluation.paired import choose_pairs, find_reference
from afina.evaluation.pareto import front
from afina.evaluation.recommendation import recommend
from afina.evaluation.runner import SystemRun, evaluate, with_seeds
from afina.report import write_report
from afina.report.advice import advice_lines
from afina.report.label_places import place
from afina.report.plots import count_axis, price_axis
from afina.report.words import Language

ONE_FIELD = Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand({"k": ["a", "b", "c"]})))


def one_field(count: int, seed: int = 0, per_cluster: int = 1) -> list[Example]:
    golds = np.random.default_rng(seed).choice(["a", "b", "c"], count)
    return [Example(str(i), {"x": ""}, {"k": str(g)}, cluster=i // per_cluster) for i, g in enumerate(golds)]


def guesses(test: Sequence[Example], skill: float, seed: int) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    return [
        Prediction({"k": e.output["k"] if rng.random() < skill else str(rng.choice(["a", "b", "c"]))}) for e in test
    ]


def run_of(name: str, *runs: list[Prediction], strategy: str = "", **given: Any) -> SystemRun:
    seeds = tuple(range(1, len(runs) + 1)) if len(runs) > 1 else ()
    return SystemRun(name, strategy or name, None, runs[0], 2.0, seeds=seeds, repeats=runs[1:], **given)


def plain_f1(gold: Sequence[str], said: Sequence[str]) -> float:
    """Macro-F1 over a, b and c; scikit-learn's, without the checks that make it slow."""
    found = []
    for label in ("a", "b", "c"):
        hits = sum(g == s == label for g, s in zip(gold, said, strict=True))
        found.append(2 * hits / max(1, list(gold).count(label) + list(said).count(label)))
    return float(np.mean(found))


# -- several seeds --------------------------------------------------------------------------------


def test_a_figure_is_the_mean_over_seeds_and_its_spread_stands_apart() -> None:
    test = one_field(60, per_cluster=2)
    runs = [guesses(test, 0.6, seed) for seed in (1, 2, 3)]
    entry = evaluate(ONE_FIELD, test, [], [run_of("s", *runs)], 0)["systems"][0]
    gold = [e.output["k"] for e in test]
    said = [[p.output["k"] for p in run] for run in runs]
    field = entry["fields"]["k"]
    wanted = {
        "accuracy": [accuracy_score(gold, run) for run in said],
        "macro_f1": [f1_score(gold, run, average="macro", zero_division=0) for run in said],
    }
    assert entry["seeds"] == [1, 2, 3]
    for metric, values in wanted.items():
        assert field["by_seed"][metric] == pytest.approx(values)
        assert field[metric] == pytest.approx(np.mean(values))
        assert field["seed_std"][metric] == pytest.approx(np.std(values, ddof=1))
        assert len(set(values)) == 3
    assert entry["by_seed"]["exact_match"] == pytest.approx(wanted["accuracy"])
    assert sum(map(sum, field["confusion"]["matrix"])) == 3 * 60
    assert (field["support"], entry["num_answers"]) == (60, 180)


def test_the_interval_resamples_clusters_and_averages_seeds_in_each() -> None:
    """Against a plain loop: draw clusters, take every seed's rows of them, average the seeds' macro-F1."""
    test = one_field(40, per_cluster=2)
    runs = [guesses(test, 0.6, seed) for seed in (1, 2)]
    field = evaluate(ONE_FIELD, test, [], [run_of("s", *runs)], 0)["systems"][0]["fields"]["k"]
    gold = np.array([e.output["k"] for e in test])
    said = [np.array([p.output["k"] for p in run]) for run in runs]

    def mean_f1(rows: np.ndarray) -> float:
        return float(np.mean([plain_f1(gold[rows].tolist(), s[rows].tolist()) for s in said]))

    rng = np.random.default_rng(3)
    rows_of = np.arange(40).reshape(20, 2)
    draws = np.array([mean_f1(rows_of[rng.integers(20, size=20)].ravel()) for _ in range(400)])
    left_out = np.array([mean_f1(np.delete(rows_of, i, axis=0).ravel()) for i in range(20)])
    low, high = statistics.bca_interval(mean_f1(np.arange(40)), draws, left_out)
    assert field["macro_f1_ci"] == pytest.approx([low, high], abs=0.04)  # 400 draws: a bound is known to about 0.015


def test_equal_seeds_change_nothing_but_that_there_are_several() -> None:
    """The same run three times: every figure, interval and p as of one run, and no spread between seeds."""
    test = one_field(40)
    a, b = guesses(test, 0.8, 1), guesses(test, 0.5, 2)
    one = evaluate(ONE_FIELD, test, [], [run_of("a", a), run_of("b", b)], 0)
    three = evaluate(ONE_FIELD, test, [], [run_of("a", a, a, a), run_of("b", b)], 0)
    first, again = (r["systems"][0]["fields"]["k"] for r in (one, three))
    for key in ("accuracy", "accuracy_ci", "macro_f1", "macro_f1_ci"):
        assert again[key] == pytest.approx(first[key])
    assert again["seed_std"] == {"accuracy": 0.0, "macro_f1": pytest.approx(0.0, abs=1e-12)}
    assert [t["p"] for t in three["tests"]] == pytest.approx([t["p"] for t in one["tests"]])
    assert "by_seed" not in first


@pytest.mark.parametrize("num_runs", [(1, 3), (2, 3), (2, 2)])
def test_permutation_with_seeds_equals_every_swap_of_clusters(num_runs: tuple[int, int]) -> None:
    """Exact enumeration: all seeds' answers of a cluster change sides together."""
    test = one_field(7)
    runs = [[guesses(test, 0.5, 10 * n + k) for k in range(count)] for n, count in enumerate(num_runs)]
    report = evaluate(ONE_FIELD, test, [], [run_of("a", *runs[0]), run_of("b", *runs[1])], 0)
    gold = [e.output["k"] for e in test]
    assert set(gold) == {"a", "b", "c"}
    together = int(np.lcm(*num_runs))
    said = [[[p.output["k"] for p in run] for run in own] * (together // len(own)) for own in runs]
    assert plain_f1(gold, said[0][0]) == pytest.approx(
        f1_score(gold, said[0][0], labels=["a", "b", "c"], average="macro", zero_division=0)
    )
    scores = {"accuracy": lambda g, s: np.mean([x == y for x, y in zip(g, s, strict=True)]), "macro_f1": plain_f1}
    checked = 0
    for found in report["tests"]:
        score = scores[found["metric"]]

        def gap(swap: Sequence[bool], score: Any = score) -> float:
            means = []
            for side in (0, 1):
                mixed = [
                    [said[1 - side][k][i] if swap[i] else said[side][k][i] for i in range(7)] for k in range(together)
                ]
                means.append(np.mean([score(gold, one) for one in mixed]))
            return float(means[0] - means[1])

        gaps = np.array([gap(swap) for swap in itertools.product([False, True], repeat=7)])
        observed = gap([False] * 7) if found["a"] == "a" else -gap([False] * 7)
        assert found["difference"] == pytest.approx(observed)
        exact = np.mean(np.abs(gaps) >= abs(observed) - 1e-12)
        assert found["p"] == pytest.approx(exact, abs=0.02)  # 10,000 draws: standard error at most 0.005
        checked += 1
    assert checked == 2


def test_runs_repeated_to_as_many_seeds_keep_the_mean() -> None:
    a, b = np.random.default_rng(0).random((2, 5, 6, 4))
    one, two = statistics.same_number_of_seeds(a[:, :2], b[:, :3])
    assert (one.shape, two.shape) == ((5, 6, 4), (5, 6, 4))
    assert one.mean(axis=1) == pytest.approx(a[:, :2].mean(axis=1))
    assert two.mean(axis=1) == pytest.approx(b[:, :3].mean(axis=1))


def test_with_seeds_joins_runs() -> None:
    test = one_field(4)
    runs = [
        replace(run_of("s", guesses(test, 0.5, k)), wall_s=k, train_seconds=2.0 * k, latencies_s=(k,)) for k in (1, 2)
    ]
    joined = with_seeds(runs, [7, 8])
    assert (joined.wall_s, joined.train_seconds, joined.latencies_s, joined.seeds) == (3, 3.0, (1, 2), (7, 8))
    assert joined.runs == (runs[0].predictions, runs[1].predictions)


# -- reference and family -----------------------------------------------------------------------------


def test_whom_the_others_are_tested_against() -> None:
    test = one_field(20)
    runs = [run_of(n, guesses(test, 0.5, i), strategy=s) for i, (n, s) in enumerate(
        [("majority", "majority"), ("mine", "finetuned"), ("cot", "cot")])]  # fmt: skip
    assert choose_pairs(runs, None) == [(1, 0), (1, 2)]
    assert choose_pairs(runs, "finetuned") == choose_pairs(runs, "mine") == [(1, 0), (1, 2)]
    assert choose_pairs(runs, "cot") == [(0, 2), (1, 2)]
    assert choose_pairs([runs[0], runs[2]], None) == [(1, 0)]
    assert find_reference([], None) is None
    report = evaluate(ONE_FIELD, test, [], runs, 0, reference="cot")
    assert report["reference"] == "cot"
    assert "each other system against cot" in report["method"]
    with pytest.raises(RecipeError, match=r"found 'gpt', expected one of .*majority, mine, cot"):
        find_reference(runs, "gpt")


def test_many_systems_are_told_measure_by_measure() -> None:
    report = comparison(60, 7)
    family = 6 * (2 * 2 + 1)
    assert len(report["tests"]) == family
    by_hand = statistics.holm([t["p"] for t in report["tests"]])
    assert [t["p_holm"] for t in report["tests"]] == by_hand
    lines = report["verdict"].splitlines()
    assert len(lines) == 7
    told = next(line for line in lines if line.startswith("Exact match: the specialist is better than "))
    shown = {t["b"] for t in report["tests"] if t["metric"] == "exact_match" and t["p_holm"] < 0.05}
    assert {"zero-shot", "majority"} <= shown
    assert ("TF-IDF" in told.split("no difference")[0]) == ("tfidf" in shown)
    against = comparison(60, 7, reference="tfidf")
    assert {t["b"] for t in against["tests"]} == {"tfidf"}
    assert "better than TF-IDF: the specialist (+0." in against["verdict"]


# -- costs ----------------------------------------------------------------------------------------------


def test_cost_per_1000_answers_says_what_it_is_made_of() -> None:
    test = one_field(50)
    paid = [Prediction({"k": "a"}, usage=Usage(100, 10, 0, 0.002, 2, 1), latency_s=0.5) for _ in test]
    paid[0] = replace(paid[0], output=None, error="gone")
    free = [Prediction({"k": "a"}, latency_s=0.1) for _ in test]
    runs = [replace(run_of("p", paid), wall_s=36.0), replace(run_of("f", free, free), wall_s=72.0)]
    without = evaluate(ONE_FIELD, test, [], runs, 0)["systems"]
    assert [s["cost_basis"] for s in without] == ["paid", "none"]
    assert [s["cost_per_1000_usd"] for s in without] == pytest.approx([2.0, 0.0])
    one, two = evaluate(ONE_FIELD, test, [], runs, 0, machine_usd_per_hour=1.5)["systems"]
    # By hand: 36 s = 0.01 h = US$ 0.015 for 50 answers, 0.30 for 1,000; 72 s = US$ 0.03 for 100 answers, 0.30.
    assert (one["cost_basis"], two["cost_basis"]) == ("paid+machine", "machine")
    assert (one["cost_per_1000_usd"], two["cost_per_1000_usd"]) == (pytest.approx(2.3), pytest.approx(0.3))
    assert (one["paid_per_1000_usd"], one["machine_per_1000_usd"]) == (pytest.approx(2.0), pytest.approx(0.3))
    assert (one["requests"], one["num_repaired"], one["num_failed"], one["num_answers"]) == (2.0, 50, 1, 50)
    assert (one["valid_rate"], one["latency_p50_s"], two["num_answers"]) == (0.98, 0.5, 100)


# -- Pareto -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_front_equals_brute_force(points: list[tuple[int, int]]) -> None:
    found = front([q for q, _ in points], [c for _, c in points])
    for i, (q, c) in enumerate(points):
        beaten = False
        for other_q, other_c in points:
            as_good, as_cheap = other_q >= q, other_c <= c
            beaten |= as_good and as_cheap and (other_q, other_c) != (q, c)
        assert (i in found) == (not beaten)
    assert found == sorted(found)


def test_the_report_names_the_fronts_in_both_views() -> None:
    report = comparison(60)
    checked = 0
    for metric, by_price in report["pareto"].items():
        for price, key in (("cost", "cost_per_1000_usd"), ("latency", "latency_p50_s")):
            entries = report["systems"]
            wanted = front([e[metric] for e in entries], [e[key] for e in entries])
            assert by_price[price] == [entries[i]["name"] for i in wanted]
            checked += 1
    assert (checked, report["quality"]) == (4, "mean_accuracy")
    assert list(report["pareto"]) == ["mean_accuracy", "exact_match"]
    first = report["systems"][0]
    groups = [first["fields"][name]["accuracy"] for name in report["groups"]]
    assert first["mean_accuracy"] == pytest.approx(np.mean(groups))


# -- recommendation -----------------------------------------------------------------------------------------


def entry_of(name: str, quality: float, usd: float, seconds: float, reasons: bool = False) -> dict[str, Any]:
    return {
        "name": name, "mean_accuracy": quality, "mean_accuracy_ci": [quality - 0.05, quality + 0.05],
        "cost_per_1000_usd": usd, "latency_p50_s": seconds, "reasoning_rate": float(reasons),
    }  # fmt: skip


def recommended(
    entries: list[dict[str, Any]], worse: set[str], priority: str, num_clusters: int = 100
) -> dict[str, Any]:
    """The recommendation where the tests of the best show these systems to be worse, and no other."""

    def against(best: int) -> list[dict[str, Any]]:
        mine = entries[best]
        return [
            {
                "a": mine["name"], "b": other["name"], "field": "answer", "metric": "mean_accuracy",
                "difference": mine["mean_accuracy"] - other["mean_accuracy"],
                "ci": [-0.01, 0.2], "p": 0.001, "p_holm": 0.01 if other["name"] in worse else 0.4,
            }
            for i, other in enumerate(entries) if i != best
        ]  # fmt: skip

    return recommend(entries, against, priority, num_clusters, "mean_accuracy")


FOUR = [
    entry_of("cheap", 0.50, 0.0, 0.3),
    entry_of("quick", 0.58, 0.5, 0.01),
    entry_of("middle", 0.60, 0.2, 0.9, reasons=True),
    entry_of("dear", 0.64, 9.0, 2.0, reasons=True),
]


@pytest.mark.parametrize(
    ("priority", "worse", "choice", "why", "decided", "cheaper"),
    [
        ("accuracy", {"cheap", "quick", "middle"}, "dear", "clear", True, []),
        ("accuracy", {"cheap"}, "middle", "not_separated", False, []),  # the cheapest of quick, middle, dear
        ("accuracy", set(), "cheap", "not_separated", False, []),
        ("cost", {"cheap"}, "middle", "not_separated", False, ["cheap"]),
        ("cost", {"cheap", "quick", "middle"}, "dear", "clear", True, ["cheap", "middle"]),  # quick is not on the front
        ("latency", {"cheap"}, "quick", "not_separated", False, []),
        ("latency", {"cheap", "quick"}, "middle", "not_separated", False, ["quick"]),
        ("explanation", {"cheap", "quick"}, "dear", "not_separated", False, []),
        ("explanation", {"middle"}, "dear", "clear", True, []),  # cheap and quick do not explain
    ],
)
def test_recommendation_by_priority(
    priority: str, worse: set[str], choice: str, why: str, decided: bool, cheaper: list[str]
) -> None:
    found = recommended(FOUR, worse, priority)
    assert (found["best"], found["choice"], found["why"], found["decided"]) == ("dear", choice, why, decided)
    assert found["cheaper"] == cheaper
    assert not found["small_test"]


def test_recommendation_that_cannot_be_given() -> None:
    few = recommended(FOUR, {"cheap", "quick", "middle"}, "accuracy", num_clusters=6)
    # 2^-5 x 3 tests is above 0.05: whatever the answers are, this test shows nothing.
    assert (few["choice"], few["why"], few["decided"], few["best"]) == (None, "too_small", False, "dear")
    assert recommended(FOUR, {"cheap"}, "accuracy", num_clusters=20)["small_test"]
    assert recommended(FOUR[:1], set(), "accuracy")["why"] == "alone"
    assert recommended(FOUR[:2], set(), "explanation")["why"] == "no_reasoning"
    nothing = [entry_of("a", 0.0, 0, 1), entry_of("b", 0.0, 0, 1)]
    assert recommended(nothing, set(), "accuracy")["why"] == "nothing_right"


def test_the_cheaper_of_two_equally_good_ones_counts_as_the_best() -> None:
    pair = [entry_of("dear", 0.6, 5.0, 0.1), entry_of("cheap", 0.6, 1.0, 0.1), entry_of("poor", 0.2, 0.0, 0.1)]
    found = recommended(pair, {"poor"}, "cost")
    assert (found["best"], found["choice"], found["equals"], found["cheaper"]) == ("cheap", "cheap", ["dear"], ["poor"])


def test_evaluate_recommends_from_its_own_tests() -> None:
    test = one_field(120)
    runs = [
        run_of("poor", guesses(test, 0.1, 1)),
        run_of("good", guesses(test, 0.9, 2)),
        run_of("dear", [replace(p, usage=Usage(cost_usd=0.01), reasoning={"": "so"}) for p in guesses(test, 0.9, 3)]),
    ]
    found = evaluate(ONE_FIELD, test, [], runs, 0)["recommendation"]
    assert found["choice"] == "good"
    assert not found["decided"]
    assert [t["b"] for t in found["tests"] if t["p_holm"] < 0.05] == ["poor"]
    assert [t["p_holm"] for t in found["tests"]] == statistics.holm([t["p"] for t in found["tests"]])
    explained = evaluate(ONE_FIELD, test, [], runs, 0, priority="explanation")["recommendation"]
    assert (explained["best"], explained["choice"], explained["decided"]) == ("dear", "dear", True)
    clear = evaluate(ONE_FIELD, test, [], runs[:2], 0)["recommendation"]
    assert (clear["choice"], clear["decided"], clear["why"]) == ("good", True, "clear")


def test_several_fields_are_ranked_by_their_mean_accuracy() -> None:
    """Exact match of six fields is luck: who is right in most of them must not lose to who is right in all of few."""
    fields = {name: ["a", "b"] for name in "uvwxyz"}
    task = Task("t", "i", {"x": "x"}, schemas.normalise(schemas.from_shorthand(fields)))
    test = [Example(str(i), {"x": ""}, dict.fromkeys(fields, "a"), cluster=i) for i in range(60)]
    lucky = [Prediction(dict.fromkeys(fields, "a" if i % 5 == 0 else "b")) for i in range(60)]
    wrong_in_one = [Prediction({**dict.fromkeys(fields, "a"), "uvwxyz"[i % 6]: "b"}) for i in range(60)]
    report = evaluate(task, test, [], [run_of("majority", lucky), run_of("good", wrong_in_one)], 0)
    one, two = report["systems"]
    assert (one["exact_match"], two["exact_match"]) == (0.2, 0.0)
    assert (one["mean_accuracy"], two["mean_accuracy"]) == pytest.approx((0.2, 5 / 6))
    found = report["recommendation"]
    assert (found["choice"], found["decided"], found["quality"]) == ("good", True, "mean_accuracy")
    assert {t["metric"] for t in found["tests"]} == {"mean_accuracy"}
    assert (
        evaluate(ONE_FIELD, one_field(5), [], [run_of("s", guesses(one_field(5), 1, 0))], 0)["quality"] == "exact_match"
    )


def said(entries: list[dict[str, Any]], found: dict[str, Any], language: str = "en") -> str:
    report = {"num_test": 100, "systems": entries, "recommendation": found}
    return " ".join(advice_lines(report, Language(language)))


def test_the_sentences_quote_the_numbers_they_rest_on() -> None:
    text = said(FOUR, recommended(FOUR, {"cheap"}, "cost"))
    assert text.startswith(
        "For cost: middle (mean accuracy of the fields 0.60 [0.55, 0.65], US$ 0.20 per 1,000 answers, p50 900 ms)."
    )
    assert "The numbers do not decide: dear (mean accuracy of the fields 0.64" in text
    assert "middle is not shown to be worse (\u22120.04 [\u22120.20, +0.01], Holm p = 0.40) and is the cheapest" in text
    assert "Cheaper, at a price in mean accuracy of the fields: cheap (US$ 0; \u22120.14 [\u22120.20, +0.01])." in text
    assert "not “as good”" in text
    text = said(FOUR, recommended(FOUR, {"cheap", "quick", "middle"}, "accuracy"))
    assert "The numbers decide" in text
    assert "The nearest is middle: +0.04 [\u22120.01, +0.20], Holm p = 0.010." in text
    assert "not decide" not in text
    text = said(FOUR, recommended(FOUR, {"middle"}, "explanation"))
    assert "every other system that writes reasoning" in text
    assert "Without reasoning, quick reaches 0.58" in text
    small = said(FOUR, recommended(FOUR, set(), "accuracy", num_clusters=6))
    assert "this test cannot decide" in small
    assert "with 6 independent test items" in small
    assert "With 20 independent test items" in said(FOUR, recommended(FOUR, set(), "accuracy", num_clusters=20))


def test_every_case_is_worded_in_both_languages() -> None:
    sets = [set(), {"cheap"}, {"cheap", "quick"}, {"cheap", "quick", "middle"}]
    seen = 0
    for priority, worse, entries, clusters in itertools.product(
        ("accuracy", "cost", "latency", "explanation"), sets, (FOUR, FOUR[:2], FOUR[:1]), (6, 25, 100)
    ):
        found = recommended(entries, worse, priority, clusters)
        english, portuguese = said(entries, found), said(entries, found, "pt")
        assert english.startswith("For ")
        assert portuguese.startswith("Para ")
        assert "{" not in english + portuguese
        seen += 1
    assert seen == 144
    assert "p de Holm = 0,40" in said(FOUR, recommended(FOUR, {"cheap"}, "cost"), "pt")
    assert advice_lines({"systems": []}, Language()) == []


# -- pages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison") / "run", 40)


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_page_of_a_comparison(folder: Path, language: str) -> None:
    from test_report import Page

    text = write_report(folder, language).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert {"recommendation", "pareto", "curve", "trails"} <= set(page.ids())
    classes = [str(a.get("class")) for _, a in page.tags]
    points = [c for c in classes if c.startswith("point ")]
    assert len(points) == 4 * len(SYSTEMS)  # two views, against cost and against latency
    report = json.loads((folder / "report.json").read_text())
    fronts = [name for by_price in report["pareto"].values() for names in by_price.values() for name in names]
    assert points.count("point front") == len(fronts)
    assert classes.count("seed") == 5 * 3 * 5  # five systems with three seeds, in five figures
    assert classes.count("level") == 2
    assert page.text.count("generator (teacher)") == 6  # two turns in each of three debates
    assert "tfidf 0." in page.text or "tfidf 0," in page.text
    assert not re.search(r"\b(nan|inf)\b", text.lower())
    assert not {"script", "link", "img"} & {tag for tag, _ in page.tags}


def test_what_systems_say_is_shown_as_text(folder: Path, tmp_path: Path) -> None:
    from test_report import Page

    attack = "<script>alert(1)</script>"
    report = json.loads((folder / "report.json").read_text())
    report["curve_lines"] = {attack: 0.5}
    write_json(tmp_path / "report.json", report)
    row = {
        "id": attack, "output": {attack: attack}, "error": None, "reasoning": {attack: attack},
        "trace": [{"speaker": attack, "answer": attack, "outcome": attack, "unknown": attack, "error": attack,
                   "trace": [{"voter": attack}]}],
    }  # fmt: skip
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "cot.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(attack) >= 10


def test_the_screen_holds_many_systems_and_ends_with_the_recommendation() -> None:
    report = comparison(60)
    lines = result_lines(report)
    assert max(map(len, lines)) <= 100
    for system in report["systems"]:
        assert sum(line.startswith(f"{system['name']} ") for line in lines) == 4  # two groups, the whole, the cost
    at = lines.index("Recommendation")
    assert at > max(i for i, line in enumerate(lines) if "Holm)" in line and i < at)
    assert lines[at + 1].startswith("For accuracy: ")
    assert any("± 0." in line for line in lines)


def test_prices_over_decades_are_logarithmic_and_zero_has_a_place_of_its_own() -> None:
    axis = price_axis([0.0, 0.02, 7.0], "", str)
    assert (axis.log, axis.has_zero, axis.ticks) == (True, True, (0.0, 0.01, 0.1, 1.0, 10.0))
    assert axis.percent(0.0) < axis.percent(0.01) < axis.percent(0.02) < axis.percent(7.0) < axis.percent(10.0) == 100
    assert axis.percent(1.0) - axis.percent(0.1) == pytest.approx(axis.percent(0.1) - axis.percent(0.01), abs=0.01)
    assert not price_axis([0.0, 1.0, 2.0], "", str).log
    assert count_axis([25, 100, 400], "", str).ticks == (25, 100, 400)
    assert count_axis([25], "", str).percent(25) > 0


def test_names_beside_points_do_not_lie_on_each_other() -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(20):
        points = [
            (float(x), float(y), 7.0)
            for x, y in zip(rng.choice([10, 60, 200], 14), rng.uniform(0, 320, 14), strict=True)
        ]
        boxes = place(points, [(14.0, 13.0)] * 14, 240, 320)
        for one, two in itertools.combinations(boxes, 2):
            assert one.overlap(two) == 0
            checked += 1
    assert checked == 20 * 91


def test_answers_of_the_sample_are_what_they_say() -> None:
    rows = labelled_rows(200)
    found = answers(rows, "cot", 0.75, 0.001, 1.0, 3)
    coded = [metrics.encode(unit, [r.output for r in rows], found) for unit in metrics.units(TASK)[1]]
    assert all(0.6 < c.right.mean() < 0.85 for c in coded)
    assert len(systems(rows[:5])) == 14
