"""The page, the card and the screen of a free-text run: every figure there, both languages, nothing trusted."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_report import Page

from afina.cli.table import result_lines
from afina.core.predictor import Example, Prediction, Usage
from afina.core.storage import write_json
from afina.core.task import Task
from afina.evaluation.runner import SystemRun, evaluate
from afina.report import write_card, write_report
from afina.report.texts import folded, whole_percent
from afina.rounds import _scores

TASK = Task("loja", "Descreva o produto.", {"title": "title"}, {"type": "string"}, free_text=True)
NOUNS = ["caneca", "prato", "panela", "copo", "jarra", "bule", "talher", "toalha", "avental", "chaleira"]
KINDS = ["azul", "vermelha", "grande", "pequena", "de vidro", "antiga", "infantil", "dobrável"]


def shop(count: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        noun, kind = rng.choice(NOUNS), rng.choice(KINDS)
        text = " ".join(f"Esta {noun} {kind} serve bem, e quem a usa {rng.choice(NOUNS)} não pede." for _ in range(11))
        found.append(Example(f"B{i:03d}", {"title": f"{noun.title()} {kind}"}, text, cluster=i))
    return found


def systems(test: Sequence[Example], train: Sequence[Example]) -> list[SystemRun]:
    rng = random.Random(0)

    def run(name: str, strategy: str, answers: list[Prediction], **given: Any) -> SystemRun:
        return SystemRun(name, strategy, None if strategy == "nearest" else "afina/nano", answers, 3.0, **given)

    def kept(gold: str, share: float) -> str:
        return " ".join(w for w in gold.split() if rng.random() < share)

    def losses(nats: float) -> dict[str, Any]:
        table = [[nats * 40 * rng.uniform(0.9, 1.1), 40, 130] for _ in test]
        total = sum(row[0] for row in table)
        return {
            "nats_per_token": total / 40 / len(test), "bits_per_byte": total / 130 / len(test) / 0.6931,
            "num_tokens": 40 * len(test), "rows": table,
        }  # fmt: skip

    usage = Usage(30, 48, 48)
    passages = [
        ({"passages": [{"uid": e.id, "title": e.inputs["title"], "content": e.output}]},
         {"uid": e.id, "title": e.inputs["title"], "quote": e.output[:40], "start": 0, "end": 40, "score": 0.83})
        for e in test
    ]  # fmt: skip
    refused = ({"refused": True},)
    return [
        run("nearest", "nearest", [Prediction(rng.choice(train).output, latency_s=2e-4) for _ in test]),
        run("zero-shot", "zero-shot", [Prediction("uma casa de " * 9, usage=usage, latency_s=0.3) for _ in test],
            perplexity=losses(3.1)),
        run("specialist", "finetuned", [Prediction(kept(e.output, 0.9), usage=usage, latency_s=0.3) for e in test],
            perplexity=losses(1.9), train_seconds=214.0),
        run("sources", "sources", [
            Prediction("Não está no catálogo.", usage=usage, latency_s=0.4, trace=refused) if i % 9 == 0
            else Prediction(e.output[:40], usage=usage, latency_s=0.4, trace=passages[i]) for i, e in enumerate(test)
        ]),
    ]  # fmt: skip


def share(hits: int, total: int) -> dict[str, Any]:
    return {"hits": hits, "total": total, "value": hits / total, "ci": [hits / total - 0.04, hits / total]}


CATALOGUE = {
    "catalogue": {
        "version": 1, "num_products": 41_234, "num_shards": 3, "shards_used": [0, 2],
        "splits": {"train": 33_000, "validation": 4_100, "test": 4_134}, "languages": {"en": 40_000, "pt": 1_234},
        "steps": [
            {"name": "read", "rows": 60_000, "dropped": 0, "changed": 0},
            {"name": "entities", "rows": 60_000, "dropped": 0, "changed": 9_876},
            {"name": "no content", "rows": 41_234, "dropped": 18_766, "changed": 0},
        ],
    },
    "retrieval": {"version": 1, "sets": [
        {"name": "título -> trecho", "num_questions": 398, "recall_at_1": 0.412, "recall_at_1_ci": [0.36, 0.46],
         "recall_at_5": 0.621, "recall_at_5_ci": [0.57, 0.67], "mrr": 0.501, "mrr_ci": [0.46, 0.54],
         "latency_p50_s": 0.0031, "latency_p95_s": 0.012},
    ]},
    "citations": {"version": 1, "system": "sources", "precision": share(91, 100), "first_right": share(88, 100),
                  "recall": share(92, 100), "verbatim": share(100, 100)},
    "absent": {"version": 1, "system": "sources", "num_absent": 200, "num_present": 100, "min_support": 0.37,
               "refusal_precision": share(181, 190), "refusal_recall": share(181, 200), "answered": share(91, 100)},
}  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    test, train = shop(60, 1), shop(80, 2)
    return evaluate(TASK, test, train, systems(test, train), 0, max_text_tokens=48) | CATALOGUE


@pytest.fixture
def folder(report: dict[str, Any], tmp_path: Path) -> Path:
    write_json(tmp_path / "run" / "report.json", report)
    return tmp_path / "run"


def page_of(folder: Path, language: str = "en") -> Page:
    return Page(write_report(folder, language).read_text(encoding="utf-8"))


SECTIONS = [
    "verdict", "recommendation", "results", "samples", "bars", "tests", "pareto", "retrieval", "citations",
    "absent_products", "catalogue", "training", "data", "plan", "recipe", "environment",
]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_page_has_the_sections_of_free_text_and_no_other(folder: Path, language: str) -> None:
    page = page_of(folder, language)
    assert page.ids() == SECTIONS
    assert page.open == []
    assert [str(a["href"]) for tag, a in page.tags if tag == "a"] == [f"#{name}" for name in SECTIONS]
    assert "{" not in page.text
    for word in ("exact match", "acerto exato", "macro-F1", "ECE", "nan"):
        assert word not in page.text.replace("afina/nano", "")
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}


def test_the_page_holds_the_figures_of_report_json(folder: Path, report: dict[str, Any]) -> None:
    text, seen = page_of(folder).text, 0
    for system in report["systems"]:
        found = system["text"]
        low, high = found["chrf_ci"]
        for wanted in (f"{found['chrf']:.1f}", f"[{low:.1f}, {high:.1f}]", f"{found['rouge_l']:.2f}"):
            assert wanted in text
            seen += 1
    assert seen == 12
    for wanted in (
        "0.41",
        "[0.36, 0.46]",
        "0.62",
        "0.50",
        "91 of 100",
        "181 of 200",
        "0.37",
        "41,234",
        "18,766",
        "398",
    ):
        assert wanted in text
    specialist = report["systems"][2]
    assert f"{specialist['perplexity']['bits_per_byte']:.2f}" in text
    assert report["systems"][1]["text"]["repetition"] > 0.6
    assert "Goes round in circles" in text


def test_every_figure_has_its_bars_and_units(folder: Path, report: dict[str, Any]) -> None:
    page = page_of(folder)
    rows = [a for tag, a in page.tags if tag == "div" and str(a.get("class")).startswith("bar-row")]
    # chrF, ROUGE-L, memorised, copied, repetition of four systems; bits per byte of two; two languages; two forests of
    # three differences.
    assert len([a for a in rows if "bar-axis" not in str(a["class"])]) == 5 * 4 + 2 + 2 + 2 * 3
    for unit in ("chrF, 0 to 100 (n = 60)", "ROUGE-L, 0 to 1 (n = 60)", "less is better", "% of 8-word runs"):
        assert unit in page.text


def test_samples_show_gold_answers_sources_and_refusals(folder: Path, report: dict[str, Any]) -> None:
    page, rows = page_of(folder), report["samples"]["rows"]
    voices = [a for _, a in page.tags if str(a.get("class")).split()[:1] == ["voice"]]
    assert len(rows) == 12
    assert len(voices) == 12 * 5  # the gold text and four systems
    cited = sum(bool(answer["sources"]) for row in rows for answer in row["answers"])
    assert 0 < cited <= 12
    assert len([a for tag, a in page.tags if tag == "ol" and a.get("class") == "cited"]) == cited
    quote = next(answer["sources"][0]["quote"] for row in rows for answer in row["answers"] if answer["sources"])
    assert quote in page.text
    assert page.text.count("more characters") > 12  # contents of eleven sentences are folded


def test_a_long_text_is_folded_at_a_space_and_whole() -> None:
    text = " ".join(f"palavra{i}" for i in range(200))
    said = folded(text)
    assert f"{said.head} {said.rest}" == text
    assert len(said.head) <= 420
    assert folded("curto").rest == ""
    solid = folded("x" * 5_000)
    assert (len(solid.head), solid.num_more) == (420, 4_580)


def test_portuguese_page_is_portuguese(folder: Path, report: dict[str, Any]) -> None:
    text = page_of(folder, "pt").text
    for wanted in (
        "Respostas lado a lado",
        "Anda em círculos",
        "Fora do catálogo",
        "texto de referência",
        "Para qualidade",
    ):
        assert wanted in text
    for foreign in ("Goes round", "gold text", "side by side", "whole text:", "For quality"):
        assert foreign not in text.replace(report["method"], "").split("Como está em report.json")[0]


def test_what_models_say_is_shown_as_text(report: dict[str, Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    hostile = json.loads(json.dumps(report))
    for row in hostile["samples"]["rows"]:
        row["gold"] = row["id"] = attack
        row["inputs"] = {attack: attack}
        for answer in row["answers"]:
            answer |= {"output": attack * 40, "system": attack}
            answer["sources"] = [{"uid": attack, "title": attack, "quote": attack, "score": None}]
    hostile["catalogue"]["steps"][0]["name"] = hostile["retrieval"]["sets"][0]["name"] = attack
    hostile["catalogue"]["languages"] = {attack: 5}
    hostile["citations"]["system"] = attack
    write_json(tmp_path / "report.json", hostile)
    page = page_of(tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.open == []
    assert page.text.count(attack) > 500


def test_sections_and_measures_that_are_missing_leave_no_trace(report: dict[str, Any], tmp_path: Path) -> None:
    bare = {key: value for key, value in report.items() if key not in (*CATALOGUE, "samples", "pareto", "tests")}
    bare["tests"] = []
    bare["systems"] = [{"name": "s", "strategy": "finetuned", "text": {"chrf": 12.0}}]
    bare["recommendation"] = None
    write_json(tmp_path / "report.json", bare)
    page = page_of(tmp_path)
    assert set(page.ids()).isdisjoint(
        {"samples", "retrieval", "citations", "absent_products", "catalogue", "confusion"}
    )
    assert "12.0" in page.text
    assert not re.search(r"\b(nan|none|undefined)\b", page.text.lower().replace("none of", ""))


def test_the_screen(report: dict[str, Any]) -> None:
    lines = result_lines(report)
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for wanted in ("likeness to gold", "  chrF", "  ROUGE-L", "  bits per byte", "  memorised", "  unfinished"):
        assert wanted in text
    assert "retrieval, título -> trecho (398 questions): recall@1 0.41 [0.36, 0.46], recall@5 0.62" in text
    assert "sources of the answers: precision 0.91 [0.87, 0.91], recall 0.92" in text
    assert "absent ones refused 0.91" in text
    assert "For quality: specialist (chrF " in text
    assert "exact match" not in text
    many = {**report, "systems": report["systems"] + [{**report["systems"][0], "name": f"n{i}"} for i in range(3)]}
    lines = result_lines(many)
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("n2 ") for line in lines) == 3  # likeness, how it writes, cost


def test_shares_are_never_rounded_to_none_or_all() -> None:
    found = [whole_percent(v) for v in (0.0, 0.001, 0.005, 0.31, 0.994, 0.9951, 1.0)]
    assert found == ["0 %", "< 1 %", "< 1 %", "31 %", "99 %", "> 99 %", "100 %"]


def test_the_card_of_free_text(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    text = write_card(tmp_path / "copy", tmp_path / "copy" / "specialist").read_text(encoding="utf-8")
    assert "| system | chrF | ROUGE-L | copied | memorised | repetition | p50 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "not what is true" in text
    assert "labels of its schema" not in text
    assert "- chrf" in text.split("---")[1]


def test_rounds_judge_free_text_by_chrf(report: dict[str, Any]) -> None:
    found = report["systems"][0]["text"]
    assert _scores(report) == {"answer": {"metric": "chrf", "value": found["chrf"], "ci": found["chrf_ci"]}}
