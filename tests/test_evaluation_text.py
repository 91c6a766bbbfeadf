"""Free text judged: every measure against a plain reference, hand-worked cases, and the report as a whole."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from afina.core.errors import MachineError
from afina.core.predictor import Example, Prediction, Usage
from afina.core.task import Task
from afina.engine.encoded import Encoded
from afina.evaluation import chrf, overlap, statistics
from afina.evaluation.perplexity import perplexity
from afina.evaluation.runner import SystemRun, evaluate
from afina.evaluation.samples import side_by_side

TASK = Task("loja", "Descreva o produto.", {"title": "title"}, {"type": "string"}, free_text=True)
ENGLISH = ["the", "a", "warm", "red", "cup", "of", "tea", "sits", "on", "our", "old", "oak", "table", "with", "2"]
PORTUGUESE = ["não", "há", "açúcar", "na", "xícara", "que", "está", "sobre", "o", "pão", "de", "ló", "da", "avó"]


def sentence(rng: random.Random, words: Sequence[str], most: int = 25) -> str:
    return " ".join(rng.choices(words, k=rng.randint(0, most))).replace(" of", ", of").replace(" que", "; que")


def said(text: str | None, tokens: int = 10, **given: Any) -> Prediction:
    if text is None:
        return Prediction(error="the model was gone")
    return Prediction(text, usage=Usage(20, tokens, tokens), latency_s=0.1, **given)


def rows(golds: Sequence[str], titles: Sequence[str] | None = None, per_cluster: int = 1) -> list[Example]:
    titles = titles or [f"produto {i}" for i in range(len(golds))]
    return [
        Example(f"p{i}", {"title": title}, gold, cluster=i // per_cluster)
        for i, (title, gold) in enumerate(zip(titles, golds, strict=True))
    ]


def run_of(name: str, answers: Sequence[Prediction], strategy: str = "", **given: Any) -> SystemRun:
    return SystemRun(name, strategy or name, None, list(answers), 2.0, **given)


def text_of(test: Sequence[Example], answers: Sequence[Prediction], train: Sequence[Example] = (), **given: Any) -> Any:
    return evaluate(TASK, test, train, [run_of("s", answers)], 0, **given)["systems"][0]["text"]


# -- ROUGE-L and chrF -----------------------------------------------------------------------------


def test_rouge_l_equals_rouge_score() -> None:
    """On ASCII with its own tokenizer; on Portuguese with ours, which keeps accents."""

    class Ours:
        def tokenize(self, text: str) -> list[str]:
            return overlap.words(text)

    rng, checked = random.Random(0), 0
    for words, scorer in (
        (ENGLISH, RougeScorer(["rougeL"])),
        (PORTUGUESE, RougeScorer(["rougeL"], tokenizer=Ours())),
    ):
        for _ in range(200):
            gold, answer = sentence(rng, words), sentence(rng, words)
            wanted = scorer.score(gold, answer)["rougeL"].fmeasure
            assert overlap.rouge_l(overlap.words(gold), overlap.words(answer)) == pytest.approx(wanted, abs=1e-12)
            checked += 1
    assert checked == 400


def test_words_keep_accents_and_composition_does_not_matter() -> None:
    assert overlap.words("Não! São_Paulo, 2ª\tvez") == ["não", "são", "paulo", "2ª", "vez"]
    assert overlap.words("Na\u0303o") == ["não"]
    assert overlap.words("") == overlap.words("… !?") == []


def test_rouge_l_by_hand() -> None:
    # Common: "o gato ... sofá" is three words of four and of five: P = 3/5, R = 3/4, F1 = 2 x 3 / 9.
    assert overlap.rouge_l(["o", "gato", "no", "sofá"], ["o", "velho", "gato", "do", "sofá"]) == pytest.approx(6 / 9)
    assert overlap.rouge_l([], ["a"]) == overlap.rouge_l(["a"], []) == overlap.rouge_l([], []) == 0.0


def test_long_texts_take_no_table() -> None:
    """30,000 words against as many: the table of rouge-score would have 900 million cells."""
    rng = random.Random(1)
    one = [str(rng.randint(0, 5000)) for _ in range(30_000)]
    assert overlap.common_subsequence(one, one) == 30_000
    assert 500 < overlap.common_subsequence(one, one[::-1]) < 2_000


def test_chrf_of_sums_equals_sacrebleu() -> None:
    rng = random.Random(2)
    words = ENGLISH + PORTUGUESE
    golds = ["x", *(sentence(rng, words) for _ in range(60))]
    answers = ["", *(sentence(rng, words) for _ in range(60))]
    table = chrf.counts(golds, answers)
    assert chrf.corpus_chrf(golds, answers) == pytest.approx(CHRF().corpus_score(answers, [golds]).score)
    single = chrf.chrf(table)
    wanted = [CHRF().sentence_score(a, [g]).score for g, a in zip(golds, answers, strict=True)]
    assert single == pytest.approx(wanted)
    assert len(set(np.round(wanted, 3))) > 40
    draw = rng.choices(range(61), k=61)
    again = CHRF().corpus_score([answers[i] for i in draw], [[golds[i] for i in draw]]).score
    assert chrf.chrf(table[draw].sum(axis=0)) == pytest.approx(again)
    assert chrf.counts([], []).shape == (0, 18)
    assert "nc:6|nw:0" in chrf.signature()


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    for ask in (chrf.require_chrf, lambda: evaluate(TASK, rows(["a"]), [], [run_of("s", [said("a")])], 0)):
        with pytest.raises(MachineError, match=r"pip install 'afina\[assistant\]'"):
            ask()


# -- copied, memorised, repeated: against brute force ---------------------------------------------


def brute_span(answer: Sequence[str], texts: Sequence[Sequence[str]]) -> int:
    best = 0
    for text in texts:
        for i, j in itertools.product(range(len(answer)), range(len(text))):
            length = 0
            while i + length < len(answer) and j + length < len(text) and answer[i + length] == text[j + length]:
                length += 1
            best = max(best, length)
    return best


def stands_in(gram: Sequence[str], text: Sequence[str]) -> bool:
    return any(list(gram) == list(text[i : i + len(gram)]) for i in range(len(text)))


def test_longest_span_equals_brute_force() -> None:
    rng, seen = random.Random(3), set[int]()
    for _ in range(150):
        answer = rng.choices("abc", k=rng.randint(0, 12))
        texts = [rng.choices("abcd", k=rng.randint(0, 12)) for _ in range(rng.randint(0, 3))]
        found = overlap.longest_span(answer, texts)
        assert found == brute_span(answer, texts)
        seen.add(found)
    assert len(seen) > 5


def test_copied_and_memorised_equal_brute_force() -> None:
    """Every 8-gram of every answer, looked for in every text by comparing word by word."""
    rng = random.Random(4)
    vocabulary = ["um", "dois", "três", "quatro"]

    def text(least: int, most: int) -> list[str]:
        return rng.choices(vocabulary, k=rng.randint(least, most))

    train_texts = [text(8, 40) for _ in range(25)]
    golds, titles, answers = [text(10, 30) for _ in range(20)], [text(1, 14) for _ in range(20)], []
    for gold, title in zip(golds, titles, strict=True):
        parts = [rng.choice(train_texts)[2:16], title, gold[:10], text(0, 6)]
        rng.shuffle(parts)
        answers.append(list(itertools.chain.from_iterable(parts)))
    copied = memorised = total = 0
    for answer, gold, title in zip(answers, golds, titles, strict=True):
        for start in range(len(answer) - 7):
            gram = answer[start : start + 8]
            total += 1
            copied += stands_in(gram, title)
            in_own = stands_in(gram, title) or stands_in(gram, gold)
            memorised += not in_own and any(stands_in(gram, one) for one in train_texts)
    test = rows([" ".join(g) for g in golds], [" ".join(t) for t in titles])
    train = [Example(str(i), {"title": "x"}, " ".join(t)) for i, t in enumerate(train_texts)]
    found = text_of(test, [said(" ".join(a)) for a in answers], train)
    assert min(copied, memorised) > 10
    assert (found["copied_share"], found["memorised_share"]) == pytest.approx((copied / total, memorised / total))
    assert found["num_grams"] == total
    spans = [brute_span(a, [t]) / len(a) for a, t in zip(answers, titles, strict=True)]
    assert found["longest_copied_share"] == pytest.approx(np.mean(spans))


LONG = "uma caneca de louça azul com alça larga para chá quente"


def test_what_stood_in_the_prompt_is_copied_and_not_memorised() -> None:
    """Passages of the trace, a quoted source, and the title belong to the prompt; train is what is left."""
    test = rows(["nada em comum"])
    train = rows([LONG])
    assert text_of(test, [said(LONG)], train)["memorised_share"] == 1.0
    assert text_of(test, [said(LONG)], train)["copied_share"] == 0.0
    passage = ({"passages": [{"uid": "B1", "title": "caneca", "content": f"Veja: {LONG}."}]},)
    source = ({"uid": "B1", "title": "caneca", "quote": LONG.upper(), "start": 0, "end": 9, "score": 0.5},)
    for trace in (passage, source):
        found = text_of(test, [said(LONG, trace=trace)], train)
        assert (found["copied_share"], found["memorised_share"], found["longest_copied_share"]) == (1.0, 0.0, 1.0)
    assert text_of(rows(["x"], [LONG]), [said(LONG)], train)["copied_share"] == 1.0
    assert text_of(rows([LONG]), [said(LONG)], train)["memorised_share"] == 0.0  # it is the gold text


def test_repetition_and_distinct_by_hand() -> None:
    # "a b c d a b c d": five 4-grams, of which one comes twice: 1 - 4/5.
    assert overlap.repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(0.2)
    assert overlap.repetition(["sim"] * 8) == pytest.approx(0.8)
    assert overlap.repetition(["a", "b", "c"]) is None
    answers = [["a", "b", "a"], ["a", "c"]]
    assert overlap.distinct(answers, 1) == pytest.approx(3 / 5)
    assert overlap.distinct(answers, 2) == pytest.approx(3 / 3)  # a b, b a, a c
    assert overlap.distinct([[]], 1) is None


# -- the entry ------------------------------------------------------------------------------------


def test_lengths_and_shares_by_hand() -> None:
    test = rows(["abcde fghi", "abcdefghij"])  # ten characters each
    found = text_of(test, [said("abc", 7), said(None)], max_text_tokens=7)
    assert found["length"] == {
        "tokens": 3.5, "words": 0.5, "characters": 1.5, "gold_words": 1.5, "gold_characters": 10.0, "ratio": 0.15,
        "ratio_ci": found["length"]["ratio_ci"],
    }  # fmt: skip
    assert (found["empty_share"], found["unfinished_share"], found["cut_prompt_share"]) == (0.5, 0.5, 0.0)
    assert found["copied_share"] is found["copied_share_ci"] is found["repetition"] is None  # no 8-gram, no 4-gram
    assert text_of(test, [said("abc"), said("d")])["unfinished_share"] is None  # nobody said where answers end
    cut = text_of(test, [said("abc", truncated=True), said("   ")])
    assert (cut["cut_prompt_share"], cut["empty_share"]) == (0.5, 0.5)
    # An exact bound where all agree: 0 of 2 clusters.
    assert found["cut_prompt_share_ci"] == pytest.approx([0.0, 1 - 0.025 ** (1 / 2)])


def hidden(golds: Sequence[str], keep: float, seed: int) -> list[Prediction]:
    """Answers that keep a share of the gold text's words."""
    rng = random.Random(seed)
    return [said(" ".join(w if rng.random() < keep else "outra" for w in gold.split())) for gold in golds]


