"""Asking a provider that fails in every way: nothing paid twice, the cap kept, one clear line each, the key nowhere."""

from __future__ import annotations

import email.utils
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Call, FaultyServer, Says, answer, bill_anything, echo, error, faulty_server
from hosted_material import completion, scripted

from afina.core.errors import AfinaError, MachineError
from afina.providers import pacing
from afina.providers.asking import Asker
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import Answer, AnswerCache
from afina.providers.client import ProviderError, UnreachableError, connect, find_provider
from afina.providers.prices import Price

KEY = "sk-proj-a1b2c3d4e5f6-nobody"
GROQ_LIKE = "gsk_A1b2C3d4E5f6G7h8"  # no pattern of OpenAI's
PRICE = Price("m", "a test", "today", input=1000.0, output=1000.0)  # $0.001 a token


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("AFINA_API_KEY", KEY)


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_completion_tokens": 50, **more}


def asker(
    url: str, folder: Path, *, cap: float | None = None, price: Price | None = None, timeout_s: float = 20, **more: Any
) -> Asker:
    cache = AnswerCache(folder / "answers.sqlite")
    connection = connect(find_provider(url), timeout_s=timeout_s)
    return Asker(connection, cache, price, Budget(cap, cache.spent_usd), **{"batch": False, "num_threads": 4, **more})


# -- failures that pass ---------------------------------------------------------------------------------

