"""What every request passes: keys, headers, bodies, limits, errors; models; and the process itself."""

from __future__ import annotations

import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx
import pytest
from pydantic import Field

from afina.core.errors import RecipeError
from afina.server.config import SNAPSHOTS, load_config
from afina.server.errors import ApiError
from afina.server.limits import Limits, _duration
from afina.server.refusals import read
from afina.server.tables import Job, Model
from afina.server.wire import Body

SLOW = pytest.mark.slow


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    assert "Traceback" not in answer.text
    return answer.json()["error"]


# -- headers and keys ----------------------------------------------------------------------------------------------


def test_every_answer_carries_the_contract_s_headers(lite: Any) -> None:
    sent = {"OpenAI-Organization": "org-x", "OpenAI-Project": "proj_x"}
    answers = [
        lite.http.get("/v1/models", headers=sent),
        lite.http.get("/v1/models/none"),
        lite.http.get("/v1/nothing"),
        lite.http.put("/v1/models"),
        lite.anonymous.get("/v1/models"),
        lite.http.post("/v1/fine_tuning/jobs", content=b"{", headers={"content-type": "application/json"}),
        lite.anonymous.get("/health"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 404, 405, 401, 400, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 7
    for answer in answers:
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-organization"] == "afina"
        assert answer.headers["openai-project"]
        assert int(answer.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    ("header", "code", "message"),
    [
        (None, None, "You didn't provide an API key."),
        ("", None, "You didn't provide an API key."),
        ("Bearer", None, "You didn't provide an API key."),
        ("Basic c2stYWZpbmE6", None, "You didn't provide an API key."),
        ("Bearer not-a-real-key-but-anonymized", "invalid_api_key", "Incorrect API key provided: not-a-re****ized."),
        ("bearer abc", "invalid_api_key", "Incorrect API key provided: ****."),
        ("Bearer chave-secretíssima-de-ninguém", "invalid_api_key", "Incorrect API key provided: chave-se****"),
    ],
)
def test_no_key_and_a_wrong_key(lite: Any, header: str | None, code: str | None, message: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode("utf-8")}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/files"), ("GET", "/v1/nothing"), ("GET", "/metrics")):
        error = error_of(lite.anonymous.request(method, path, headers=headers), 401)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
        assert error["message"].startswith(message)
        assert "real-key-but" not in error["message"]


def test_metrics_are_for_this_machine_and_for_keys(lite: Any) -> None:
    lite.http.get("/v1/files/file-of-somebody")
    local = {"Authorization": ""}
    text = lite.http.get("/metrics").text
    assert 'afina_requests_total{method="GET",route="/v1/files/{file_id}",status="404"} 1.0' in text
    assert "file-of-somebody" not in text
    assert "afina_files 0.0" in text
    assert lite.http.get("/metrics", headers=local).status_code == 401  # a wrong key is wrong here too
    del lite.http.headers["Authorization"]
    assert lite.http.get("/metrics").status_code == 200
    assert lite.http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 401
    assert lite.http.get("/v1/models").status_code == 401
    assert lite.anonymous.get("/health").json()["status"] == "ok"


# -- addresses -----------------------------------------------------------------------------------------------------


def test_unknown_addresses_and_methods(lite: Any) -> None:
    for method, path in (
        ("GET", "/v1/x"), ("POST", "/v1/files/"), ("GET", "/docs"), ("GET", "/openapi.json"),
        ("DELETE", "/v1/fine-tunes"), ("GET", "/v1"), ("GET", "//v1/models"),
    ):  # fmt: skip
        answer = lite.http.request(method, f"http://testserver{path}")
        assert error_of(answer, 404)["message"] == f"Invalid URL ({method} {path})"
    answer = lite.http.put("/v1/models")
    assert error_of(answer, 405)["message"].startswith("Not allowed to PUT on /v1/models.")
    assert answer.headers["allow"] == "GET"
    assert error_of(lite.http.get("/v1/a%00b"), 404)["message"].startswith("Invalid URL")


# -- bodies --------------------------------------------------------------------------------------------------------

JOBS = "/v1/fine_tuning/jobs"


def post(api: Any, content: Any, content_type: str | None = "application/json", **headers: str) -> Any:
    sent = {**({"content-type": content_type} if content_type else {}), **headers}
    return api.http.post(JOBS, content=content, headers=sent)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "line 1 column 2"),
        (b"", "the body is empty"),
        (b'{"model": "gpt-4o",}', "line 1"),
        (b"model=gpt-4o", "Expecting value"),
        (b'{"model": "\xff"}', "byte 11 is no UTF-8"),
        ('{"model": "x"}'.encode("utf-16"), "is no UTF-8"),
        (b'{"model": NaN}', "NaN is no JSON"),
        (b'{"model": -Infinity}', "-Infinity is no JSON"),
        (b'{"model": 1e999}', "too large"),
        (b'{"model": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"model": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b'{"model": "a\nb"}', "Invalid control character"),
        (b"[" * 100_000, "nests deeper"),
        (b'{"model":' * 100_000 + b"1" + b"}" * 100_000, "nests deeper"),
        (b'{"model": ' + b"[" * 500 + b"]" * 500 + b"}", "nests deeper"),
        (b'{"model": 1} {"model": 2}', "Extra data"),
        (b"\x00", "Expecting value"),
    ],
)
def test_what_is_no_json(lite: Any, body: bytes, reason: str) -> None:
    error = error_of(post(lite, body), 400)
    assert error["message"].startswith("We could not parse the JSON body of your request.")
    assert reason in error["message"]
    assert (error["param"], error["code"]) == (None, None)


