"""Requests of somebody who wishes the server ill: the answers are the contract's, and others are served.

All against a real server. AFINA_FUZZ=1 makes the random parts long. What takes a server's time (schemas, prompts and
bodies made to be slow) is sent while a process of its own measures how long /health and a small chat take.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hostile_material import (
    AUTH,
    BODY_TIMEOUT_S,
    BROKEN,
    DISPOSITION,
    FILE,
    FORMS,
    GOOD,
    IDS,
    KEY,
    MODEL,
    NASTY,
    POST,
    PURPOSE,
    ROUTES,
    SAY,
    WIRE,
    bad_line,
    chat,
    keeps_contract,
    send,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from openai_document import document
from schemathesis import GenerationMode
from slow_requests import BOMBS
from small_model import small_model

from afina.server.batches import BatchBody
from afina.server.chat_body import ChatBody
from afina.server.completions import CompletionBody
from afina.server.embeddings import EmbeddingBody
from afina.server.fine_tuning import CreateJob
from afina.server.response_body import ResponseBody

if TYPE_CHECKING:
    from conftest import Server, StartServer

LONG = bool(os.environ.get("AFINA_FUZZ"))
quick = settings(
    max_examples=2000 if LONG else 40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@contextmanager
def attacked(start_server: StartServer, folder: Path, **settings: str) -> Iterator[Server]:
    """A server, whose log at the end holds no bug and no key."""
    environment = {"AFINA_API_KEY": KEY, "AFINA_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S), **settings}
    server = start_server(folder / "data", "--log-requests", environment=environment)
    with server.http as client:
        keeps_contract(send(client, "/v1/chat/completions", chat()), 200)  # the model is loaded
    yield server
    assert server.process.poll() is None, f"the server died: {server.errors()}"
    assert server.stop() == 0
    bugs = [line for line in server.errors().splitlines() if "failed:" in line or "Traceback" in line]
    assert not bugs, server.errors()
    assert KEY not in server.errors() + "".join(server.out)


@pytest.fixture(scope="module")
def target(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a small model: where requests are refused or answered is the same for every one."""
    folder = tmp_path_factory.mktemp("fuzzed")
    with attacked(start_server, folder, AFINA_BASE_MODEL=str(small_model(folder / "base"))) as server:
        yield server


