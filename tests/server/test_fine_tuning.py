"""/v1/fine_tuning/jobs over HTTP: what is accepted, refused, answered. Jobs run as processes that train nothing
(contract_process.py); test_faults.py trains."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_material import BASE, chat_lines, wait_for

from afina.server import supervisor
from afina.server.app import create_app
from afina.server.config import ServerConfig
from afina.server.executor import LocalExecutor

KEY = "sk-afina-test"
JOBS = "/v1/fine_tuning/jobs"
ANSWERED_S = 30.0


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest) -> Generator[str | None]:
    """As `database` of conftest.py, for all tests of this file together."""
    if request.param == "sqlite":
        yield None
        return
    url: str = request.getfixturevalue("postgres_url")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA fine_tuning")
        yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dfine_tuning"
        connection.execute("DROP SCHEMA fine_tuning CASCADE")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, database_url: str | None) -> Generator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        patch.setattr(supervisor, "POLL_S", 0.02)
        settings = {"data_dir": tmp_path_factory.mktemp("data"), "jobs_at_once": 4, "database_url": database_url}
        config = ServerConfig.model_validate(settings)
        app = create_app(config, preset_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, raise_server_exceptions=False) as client:
            app.state.context.supervisor.executor = LocalExecutor("contract_process")
            yield client


@pytest.fixture(scope="module")
def sdk(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key=KEY, http_client=client, max_retries=0)


def upload(client: TestClient, content: str, purpose: str = "fine-tune") -> str:
    answer = client.post(
        "/v1/files", files={"file": ("train.jsonl", content.encode())}, data={"purpose": purpose}
    ).json()
    assert "id" in answer, answer
    return answer["id"]


@pytest.fixture(scope="module")
def training_file(client: TestClient) -> str:
    return upload(client, chat_lines(10))


def create(client: TestClient, training_file: str, **body: Any) -> dict[str, Any]:
    answer = client.post(JOBS, json={"model": BASE, "training_file": training_file, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(client: TestClient, job_id: str, *wanted: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        job = client.get(f"{JOBS}/{job_id}").json()
        return job if job["status"] in wanted else None

    return wait_for(found, ANSWERED_S)


# -- objects -----------------------------------------------------------------------------------------------------


def test_new_job_is_the_object_sent_live(client: TestClient, training_file: str) -> None:
    job = create(client, training_file)
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    seed, created, job_id = job.pop("seed"), job.pop("created_at"), job.pop("id")
    assert job == {
        "object": "fine_tuning.job",
        "model": BASE,
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": "org-afina",
        "result_files": [],
        "status": "validating_files",
        "validation_file": None,
        "training_file": training_file,
        "hyperparameters": auto,
        "trained_tokens": None,
        "error": None,
        "user_provided_suffix": None,
        "estimated_finish": None,
        "integrations": [],
        "metadata": None,
        "usage_metrics": None,
        "shared_with_openai": False,
        "eval_id": None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": auto}},
    }
    assert 0 <= seed <= 2**31 - 1
    assert abs(created - time.time()) < 60
    assert job_id.startswith("ftjob-")
    assert len(job_id) == len("ftjob-") + 24


def test_job_ends_as_the_clients_expect(client: TestClient, sdk: openai.OpenAI, training_file: str) -> None:
    job = create(client, training_file, suffix="sdk", seed=42, validation_file=training_file, metadata={"a": "b"})
    until(client, job["id"], "succeeded", "failed")
    done = sdk.fine_tuning.jobs.retrieve(job["id"])
    assert (done.status, done.error, done.seed, done.metadata) == ("succeeded", None, 42, {"a": "b"})
    numbers = {"n_epochs": 10, "batch_size": 1, "learning_rate_multiplier": 1.0}
    assert done.hyperparameters.model_dump() == numbers
    assert done.method is not None
    assert done.method.supervised is not None
    assert done.method.supervised.model_dump()["hyperparameters"] == numbers
    assert (done.trained_tokens or 0) % 10 == 0
    assert (done.fine_tuned_model or "").startswith(f"ft:{BASE}:afina:sdk:")
    events = list(sdk.fine_tuning.jobs.list_events(job["id"], limit=7))  # pages of 7, newest first
    assert len(events) == 4 + 100 + 9 + 2
    assert len({event.id for event in events}) == len(events)
    assert events[0].message == "The job has successfully completed"
    assert events[1].message == f"New fine-tuned model created: {done.fine_tuned_model}"
    assert events[-2].message == f"Validating training file: {training_file} and validation file: {training_file}"
    assert events[-1].message == f"Created fine-tuning job: {job['id']}"
    steps = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in steps] == list(range(100, 0, -1))
    assert {event.type for event in events} == {"metrics", "message"}
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job["id"], limit=2))
    assert [one.step_number for one in checkpoints] == [100, 90, 80]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-90")
    assert len({one.fine_tuned_model_checkpoint.split(":")[4] for one in checkpoints}) == 3
    assert checkpoints[1].metrics.step == 90
    for one in checkpoints:
        assert sdk.models.retrieve(one.fine_tuned_model_checkpoint).id == one.fine_tuned_model_checkpoint
    file = sdk.files.retrieve(done.result_files[0])
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")


def test_chained_job_names_the_base(client: TestClient, training_file: str) -> None:
    first = until(client, create(client, training_file, suffix="one")["id"], "succeeded")
    checkpoints = client.get(f"{JOBS}/{first['id']}/checkpoints").json()["data"]
    parents = [first["fine_tuned_model"], checkpoints[1]["fine_tuned_model_checkpoint"]]
    for parent in parents:
        job = create(client, training_file, model=parent, suffix="two")
        assert job["model"] == parent
        done = until(client, job["id"], "succeeded", "failed")
        assert done["fine_tuned_model"].startswith(f"ft:{BASE}:afina:two:"), done


def test_alias_becomes_its_snapshot(client: TestClient, training_file: str) -> None:
    assert create(client, training_file, model="gpt-3.5-turbo")["model"] == "gpt-3.5-turbo-0125"
    assert create(client, training_file, model="afina/nano")["model"] == "afina/nano"


# -- hyperparameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"hyperparameters": {}},
        {"hyperparameters": None},
        {"hyperparameters": {"n_epochs": "auto"}},
        {"method": None},
        {"method": {"type": "supervised"}},
        {"method": {"type": "supervised", "supervised": None, "dpo": None}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": None}}},
        {"integrations": None},
        {"integrations": []},
        {"metadata": None},
        {"seed": None},
    ],
)
def test_what_says_nothing_is_accepted(client: TestClient, training_file: str, body: dict[str, Any]) -> None:
    job = create(client, training_file, **body)
    assert set(job["hyperparameters"].values()) == {"auto"}


def test_deprecated_and_new_hyperparameters_are_mirrored(client: TestClient, training_file: str) -> None:
    numbers = {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 0.6}
    old = create(client, training_file, hyperparameters=numbers)
    new = create(client, training_file, method={"type": "supervised", "supervised": {"hyperparameters": numbers}})
    for job in (old, new):
        assert job["hyperparameters"] == numbers
        assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def test_dpo_has_beta_in_its_method_only(client: TestClient, training_file: str) -> None:
    asked = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}}
    job = create(client, training_file, method=asked)
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    failed = until(client, job["id"], "failed")
    assert failed["error"] == {
        "code": "invalid_training_file",
        "param": "training_file",
        "message": "The job failed due to an invalid training file. Input file "
        f"{training_file} is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        "'supervised' as the training method (provided method=dpo).",
    }


def supervised(**numbers: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": numbers}}}


INNER = "method.supervised.hyperparameters"
REFUSED: list[tuple[dict[str, Any], str | None, str | None, str]] = [
    ({"model": "gpt-5"}, None, "model_not_available", "Model gpt-5 is not available for fine-tuning or does"),
    ({"model": "ft:gpt-4o:x::AAAAAAAA"}, None, "model_not_available", "is not available for fine-tuning"),
    ({"model": "a\0b"}, None, "model_not_available", "is not available for fine-tuning"),
    ({"model": 5}, "model", "invalid_type", "Invalid type for 'model'"),
    ({"model": None}, "model", "invalid_type", "Invalid type for 'model'"),
    ({"training_file": "file-abc"}, "training_file", None, "invalid training_file: file-abc"),
    ({"training_file": "../../etc/passwd"}, "training_file", None, "invalid training_file: ../../etc/passwd"),
    ({"validation_file": "file-abc"}, "validation_file", None, "invalid validation_file: file-abc"),
    ({"suffix": ""}, "suffix", "empty_string", "'suffix'"),
    ({"suffix": "x" * 65}, "suffix", "string_above_max_length", "maximum length 64"),
    ({"suffix": "a\nb"}, "suffix", "invalid_value", "cannot be printed"),
    ({"seed": -1}, "seed", "integer_below_min_value", ">= 0"),
    ({"seed": 2**31}, "seed", "integer_above_max_value", "<= 2"),
    ({"seed": 1.5}, "seed", "invalid_type", "'seed'"),
    ({"n_epochs": 3}, "n_epochs", "unknown_parameter", "Unknown parameter: 'n_epochs'."),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "unsupported_parameter",
     "The integration 'wandb' is not supported by this server."),
    ({"integrations": [{"type": "mlflow"}]}, "integrations[0].type", "invalid_value", "'mlflow'"),
    ({"integrations": ["wandb"]}, "integrations[0]", "invalid_type", "an object"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "object_above_max_properties", "16"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "string_above_max_length", "64"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "string_above_max_length", "512"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_type", "a string"),
    ({"method": {"type": "reinforcement"}}, "method", "unsupported_value", "'reinforcement' is not supported"),
    ({"method": {"type": "sft"}}, "method.type", "invalid_value", "'sft'"),
    ({"method": {}}, "method.type", "missing_required_parameter", "'method.type'"),
    ({"method": "dpo"}, "method", "invalid_type", "an object"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "invalid_value", "'method.dpo'"),
    ({"method": {"type": "supervised", "lora": 1}}, "method.lora", "unknown_parameter", "'method.lora'"),
    ({"method": {"type": "dpo"}, "model": "davinci-002"}, "method", "unsupported_value", "'dpo' is not supported"),
    (supervised(beta=0.1), f"{INNER}.beta", "unknown_parameter", "beta"),
    (supervised(n_epochs=0), f"{INNER}.n_epochs", "integer_below_min_value", ">= 1, but got 0 instead."),
    (supervised(n_epochs=51), f"{INNER}.n_epochs", "integer_above_max_value", "Expected a value <= 50, but got 51"),
    (supervised(n_epochs=2.5), f"{INNER}.n_epochs", "invalid_type", "an integer or 'auto'"),
    (supervised(n_epochs=True), f"{INNER}.n_epochs", "invalid_type", "a boolean"),
    (supervised(n_epochs="3"), f"{INNER}.n_epochs", "invalid_type", "a string"),
    (supervised(batch_size=257), f"{INNER}.batch_size", "integer_above_max_value", "<= 256"),
    (supervised(batch_size=10**400), f"{INNER}.batch_size", "integer_above_max_value", "a huge number"),
    (supervised(learning_rate_multiplier=0), f"{INNER}.learning_rate_multiplier", "decimal_below_min_value", "> 0"),
    (supervised(learning_rate_multiplier=2e-4), f"{INNER}.learning_rate_multiplier", "decimal_below_min_value",
     "0.0002 looks like a learning rate, but this is a multiplier"),
    ({"hyperparameters": {"learning_rate_multiplier": 1e-5}}, "hyperparameters.learning_rate_multiplier",
     "decimal_below_min_value", "is a multiplier"),
    ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs", "unknown_parameter", "epochs"),
    ({"hyperparameters": {"n_epochs": 2}, **supervised(n_epochs=3)}, "hyperparameters.n_epochs", "invalid_value",
     "differ"),
    ({"hyperparameters": []}, "hyperparameters", "invalid_type", "an object"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": []}}}, INNER, "invalid_type", "an object"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.1}}}}, "method.dpo.hyperparameters.beta",
     "decimal_above_max_value", "<= 2"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}}, "method.dpo.hyperparameters.beta",
     "decimal_below_min_value", "> 0"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "code", "part"), REFUSED)
def test_refused(
    client: TestClient, training_file: str, body: dict[str, Any], param: str | None, code: str | None, part: str
) -> None:
    before = len(client.get(JOBS, params={"limit": 10000}).json()["data"])
    answer = client.post(JOBS, json={"model": BASE, "training_file": training_file, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code), error
    assert part in error["message"]
    assert len(client.get(JOBS, params={"limit": 10000}).json()["data"]) == before


def test_missing_fields_and_wrong_purpose(client: TestClient, training_file: str) -> None:
    error = client.post(JOBS, json={"model": BASE}).json()["error"]
    assert (error["param"], error["code"]) == ("training_file", "missing_required_parameter")
    other = upload(client, chat_lines(10), "user_data")
    answer = client.post(JOBS, json={"model": BASE, "training_file": other})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"invalid training_file: {other} has the purpose 'user_data'")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "training_file", "validation_file", "suffix", "seed", "method", "hyperparameters", "integrations",
          "metadata")  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=5) | JSON)
def test_no_body_makes_it_stumble(client: TestClient, training_file: str, body: Any) -> None:
    if isinstance(body, dict):
        body = {"model": BASE, "training_file": training_file, **body}
    answer = client.post(JOBS, json=body)
    assert answer.status_code in (200, 400), (answer.status_code, body)
    if answer.status_code == 200:
        client.post(f"{JOBS}/{answer.json()['id']}/cancel")
    else:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# -- lists -------------------------------------------------------------------------------------------------------


def test_list_is_newest_first_and_pages(client: TestClient, training_file: str) -> None:
    ids = [create(client, training_file, metadata={"round": "list"})["id"] for _ in range(5)][::-1]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert (first["object"], [job["id"] for job in first["data"]], first["has_more"]) == ("list", ids[:2], True)
    second = client.get(JOBS, params={"limit": 2, "after": ids[1]}).json()
    assert [job["id"] for job in second["data"]] == ids[2:4]
    filtered = client.get(JOBS, params={"limit": 3, "metadata[round]": "list"}).json()
    assert ([job["id"] for job in filtered["data"]], filtered["has_more"]) == (ids[:3], True)
    last = client.get(JOBS, params={"limit": 3, "metadata[round]": "list", "after": ids[2]}).json()
    assert ([job["id"] for job in last["data"]], last["has_more"]) == (ids[3:], False)
    assert client.get(JOBS, params={"metadata[round]": "no"}).json()["data"] == []
    assert client.get(JOBS, params={"metadata[no]": "list"}).json()["data"] == []
    without = client.get(JOBS, params={"metadata": "null", "limit": 10000}).json()["data"]
    assert without
    assert all(job["metadata"] is None for job in without)


@pytest.mark.parametrize(
    ("query", "code"),
    [("limit=0", "integer_below_min_value"), ("limit=x", "invalid_type"), ("after=ftjob-nope", "invalid_value"),
     ("after=%00", None), ("metadata=x", "invalid_value"), ("limit=99999999999999999999", None),
     ("metadata%5Bk%5D=v&after=%00", None)],
)  # fmt: skip
def test_bad_queries(client: TestClient, query: str, code: str | None) -> None:
    answer = client.get(f"{JOBS}?{query}")
    assert answer.status_code == 400, answer.text
    if code is not None:
        assert answer.json()["error"]["code"] == code


def test_no_checkpoints_yet(client: TestClient, training_file: str) -> None:
    job = create(client, training_file)
    client.post(f"{JOBS}/{job['id']}/cancel")
    empty = upload(client, chat_lines(7))
    failed = until(client, create(client, empty)["id"], "failed")
    assert client.get(f"{JOBS}/{failed['id']}/checkpoints").json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


# -- states ------------------------------------------------------------------------------------------------------


def test_unknown_job_is_404_everywhere(client: TestClient) -> None:
    asked = 0
    for job_id in ("ftjob-abc", "ftjob-" + "a" * 24, "%00", "..%2f..", "ftjob-%F0%9F%98%80"):
        for method, path in [("GET", ""), ("GET", "/events"), ("GET", "/checkpoints"), ("POST", "/cancel"),
                             ("POST", "/pause"), ("POST", "/resume")]:  # fmt: skip
            answer = client.request(method, f"{JOBS}/{job_id}{path}")
            assert answer.status_code == 404, (method, path, job_id, answer.text)
            if job_id.startswith("ftjob-a"):
                assert answer.json()["error"] == {
                    "message": f"Could not find fine tune: {job_id}",
                    "type": "invalid_request_error",
                    "param": "fine_tune_id",
                    "code": "fine_tune_not_found",
                }
            asked += 1
    assert asked == 30


def test_states_over_http(client: TestClient, sdk: openai.OpenAI, training_file: str) -> None:
    os.environ["AFINA_TEST_STEP_S"] = "0.05"
    try:
        job = create(client, training_file, hyperparameters={"n_epochs": 50})
        until(client, job["id"], "running")
        assert client.post(f"{JOBS}/{job['id']}/resume").status_code == 400
        assert sdk.fine_tuning.jobs.pause(job["id"]).status == "paused"
        refused = client.post(f"{JOBS}/{job['id']}/pause")
        assert refused.status_code == 400
        assert "its status is 'paused'" in refused.json()["error"]["message"]
        assert sdk.fine_tuning.jobs.resume(job["id"]).status == "queued"
        until(client, job["id"], "running")
        cancelled = sdk.fine_tuning.jobs.cancel(job["id"])
        assert (cancelled.status, cancelled.finished_at) == ("cancelled", None)
        for change in ("cancel", "pause", "resume"):
            refused = client.post(f"{JOBS}/{job['id']}/{change}")
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert (error["param"], error["code"]) == (None, None)
            assert "'cancelled'" in error["message"]
    finally:
        del os.environ["AFINA_TEST_STEP_S"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/fine-tunes"), ("GET", "/v1/fine-tunes"), ("GET", "/v1/fine_tuning/checkpoints/ft:x/permissions"),
     ("POST", "/v1/fine_tuning/alpha/graders/run")],
)  # fmt: skip
def test_what_is_gone_or_left_out_is_404(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith(f"Invalid URL ({method} {path})")
    assert client.delete(f"{JOBS}/ftjob-{'a' * 24}").status_code == 405