PASSING = {
    "429 with seconds": [error(429, "slow", headers={"Retry-After": "0.2"}), answer("x")],
    "429 with a date": [error(429, "slow", headers={"Retry-After": "date"}), answer("x")],  # of two seconds later
    "429 without a word": [error(429, "slow"), error(429, "slow"), answer("x")],
    "500 twice": [error(500, "oops"), error(503, "later"), answer("x")],
    "a web page of a proxy": [Says(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}), answer("x")],
    "hangs once": [answer("never", delay_s=1.5), answer("x")],
    "cut in the middle": [answer("x", cut_after=40), answer("x")],
    "hangs up at once": [answer("x", cut_after=0), answer("x")],
    "an empty body": [Says(200, b""), answer("x")],
    "half a JSON": [Says(200, b'{"choices": [{"mess'), answer("x")],
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_is_waited_out(name: str, tmp_path: Path) -> None:
    says = list(PASSING[name])

    def say(call: Call) -> Says:
        found = says.pop(0)
        if found.headers.get("Retry-After") == "date":
            found = replace(found, headers={"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)})
        return found

    with faulty_server(say) as served:
        asked = asker(served.url, tmp_path, timeout_s=0.5)
        assert [found.content for found in asked.ask([body("a")], None)] == ["x"]
        assert served.count("a") == len(PASSING[name])
        assert [found.content for found in asker(served.url, tmp_path).ask([body("a")], None)] == ["x"]
        assert served.count("a") == len(PASSING[name])
        waited = served.calls[-1].began - served.calls[0].began
    if "seconds" in name:
        assert 0.2 <= waited < 2
    if "date" in name:
        assert 0.9 <= waited < 4  # dates have whole seconds


def test_all_workers_keep_the_pause_that_one_was_asked_for(tmp_path: Path) -> None:
    refused_at: list[float] = []

    def say(call: Call) -> Says:
        if call.text == "first" and not refused_at:
            refused_at.append(call.began)
            return error(429, "slow", headers={"Retry-After": "1"})
        return answer("x", delay_s=0.05)

    said: list[str] = []
    with faulty_server(say) as served:
        asked = asker(served.url, tmp_path, num_threads=2, tell=said.append)
        asked.ask([body("first"), *(body(f"t{i}") for i in range(10))], None)
        between = [call for call in served.calls if refused_at[0] + 0.2 < call.began < refused_at[0] + 0.95]
        assert len(served.calls) == 12
    assert between == []


# -- failures that last ---------------------------------------------------------------------------------

LASTING: dict[str, tuple[Says, str]] = {
    "wrong key": (error(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key"), "key in AFINA_API_KEY was"),
    "unknown model": (error(404, "The model `m` does not exist.", "model_not_found"), "The model `m` does not exist"),
    "unknown model, 400": (error(400, "No model m.", "model_not_found"), "No model m."),
    "no money": (error(429, "You exceeded your quota.", "insufficient_quota"), "no money is left there"),
    "a clock of 429s": (error(429, "Rate limit."), "too many requests, also after pauses: Rate limit. Wait;"),
    "429 for an hour": (error(429, "Rate limit.", headers={"Retry-After": "3600"}), "asks to wait 1 h 0 min; at most"),
    "500 for ever": (error(500, "Oops."), "failed while asking the model (500): Oops."),
    "a web page": (Says(200, b"<!doctype html><p>Hello", {"Content-Type": "text/html"}), "but a web page. Is http://"),
    "empty for ever": (Says(200, b""), "but 0 bytes that are no JSON"),
    "half a JSON for ever": (Says(200, b'{"choices": ['), "but 13 bytes that are no JSON"),
    "cut for ever": (answer("x", cut_after=30), "cannot be reached while asking the model"),
    "hangs for ever": (answer("x", delay_s=0.8), "cannot be reached while asking the model (no answer in time)"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_failure_that_lasts_is_one_clear_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    says, words = LASTING[name]

    def say(call: Call) -> Says:
        return answer("X") if call.text == "good" else says

    with faulty_server(say) as served:
        asked = asker(served.url, tmp_path, num_threads=1, patience_s=0.3, timeout_s=0.3, tell=print)
        asked.ask([body("good")], None)
        time.sleep(0.01)
        with pytest.raises(AfinaError) as caught, caplog.at_level("DEBUG"):
            asked.ask([body("bad")], None)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ProviderError)
        # What was paid is kept, and the same command goes on.
        assert [found.content for found in asker(served.url, tmp_path).ask([body("good")], None)] == ["X"]
        assert served.count("good") == 1
    out, err = capfd.readouterr()
    everything = out + err + str(caught.value) + "".join(path.read_text("latin-1") for path in tmp_path.iterdir())
    assert len(everything) > 1000
    assert KEY not in everything
    # The SDK's own log, if someone switches it on, is not ours; what it says of errors must not hold the key either.
    assert KEY not in caplog.text


def test_no_server_is_one_clear_line(tmp_path: Path) -> None:
    with faulty_server(echo) as served:
        url = served.url
    with pytest.raises(UnreachableError, match="cannot be reached while asking the model") as caught:
        asker(url, tmp_path, price=PRICE, cap=1.0).ask([body("a")], None)
    assert not caught.value.maybe_paid
    assert AnswerCache(tmp_path / "answers.sqlite").spent_usd == 0


def test_one_request_that_a_provider_fails_at_does_not_stop_the_others(tmp_path: Path) -> None:
    def say(call: Call) -> Says:
        return error(500, "This one kills me.") if call.text == "poison" else answer("x", delay_s=0.02)

    with faulty_server(say) as served:
        texts = ["poison", *(f"t{i}" for i in range(40))]
        found = asker(served.url, tmp_path).ask([body(text) for text in texts], None)
        assert served.count("poison") == 1 + pacing.NUM_RETRIES
    assert "This one kills me" in (found[0].error or "")
    assert [one.content for one in found[1:]] == ["x"] * 40


def test_refused_requests_are_errors_of_their_own(tmp_path: Path) -> None:
    def say(call: Call) -> Says:
        if call.text == "long":
            return error(400, "This model's maximum context length is 10 tokens.", "context_length_exceeded")
        if call.text == "wide":
            return error(429, "Request too large for m on tokens per min (TPM): Limit 6000.", "rate_limit_exceeded")
        return echo(call)

    with faulty_server(say) as served:
        found = asker(served.url, tmp_path).ask([body(text) for text in ("long", "wide", "good", "\ud800")], None)
        assert served.counts() == {"long": 1, "wide": 1, "good": 1}
    assert [one.content for one in found] == [None, None, "GOOD", None]
    assert "maximum context length" in (found[0].error or "")
    assert "no text" in (found[3].error or "")


@pytest.mark.parametrize("key", [KEY, GROQ_LIKE])
def test_the_key_is_nowhere_even_if_the_server_repeats_it(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFINA_API_KEY", key)

    def say(call: Call) -> Says:
        seen = call.headers["authorization"].removeprefix("Bearer ")
        assert seen == key
        return {
            "answer": answer(f"You are {seen}."),
            "refusal": answer(None, refusal=f"Not for {seen}."),
            "400": error(400, f"Bad, {seen}!"),
            "401": error(401, f"Who is {seen}?"),
            "200": Says(200, json.dumps({"error": {"message": f"No, {seen}."}}).encode()),
            "text": Says(500, f"Bearer {seen} broke me".encode(), {"Content-Type": "text/plain"}),
        }[call.text]

    lines: list[str] = []
    with faulty_server(say) as served:
        asked = asker(served.url, tmp_path, tell=lines.append, price=PRICE)
        found = asked.ask([body(text) for text in ("answer", "refusal", "400", "200")], "asking")
        lines += [str(one) for one in found]
        for text in ("401", "text"):
            with pytest.raises(ProviderError) as caught:
                asked.ask([body(text)], "asking")
            lines.append(str(caught.value))
    out, err = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"You are" in files
    assert key.encode() not in files
    assert key not in out + err + "".join(lines)
    assert sum("…" in line for line in lines) >= 5


def test_a_full_disk_stops_the_work_and_what_was_paid_still_counts(tmp_path: Path) -> None:
    with faulty_server(echo) as served:
        asked = asker(served.url, tmp_path, price=PRICE)
        asked.cache._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(MachineError, match="disk is full"):
            asked.ask([body(f"{i}" * 20_000) for i in range(8)], None)
        assert 1 <= len(served.calls) <= 4  # those that were under way
        assert 0 < asked.budget.spent_usd <= asked.cache.spent_usd  # lost answers cost the most there


# -- money ----------------------------------------------------------------------------------------------


def billed_usd(served: FaultyServer) -> float:
    return sum((prompt + completion) * 0.001 for prompt, completion in served.billed)


@pytest.mark.parametrize("seed", range(3))
def test_the_cap_is_kept_to_the_cent_by_32_workers(seed: int, tmp_path: Path) -> None:
    """The server bills the most that a prompt can have, and answers of up to the limit."""
    texts = [f"question {i} " + "ç" * (i % 40) for i in range(300)]
    with faulty_server(bill_anything(seed, delay_s=0.06)) as served:
        asked = asker(served.url, tmp_path, cap=5.0, price=PRICE, num_threads=32)
        with pytest.raises(BudgetError, match="max_cost_usd 5"):
            asked.ask([body(text) for text in texts], None)
        most = asked._most_usd([body(texts[39])])
        assert 5.0 - most - 0.2 < billed_usd(served) <= 5.0
        assert served.most_under_way > 8
        # Every paid answer is kept; the same command with more money goes on behind it.
        assert asked.cache.spent_usd == pytest.approx(billed_usd(served))
        assert asked.budget.spent_usd == pytest.approx(billed_usd(served))
        paid = len(served.calls)
        with pytest.raises(BudgetError):
            asker(served.url, tmp_path, cap=5.0, price=PRICE, num_threads=32).ask([body(text) for text in texts], None)
        assert billed_usd(served) <= 5.0
        again = asker(served.url, tmp_path, cap=1000.0, price=PRICE, num_threads=32)
        found = again.ask([body(text) for text in texts], None)
        assert [one.content for one in found] == [text.upper() for text in texts]
        assert set(served.counts().values()) == {1}
        assert len(served.calls) == 300 > paid


def test_a_lost_answer_counts_as_paid_also_after_a_restart(tmp_path: Path) -> None:
    with faulty_server([answer("x", cut_after=20), answer("x")]) as served:
        asked = asker(served.url, tmp_path, price=PRICE, cap=10.0)
        asked.ask([body("a")], None)
        most = asked._most_usd([body("a")])
        assert asked.cache.lost_usd == pytest.approx(most)
        assert asked.budget.spent_usd == pytest.approx(most + 0.015)
        assert asker(served.url, tmp_path, price=PRICE).budget.spent_usd == pytest.approx(most + 0.015)


def test_what_is_refused_costs_nothing(tmp_path: Path) -> None:
    says = [error(429, "slow"), error(500, "oops"), error(400, "no")]
    with faulty_server(says) as served:
        asked = asker(served.url, tmp_path, price=PRICE, cap=1.0)
        assert asked.ask([body("a")], None)[0].error is not None
        assert served.count("a") == 3
    assert (asked.budget.spent_usd, asked.budget.reserved_usd, asked.cache.spent_usd) == (0, 0, 0)


def test_an_answer_that_does_not_say_its_length_costs_the_most(tmp_path: Path) -> None:
    with faulty_server(answer("x", usage=None)) as served:
        asked = asker(served.url, tmp_path, price=PRICE)
        found = asked.ask([body("a")], None)
        assert found[0].cost_usd == pytest.approx(asked._most_usd([body("a")]))
        assert asked.cache.spent_usd == pytest.approx(found[0].cost_usd or 0)


def test_money_that_is_set_aside_is_waited_for() -> None:
    """Two that cannot both be set aside, but both be paid."""
    budget = Budget(1.0)
    budget.reserve(0.9, "a")
    threading.Timer(0.1, lambda: budget.settle(0.9, 0.1)).start()
    budget.reserve(0.9, "b", lambda: True)
    assert (budget.spent_usd, budget.reserved_usd) == (pytest.approx(0.1), pytest.approx(0.9))
    with pytest.raises(BudgetError):
        budget.reserve(0.9, "c", lambda: False)


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    texts = [f"t{i % 30}" for i in range(50)]
    with faulty_server(bill_anything(7)) as served:
        first = asker(served.url, tmp_path, price=PRICE).ask([body(text) for text in texts], None)
        assert len(served.calls) == 30
        again = asker(served.url, tmp_path, price=PRICE).ask([body(text) for text in texts], None)
        assert len(served.calls) == 30
    assert again == first
    assert len(first) == 50


def test_a_batch_is_paid_once_over_restarts(tmp_path: Path) -> None:
    """Stopped while it is under way, and asked for again beside other requests: the same batch, its cost settled."""
    texts = ["a", "b", "c"]
    batch: dict[str, Any] = {
        "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-1",
        "created_at": 1, "completion_window": "24h", "status": "completed", "output_file_id": "file-2", "metadata": {},
        "request_counts": {"total": 3, "completed": 3, "failed": 0},
    }  # fmt: skip
    file = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch",
            "status": "processed"}  # fmt: skip
    empty = (200, {"object": "list", "data": [], "has_more": False})
    script: dict[str, Any] = {
        "GET /v1/files": empty, "POST /v1/files": (200, file), "GET /v1/batches": empty,
        "POST /v1/batches": (200, batch), "GET /v1/batches/batch_1": (404, {"error": {"message": "gone"}}),
        "POST /v1/chat/completions": completion("D"),
    }  # fmt: skip
    with scripted(script) as told:
        first = asker(told.url, tmp_path, price=PRICE, batch=True, pause_s=0.01)
        most = first._most_usd([body(text) for text in texts], batch=True)
        with pytest.raises(ProviderError, match="gone"):
            first.ask([body(text) for text in texts], None)
        assert first.budget.spent_usd == first.cache.lost_usd == pytest.approx(most)
        keys = [first._key(body(text)) for text in texts]
        rows = [
            {"custom_id": key, "response": {"status_code": 200, "body": completion(text.upper())[1]}}
            for key, text in zip(keys, texts, strict=True)
        ]
        told.answers["GET /v1/files/file-2/content"] = (200, "\n".join(json.dumps(row) for row in rows).encode())
        told.answers["GET /v1/batches/batch_1"] = (200, batch)
        again = asker(told.url, tmp_path, price=PRICE, batch=True, pause_s=0.01, cap=most + 1.0)
        found = again.ask([body(text) for text in ("c", "a")], None)
        assert [one.content for one in found] == ["C", "A"]
        # "b" was in the batch as well, and is here.
        assert [one.content for one in again.ask([body(text) for text in "abcd"], None)] == ["A", "B", "C", "D"]
        assert told.count("POST /v1/batches") == 1
    assert again.cache.lost_usd == 0
    assert again.budget.spent_usd == pytest.approx(4 * 0.015)
    assert again.cache.spent_usd == pytest.approx(4 * 0.015)


def test_two_processes_that_ask_the_same_have_both_paid(tmp_path: Path) -> None:
    one, other = (AnswerCache(tmp_path / "answers.sqlite") for _ in range(2))
    one.put("k", Answer("first", cost_usd=0.25))
    other.put("k", Answer("second", cost_usd=0.5))
    assert one.get(["k"])["k"].content == "first"
    assert one.spent_usd == pytest.approx(0.75)


# -- kill -9 ----------------------------------------------------------------------------------------------


class Killable:
    """Starts processes that ask, kills them, and reads what they ended with."""

    def __init__(self) -> None:
        source = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{source.parent / 'src'}{os.pathsep}{source}"}
        self.zygote = subprocess.Popen(
            [sys.executable, str(source / "asking_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.zygote.stdout is not None
        return self.zygote.stdout.readline().strip()

    def start(self, **job: Any) -> int:
        assert self.zygote.stdin is not None
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        return int(self._line())


@pytest.fixture(scope="module")
def killable() -> Iterator[Killable]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_API_KEY", KEY)
        found = Killable()
    yield found
    found.zygote.kill()
    found.zygote.wait(10)


def kept_in(path: Path) -> int:
    """Answers that are on the disk."""
    return len(AnswerCache(path)._database.execute("SELECT key FROM answers").fetchall()) if path.exists() else 0


def texts_kept(path: Path, url: str, texts: Sequence[str]) -> set[str]:
    cache = AnswerCache(path)
    from afina.providers.cache import request_key

    keys = {request_key(url, body(text)): text for text in texts}
    return {keys[key] for key in cache.get(keys)}


def kill_at_random(served: FaultyServer, killable: Killable, chance: random.Random, job: dict[str, Any]) -> int:
    """One life: begun, killed at a random moment. Returns how it ended."""
    with served.lock:
        served.life += 1
        wanted = len(served.calls) + chance.randint(0, 3)
    number = killable.start(**job)
    deadline = time.monotonic() + 10
    while len(served.calls) < wanted and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.008))
    os.kill(number, signal.SIGKILL)
    end = killable.end()
    time.sleep(0.005)  # what it had sent is still to be read
    while served.under_way and time.monotonic() < deadline:
        time.sleep(0.001)
    return end


@pytest.mark.slow
def test_no_call_is_repeated_after_a_kill_at_50_random_moments(tmp_path: Path, killable: Killable) -> None:
    """Counted by the server. Repeated is only what was in flight at a kill: its answer had not come to be kept."""
    chance = random.Random(5)
    texts = [f"question {i}" for i in range(200)]
    path, num_threads = tmp_path / "answers.sqlite", 2

    def say(call: Call) -> Says:
        return answer(call.text.upper(), delay_s=0.006)

    kept_at: list[set[str]] = []
    with faulty_server(say) as served:
        job = {"url": served.url, "cache": str(path), "texts": texts, "num_threads": num_threads}
        job |= {"price": None, "cap_usd": None}
        ends = []
        while len(kept_at) < 50:
            ends.append(kill_at_random(served, killable, chance, job))
            kept_at.append(texts_kept(path, served.url, texts))
        last_life = served.life = served.life + 1
        killable.start(**job)
        assert killable.end() == 0
        calls = list(served.calls)
    assert ends == [-signal.SIGKILL] * 50
    assert texts_kept(path, served.url, texts) == set(texts)
    # 1. What was kept at a kill was never asked again.
    repeated = 0
    for life, kept in enumerate(kept_at, 1):
        later = {call.text for call in calls if call.life > life}
        assert not kept & later
        # 2. What was begun and not kept was in flight: as many as work at once, no more.
        lost = {call.text for call in calls if call.life == life} - kept
        assert len(lost) <= num_threads
        repeated += len(lost)
    # 3. Nothing was asked but each question once, and again what was in flight at a kill.
    assert len(calls) == 200 + repeated
    assert {call.text for call in calls} == set(texts)
    assert 10 <= repeated <= 50 * num_threads  # the kills did hit work
    assert len({call.life for call in calls}) > 30
    assert last_life == 51


@pytest.mark.slow
def test_the_cap_holds_over_kills(tmp_path: Path, killable: Killable) -> None:
    """What was in flight at a kill is billed, and its answer lost: it counts as spent for whoever goes on."""
    chance = random.Random(3)
    texts = [f"question {i}" for i in range(400)]
    path = tmp_path / "answers.sqlite"
    with faulty_server(bill_anything(1, delay_s=0.008)) as served:
        job = {"url": served.url, "cache": str(path), "texts": texts, "num_threads": 8}
        job |= {"price": 1000.0, "cap_usd": 20.0}
        ends = [kill_at_random(served, killable, chance, job) for _ in range(12)]
        assert ends.count(-signal.SIGKILL) == 12
        killable.start(**job)
        assert killable.end() == 3  # no money
        lost_usd = AnswerCache(path).lost_usd
        assert 10.0 < billed_usd(served) <= 20.0
        assert lost_usd > 0
        assert billed_usd(served) <= AnswerCache(path).spent_usd <= 20.0
        job["cap_usd"] = None
        killable.start(**job)
        assert killable.end() == 0