def many(count: int = 60, seed: int = 5) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(ENGLISH + PORTUGUESE, k=rng.randint(6, 30))) for _ in range(count)]


def test_intervals_resample_clusters_against_a_plain_loop() -> None:
    golds = many(40)
    test, answers = rows(golds, per_cluster=2), hidden(golds, 0.5, 1)
    found = text_of(test, answers)
    texts = [str(p.output) for p in answers]
    table = chrf.counts(golds, texts)
    scorer: Callable[[int], float] = lambda i: overlap.rouge_l(overlap.words(golds[i]), overlap.words(texts[i]))  # noqa: E731
    metrics: dict[str, Callable[[Sequence[int]], float]] = {
        "chrf": lambda rows: float(chrf.chrf(table[list(rows)].sum(axis=0))),  # sacrebleu's, as shown above
        "rouge_l": lambda rows: float(np.mean([scorer(i) for i in rows])),
    }
    rng = np.random.default_rng(9)
    of_cluster = np.arange(40).reshape(20, 2)
    for name, metric in metrics.items():
        draws = np.array([metric(of_cluster[rng.integers(20, size=20)].ravel().tolist()) for _ in range(100)])
        left_out = np.array([metric(np.delete(of_cluster, i, axis=0).ravel().tolist()) for i in range(20)])
        assert found[name] == pytest.approx(metric(range(40)))
        low, high = statistics.bca_interval(found[name], draws, left_out)
        width = high - low
        # 100 draws know a bound to about a fifth of the interval's width.
        assert found[f"{name}_ci"] == pytest.approx([low, high], abs=0.3 * width)