def test_json_that_is_unusual_and_right(lite: Any) -> None:
    """They pass the gate, and are refused by the endpoint for what they lack."""
    for body in (
        b'{"model": 1, "model": "gpt-4o"}',
        b'\xef\xbb\xbf{"model": "gpt-4o"}',
        b'{"model": "\\ud83d\\ude00"}',
        b' \r\n\t{"model": "gpt-4o"}\n',
    ):
        assert error_of(post(lite, body), 400)["code"] == "missing_required_parameter"
    assert error_of(post(lite, b'{"model": "x"}', "application/json; charset=utf-8"), 400)["param"] == "training_file"
    for body, kind in ((b"[]", "an array"), (b"3", "an integer"), (b'"x"', "a string"), (b"null", "null")):
        error = error_of(post(lite, body), 400)
        assert error["code"] in ("invalid_type", None), error
        assert kind in error["message"] or kind == "null"


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense", None],
)
def test_other_content_types(lite: Any, content_type: str | None) -> None:
    error = error_of(post(lite, b'{"model": "gpt-4o"}', content_type), 400)
    assert error["code"] == "unsupported_content_type"
    assert "only accepts 'application/json' requests" in error["message"]


def test_bodies_that_are_too_large(lite: Any) -> None:
    most = lite.context.config.max_body_bytes
    assert most == 10 * 2**20
    body = b'{"model": "' + b"x" * most + b'"}'
    assert "10 MB" in error_of(post(lite, body), 413)["message"]

    def endless() -> Any:
        for _ in range(200):
            yield bytes(100_000)

    assert error_of(post(lite, endless()), 413)["type"] == "invalid_request_error"
    assert error_of(post(lite, b"\x1f\x8b", **{"content-encoding": "gzip"}), 415)["message"].startswith("Unsupported")
    just_fits = b'{"model": "' + b"x" * (most - 13) + b'"}'
    assert error_of(post(lite, just_fits), 400)["code"] == "missing_required_parameter"


# -- the sentences of a body's fields ------------------------------------------------------------------------------


class Part(Body):
    type: Literal["text", "image_url"]
    text: str


