"""Training at a provider: the words, the money, the ledger, the errors; and the whole of it against `afina serve`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import ASSETS, Outcome, afina, news, recipe_text, write_csv
from hosted_material import completion, error, hosted_recipe, scripted

from afina.core.errors import DataError, RecipeError
from afina.core.predictor import Example
from afina.core.recipe_file import load_recipe
from afina.core.task_config import load_task
from afina.providers import jobs, wording
from afina.providers.asking import Asker
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import AnswerCache
from afina.providers.client import Connection, ProviderError, connect, find_provider
from afina.providers.prices import Price
from afina.training import hosted

AT_OPENAI = {"provider": "openai", "base_model": "gpt-4o-mini"}
PRICE = Price("m", "a test", "today", training=1.0, input=1000.0, output=1000.0)  # $0.001 a token


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AFINA_API_KEY", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def url(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The real server's address, its key in the environment."""
    monkeypatch.setenv("AFINA_API_KEY", server.key)
    return f"{server.url}/v1"


def to(url: str, monkeypatch: pytest.MonkeyPatch, key: str = "sk-test-key-of-nobody") -> Connection:
    monkeypatch.setenv("AFINA_API_KEY", key)
    return connect(find_provider(url))


# -- the words ----------------------------------------------------------------------------------------


def test_messages_say_what_the_renderer_says() -> None:
    """System and user, joined, are the prompt of a local specialist; the answer is its answer."""
    from afina.engine.codec import Codec
    from afina.engine.loader import load_tokenizer
    from afina.engine.renderer import Renderer

    recipe = load_recipe(ASSETS / "noticias" / "recipe.yaml")
    task = load_task(recipe.task)
    renderer = Renderer(task, Codec(load_tokenizer("afina/nano")), "completion")
    inputs = {"f1": "A inflação caiu.", "f2": "O dólar subiu.", "f3": "Chove."}
    label = {"polaridade": "positivo", "emocao": "alegria"}
    example = Example("1", inputs, {"f1": label, "f2": label, "f3": label})
    assert len(task.parts) == 3
    for part in task.parts:
        messages = wording.question(task, part, inputs)
        assert [m["role"] for m in messages] == ["system", "user"]
        assert "\n\n".join(m["content"] for m in messages) == renderer.question(part, part.shown(inputs))
        assert wording.answer_text(task, part, example) == renderer.answer_text(part, example)
    assert len(wording.training_lines(task, [example])) == 3