@pytest.fixture(scope="module")
def nano_target(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the embedded model, for what a model takes time for."""
    with attacked(start_server, tmp_path_factory.mktemp("slowed")) as server:
        yield server


@pytest.fixture(scope="module")
def http(target: Server) -> Generator[httpx.Client]:
    with target.http as client:
        yield client


def test_an_answer_waits_for_no_acknowledgement(http: httpx.Client) -> None:
    """Without TCP_NODELAY each answer on a kept connection takes 40 ms more."""
    times_s: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        keeps_contract(http.get("/v1/models"), 200)
        times_s.append(time.perf_counter() - began)
    assert min(times_s) < 0.03, sorted(times_s)


# -- from the API's own document -----------------------------------------------------------------------------------


def operations(known: dict[str, list[str]]) -> list[Any]:
    return [found.ok() for found in schemathesis.openapi.from_dict(document(known)).get_all_operations()]


@pytest.mark.slow
def test_requests_made_from_the_api_document(target: Server, http: httpx.Client) -> None:
    """Good and bad requests to every operation, as schemathesis makes them."""
    line = json.dumps({"messages": [*SAY, {"role": "assistant", "content": "oi"}]}).encode() + b"\n"
    files = [
        http.post("/v1/files", files={"file": ("a.jsonl", line * 3)}, data={"purpose": "fine-tune"}).json()["id"]
        for _ in range(3)
    ]
    job = send(http, "/v1/fine_tuning/jobs", {"model": MODEL, "training_file": files[0]}).json()["id"]
    seen: dict[str, int] = {}
    statuses: dict[int, int] = {}
    for operation in operations({"file_id": files, "fine_tuning_job_id": [job], "model": ["gpt-4o", "afina%2Fnano"]}):
        # Wrong ids alone are slow to invent, and have a test of their own (test_ids_and_cursors).
        number = 400 if LONG else 8 if list(operation.body) or list(operation.query) else 2
        for mode in GenerationMode:

            @settings(quick, max_examples=number)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                label = case.operation.label
                headers = {"Authorization": f"Bearer {KEY}"}
                answer = case.call(base_url=target.url, headers=headers, timeout=60)
                seen[label] = seen.get(label, 0) + 1
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, answer.text
                assert answer.headers["x-request-id"][0].startswith("req_")
                if answer.status_code >= 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

            try:
                ask()
            except Unsatisfiable:  # a request without parts has no wrong parts
                assert mode is GenerationMode.NEGATIVE
    print(f"{sum(seen.values())} requests to {len(seen)} operations: {dict(sorted(statuses.items()))}")
    assert len(seen) == 24
    assert statuses[200] >= 10
    assert statuses[400] > 50


# -- every field, every type ---------------------------------------------------------------------------------------

# So that answers are short, whatever length is asked for.
STOPS = ["a", "e", "o", " "]
ONE_LABEL = {
    "type": "object",
    "properties": {"a": {"enum": ["b", "c"]}},
    "required": ["a"],
    "additionalProperties": False,
}
SHORT = {"format": {"type": "json_schema", "name": "x", "schema": ONE_LABEL, "strict": True}}
BODIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, chat(stop=STOPS)),
    "/v1/completions": (CompletionBody, {"model": MODEL, "prompt": "oi", "max_tokens": 2, "stop": STOPS}),
    "/v1/embeddings": (EmbeddingBody, {"model": MODEL, "input": "oi"}),
    "/v1/responses": (ResponseBody, {"model": MODEL, "input": "oi", "max_output_tokens": 2, "text": SHORT}),
    "/v1/fine_tuning/jobs": (CreateJob, {"model": MODEL, "training_file": "file-" + "a" * 22}),
    "/v1/batches": (
        BatchBody,
        {"input_file_id": "file-" + "a" * 22, "endpoint": "/v1/responses", "completion_window": "24h"},
    ),
}


@pytest.mark.parametrize("path", BODIES)
def test_every_field_with_every_kind_of_value(http: httpx.Client, path: str) -> None:
    model, good = BODIES[path]
    for turn, name in enumerate(model.model_fields):
        for value in NASTY if LONG else NASTY[turn % 4 :: 4]:
            keeps_contract(send(http, path, {**good, name: value}))
    assert len(model.model_fields) >= 5


TEXT = st.text(max_size=20) | st.sampled_from(["\ud800", "\udfff x", "\0", "a" * 3000])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("path", BODIES)
@quick
@given(data=st.data())
def test_random_bodies(http: httpx.Client, path: str, data: st.DataObject) -> None:
    model, good = BODIES[path]
    names = st.sampled_from([*model.model_fields]) | TEXT
    changed = {**good, **data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=4))}
    body = data.draw(st.just(changed) | VALUES) if LONG else changed
    keeps_contract(send(http, path, body))


MESSAGE_KEYS = ["role", "content", "name", "tool_calls", "tool_call_id", "refusal"]


@quick
@given(message=st.dictionaries(st.sampled_from(MESSAGE_KEYS), VALUES))
def test_random_messages(http: httpx.Client, message: dict[str, Any]) -> None:
    for role in ("user", "assistant", "tool", None):
        one = message if role is None else {**message, "role": role}
        keeps_contract(send(http, "/v1/chat/completions", chat(messages=[*SAY, one, *SAY])))
        keeps_contract(send(http, "/v1/responses", {"model": MODEL, "input": [one], "max_output_tokens": 2}))


KEYWORDS = "type properties required additionalProperties items anyOf enum const $ref $defs pattern minimum maxLength"
SCHEMAS = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, True, {}, None]),
    lambda inner: st.builds(
        lambda known, other: {**known, **other},
        st.fixed_dictionaries(
            {"type": st.sampled_from(["object", "array", "string", ["string", "null"]])},
            optional={
                "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
                "required": st.lists(st.sampled_from("abc"), max_size=3),
                "additionalProperties": st.booleans(),
                "items": inner,
                "anyOf": st.lists(inner, max_size=3),
                "enum": st.lists(VALUES, max_size=3),
                "$defs": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
                "minItems": st.integers(-2, 5),
                "maxItems": st.integers(-2, 5),
                "pattern": st.sampled_from(["a+", "(", "(?=x)", "[^a]{2,3}", "\\d+", "^$", "\\", "a{9999999}"]),
            },
        ),
        st.dictionaries(st.sampled_from(KEYWORDS.split()), VALUES, max_size=1),
    ),
    max_leaves=8,
)


@example(schema={"type": []}, strict=False)
@quick
@given(schema=SCHEMAS, strict=st.booleans())
def test_random_schemas(http: httpx.Client, schema: Any, strict: bool) -> None:
    """What is not refused is kept: the answer is JSON, or was cut."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}
    answer = keeps_contract(send(http, "/v1/chat/completions", chat(response_format=wanted)))
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            json.loads(choice["message"]["content"])
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
    keeps_contract(send(http, "/v1/chat/completions", chat(tools=[tool], tool_choice="required")))


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/fine_tuning/jobs"])
def test_bodies_that_are_no_json(http: httpx.Client, path: str, name: str) -> None:
    keeps_contract(send(http, path, BROKEN[name]), 400, 413)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[" ".join(route) for route in ROUTES])