def test_paired_tests_equal_every_swap_of_clusters() -> None:
    golds = many(8)
    a, b = hidden(golds, 0.7, 1), hidden(golds, 0.4, 2)
    report = evaluate(TASK, rows(golds), [], [run_of("a", a, "finetuned"), run_of("b", b)], 0)
    assert [(t["field"], t["metric"]) for t in report["tests"]] == [("answer", "chrf"), ("answer", "rouge_l")]
    texts = [[str(p.output) for p in run] for run in (a, b)]
    tables = np.stack([chrf.counts(golds, run) for run in texts])
    likeness = np.array(
        [
            [overlap.rouge_l(overlap.words(g), overlap.words(s)) for g, s in zip(golds, run, strict=True)]
            for run in texts
        ]
    )
    every = np.arange(8)
    scores: dict[str, Callable[[Any], float]] = {
        "chrf": lambda whose: float(chrf.chrf(tables[whose, every].sum(axis=0))),
        "rouge_l": lambda whose: float(likeness[whose, every].mean()),
    }
    for test in report["tests"]:
        score = scores[test["metric"]]
        observed = score(np.zeros(8, int)) - score(np.ones(8, int))
        extreme = 0
        for swap in itertools.product((False, True), repeat=8):
            swapped = np.array(swap, int)
            extreme += abs(score(swapped) - score(1 - swapped)) >= abs(observed) - 1e-9
        assert test["difference"] == pytest.approx(observed)
        assert test["p"] == pytest.approx(extreme / 256, abs=0.02)  # 10,000 permutations: standard error below 0.005
        assert test["ci"][0] <= test["difference"] <= test["ci"][1]
    assert [t["p_holm"] for t in report["tests"]] == statistics.holm([t["p"] for t in report["tests"]])