class Sample(Body):
    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    beta: Annotated[float, Field(gt=0, le=2)] | None = None
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    stream: bool | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    kind: Literal["a", "b", "c"] | None = None
    name: Annotated[str, Field(pattern="^[a-z]+$")] | None = None
    content: str | list[Part] | None = None


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"model": ...}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        ({"colour": 1}, "colour", "unknown_parameter", "Unknown parameter: 'colour'."),
        ({"temperature": 200}, "temperature", "decimal_above_max_value",
         "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 200 instead."),
        ({"temperature": -0.5}, "temperature", "decimal_below_min_value",
         "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.5 instead."),
        ({"n": 0}, "n", "integer_below_min_value",
         "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead."),
        ({"n": 10**400}, "n", "integer_above_max_value", "Invalid 'n': integer above maximum value."),
        ({"beta": 0}, "beta", "decimal_below_min_value",
         "Invalid 'beta': decimal below minimum value. Expected a value > 0, but got 0 instead."),
        ({"n": True}, "n", "invalid_type", "Invalid type for 'n': expected an integer, but got a boolean instead."),
        ({"n": "1"}, "n", "invalid_type", "Invalid type for 'n': expected an integer, but got a string instead."),
        ({"n": 1.0}, "n", "invalid_type", "Invalid type for 'n': expected an integer, but got a decimal instead."),
        ({"n": None}, "n", "invalid_type", "Invalid type for 'n': expected an integer, but got null instead."),
        ({"temperature": "0"}, "temperature", "invalid_type",
         "Invalid type for 'temperature': expected a decimal, but got a string instead."),
        ({"stream": 1}, "stream", "invalid_type", "Invalid type for 'stream': expected a boolean, but got an integer"),
        ({"messages": "Oi"}, "messages", "invalid_type",
         "Invalid type for 'messages': expected an array, but got a string instead."),
        ({"messages": []}, "messages", "empty_array", "Invalid 'messages': empty array."),
        ({"messages": [3]}, "messages[0]", "invalid_type",
         "Invalid type for 'messages[0]': expected an object, but got an integer instead."),
        ({"suffix": "x" * 65}, "suffix", "string_above_max_length",
         "Invalid 'suffix': string too long. Expected a string with maximum length 64, but got a string with"),
        ({"suffix": ""}, "suffix", "empty_string", "Invalid 'suffix': empty string."),
        ({"stop": 3}, "stop", "invalid_type",
         "Invalid type for 'stop': expected a string or an array, but got an integer instead."),
        ({"stop": list("abcde")}, "stop", "array_above_max_length", "Invalid 'stop': array too long."),
        ({"stop": ["a", 2]}, "stop[1]", "invalid_type",
         "Invalid type for 'stop[1]': expected a string, but got an integer instead."),
        ({"n_epochs": "many"}, "n_epochs", "invalid_value", "Invalid value: 'many'. Supported values are: 'auto'."),
        ({"n_epochs": 51}, "n_epochs", "integer_above_max_value",
         "Invalid 'n_epochs': integer above maximum value. Expected a value <= 50, but got 51 instead."),
        ({"n_epochs": 1.5}, "n_epochs", "invalid_type",
         "Invalid type for 'n_epochs': expected 'auto' or an integer, but got a decimal instead."),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "object_above_max_properties",
         "Invalid 'metadata': too many properties."),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type",
         "Invalid type for 'metadata.a': expected a string, but got an integer instead."),
        ({"kind": "d"}, "kind", "invalid_value", "Invalid value: 'd'. Supported values are: 'a', 'b', and 'c'."),
        ({"name": "A"}, "name", "invalid_value", "Invalid 'name': string does not match pattern."),
        ({"content": [{"type": "video", "text": "x"}]}, "content[0].type", "invalid_value", "Invalid value: 'video'."),
        ({"content": [{"type": "text"}]}, "content[0].text", "missing_required_parameter",
         "Missing required parameter: 'content[0].text'."),
        ({"content": [{"type": "text", "text": "x", "x": 1}]}, "content[0].x", "unknown_parameter",
         "Unknown parameter: 'content[0].x'."),
        ({"content": 3}, "content", "invalid_type",
         "Invalid type for 'content': expected a string or an array, but got an integer instead."),
    ],
)  # fmt: skip
def test_a_field_is_refused_in_the_contract_s_words(fields: Any, param: str, code: str, message: str) -> None:
    body = {key: value for key, value in {"model": "gpt-4o", **fields}.items() if value is not ...}
    with pytest.raises(ApiError) as caught:
        read(Sample, body)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.message.startswith(message)


