"""What a comparison costs is told before it is asked, and the same question is paid once, whoever asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import POLARITY, news, recipe_text, write_csv
from faulty_server import Call, Says, answer, faulty_server

from afina import pipeline
from afina.core.predictor import Inputs
from afina.core.recipe_file import load_recipe
from afina.data.prepare import Prepared
from afina.runs import Run, open_recipe
from afina.strategies.build import Builder
from afina.teaching.bill import ModelBill, agree_to_bill, bill_lines, bills, paid_models, spent_usd
from afina.teaching.job import Request, label_file

PER_TOKEN_USD = 10 / 1e6
PRICES = {"as_of": "2026-11-01", "source": "a contract", "models": {"sabio-1": {"input": 10.0, "output": 10.0}}}


def small_recipe(folder: Path, url: str, **changes: Any) -> Path:
    write_csv(folder / "news.csv", news(60))
    (folder / "prices.yaml").write_text(yaml.safe_dump(PRICES), encoding="utf-8")
    model = {"provider": url, "model": "sabio-1", "prices": "prices.yaml", "concurrency": 2, "max_tokens": 60}
    strategies = {
        "zero": {"strategy": "zero-shot", "model": "grande"},
        "jury": {"strategy": "vote", "of": "zero", "n": 3, "temperature": 0.7},
        "debate": {"strategy": "negotiate", "generator": "grande", "discriminator": "grande", "rounds": 3},
        "cheap": {"strategy": "cascade", "first": "tfidf", "then": "zero", "max_share": 0.25},
    }
    text = recipe_text(
        **{"models": {"grande": model}, "strategies": strategies, "output_dir": str(folder / "run"), **changes}
    )
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def opened_run(path: Path) -> tuple[Run, Prepared, Builder]:
    opened = open_recipe(load_recipe(path))
    prepared = pipeline.prepare(opened, quiet=True)
    return opened, prepared, pipeline.strategy_builder(opened, prepared)


def bill_of(path: Path, *names: str) -> tuple[ModelBill, int]:
    """Of these systems on the test rows; and how many those are."""
    opened, prepared, builder = opened_run(path)
    inputs = [example.inputs for example in prepared.splits["test"]]
    validation = [example.inputs for example in prepared.splits["validation"]]
    asked = [(name, inputs) for name in names]
    found = bills(opened.recipe, opened.task, asked, validation, prepared.splits["train"], builder.predictor)
    assert len(found) == 1
    return found[0], len(inputs)


def labels(call: Call) -> Says:
    """Any label, at what its own words would cost."""
    told = [*(m["content"] for m in call.body["messages"]), json.dumps(call.body.get("response_format", ""))]
    prompt = sum(len(text.encode()) // 3 + 4 for text in told)
    said = json.dumps({"polaridade": POLARITY[len(call.text) % 3]})
    return answer(said, prompt=prompt, completion=12)


def test_what_was_paid_lies_within_what_was_told(tmp_path: Path) -> None:
    with faulty_server(labels) as server:
        path = small_recipe(tmp_path, server.url)
        told, num_rows = bill_of(path, "zero")
        opened, prepared, builder = opened_run(path)
        builder.predictor("zero").predict([e.inputs for e in prepared.splits["test"]])
        paid = builder.spent_usd
        assert len(server.calls) == told.requests == num_rows
    assert told.least_usd is not None
    assert told.most_usd is not None
    assert told.likely_usd is not None
    assert 0 < told.least_usd <= told.likely_usd <= told.most_usd
    assert told.least_usd <= paid <= told.most_usd
    assert told.likely_usd == pytest.approx(paid, rel=0.3)  # the server counts three bytes as a token
    assert spent_usd(opened) == pytest.approx(paid)


def test_how_often_each_kind_of_system_asks(tmp_path: Path) -> None:
    path = small_recipe(tmp_path, "http://127.0.0.1:1/v1")
    zero, num_rows = bill_of(path, "zero")
    assert bill_of(path, "jury")[0].requests == 3 * num_rows
    assert bill_of(path, "debate")[0].requests == 4 * num_rows  # two speakers, two turns each, of at most three
    cheap, _ = bill_of(path, "cheap")
    assert cheap.requests == round(num_rows / 4)
    assert cheap.least_usd == 0  # tfidf may be sure of all
    assert zero.most_usd is not None
    assert cheap.most_usd == pytest.approx(zero.most_usd)
    both, _ = bill_of(path, "zero", "jury")
    assert both.requests == 4 * num_rows


def test_a_cascade_that_wants_an_accuracy_asks_on_validation_too(tmp_path: Path) -> None:
    cascade = {"strategy": "cascade", "first": "tfidf", "then": "zero", "accuracy": 0.9}
    strategies = {"zero": {"strategy": "zero-shot", "model": "grande"}, "cheap": cascade}
    path = small_recipe(tmp_path, "http://127.0.0.1:1/v1", strategies=strategies)
    _, prepared, _ = opened_run(path)
    bill, num_rows = bill_of(path, "cheap")
    assert bill.requests == round(0.5 * num_rows + len(prepared.splits["validation"]))


def test_a_price_that_is_not_known_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    models = {"grande": {"provider": "openai", "model": "gpt-99"}}
    path = small_recipe(tmp_path, "", models=models)
    bill, _ = bill_of(path, "zero")
    assert (bill.least_usd, bill.likely_usd, bill.most_usd) == (None, None, None)
    assert "no price is known (models.grande.prices can name one)" in bill.line
    assert "$0" not in bill.line
    lines, likely = bill_lines([bill], None, 0.0)
    assert likely is None
    assert lines[-1] == "comparison.max_cost_usd sets no limit to what it costs"


def test_who_is_asked_to_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agreed: list[tuple[list[str], float | None]] = []

    def agree(lines: Sequence[str], usd: float | None) -> None:
        agreed.append((list(lines), usd))

    # 1. No limit: shown and asked.
    opened, prepared, _ = opened_run(small_recipe(tmp_path, "http://127.0.0.1:1/v1", compare=["zero", "jury"]))
    agree_to_bill(opened, prepared, agree)
    (lines, usd), *more = agreed
    assert not more
    assert lines[0].startswith("grande (sabio-1 at http://127.0.0.1:1/v1): about ")
    assert "prices: a contract, 2026-11-01" in lines
    assert usd is not None
    assert usd > 0
    # 2. A limit: shown, and nobody has to agree.
    for folder, limit in (("cap", 5.0), ("low", 0.001)):
        (tmp_path / folder).mkdir()
        comparison = {"max_cost_usd": limit}
        path = small_recipe(tmp_path / folder, "http://127.0.0.1:1/v1", compare=["zero"], comparison=comparison)
        opened, prepared, _ = opened_run(path)
        capsys.readouterr()
        agree_to_bill(opened, prepared, agree)
        said = capsys.readouterr().err
        assert "grande (sabio-1" in said
        assert ("may reach comparison.max_cost_usd 0.001" in said) == (folder == "low")
    # 3. Models of this machine: silent.
    (tmp_path / "free").mkdir()
    models = {"grande": {"provider": "http://127.0.0.1:1/v1", "model": "mine"}}
    opened, prepared, _ = opened_run(small_recipe(tmp_path / "free", "", models=models, compare=["zero", "majority"]))
    assert paid_models(opened.recipe, ["zero", "majority"]) == []
    agree_to_bill(opened, prepared, agree)
    assert len(agreed) == 1
    assert not capsys.readouterr().err


def test_what_label_paid_for_is_not_paid_again(tmp_path: Path) -> None:
    """By another `label`, by `distill`, by `compare`: one file of answers in the recipe's run folder."""
    with faulty_server(labels) as server:
        path = small_recipe(tmp_path, server.url)
        request = Request(tmp_path / "news.csv", "zero", tmp_path / "labels.jsonl", path, keep_wrong=True)
        label_file(request, lambda lines, usd: None)
        num_paid = len(server.calls)
        assert num_paid > 20
        assert (tmp_path / "run/answers.sqlite").exists()
        assert not list(tmp_path.glob("*.sqlite"))
        again = Request(tmp_path / "news.csv", "zero", tmp_path / "other.jsonl", path, keep_wrong=True)
        report = label_file(again, lambda lines, usd: None)
        assert len(server.calls) == num_paid
        assert report.counts["spent_usd"] == 0
        # The run folder holds nothing but paid answers, and is the recipe's to use.
        opened, prepared, builder = opened_run(path)
        train: list[Inputs] = [example.inputs for example in prepared.splits["train"]]
        builder.predictor("zero").predict(train)
        assert len(server.calls) == num_paid
        builder.predictor("zero").predict([e.inputs for e in prepared.splits["test"]])
        assert len(server.calls) > num_paid  # near to test rows, and so not labelled
    assert spent_usd(opened) > 0