def test_the_report_of_free_text() -> None:
    golds = many()
    test = rows(golds, per_cluster=2)
    losses = {"nats_per_token": 2.0, "bits_per_byte": 1.5, "num_tokens": 900}
    runs = [
        run_of("nearest", hidden(golds, 0.1, 1)),
        run_of("zero-shot", [said("sim " * 12) for _ in golds], perplexity=losses),
        run_of("specialist", hidden(golds, 0.8, 2), "finetuned", perplexity={**losses, "bits_per_byte": 1.1}),
    ]
    report = evaluate(TASK, test, [], runs, 0)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["quality"], report["groups"], list(report["pareto"])) == ("chrf", {}, ["chrf", "rouge_l"])
    for system in report["systems"]:
        assert system["fields"] == {}
        assert "exact_match" not in system
        assert {"chrf", "chrf_ci", "rouge_l", "rouge_l_ci", "length", "distinct_1", "distinct_2"} <= set(system["text"])
    assert report["recommendation"]["choice"] == "specialist"
    assert report["recommendation"]["quality"] == "chrf"
    assert len(report["tests"]) == 4
    assert report["pareto"]["chrf"]["cost"] == ["specialist"]
    text = report["verdict"]
    assert re.search(
        r"The specialist is better than nearest on chrF \(\+\d+\.\d\d, p = 0\.\d+\) and ROUGE-L \(\+0", text
    )
    assert re.search(r"Goes round in circles .*: nearest \(\d+.* %\) and zero-shot \(88\.8 %\)\.", text)
    assert "specialist (8" not in text
    assert (
        "Bits per byte of the gold texts under the model (less is better): zero-shot 1.50 and specialist 1.10." in text
    )
    for word in ("accuracy", "exact match", "macro", "valid"):
        assert word not in text
        assert word not in report["method"].lower() or word == "valid"
    assert "nc:6|nw:0" in report["method"]
    assert "family of 4 tests" in report["method"]
    assert evaluate(TASK, test, [], runs, 0) == report