def test_a_good_body_is_taken() -> None:
    body = read(Sample, {"model": "x", "temperature": 1, "stop": ["a"], "n_epochs": 3, "content": "Oi"})
    assert (body.temperature, body.n_epochs, body.n) == (1.0, 3, 1)


# -- bugs of ours --------------------------------------------------------------------------------------------------


def test_a_bug_is_answered_without_a_trace_and_logged_without_the_user_s_text(
    lite: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @lite.app.get("/v1/boom")
    def boom(word: str) -> None:
        try:
            raise KeyError(f"inner {word}")
        except KeyError as error:
            raise RuntimeError(f"the user's {word}") from error

    with caplog.at_level(logging.ERROR, "afina.server"):
        answer = lite.http.get("/v1/boom?word=segredo")
    assert error_of(answer, 500) == {
        "message": "The server had an error while processing your request. Sorry about that!",
        "type": "server_error", "param": None, "code": None,
    }  # fmt: skip
    assert "RuntimeError" in caplog.text
    assert "KeyError" in caplog.text
    assert "in boom" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "segredo" not in caplog.text
    assert "sk-afina" not in caplog.text


# -- rate limits ---------------------------------------------------------------------------------------------------


def test_requests_a_minute(make_api: Any) -> None:
    api = make_api(requests_per_minute=2, tokens_per_minute=1000)
    answers = [api.http.post("/v1/embeddings", json={}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-remaining-tokens"] == "1000"
    assert re.fullmatch(r"[\d.]+s", answers[0].headers["x-ratelimit-reset-requests"])
    error = error_of(answers[2], 429)
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert api.http.get("/v1/models").status_code == 200  # only inference is limited
    other = api.context.keys.create("other")[1]
    api.context.keys.forget()
    answer = api.http.post("/v1/embeddings", json={}, headers={"Authorization": f"Bearer {other}"})
    assert answer.status_code == 400  # each key has its own


def test_no_limits_unless_configured(lite: Any) -> None:
    answers = [lite.http.post("/v1/embeddings", json={}) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {400}
    assert not any("x-ratelimit-limit-requests" in answer.headers for answer in answers)


def test_tokens_a_minute_are_charged_after_the_answer() -> None:
    at = [0.0]
    limits = Limits(None, 600, clock=lambda: at[0])
    limits.admit("a")
    limits.spend_tokens("a", 650)
    with pytest.raises(ApiError) as refused:
        limits.admit("a")
    assert refused.value.type == "tokens"
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    assert refused.value.headers["Retry-After"] == "6"  # 50 too many, and one to begin with, at ten a second
    limits.admit("b")
    at[0] = 5.0
    with pytest.raises(ApiError):
        limits.admit("a")
    at[0] = 5.2
    limits.admit("a")
    at[0] = 1000.0
    assert limits.admit("a")["x-ratelimit-remaining-tokens"] == "600"


def test_durations_as_the_live_service_writes_them() -> None:
    assert [_duration(s) for s in (0, 0.0201, 1.5, 59.9, 60, 361)] == ["0ms", "21ms", "1.5s", "59.9s", "1m0s", "6m1s"]


# -- models --------------------------------------------------------------------------------------------------------

FT = "ft:gpt-4o-mini-2024-07-18:afina:notícias:AbCd1234"


def _model(api: Any, name: str, seq: int, parent: str = "gpt-4o-mini-2024-07-18") -> Path:
    folder = api.context.places.job(f"ftjob-{seq}") / "models" / "step-10"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    with api.context.store.session() as session:
        session.add(
            Model(
                name=name, created_at=1000 + seq, owned_by="org-afina", job_id=f"ftjob-{seq}", step=10,
                base="gpt-4o-mini-2024-07-18", parent=parent, folder=api.context.places.relative(folder),
            )
        )  # fmt: skip
    return folder


def test_models_are_listed_and_found(api: Any) -> None:
    checkpoint = FT.replace("AbCd1234", "ZZZZ9999") + ":ckpt-step-5"
    _model(api, FT, 1)
    _model(api, checkpoint, 2, parent=FT)
    listed = api.http.get("/v1/models").json()
    assert set(listed) == {"object", "data"}
    names = [model["id"] for model in listed["data"]]
    assert names[:2] == [checkpoint, FT]
    assert set(SNAPSHOTS) | {"afina/nano", "gpt-4o-mini", "davinci-002", "gpt-3.5-turbo"} <= set(names)
    assert len(names) == len(set(names)) == 18
    for model in listed["data"]:
        assert {"id", "object", "created", "owned_by", "shutdown_date"} <= set(model)
        assert model["object"] == "model"
        found = api.http.get(f"/v1/models/{quote(model['id'], safe='')}")
        assert found.json() == model
        assert api.http.get(f"/v1/models/{quote(model['id'], safe=':/')}").json() == model
        assert api.http.get(f"/v1/models/{quote(quote(model['id'], safe=''), safe='')}").json() == model
    assert listed["data"][0]["parent"] == FT
    assert listed["data"][1]["job_id"] == "ftjob-1"
    for name in ("nothing", "ft:gpt-4o::x:AbCd1234", "a/b/c", "%2e%2e", "a" * 3000, "😀"):
        error = error_of(api.http.get(f"/v1/models/{quote(name, safe='')}"), 404)
        assert error["message"] == f"The model '{name}' does not exist" or name == "%2e%2e"
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert error_of(api.http.delete(f"/v1/models/{quote(name, safe='')}"), 404)["code"] == "model_not_found"


def test_a_fine_tune_is_deleted_with_its_weights(api: Any) -> None:
    folder, other = _model(api, FT, 1), _model(api, FT.replace("AbCd", "Efgh"), 2)
    forgotten: list[str] = []
    api.context.pool.forget = forgotten.append
    assert api.http.delete(f"/v1/models/{quote(FT)}").json() == {"id": FT, "object": "model", "deleted": True}
    assert forgotten == [FT]
    assert not folder.exists()
    assert other.exists()
    assert error_of(api.http.get(f"/v1/models/{quote(FT)}"), 404)["code"] == "model_not_found"
    assert api.http.delete(f"/v1/models/{quote(FT)}").status_code == 404


def test_weights_that_another_fine_tune_stands_on_stay(api: Any) -> None:
    folder, child = _model(api, FT, 1), _model(api, FT.replace("AbCd", "Efgh"), 2)
    (child / "base.json").write_text(json.dumps({"base_model": str(folder), "load_in_4bit": False}))
    assert api.http.delete(f"/v1/models/{quote(FT)}").status_code == 200
    assert folder.exists()


def test_base_models_and_models_in_use_are_not_deleted(api: Any) -> None:
    for name in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "afina/nano"):
        assert error_of(api.http.delete(f"/v1/models/{name}"), 403)["param"] == "model"
    _model(api, FT, 1)
    with api.context.store.session() as session:
        session.add(
            Job(
                id="ftjob-next", model=FT, created_at=1, status="paused", training_file="file-x", seed=1,
                method="supervised", asked={}, integrations=[], result_files=[],
            )
        )  # fmt: skip
    error = error_of(api.http.delete(f"/v1/models/{quote(FT)}"), 400)
    assert "ftjob-next" in error["message"]
    assert api.http.get(f"/v1/models/{quote(FT)}").status_code == 200


# -- settings ------------------------------------------------------------------------------------------------------


def test_settings_come_from_file_environment_and_options(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        textwrap.dedent("""
        port: 9000
        host: 0.0.0.0
        data_dir: here
        base_model: org/big
        aliases:
          gpt-4o-2024-08-06: {base_model: ./local, train: {lora_r: 8}, context: 4096}
          minha: org/other
        """)
    )
    config = load_config(file, {"AFINA_HOST": "127.0.0.2", "AFINA_DATABASE_URL": "postgresql://a:pw@h/d"}, port=1234)
    assert (config.port, config.host, config.on_loopback) == (1234, "127.0.0.2", True)
    assert config.data_dir == tmp_path / "here"
    assert config.alias("gpt-4o").base_model == str(tmp_path / "./local")  # type: ignore[union-attr]
    assert config.alias("gpt-4o-mini").base_model == "org/big"  # type: ignore[union-attr]
    assert config.alias("minha").base_model == "org/other"  # type: ignore[union-attr]
    assert config.alias("afina/nano").base_model == "afina/nano"  # type: ignore[union-attr]
    assert config.alias("davinci-002").style == "completion"  # type: ignore[union-attr]
    assert config.alias("unknown") is None
    assert config.full_name("gpt-3.5-turbo") == "gpt-3.5-turbo-0125"
    assert "pw" not in repr(config)
    assert config.url_of_database(tmp_path) == "postgresql://a:pw@h/d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 8000", "unknown key prot. Did you mean port?"),
        ("port: eighty", "port: found 'eighty', expected a whole number"),
        ("port: 70000", "port: found 70000, expected at most 65535"),
        ("aliases: {x: {base: y}}", "aliases.x.base"),
        ("aliases: {x: {base_model: y, train: {lora_rr: 3}}}", "unknown key lora_rr. Did you mean lora_r?"),
        ("aliases: {x: {base_model: y, train: {num_train_epochs: 3}}}", "unknown key num_train_epochs"),
        ("aliases: {'ft:x': y}", "cannot be a model's name"),
        ("organisation: 'a:b'", "organisation"),
        ("- a list", "expected settings"),
        ("port: [", "is no valid YAML"),
        ("port: 1\nport: 2", "port"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_config(file, {})
    assert message in str(caught.value)
    assert "server.yaml" in str(caught.value)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(RecipeError, match="AFINA_PORT: port: found 'x', expected a whole number"):
        load_config(None, {"AFINA_PORT": "x"})
    with pytest.raises(RecipeError, match="no such file"):
        load_config(Path("/nowhere.yaml"), {})


# -- the process ---------------------------------------------------------------------------------------------------


def _serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "afina", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@SLOW
def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = _serve("--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        f"afina: Port {port} of 127.0.0.1 is in use. Stop what uses it, or choose another --port.\n"
    )


@SLOW
def test_a_data_folder_in_use_is_one_line(server: Any) -> None:
    outcome = _serve("--port", "0", "--data-dir", str(server.data_dir))
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert re.fullmatch(
        rf"afina: \S+: another server \(process {server.process.pid}\) works in this data folder.*\n", outcome.stderr
    )


@SLOW
def test_start_key_and_graceful_end(start_server: Any, tmp_path: Path) -> None:
    first = start_server(tmp_path / "data", cold=True)
    text = "".join(first.out)
    assert text.splitlines()[0].startswith(f"Afina serves {first.url}/v1 ")
    assert first.key is not None
    assert f'api_key="{first.key}"' in text
    assert len([line for line in text.splitlines() if line.startswith("    ")]) == 4
    assert first.http.get("/v1/models").status_code == 200
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert first.stop(signal.SIGINT) == 0
    assert first.errors() == ""
    second = start_server(tmp_path / "data", "--log-requests")
    assert second.key is None
    assert "shown this once" not in "".join(second.out)
    second.key = first.key
    answer = second.http.get("/v1/models?secret=1")
    assert answer.status_code == 200
    assert second.stop(signal.SIGTERM) == 0
    logged = second.errors().splitlines()
    assert len(logged) == 1
    request_id = answer.headers["x-request-id"]
    assert re.fullmatch(rf"\d\d:\d\d:\d\d 200 GET /v1/models \d+ms {request_id}", logged[0])


@SLOW
def test_the_snippet_works_as_pasted(server: Any) -> None:
    lines = [line[4:] for line in "".join(server.out).splitlines() if line.startswith("    ")]
    outcome = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip()


@SLOW
def test_what_is_no_http_gets_the_error_body(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", b"\x16\x03\x01" + bytes(100)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"x-request-id: req_" in head
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@SLOW
def test_an_early_refusal_reaches_a_client_that_still_sends(server: Any) -> None:
    """413 by the announced length, while a megabyte and more is on its way."""
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", content=b" " * (30 * 2**20), trust_env=False, timeout=60,
        headers={"Authorization": f"Bearer {server.key}", "content-type": "application/json"},
    )  # fmt: skip
    assert error_of(answer, 413)["type"] == "invalid_request_error"


@SLOW
def test_a_slow_sender_is_let_go(start_server: Any, tmp_path: Path) -> None:
    slow = start_server(tmp_path / "data", environment={"AFINA_BODY_TIMEOUT_S": "0.5"})
    host, port = slow.url.removeprefix("http://").split(":")
    for kind, path in (("application/json", "/v1/chat/completions"), ("multipart/form-data; boundary=X", "/v1/files")):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {slow.key}\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{'{' if 'json' in kind else '-'}".encode())
            began = time.monotonic()
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - began < 8
    assert slow.stop() == 0


@SLOW
def test_a_stop_answers_whom_it_cannot_wait_for(start_server: Any, tmp_path: Path) -> None:
    ending = start_server(tmp_path / "data", environment={"AFINA_SHUTDOWN_TIMEOUT_S": "1"})
    host, port = ending.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ending.key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        time.sleep(0.5)
        ending.process.send_signal(signal.SIGTERM)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"type":"server_error"' in answer
    assert ending.stop() == 0


@SLOW
def test_a_host_that_others_reach_is_warned_about(start_server: Any, tmp_path: Path) -> None:
    wide = start_server(tmp_path / "data", "--host", "0.0.0.0")
    assert "warning: 0.0.0.0 can be reached from other machines" in wide.errors()
    assert wide.url.startswith("http://127.0.0.1:")
    assert wide.stop() == 0


def test_without_the_libraries_the_way_to_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from command_line import afina

    from afina.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else object())
    outcome = afina("serve")
    assert (outcome.code, outcome.out) == (2, "")
    assert "(fastapi). Install them: pip install 'afina[serve]'" in outcome.err


# -- nothing is a 500 ----------------------------------------------------------------------------------------------

STRANGE: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 10**400, -(10**400), 0.5, -1.5, 1e308, "", "\0", "é😀", "x" * 5000, [], {}, [[]],
    [{}], {"": None}, ["x"] * 200, "auto", "file-x", "ft:gpt-4o::x:abcdefgh", [None], [1, 2], {"type": "text"}, "none",
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}, {"type": "function"},
]  # fmt: skip
ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "Oi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "gpt-4o", "messages": ASKED, "temperature": 0.5, "top_p": 1, "n": 1, "stop": ["a"], "seed": 1,
        "presence_penalty": 0, "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2, "tools": [TOOL],
        "response_format": {"type": "text"}, "tool_choice": "auto", "metadata": {"a": "b"}, "stream_options": None,
    },
    "/v1/completions": {"model": "davinci-002", "prompt": "Oi", "logprobs": 1, "best_of": 1, "seed": 3, "suffix": None},
    "/v1/embeddings": {"model": "gpt-4o", "input": "x", "encoding_format": "float", "dimensions": 8},
    "/v1/responses": {"model": "gpt-4o", "input": "Oi", "text": {"format": {"type": "text"}}, "temperature": 1},
    "/v1/fine_tuning/jobs": {
        "model": "gpt-4o", "training_file": "FILE", "validation_file": None, "suffix": "s", "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": "auto"}}},
        "hyperparameters": {"n_epochs": 1}, "metadata": {"a": "b"}, "integrations": None,
    },
    "/v1/batches": {
        "input_file_id": "FILE", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    },
}  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*place, key))


@SLOW
@pytest.mark.parametrize("path", BODIES)
def test_no_body_is_answered_by_a_500(make_api: Any, path: str) -> None:
    """Every value of a good body replaced by every strange one, in an order that is the same at every run."""
    api = make_api(max_completion_tokens=2)
    file_id = api.upload(b'{"messages": []}\n', purpose="batch" if path == "/v1/batches" else "fine-tune").json()["id"]
    good = json.dumps(BODIES[path]).replace("FILE", file_id)
    changes = [(place, value) for place in _places(json.loads(good)) for value in STRANGE]
    random.Random(4).shuffle(changes)
    statuses: Counter[int] = Counter()
    for place, value in changes[:250]:
        node = body = json.loads(good)
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        answer = api.http.post(path, json=body)
        assert answer.status_code in (200, 400, 404), (place, str(value)[:80], answer.text)
        if answer.status_code != 200:
            error_of(answer, answer.status_code)
        statuses[answer.status_code] += 1
    assert statuses[400] > 20