def test_strict_schema_and_its_answers() -> None:
    recipe = load_recipe_of(output={"nota": "int(0..10)", "motivo?": "text(50)"})
    task = load_task(recipe.task)
    shape = wording.response_format(task, task.parts[0])
    assert shape is not None
    schema = shape["json_schema"]["schema"]
    assert schema["required"] == ["nota", "motivo"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["nota"] == {"type": "integer", "enum": list(range(11))}
    assert schema["properties"]["motivo"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert wording.parse_answer(task, task.parts[0], '{"nota": 7, "motivo": null}') == {"nota": 7}
    for text, words in (
        ("oi", "no JSON"),
        ('{"nota": 11}', "does not fit"),
        ('{"nota": NaN}', "no JSON"),
        ("", "no JSON"),
    ):
        with pytest.raises(DataError, match=words):
            wording.parse_answer(task, task.parts[0], text)


def load_recipe_of(**task: Any) -> Any:
    import yaml

    from afina.core.recipe_file import make_recipe

    raw = yaml.safe_load(recipe_text())
    raw["task"] |= task
    return make_recipe(raw)


# -- the recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"provider": "openia"}, "expected openai, azure, or an address"),
        ({"provider": "openai"}, "base_model must name a model of its"),
        ({**AT_OPENAI, "lora_r": 8}, "so lora_r has no effect"),
        ({**AT_OPENAI, "num_train_epochs": 1}, "Write train.hyperparameters.n_epochs"),
        ({"suffix": "a"}, "no provider is named"),
        ({"max_cost_usd": 1}, "no provider is named"),
        ({"hyperparameters": {"n_epochs": 2}}, "no provider is named"),
        (
            {"provider": "openai", "base_model": "m", "hyperparameters": {"learning_rate_multiplier": 1e-5}},
            "learning rate",
        ),
        ({"provider": "openai", "base_model": "m", "hyperparameters": {"n_epochs": 51}}, "at most 50"),
        ({"provider": "openai", "base_model": "m", "hyperparameters": {"epochs": 2}}, "unknown key"),
        ({"provider": "openai", "base_model": "m", "max_cost_usd": -1}, "at least 0"),
        ({"provider": "openai", "base_model": "m", "suffix": "x" * 65}, "suffix"),
        ({"rounds": []}, "at least"),
        ({"rounds": ["other.csv"]}, "data.path has no effect"),
    ],
)
def test_recipe_refuses_what_has_no_effect(train: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(train=train), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert words in str(caught.value)


def test_rounds_are_relative_to_the_recipe_and_stand_for_the_data(tmp_path: Path) -> None:
    import yaml

    raw = yaml.safe_load(recipe_text(train={"rounds": ["a.csv", "b.csv"]}))
    del raw["data"]["path"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.train.rounds == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert recipe.data.path == tmp_path / "a.csv"


def test_what_it_may_cost_does_not_make_it_another_run(tmp_path: Path) -> None:
    path = hosted_recipe(tmp_path, "openai")
    cheap, dear = (load_recipe(path, [f"train.max_cost_usd={cap}"]) for cap in (1, 2))
    assert cheap.hash == dear.hash
    assert cheap.hash != load_recipe(path, ["train.suffix=outro"]).hash
    assert cheap.train.max_length == 65_536


def test_prepare_needs_no_provider(tmp_path: Path) -> None:
    outcome = afina("prepare", hosted_recipe(tmp_path, "openai"), "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["splits"]["train"] == 28
    assert sum(report["splits"].values()) == 40
    assert report["lengths"]["max_length"] == 65_536


# -- files --------------------------------------------------------------------------------------------


def test_bad_lines_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text("\n".join([json.dumps(good)] * 10 + ["{", '{"messages": []}']), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        hosted.check_file(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines[:2]] == ["11", "12"]
    assert lines[2] == "Nothing was sent. Correct these lines."


def test_too_few_examples(tmp_path: Path) -> None:
    recipe = hosted_recipe(tmp_path, "http://127.0.0.1:9/v1", num_rows=12)
    task = load_task(load_recipe(recipe).task)
    examples = [Example(str(i), {"texto": f"t{i}"}, {"polaridade": "neutro"}) for i in range(9)]
    with pytest.raises(DataError, match="has 9 example"):
        hosted.write_files(task, examples, [], tmp_path / "files")


# -- errors, each in one clear line ---------------------------------------------------------------------


def last_line(outcome: Outcome) -> str:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    return outcome.err.strip().splitlines()[-1]


def test_no_key() -> None:
    assert "OPENAI_API_KEY is not set" in last_line(afina("jobs", "list"))
    assert "AFINA_API_KEY is not set" in last_line(afina("jobs", "list", "--base-url", "http://127.0.0.1:9"))
    assert "MINE is not set" in last_line(afina("jobs", "list", "--api-key-env", "MINE"))
    assert "AZURE_OPENAI_ENDPOINT is not set" in last_line(afina("jobs", "list", "--provider", "azure"))


def test_addresses() -> None:
    assert find_provider("http://127.0.0.1:8000").base_url == "http://127.0.0.1:8000/v1"
    assert find_provider("https://example.org/openai/v1/").base_url == "https://example.org/openai/v1"
    for text in ("ftp://x", "http://", "opnai", "http://key@127.0.0.1:8000"):
        with pytest.raises(ProviderError):
            find_provider(text)
    assert "two providers" in last_line(afina("jobs", "list", "--provider", "openai", "--base-url", "http://x"))


def test_network_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.providers.client.NUM_RETRIES", 0)
    monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
    assert "cannot be reached" in last_line(afina("jobs", "list", "--base-url", "http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(401, "Incorrect API key provided: sk-test-key-of-nobody.", "invalid_api_key"), "was refused"),
        (error(429, "You exceeded your current quota.", "insufficient_quota"), "no money is left"),
        (error(429, "Rate limit reached.", "rate_limit_exceeded"), "too many requests"),
        (error(403, "OpenAI is winding down.", "training_not_available"), "afina doctor"),
        (error(500, "The server had an error."), "failed while"),
        ((200, b"<html>not the API</html>"), ""),
        ((502, b"<html>bad gateway</html>"), "failed while"),
        (None, "cannot be reached"),
    ],
)
def test_refusals(answer: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.providers.client.NUM_RETRIES", 0)
    with scripted({"GET /v1/fine_tuning/jobs/ftjob-1": answer}) as told:
        monkeypatch.setenv("AFINA_API_KEY", "sk-test-key-of-nobody")
        line = last_line(afina("jobs", "show", "ftjob-1", "--base-url", told.url))
    assert words in line
    assert "sk-test-key-of-nobody" not in line


# -- a job is paid once -----------------------------------------------------------------------------------

JOB = {"object": "fine_tuning.job", "id": "ftjob-1", "status": "running", "model": "m", "created_at": 1, "seed": 7,
       "training_file": "file-1", "metadata": {"afina_run": "run-1"}, "fine_tuned_model": None}  # fmt: skip
CREATE = {"model": "m", "training_file": "file-1", "validation_file": None, "suffix": None, "seed": 7,
          "hyperparameters": {"n_epochs": 1}, "run": "run-1"}  # fmt: skip


def test_an_answer_that_was_lost_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was created, the connection broke: it is found by its metadata, and not created again."""
    listed = (200, {"object": "list", "data": [JOB], "has_more": False})
    with scripted({"POST /v1/fine_tuning/jobs": None, "GET /v1/fine_tuning/jobs": listed}) as told:
        job = jobs.create_job(to(told.url, monkeypatch), **CREATE)
        assert job["id"] == "ftjob-1"
        assert told.count("POST /v1/fine_tuning/jobs") == 1


def test_a_job_that_was_not_created_is_an_error_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (200, {"object": "list", "data": [], "has_more": False})
    for answer in (None, error(500, "no")):
        with scripted({"POST /v1/fine_tuning/jobs": answer, "GET /v1/fine_tuning/jobs": listed}) as told:
            with pytest.raises(ProviderError):
                jobs.create_job(to(told.url, monkeypatch), **CREATE)
            assert told.count("POST /v1/fine_tuning/jobs") == 1


@pytest.mark.parametrize(
    ("change", "is_ours"),
    [
        ({}, True),
        ({"status": "succeeded"}, True),
        ({"status": "failed"}, False),
        ({"status": "cancelled"}, False),
        ({"metadata": {"afina_run": "run-2"}}, False),
        ({"metadata": None}, True),  # a provider that keeps none: by file and seed
        ({"metadata": None, "seed": 8}, False),
        ({"metadata": None, "training_file": "file-2"}, False),
    ],
)
def test_whose_job_it_is(change: dict[str, Any], is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (200, {"object": "list", "data": [{**JOB, **change}], "has_more": False})
    with scripted({"GET /v1/fine_tuning/jobs": listed}) as told:
        found = jobs.find_job(to(told.url, monkeypatch), "run-1", "file-1", 7)
    assert (found is not None) == is_ours


def test_following_outlives_a_provider_that_fails_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.providers.client.NUM_RETRIES", 0)
    event = {
        "object": "fine_tuning.job.event",
        "id": "e1",
        "created_at": 1,
        "level": "info",
        "message": "hi",
        "type": "message",
    }
    later = {**event, "id": "e2", "message": "bye"}
    with scripted(
        {
            "GET /v1/fine_tuning/jobs/ftjob-1": [
                (200, JOB),
                error(503, "later"),
                None,
                (200, {**JOB, "status": "succeeded"}),
            ],
            "GET /v1/fine_tuning/jobs/ftjob-1/events": [
                (200, {"object": "list", "data": [event], "has_more": False}),
                (200, {"object": "list", "data": [later, event], "has_more": False}),
            ],
        }
    ) as told:
        seen: list[str] = []
        job = jobs.follow(to(told.url, monkeypatch), "ftjob-1", lambda e: seen.append(e["message"]), pause_s=0.01)
    assert job["status"] == "succeeded"
    assert seen == ["hi", "bye"]


def test_metrics_in_base64_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,3.63265,0.5,,\n"
    import base64

    for content in (text.encode(), base64.b64encode(text.encode())):
        with scripted({"GET /v1/files/file-9/content": (200, content)}) as told:
            found = jobs.step_metrics(to(told.url, monkeypatch), {"result_files": ["file-9"]})
        assert found == text
        assert hosted.read_metrics(found) == [{"step": 1.0, "train_loss": 3.63265, "train_accuracy": 0.5}]


# -- answers are paid once, under a cap -------------------------------------------------------------------


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_completion_tokens": 10, **more}


def asker(connection: Connection, folder: Path, cap: float | None = None, **options: Any) -> Asker:
    cache = AnswerCache(folder / "answers.sqlite")
    options = {"batch": False, "num_threads": 2, "pause_s": 0.01, **options}
    return Asker(connection, cache, PRICE, Budget(cap, cache.spent_usd), **options)


def test_answers_in_order_each_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(raw: bytes) -> Any:
        return completion(json.loads(raw)["messages"][0]["content"].upper())

    with scripted({"POST /v1/chat/completions": answer}) as told:
        bodies = [body(text) for text in ("a", "b", "c", "a")]
        first = asker(to(told.url, monkeypatch), tmp_path)
        assert [a.content for a in first.ask(bodies)] == ["A", "B", "C", "A"]
        assert told.count("POST /v1/chat/completions") == 3
        assert first.budget.spent_usd == pytest.approx(3 * 0.015)
        again = asker(to(told.url, monkeypatch), tmp_path)
        assert again.budget.spent_usd == pytest.approx(3 * 0.015)
        assert again.estimate(bodies).num_new == 0
        assert [a.content for a in again.ask(bodies)] == ["A", "B", "C", "A"]
        assert told.count("POST /v1/chat/completions") == 3


def test_the_cap_stops_before_it_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted({"POST /v1/chat/completions": completion("x")}) as told:
        bodies = [body(f"text {i}") for i in range(20)]
        one = asker(to(told.url, monkeypatch), tmp_path)._most_usd(bodies[:1])
        with pytest.raises(BudgetError, match="max_cost_usd"):
            asker(to(told.url, monkeypatch), tmp_path, cap=0.1).ask(bodies)
        cache = AnswerCache(tmp_path / "answers.sqlite")
        assert 0 < cache.spent_usd <= 0.1 < cache.spent_usd + 0.015 + one
        # What was paid for is kept: with more money only the rest is asked.
        asked = told.count("POST /v1/chat/completions")
        assert asked == round(cache.spent_usd / 0.015)
        asker(to(told.url, monkeypatch), tmp_path, cap=10).ask(bodies)
        assert told.count("POST /v1/chat/completions") == 20


def test_a_refused_request_is_one_error_and_no_money_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.providers.client.NUM_RETRIES", 0)

    def answer(raw: bytes) -> Any:
        text = json.loads(raw)["messages"][0]["content"]
        return error(400, "too long", "context_length_exceeded") if text == "long" else completion("x")

    with scripted({"POST /v1/chat/completions": answer}) as told:
        found = asker(to(told.url, monkeypatch), tmp_path).ask([body("a"), body("long"), body("b")])
    assert [a.content for a in found] == ["x", None, "x"]
    assert "too long" in (found[1].error or "")
    broke = error(429, "quota", "insufficient_quota")
    with scripted({"POST /v1/chat/completions": broke}) as told, pytest.raises(ProviderError, match="no money"):
        asker(to(told.url, monkeypatch), tmp_path).ask([body("c")])


def test_a_model_without_schemas_is_asked_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(raw: bytes) -> Any:
        if "response_format" in json.loads(raw):
            return error(
                400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model"
            )
        return completion("{}")

    with scripted({"POST /v1/chat/completions": answer}) as told:
        shaped = [body(text, response_format={"type": "json_schema"}) for text in "abc"]
        found = asker(to(told.url, monkeypatch), tmp_path, num_threads=1).ask(shaped)
        assert [a.content for a in found] == ["{}"] * 3
        assert told.count("POST /v1/chat/completions") == 4


def test_where_there_are_no_batches_it_asks_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted({"POST /v1/chat/completions": completion("x")}) as told:
        found = asker(to(told.url, monkeypatch), tmp_path, batch=True).ask([body("a"), body("b")])
    assert [a.content for a in found] == ["x", "x"]


# -- the whole, against the real server ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Outcome]]:
    """A folder with a finished hosted run, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_API_KEY", server.key)
        yield folder, afina("train", hosted_recipe(folder, f"{server.url}/v1"))


def all_jobs(url: str) -> list[dict[str, Any]]:
    outcome = afina("jobs", "list", "--base-url", url, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def ours(url: str, run: Path) -> list[dict[str, Any]]:
    key = json.loads((run / "hosted.json").read_text())["run"]
    return [job for job in all_jobs(url) if job["metadata"] == {"afina_run": key}]


@pytest.mark.slow
def test_train_at_a_provider(trained: tuple[Path, Outcome], url: str) -> None:
    folder, outcome = trained
    assert outcome.code == 0, outcome.err
    model = outcome.out.strip().removeprefix("Model: ")
    assert model.startswith("ft:gpt-4o-mini-2024-07-18:afina:teste:")
    assert "nothing to pay" in outcome.err
    assert "The job has successfully completed" in outcome.err
    ledger = json.loads((folder / "run" / "hosted.json").read_text())
    assert ledger["fine_tuned_model"] == model
    assert [step["step"] for step in ledger["steps"]] == ["sent", "creating", "created", "ended", "finished"]
    assert ledger["job"]["hyperparameters"]["n_epochs"] == 1
    with (folder / "run" / "step_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4  # 28 examples, 8 at a time
    assert float(rows[0]["train_loss"]) > 0
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    everything = b"".join(path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file())
    assert len(everything) > 1000
    import os

    assert os.environ["AFINA_API_KEY"].encode() not in everything


@pytest.mark.slow
def test_a_finished_run_is_not_paid_again(trained: tuple[Path, Outcome], url: str) -> None:
    folder, first = trained
    assert afina("train", folder / "recipe.yaml").out == first.out
    assert len(ours(url, folder / "run")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["everything but the data", "the job's id", "that it ended"])
def test_a_killed_run_finds_its_job_again(lost: str, trained: tuple[Path, Outcome], url: str) -> None:
    """As it was when the command was killed before the job, or its end, could be written down."""
    folder, first = trained
    run = folder / "run"
    (run / "stages.json").unlink()
    ledger = json.loads((run / "hosted.json").read_text())
    if lost == "everything but the data":
        (run / "hosted.json").unlink()
    else:
        kept = ledger["job"] if lost == "that it ended" else None
        steps = [step for step in ledger["steps"] if step["step"] in ("sent", "creating")]
        ledger |= {"job": kept, "fine_tuned_model": None, "steps": steps}
        (run / "hosted.json").write_text(json.dumps(ledger))
    again = afina("train", folder / "recipe.yaml")
    assert (again.code, again.out) == (0, first.out), again.err
    assert len(ours(url, run)) == 1


@pytest.mark.slow
def test_a_cancelled_job_is_one_clear_line_and_the_next_command_begins_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = hosted_recipe(tmp_path, url, train__hyperparameters={"n_epochs": 20, "batch_size": 1})
    created = jobs.create_job

    def cancel_at_once(connection: Connection, **request: Any) -> Any:
        job = created(connection, **request)
        jobs.change_job(connection, job["id"], "cancel")
        return job

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "create_job", cancel_at_once)
        assert "was cancelled. The same command begins a new one." in last_line(afina("train", recipe))
        assert "was cancelled" in last_line(afina("train", recipe))
    assert [job["status"] for job in ours(url, tmp_path / "run")] == ["cancelled", "cancelled"]


@pytest.mark.slow
def test_run_reports_the_hosted_model(trained: tuple[Path, Outcome], url: str) -> None:
    folder, _ = trained
    outcome = afina(
        "run", folder / "recipe.yaml", "compare=[majority, finetuned]", f"output_dir={folder / 'whole'}", "--json"
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert [system["strategy"] for system in report["systems"]] == ["majority", "finetuned"]
    assert report["systems"][1]["valid_rate"] == 1.0
    assert (folder / "whole" / "report.html").exists()
    assert len(ours(url, folder / "whole")) == 1  # the same data and settings: the job that was there already
    again = afina(
        "run", folder / "recipe.yaml", "compare=[majority, finetuned]", f"output_dir={folder / 'whole'}", "--json"
    )
    assert json.loads(again.out) == report


@pytest.mark.slow
def test_jobs_and_doctor(trained: tuple[Path, Outcome], url: str) -> None:
    folder, first = trained
    model = first.out.strip().removeprefix("Model: ")
    job = ours(url, folder / "run")[0]["id"]
    listed = afina("jobs", "list", "--base-url", url)
    assert job in listed.out
    assert model in listed.out
    shown = afina("jobs", "show", job, "--base-url", url)
    assert "succeeded" in shown.out
    events = afina("jobs", "events", job, "--base-url", url).out.strip().splitlines()
    assert "Created fine-tuning job" in events[0]
    assert "successfully completed" in events[-1]
    newest = afina("jobs", "events", job, "--base-url", url, "--limit", "2", "--json")
    assert len(json.loads(newest.out)) == 2
    for verb in ("cancel", "pause", "resume"):
        assert "(400)" in last_line(afina("jobs", verb, job, "--base-url", url))
    assert "(404): Could not find fine tune: ftjob-none" in last_line(
        afina("jobs", "show", "ftjob-none", "--base-url", url)
    )
    doctor = json.loads(afina("doctor", "--base-url", url, "--json").out)
    assert model in [row["model"] for row in doctor["models"]]
    assert all(row["last_day"] is None for row in doctor["models"])  # names of OpenAI's, but not at OpenAI


@pytest.mark.slow
def test_wrong_key_and_unknown_base(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = hosted_recipe(tmp_path, f"{server.url}/v1", train__base_model="gpt-none")
    monkeypatch.setenv("AFINA_API_KEY", "sk-wrong-key-of-nobody")
    line = last_line(afina("train", recipe))
    assert "key in AFINA_API_KEY was refused" in line
    assert "sk-wrong-key-of-nobody" not in line
    monkeypatch.setenv("AFINA_API_KEY", server.key)
    assert "Model gpt-none is not available for fine-tuning or does not exist" in last_line(afina("train", recipe))


# -- rounds -------------------------------------------------------------------------------------------------


def rounds_recipe(folder: Path, train: dict[str, Any]) -> Path:
    """Two tables of news; the second also holds five rows of the first."""
    import yaml

    rows = news(90)
    write_csv(folder / "part-00.csv", rows[:45])
    write_csv(folder / "part-01.csv", [*rows[45:], *rows[:5]])
    raw = yaml.safe_load(recipe_text(output_dir=str(folder / "run")))
    raw["train"] = {**train, "rounds": ["part-00.csv", "part-01.csv"]}
    del raw["data"]["path"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return path


def texts_of(path: Path) -> set[str]:
    return {json.loads(line)["inputs"]["texto"] for line in path.read_text(encoding="utf-8").splitlines()}


def check_rounds(folder: Path, outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    assert "after round 2" in outcome.out
    result = json.loads((folder / "run" / "rounds.json").read_text())
    places = [(cell["after_round"], cell["rows_of_round"]) for cell in result["cells"]]
    assert places == [(1, 1), (2, 1), (2, 2)]
    with (folder / "run" / "forgetting.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3
    assert all(0 <= float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) <= 1 for row in table)
    # No row that a model is judged by was learned in any round.
    splits = {
        (n, name): {
            json.loads(line)["inputs"]["texto"]
            for line in (folder / "run" / f"round-{n}" / "data" / f"{name}.jsonl").open()
        }
        for n in (1, 2)
        for name in ("train", "validation", "test")
    }
    learned = splits[1, "train"] | splits[2, "train"]
    assert not learned & (splits[1, "validation"] | splits[2, "validation"])
    assert sum(len(texts) for texts in splits.values()) < 95
    return result


@pytest.mark.slow
def test_local_rounds(tmp_path: Path) -> None:
    train = {"max_steps": 2, "max_length": 128, "finetuning_type": "lora", "lora_r": 4}
    recipe = rounds_recipe(tmp_path, train)
    result = check_rounds(tmp_path, afina("train", recipe))
    first, second = result["rounds"]
    assert first["base_model"] == "afina/nano"
    assert second["base_model"].endswith("round-1/merged")
    again = afina("train", recipe)
    assert again.code == 0
    assert json.loads((tmp_path / "run" / "rounds.json").read_text()) == result


@pytest.mark.slow
def test_hosted_rounds(tmp_path: Path, url: str) -> None:
    train = {
        "provider": url,
        "base_model": "gpt-4o-mini-2024-07-18",
        "hyperparameters": {"n_epochs": 1, "batch_size": 16},
    }
    recipe = rounds_recipe(tmp_path, train)
    result = check_rounds(tmp_path, afina("train", recipe))
    first, second = result["rounds"]
    assert second["base_model"] == first["model"]
    assert second["model"].startswith("ft:gpt-4o-mini-2024-07-18:")
    before = len(all_jobs(url))
    assert afina("train", recipe).code == 0
    assert len(all_jobs(url)) == before