def test_several_seeds_are_averaged() -> None:
    golds = many(20)
    answers = [hidden(golds, 0.5, seed) for seed in (1, 2, 3)]
    run = run_of("s", answers[0], seeds=(1, 2, 3), repeats=tuple(answers[1:]))
    found = evaluate(TASK, rows(golds), [], [run], 0)["systems"][0]["text"]
    wanted = [chrf.corpus_chrf(golds, [str(p.output) for p in one]) for one in answers]
    assert found["by_seed"]["chrf"] == pytest.approx(wanted)
    assert found["chrf"] == pytest.approx(np.mean(wanted))
    assert found["seed_std"]["chrf"] == pytest.approx(np.std(wanted, ddof=1))
    assert len(set(wanted)) == 3


def test_hostile_answers_are_judged_and_not_fatal() -> None:
    nasty = ["\ud800 \x00 \u202e", "🙂" * 50, "<script>", "a " * 20_000, "\n\n", "x" * 50_000]
    golds = [*nasty[1:], "fim"]
    report = evaluate(TASK, rows(golds), rows(nasty), [run_of("s", [said(text) for text in nasty])], 0)
    found = report["systems"][0]["text"]
    assert all(math.isfinite(found[name]) for name in ("chrf", "rouge_l", "repetition", "memorised_share"))
    json.dumps(report["samples"], ensure_ascii=False).encode("utf-8")  # no lone surrogate is left to break the file
    assert max(len(a["output"]) for row in report["samples"]["rows"] for a in row["answers"]) < 2_100
    failed = evaluate(TASK, rows(["a b"]), [], [run_of("s", [said(None)])], 0)
    assert failed["systems"][0]["text"]["chrf"] == failed["systems"][0]["text"]["rouge_l"] == 0.0
    assert failed["verdict"]


# -- samples --------------------------------------------------------------------------------------


def test_samples_stand_side_by_side_and_are_drawn_by_the_seed() -> None:
    golds = many(30)
    test = rows(golds)
    source = {"uid": "B1", "title": "Caneca", "quote": "louça azul", "start": 3, "end": 13, "score": 0.7}
    runs = [
        run_of("one", [said(gold) for gold in golds]),
        run_of("two", [said("chá", sources=("B9",)) for _ in golds]),
        run_of("sources", [said("louça azul", trace=({"passages": []}, source)) for _ in golds]),
        run_of("none", [said("não está", trace=({"refused": True},)) for _ in golds]),
        run_of("gone", [said(None) for _ in golds]),
    ]
    found = side_by_side(test, runs, 7)
    assert found == side_by_side(test, runs, 7)
    assert [row["id"] for row in found["rows"]] != [row["id"] for row in side_by_side(test, runs, 8)["rows"]]
    assert (len(found["rows"]), found["version"], found["num_test"]) == (12, 1, 30)
    for row in found["rows"]:
        one, two, cited, refused, gone = row["answers"]
        assert (one["output"], one["rouge_l"]) == (row["gold"], 1.0)
        assert one["chrf"] == pytest.approx(100.0)
        assert two["sources"] == [{"uid": "B9", "title": None, "quote": None, "score": None}]
        assert cited["sources"] == [{"uid": "B1", "title": "Caneca", "quote": "louça azul", "score": 0.7}]
        assert (refused["refused"], one["refused"]) == (True, False)
        assert (gone["output"], gone["error"]) == ("", "the model was gone")