def test_ids_and_cursors(http: httpx.Client, method: str, path: str) -> None:
    for value in IDS:
        answer = keeps_contract(http.request(method, path.format(value)))
        assert "SQLite" not in answer.text[:16], "a file of the server's own"
        assert "set-cookie" not in answer.headers


def test_methods_and_headers(http: httpx.Client) -> None:
    paths = [
        "/v1/files",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/fine_tuning/jobs",
        "/health",
        "/metrics",
        "/",
        "/v1",
    ]
    for path in paths:
        for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X" * 200):
            answer = http.request(method, path)
            assert answer.status_code < 500
    sent = [
        {"range": "bytes=0-1"}, {"range": "bytes=99999999999-"}, {"if-none-match": "*"}, {"if-modified-since": "x"},
        {"accept": "\xff"}, {"accept-encoding": "gzip;q=x"}, {"x-request-id": "a\tb"},
        {"openai-organization": "é" * 3000}, {"host": "evil"}, {"x-forwarded-for": "127.0.0.1"},
        {"content-length": "0"},
        {"connection": "upgrade", "upgrade": "websocket"}, {"cookie": "a=" + "b" * 5000}, {"expect": "100-continue"},
    ]  # fmt: skip
    for headers in sent:
        raw = {name: value.encode("utf-8") for name, value in headers.items()}
        assert http.get("/v1/models", headers=raw).status_code in (200, 400), headers
    for key in (
        "",
        "Bearer",
        "Basic eDp5",
        f"bearer  {KEY}x",
        "Bearer " + "k" * 60_000,
        "\xff\xff",
    ):
        answer = http.get("/v1/models", headers={"authorization": key.encode("utf-8")})
        assert answer.status_code in (200, 401, 400), answer.text
        assert KEY not in answer.text


