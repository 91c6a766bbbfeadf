"""Prices, token counts, caps and last days: dated data, read as published, replaced where the user says so."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import pytest
from command_line import afina
from hosted_material import hosted_recipe

from afina.core.chat import Conversation, Message
from afina.core.errors import RecipeError
from afina.providers.budget import Budget, BudgetError
from afina.providers.client import find_provider
from afina.providers.names import base_of
from afina.providers.prices import FREE, dollars, load_prices
from afina.providers.tokens import count_examples, estimate
from afina.providers.winddown import jobs_end, last_day
from afina.training.hosted import auto_epochs, find_price

FINE_TUNE = "ft:gpt-4o-mini-2024-07-18:me::BTz2REMH"
TODAY = datetime.date(2026, 11, 22)


def test_published_prices() -> None:
    table = load_prices()
    assert len(table.prices) == 6
    price = table.find("gpt-4o-mini-2024-07-18")
    assert price is not None
    assert (price.training, price.input, price.cached_input, price.output) == (3.0, 0.3, 0.15, 1.2)
    assert table.find("gpt-4o-mini") == table.find(FINE_TUNE) == price
    assert price.source.startswith("https://")
    assert price.as_of == "2026-05-07"
    nano = table.find("gpt-4.1-nano-2025-04-14")
    assert nano is not None
    assert (nano.training, nano.batch_input, nano.batch_cached_input, nano.batch_output) == (1.5, 0.1, 0.025, 0.4)
    o4 = table.find("o4-mini")
    assert o4 is not None
    assert o4.training is None
    assert table.find("gpt-9") is None


def test_costs() -> None:
    price = load_prices().find(FINE_TUNE)
    assert price is not None
    assert price.training_usd(1_000_000, 3) == pytest.approx(9.0)
    assert price.answers_usd(1_000_000, 1_000_000) == pytest.approx(1.5)
    assert price.answers_usd(1_000_000, 0, 500_000) == pytest.approx(0.15 + 0.075)
    assert price.answers_usd(1_000_000, 1_000_000, batch=True) == pytest.approx(0.75)
    assert FREE.answers_usd(10, 10) == 0


def test_own_prices_replace_and_extend(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(
        "as_of: 2026-11-01\nsource: my bill\n"
        "models: {gpt-4o-mini-2024-07-18: {training: 4}, mine: {input: 1, output: 2}}"
    )
    table = load_prices(own)
    mini = table.find(FINE_TUNE)
    assert mini is not None
    assert (mini.training, mini.input, mini.source) == (4.0, None, "my bill")
    assert table.find("mine") is not None
    assert table.find("gpt-4o-2024-08-06") is not None
    assert load_prices(own, packaged=False).find("gpt-4o-2024-08-06") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [", "is no valid YAML"),
        ("prices: {}", "expected `models:`"),
        ("models: {a: {input: 1}}\nmodel: 1", "unknown key model"),
        ("models: {a: {inputs: 1}}", "unknown key models.a.inputs"),
        ("models: {a: {input: -1}}", "models.a.input is -1"),
        ("models: {a: {input: .nan}}", "models.a.input is nan"),
        ("models: {a: {input: yes}}", "models.a.input is True"),
        ("models: {a: 3}", "models.a is 3"),
    ],
)
def test_bad_prices(text: str, words: str, tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_prices(own)
    assert words in str(caught.value)


def test_whose_prices_count(tmp_path: Path) -> None:
    """OpenAI's prices are OpenAI's alone; this machine is free; elsewhere nothing is known."""
    openai, here, there = (
        find_provider(name) for name in ("openai", "http://127.0.0.1:8000", "https://example.org/v1")
    )
    model = "gpt-4o-mini-2024-07-18"
    assert find_price(openai, model, None) == load_prices().find(model)
    assert find_price(here, model, None) is FREE
    assert find_price(there, model, None) is None
    own = tmp_path / "prices.yaml"
    own.write_text(f"models: {{{model}: {{training: 1}}}}")
    found = find_price(there, model, own)
    assert found is not None
    assert found.training == 1.0


def test_amounts_are_never_rounded_to_nothing() -> None:
    assert [dollars(0), dollars(0.001), dollars(0.01), dollars(1234.5)] == [
        "$0", "less than $0.01", "$0.01", "$1,234.50",
    ]  # fmt: skip


# -- tokens -----------------------------------------------------------------------------------------


def test_estimate_is_linear_and_says_what_it_is() -> None:
    assert estimate("") == 0
    assert estimate("Tudo bem?") == 3
    assert estimate("a " * 1000) == 1000
    talk = Conversation((Message("user", "Tudo bem?"), Message("assistant", "Tudo.")))
    count = count_examples([talk, talk])
    assert count.tokens == 2 * count.longest
    assert count.longest == 3 + (4 + 3) + (4 + 2)
    assert count.exact or "estimate" in count.words


def test_auto_epochs_by_the_published_rule() -> None:
    assert [auto_epochs(n) for n in (10, 33, 34, 1000, 8333, 8334, 20_000, 100_000)] == [10, 3, 3, 3, 3, 2, 1, 1]
    assert auto_epochs(1) == 25


# -- the price of a recipe, before anything is sent -----------------------------------------------------


def test_plan_prices_a_hosted_recipe_without_key_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    recipe = hosted_recipe(tmp_path, "openai", train__hyperparameters={"n_epochs": 2})
    outcome = afina("plan", recipe)
    assert outcome.code == 0, outcome.err
    assert "× 2 epochs = " in outcome.out
    assert "$3 per million tokens (https://developers.openai.com" in outcome.out
    assert not (tmp_path / "run").exists()


def test_above_the_cap_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket guard of the tests would turn a request into an error of another kind."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-of-nobody")
    recipe = hosted_recipe(tmp_path, "openai", train__max_cost_usd=0.0001)
    outcome = afina("train", recipe, "--yes")
    assert outcome.code == 2
    assert "max_cost_usd 0.0001" in outcome.err.splitlines()[-1]
    assert "sk-test-of-nobody" not in outcome.err + outcome.out


def test_without_agreement_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-of-nobody")
    outcome = afina("train", hosted_recipe(tmp_path, "openai"))
    assert outcome.code == 2
    assert "Pass --yes to agree" in outcome.err.splitlines()[-1]


def test_a_cap_that_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-of-nobody")
    recipe = hosted_recipe(tmp_path, "https://example.org/v1", train__max_cost_usd=5)
    outcome = afina("train", recipe, "--yes")
    assert outcome.code == 2
    assert "the cap cannot be kept" in outcome.err.splitlines()[-1]


# -- caps -------------------------------------------------------------------------------------------


def test_budget_reserves_before_it_spends() -> None:
    budget = Budget(1.0, spent_usd=0.3)
    budget.reserve(0.5, "a")
    with pytest.raises(BudgetError, match=r"b may cost \$0.30; with \$0.80 spent or set aside"):
        budget.reserve(0.3, "b")
    budget.settle(0.5, 0.1)
    budget.reserve(0.3, "b")
    assert budget.spent_usd == pytest.approx(0.4)


def test_budget_holds_among_threads() -> None:
    budget = Budget(1.0)
    granted: list[int] = []

    def spend() -> None:
        for _ in range(100):
            try:
                budget.reserve(0.01, "x")
            except BudgetError:
                continue
            granted.append(1)
            budget.settle(0.01, 0.01)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 99 <= len(granted) <= 100  # sums of hundredths


# -- last days --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "date"),
    [
        (FINE_TUNE, "2027-01-14"),
        ("ft:gpt-4.1-2025-04-14:me:x:abc:ckpt-step-90", "2027-01-14"),
        ("ft:gpt-4.1-nano-2025-04-14:openai::BTz2REMH", "2026-10-23"),
        ("ft:gpt-3.5-turbo-0125:me::abc", "2026-10-23"),
        ("ft:gpt-4-0613:me::abc", "2026-10-23"),
        ("ft:davinci-002:me::abc", "2026-10-23"),
        ("gpt-4o-mini", "2027-01-14"),
        ("ft:gpt-9:me::abc", None),
        ("gpt-4o-2030-01-01", None),
    ],
)
def test_last_day(model: str, date: str | None) -> None:
    found = last_day(model)
    assert (found.date.isoformat() if found else None) == date


def test_the_providers_own_date_wins() -> None:
    found = last_day(FINE_TUNE, "2026-12-31")
    assert found is not None
    assert (found.date.isoformat(), found.days_left(TODAY)) == ("2026-12-31", 39)
    assert last_day(FINE_TUNE, "soon") == last_day(FINE_TUNE)


def test_end_of_jobs() -> None:
    assert "until 2027-01-06 (45 days left)" in jobs_end(TODAY)
    assert "no new fine-tuning jobs since 2027-01-06" in jobs_end(datetime.date(2027, 1, 6))


def test_names() -> None:
    assert base_of(FINE_TUNE) == "gpt-4o-mini-2024-07-18"
    assert base_of("gpt-4.1") == "gpt-4.1-2025-04-14"
    assert base_of("afina/nano") == "afina/nano"