# -- perplexity -----------------------------------------------------------------------------------


@dataclass
class Config:
    vocab_size: int = 7


class Bigram(torch.nn.Module):
    """Each token's logits depend on the token before it: what the loss must be is known by hand."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed))
        self.config, self.device, self.widths = Config(), torch.device("cpu"), list[int]()

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
        self.widths.append(input_ids.shape[0] * input_ids.shape[1])
        return type("Out", (), {"logits": self.table[input_ids]})()


def test_perplexity_equals_a_plain_loop() -> None:
    rng = random.Random(6)
    model = Bigram(0)
    log_probabilities = torch.log_softmax(model.table.double(), dim=1)
    encoded, texts, wanted = [], [], []
    for length in (3, 9, 1, 6, 4):
        prompt, text = rng.choices(range(1, 7), k=4), rng.choices(range(1, 7), k=length)
        encoded.append(Encoded((*prompt, *text, 0), 4))
        texts.append("ã" * length)  # two bytes each
        ids = [*prompt, *text]
        wanted.append(-sum(float(log_probabilities[ids[i - 1], ids[i]]) for i in range(4, len(ids))))
    found = perplexity(model, encoded, texts)
    assert found is not None
    assert [row[0] for row in found["rows"]] == pytest.approx(wanted, rel=1e-5)  # float32 sums against float64
    assert (found["num_tokens"], found["num_bytes"]) == (23, 46)
    assert found["nats_per_token"] == pytest.approx(sum(wanted) / 23, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(sum(wanted) / 46 / math.log(2), rel=1e-5)
    kept = perplexity(model, [*encoded[:2], None], [*texts[:2], "x"], max_length=8)
    assert kept is not None
    assert [row is None for row in kept["rows"]] == [False, True, True]  # 13 tokens do not fit in 8
    assert perplexity(model, [None], ["x"]) is None


def test_perplexity_of_the_report_has_intervals_over_clusters() -> None:
    golds = many(30)
    rng = np.random.default_rng(0)
    table: list[Any] = [[float(n), 10.0, 25.0] for n in rng.uniform(20, 40, size=30)]
    table[3] = None
    nats = sum(row[0] for row in table if row)
    losses = {"nats_per_token": nats / 290, "bits_per_byte": nats / 725 / math.log(2), "num_tokens": 290, "rows": table}
    run = run_of("s", hidden(golds, 0.5, 1), perplexity=losses)
    found = evaluate(TASK, rows(golds, per_cluster=3), [], [run], 0)["systems"][0]["perplexity"]
    assert found["perplexity"] == pytest.approx(math.exp(nats / 290))
    assert (found["num_rows"], found["num_left_out"]) == (29, 1)
    for name in ("nats_per_token", "bits_per_byte"):
        low, high = found[f"{name}_ci"]
        assert low < found[name] < high
    assert found["bits_per_byte_ci"][0] == pytest.approx(found["nats_per_token_ci"][0] * 10 / 25 / math.log(2))
    without = evaluate(TASK, rows(golds), [], [replace(run, perplexity={**losses, "rows": None})], 0)["systems"][0]
    assert set(without["perplexity"]) == {"nats_per_token", "perplexity", "bits_per_byte", "num_tokens"}