def talk(server: Server, *pieces: bytes, wait_s: float = 10.0) -> bytes:
    """What comes back on a bare connection."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=wait_s) as raw:
        got = b""
        try:
            for piece in pieces:
                raw.sendall(piece)
                time.sleep(0.02)
            while data := raw.recv(65536):
                got += data
        except OSError:
            pass
        return got


@pytest.mark.parametrize("name", WIRE)
def test_what_is_hardly_http(target: Server, name: str) -> None:
    got = talk(target, WIRE[name], wait_s=3.0)
    status = int(got.split(b" ", 2)[1])
    assert status < 500, got
    if status >= 400:
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"x-request-id: req_" in head.lower()
        first, _ = json.JSONDecoder().raw_decode(body.decode())
        assert set(first["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_never_end(target: Server, http: httpx.Client) -> None:
    stalls = {
        "stalled chunks": POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{}",
        "stalled length": POST + b"content-length: 500\r\n\r\n{",
        "stalled upload": b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        + AUTH
        + b'content-length: 5000\r\n\r\n--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
    }
    for name, request in stalls.items():
        began = time.monotonic()
        got = talk(target, request, wait_s=BODY_TIMEOUT_S * 5)
        assert got.split(b" ", 2)[1] == b"408", name
        assert time.monotonic() - began < BODY_TIMEOUT_S * 4
    assert left_of_uploads(target) == []
    keeps_contract(http.get("/v1/models"), 200)


@pytest.mark.parametrize("name", FORMS)
def test_broken_forms(target: Server, http: httpx.Client, name: str) -> None:
    kind, body = FORMS[name]
    keeps_contract(http.post("/v1/files", content=body, headers={"content-type": kind}), 400, 413)
    assert left_of_uploads(target) == []


def test_names_of_files_never_become_paths(target: Server, http: httpx.Client) -> None:
    names = [
        "../../etc/passwd", "..\\..\\x", "/etc/passwd", "a\0b", "..", ".", "con", "a" * 900, "\u202etxt.exe",
        "x\r\ny: z", "é/ç", " ", "%2e%2e%2f",
    ]  # fmt: skip
    before = set(target.data_dir.parent.rglob("*"))
    ids = set()
    for name in names:
        quoted = name.encode().replace(b"\r", b"%0D").replace(b"\n", b"%0A").replace(b'"', b"%22")
        form = PURPOSE + b"--b\r\n" + DISPOSITION % b"file" + b'; filename="%s"' % quoted + b"\r\n\r\nx\r\n--b--\r\n"
        answer = http.post("/v1/files", content=form, headers={"content-type": "multipart/form-data; boundary=b"})
        if keeps_contract(answer).status_code == 200:
            kept = answer.json()["filename"]
            assert not {"/", "\\", "\0", "\n"} & set(kept), kept
            assert kept not in ("..", ".", "")
            ids.add(answer.json()["id"])
    made = set(target.data_dir.parent.rglob("*")) - before
    assert {path for path in made if path.parent.name == "files"} == {target.data_dir / "files" / one for one in ids}
    assert len(ids) >= len(names) - 2


def left_of_uploads(server: Server, wait_s: float = 5.0) -> list[Path]:
    """What lies in the staging folder, once nothing is on its way any more."""
    staging = server.data_dir / "files" / ".incoming"
    deadline = time.monotonic() + wait_s
    while (left := list(staging.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_uploads_that_are_cut_off_leave_nothing(target: Server, http: httpx.Client) -> None:
    before = {path.name for path in (target.data_dir / "files").iterdir()}
    listed = len(http.get("/v1/files").json()["data"])
    address = urlsplit(target.url)
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n" + AUTH
    body = PURPOSE + b"--b\r\n" + FILE + b"\r\n\r\n" + bytes(3_000_000)
    for sent in (100, 5000, 1_500_000, 2_900_000):
        with closing(socket.create_connection((address.hostname, address.port), timeout=10)) as raw:
            raw.sendall(head + b"content-length: %d\r\n\r\n" % (len(body) + 100) + body[:sent])
    assert left_of_uploads(target) == []
    assert {path.name for path in (target.data_dir / "files").iterdir()} == before
    assert len(http.get("/v1/files").json()["data"]) == listed


# -- clients that leave, or read slowly ----------------------------------------------------------------------------


def gauges(http: httpx.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def at_rest(http: httpx.Client, wait_s: float = 20.0) -> dict[str, float]:
    """The gauges, when nothing is answered any more but this question."""
    deadline = time.monotonic() + wait_s
    while True:
        found = gauges(http)
        busy = [found['afina_answers{state="running"}'], found['afina_answers{state="waiting"}']]
        if (busy == [0, 0] and found["afina_requests_in_flight"] == 1) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_hang_up(target: Server, http: httpx.Client, path: str, stream: bool) -> None:
    """Generation stops, rows are free, and nobody's request hangs on."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat(n=8, max_completion_tokens=1500, temperature=2, stream=stream),
        "/v1/completions": {"model": MODEL, "prompt": ["a", "b"], "n": 4, "max_tokens": 1500, "stream": stream},
        "/v1/responses": {"model": MODEL, "input": "oi", "max_output_tokens": 1500, "stream": stream},
        "/v1/embeddings": {"model": MODEL, "input": ["palavra " * 60] * 300},
    }
    address = urlsplit(target.url)
    data = json.dumps(bodies[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    for patience_s in (0.0, 0.05, 0.3):
        with closing(socket.create_connection((address.hostname, address.port), timeout=10)) as raw:
            raw.sendall(head.encode() + AUTH + b"\r\n" + data)
            time.sleep(patience_s)
    found = at_rest(http)
    assert found['afina_answers{state="running"}'] == 0
    assert found['afina_answers{state="waiting"}'] == 0
    assert found["afina_requests_in_flight"] == 1
    keeps_contract(send(http, "/v1/chat/completions", chat()), 200)


def test_a_slow_reader_holds_nobody_up(target: Server, http: httpx.Client) -> None:
    address = urlsplit(target.url)
    more = {
        "n": 16,
        "max_completion_tokens": 400,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 2,
        "stream": True,
    }
    data = json.dumps(chat(**more)).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((address.hostname, address.port))
        raw.sendall(POST + b"content-length: %d\r\n\r\n" % len(data) + data)
        for _ in range(20):
            began = time.monotonic()
            keeps_contract(send(http, "/v1/chat/completions", chat()), 200)
            assert time.monotonic() - began < 10
            time.sleep(0.05)
    assert at_rest(http)["afina_requests_in_flight"] == 1


def test_malformed_training_files_in_bulk(target: Server, http: httpx.Client) -> None:
    """10,000 wrong lines (fewer of them the first of their file): every job fails, and names its first wrong line."""
    chance = random.Random(5)
    good = json.dumps(GOOD).encode() + b"\n"
    firsts: dict[str, int] = {}
    num_lines = 0
    files, each = (400, 25) if LONG else (80, 125)
    for _ in range(files):
        first = chance.randrange(12, 40)
        lines = [good] * (first - 1) + [bad_line(chance) + b"\n" for _ in range(each)]
        num_lines += each
        answer = http.post("/v1/files", files={"file": ("t.jsonl", b"".join(lines))}, data={"purpose": "fine-tune"})
        file_id = keeps_contract(answer, 200).json()["id"]
        job = keeps_contract(send(http, "/v1/fine_tuning/jobs", {"model": MODEL, "training_file": file_id}), 200)
        firsts[job.json()["id"]] = first
    assert num_lines == 10_000
    for job_id, first in firsts.items():
        job = _ended(http, job_id)
        assert job["status"] == "failed"
        assert job["error"]["code"] == "invalid_training_file", job["error"]
        assert f"Example {first}," in job["error"]["message"], (job["error"], first)
        assert job["error"]["param"] == "training_file"
    keeps_contract(http.get("/health"), 200)


def _ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        job: dict[str, Any] = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
        if job["status"] != "validating_files" or time.monotonic() > deadline:
            return job
        time.sleep(0.05)


# -- requests made to be slow --------------------------------------------------------------------------------------

WATCHER = textwrap.dedent(
    """
    import http.client, json, sys, threading, time
    host, port, key, model = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    worst, stop = {"health": 0.0, "chat": 0.0}, threading.Event()
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "oi"}], "max_completion_tokens": 2})
    def ask(what, *request):
        while not stop.is_set():
            began = time.monotonic()
            connection = http.client.HTTPConnection(host, port, timeout=300)
            connection.request(*request)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.status == 200, answer.status
            worst[what] = max(worst[what], time.monotonic() - began)
            time.sleep(0.02)
    headers = {"authorization": "Bearer " + key, "content-type": "application/json"}
    asked = [("health", "GET", "/health"), ("chat", "POST", "/v1/chat/completions", body, headers)]
    threads = [threading.Thread(target=ask, args=one) for one in asked]
    [thread.start() for thread in threads]
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    [thread.join() for thread in threads]
    print(json.dumps(worst))
    """
)
# A machine that does other things as well needs some room; what this finds takes seconds to minutes.
HEALTH_S, CHAT_S = 1.5, 3.0


@contextmanager
def watched(server: Server) -> Iterator[dict[str, float]]:
    """The longest that /health and a small chat took meanwhile; filled at the end."""
    address = urlsplit(server.url)
    argv = [sys.executable, "-c", WATCHER, str(address.hostname), str(address.port), KEY, MODEL]
    worst: dict[str, float] = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield worst
        finally:
            time.sleep(0.1)
            worst |= json.loads(process.communicate("")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_slow_requests_hold_nobody_up(nano_target: Server, name: str) -> None:
    path, body = BOMBS[name]()
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    with watched(nano_target) as worst, nano_target.http as http:
        began = time.monotonic()
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        took = time.monotonic() - began
    keeps_contract(answer, 200, 400, 404, 413)
    print(f"{name}: {len(content) / 1e6:.1f} MB, {answer.status_code} in {took:.2f} s; {worst}")
    assert worst["health"] < HEALTH_S, f"/health waited for {name!r}"
    assert worst["chat"] < CHAT_S, f"others waited for {name!r}"


@pytest.mark.slow
def test_a_batch_of_fifty_thousand_lines_holds_nobody_up(target: Server, http: httpx.Client) -> None:
    """It is checked, begun, cancelled and written out while others are served."""
    body = {"model": MODEL, "messages": SAY, "max_completion_tokens": 1}
    rows = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(50_000)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with watched(target) as worst:
        uploaded = http.post("/v1/files", files={"file": ("b.jsonl", content)}, data={"purpose": "batch"})
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "input_file_id": uploaded.json()["id"]}
        batch = keeps_contract(send(http, "/v1/batches", asked), 200).json()
        batch = _until(http, batch["id"], lambda b: b["request_counts"]["completed"] > 0 or b["status"] == "failed")
        assert batch["request_counts"]["total"] == 50_000
        keeps_contract(http.post(f"/v1/batches/{batch['id']}/cancel"), 200)
        batch = _until(http, batch["id"], lambda b: b["status"] == "cancelled")
    print(f"50,000 lines: {worst}, {batch['request_counts']}")
    assert batch["status"] == "cancelled"
    assert worst["health"] < HEALTH_S
    assert worst["chat"] < CHAT_S


def _until(http: httpx.Client, batch_id: str, good: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 180
    while True:
        batch = http.get(f"/v1/batches/{batch_id}").json()
        if good(batch) or time.monotonic() > deadline:
            return batch
        time.sleep(0.1)


# -- secrets -------------------------------------------------------------------------------------------------------


def test_the_key_is_nowhere(target: Server, http: httpx.Client) -> None:
    """Not in the database, not in a job's folder, not in the log; nor does an answer say where things lie."""
    keeps_contract(http.get("/v1/models"), 200)
    searched = [path for path in target.data_dir.rglob("*") if path.is_file()]
    assert len(searched) > 3
    for path in searched:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in target.errors() + "".join(target.out)
    place = str(target.data_dir)
    for path in ("/health", "/v1/files", "/v1/models", "/v1/fine_tuning/jobs", "/metrics"):
        assert place not in http.get(path).text
    mode = target.data_dir.stat().st_mode & 0o777
    assert mode & 0o077 == 0, oct(mode)
