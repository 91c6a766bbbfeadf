"""/v1/batches end to end with the official client, bad input files, cancelling, and servers that die."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from inference_material import MODEL, SAY, STRICT, batches_running, client, refused, wait_for
from openai import OpenAI
from small_model import small_model

from afina.server import batch_worker
from afina.server.batch_input import MOST_LINES, faults
from afina.server.batch_results import Results

if TYPE_CHECKING:
    from conftest import Api, StartServer

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
KILLS = min(4, int(os.environ.get("AFINA_FAULTS", "4")))


def line(custom_id: Any, url: str = CHAT, method: str = "POST", **body: Any) -> dict[str, Any]:
    asked = {"model": MODEL, "messages": SAY, "max_completion_tokens": 4, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": asked}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in lines)


def uploaded(api: Api, lines: list[Any] | bytes) -> str:
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    return api.upload(content, "pedidos.jsonl", "batch").json()["id"]


def created(api: Api, lines: list[Any] | bytes, endpoint: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"input_file_id": uploaded(api, lines), "endpoint": endpoint, "completion_window": "24h", **more}
    answer = api.http.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(api: Api, batch_id: str, patience_s: float = 60) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(api.http.get(f"/v1/batches/{batch_id}").json())
        return found["status"] in ENDED

    wait_for(has_ended, "end of the batch", patience_s)
    return found


def content(api: Api, file_id: str) -> list[Any]:
    return [json.loads(one) for one in api.http.get(f"/v1/files/{file_id}/content").text.splitlines()]


def test_a_batch_from_file_to_file_with_the_sdk(lite: Api) -> None:
    sdk = client(lite)
    asked = [line("first"), line("bad", temperature=9), line("ação", response_format=STRICT, max_completion_tokens=80)]
    with batches_running(lite):
        file = sdk.files.create(file=("in.jsonl", jsonl(asked)), purpose="batch")
        batch = sdk.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"turma": "3"}
        )
        assert (batch.object, batch.status, batch.output_file_id) == ("batch", "validating", None)
        assert batch.expires_at == batch.created_at + 86400
        wait_for(lambda: sdk.batches.retrieve(batch.id).status in ENDED, "end of the batch")
    done = sdk.batches.retrieve(batch.id)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert done.metadata == {"turma": "3"}
    assert done.in_progress_at
    assert done.finalizing_at
    assert done.completed_at
    assert done.output_file_id
    assert done.error_file_id
    output, errors = content(lite, done.output_file_id), content(lite, done.error_file_id)
    assert [one["custom_id"] for one in output] == ["first", "ação"]
    assert [one["custom_id"] for one in errors] == ["bad"]
    for one in output:
        assert list(one) == ["id", "custom_id", "response", "error"]
        assert (one["response"]["status_code"], one["error"]) == (200, None)
        assert one["response"]["body"]["object"] == "chat.completion"
    direct = lite.http.post(CHAT, json=asked[2]["body"]).json()["choices"]
    assert output[1]["response"]["body"]["choices"] == direct, "the same code path"
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["code"] == "decimal_above_max_value"
    file_object = lite.http.get(f"/v1/files/{done.output_file_id}").json()
    assert (file_object["purpose"], file_object["filename"]) == ("batch_output", f"{batch.id}_output.jsonl")
    assert file_object["expires_at"] == file_object["created_at"] + 30 * 86400
    assert not batch_worker.folder_of(lite.context, batch.id).exists()


def test_every_endpoint(lite: Api) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "davinci-002", "prompt": "Era uma vez", "max_tokens": 3},
        "/v1/embeddings": {"model": MODEL, "input": "Olá"},
        "/v1/responses": {"model": MODEL, "input": "Oi", "max_output_tokens": 3},
    }
    with batches_running(lite):
        for url, body in bodies.items():
            batch = created(lite, [{"custom_id": "a", "method": "POST", "url": url, "body": body}], url)
            done = ended(lite, batch["id"])
            assert (done["status"], done["request_counts"]) == ("completed", {"total": 1, "completed": 1, "failed": 0})
            assert done["error_file_id"] is None
    assert len(bodies) == 3


BAD_FILES: list[tuple[bytes, str, int | None, str | None]] = [
    (b"not json\n", "invalid_json_line", 1, None),
    (b"[1]\n", "invalid_json_line", 1, None),
    (b'{"a": NaN}\n', "invalid_json_line", 1, None),
    (b'"\xff"\n', "invalid_json_line", 1, None),
    (b"[" * 5000 + b"\n", "invalid_json_line", 1, None),
    (b"\n\n", "empty_file", None, None),
    (jsonl([line("a"), line("a")]), "duplicate_custom_id", 2, "custom_id"),
    (jsonl([line("a", method="GET")]), "invalid_method", 1, "method"),
    (jsonl([line("a"), line("b", url="/v1/embeddings")]), "invalid_url", 2, "url"),
    (jsonl([line("")]), "invalid_value", 1, "custom_id"),
    (jsonl([line(3)]), "invalid_value", 1, "custom_id"),
    (jsonl([{"custom_id": "a", "method": "POST", "url": CHAT}]), "missing_required_parameter", 1, "body"),
    (jsonl([{**line("a"), "body": []}]), "invalid_type", 1, "body"),
    (jsonl([{**line("a"), "colour": 1}]), "unknown_parameter", 1, "colour"),
]


def test_bad_files_are_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    for raw, code, number, param in BAD_FILES:
        path.write_bytes(raw)
        _, (fault, *_) = faults(path, CHAT)
        assert (fault["code"], fault["line"], fault["param"]) == (code, number, param), raw[:50]
        assert fault["message"]
    assert len(BAD_FILES) == 14
    path.write_bytes(b"\xef\xbb\xbf" + jsonl([line("a")]) + b"\n" + jsonl([line("b")]))
    assert faults(path, CHAT) == (2, [])
    path.write_bytes(jsonl([line(str(i)) for i in range(MOST_LINES + 1)]))
    assert faults(path, CHAT)[1][0]["code"] == "too_many_tasks"


def test_a_bad_file_fails_the_batch_and_says_why(lite: Api) -> None:
    with batches_running(lite):
        done = ended(lite, created(lite, [line("a"), line("a"), line("b", method="PUT")])["id"])
    assert done["status"] == "failed"
    assert done["errors"]["object"] == "list"
    assert [(one["line"], one["code"]) for one in done["errors"]["data"]] == [
        (2, "duplicate_custom_id"), (3, "invalid_method"),
    ]  # fmt: skip
    assert done["failed_at"]
    assert (done["output_file_id"], done["error_file_id"]) == (None, None)


def test_bad_requests_are_refused(api: Api) -> None:
    good = uploaded(api, [line("a")])
    train = api.upload(b'{"messages": []}\n').json()["id"]
    base = {"input_file_id": good, "endpoint": CHAT, "completion_window": "24h"}
    cases: list[tuple[dict[str, Any], str, str | None, int]] = [
        ({"input_file_id": "file-none"}, "input_file_id", None, 404),
        ({"input_file_id": train}, "input_file_id", "invalid_file_purpose", 400),
        ({"input_file_id": "../../etc/passwd"}, "input_file_id", None, 404),
        ({"endpoint": "/v1/images"}, "endpoint", "invalid_value", 400),
        ({"completion_window": "1h"}, "completion_window", "invalid_value", 400),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties", 400),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds",
         "integer_below_min_value", 400),
        ({"colour": 1}, "colour", "unknown_parameter", 400),
    ]  # fmt: skip
    for fields, param, code, status in cases:
        refused(api.http.post("/v1/batches", json={**base, **fields}), param, code, status)
    assert len(cases) == 8
    for answer in (api.http.get("/v1/batches/batch_x"), api.http.post("/v1/batches/batch_x/cancel")):
        assert refused(answer, "id", None, 404) == "No batch found with id 'batch_x'."


def test_lists_are_newest_first_in_pages(api: Api) -> None:
    file_id = uploaded(api, [line("a")])
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    ids = [api.http.post("/v1/batches", json=body).json()["id"] for _ in range(5)][::-1]
    first = api.http.get("/v1/batches", params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:2], True)
    assert (first["first_id"], first["last_id"]) == (ids[0], ids[1])
    rest = api.http.get("/v1/batches", params={"limit": 100, "after": ids[1]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
    refused(api.http.get("/v1/batches", params={"after": "batch_x"}), "after", "invalid_value")
    refused(api.http.get("/v1/batches", params={"limit": 101}), "limit", "integer_above_max_value")


def endless(number: int) -> dict[str, Any]:
    """A request that takes a while: its end is forbidden."""
    return line(str(number), max_completion_tokens=1500, logit_bias={"1": -100})


def test_a_cancelled_batch_keeps_what_it_has(lite: Api) -> None:
    with batches_running(lite):
        batch = created(lite, [line("quick"), *(endless(i) for i in range(200))])

        def begun() -> bool:
            return lite.http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] > 0

        wait_for(begun, "first answer")
        cancelling = lite.http.post(f"/v1/batches/{batch['id']}/cancel").json()
        assert cancelling["status"] == "cancelling"
        began = time.monotonic()
        done = ended(lite, batch["id"])
        assert time.monotonic() - began < 20
    assert done["status"] == "cancelled"
    assert done["cancelled_at"]
    assert "quick" in [one["custom_id"] for one in content(lite, done["output_file_id"])]
    undone = content(lite, done["error_file_id"])
    assert {one["error"]["code"] for one in undone} == {"batch_cancelled"}
    assert sum(done["request_counts"][key] for key in ("completed", "failed")) == 201
    refused(lite.http.post(f"/v1/batches/{batch['id']}/cancel"), None, "invalid_batch_status")


def test_a_batch_that_waits_for_too_long_expires(lite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_worker, "now", lambda: int(time.time()) + 90_000)
    batch = created(lite, [line("a"), line("b")])
    with batches_running(lite):
        done = ended(lite, batch["id"])
    assert done["status"] == "expired"
    assert {one["error"]["code"] for one in content(lite, done["error_file_id"])} == {"batch_expired"}


def test_the_input_may_be_deleted_once_the_batch_is_made(lite: Api) -> None:
    batch = created(lite, [line("a")])
    assert lite.http.delete(f"/v1/files/{batch['input_file_id']}").status_code == 200
    with batches_running(lite):
        assert ended(lite, batch["id"])["status"] == "completed"


# -- what survives ----------------------------------------------------------------------------


def test_results_survive_a_torn_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for number in (3, 1, 2):
        results.add(number, number != 2, {"custom_id": str(number)})
    results.close()
    with results.path.open("ab") as file:
        file.write(b'{"number": 4, "ok": tr')
    again = Results(tmp_path)
    assert again.done == {3: True, 1: True, 2: False}
    again.add(4, True, {"custom_id": "4"})
    assert (again.completed, again.failed) == (3, 1)
    output, errors = again.write(True), again.write(False)
    assert output is not None
    assert errors is not None
    assert [json.loads(one)["custom_id"] for one in output.read_text().splitlines()] == ["1", "3", "4"]
    assert [json.loads(one)["custom_id"] for one in errors.read_text().splitlines()] == ["2"]
    again.close()


@pytest.mark.slow
def test_a_killed_server_goes_on_and_repeats_nothing(start_server: StartServer, tmp_path: Path) -> None:
    """On a small model: what is killed is the server, and quick answers leave more moments to die in."""
    data, key = tmp_path / "data", "sk-afina-batch"
    environment = {"AFINA_API_KEY": key, "AFINA_BASE_MODEL": str(small_model(tmp_path / "base"))}
    lines = [line(f"r{i}", max_completion_tokens=60, logit_bias={"1": -100}) for i in range(30 + 30 * KILLS)]
    batch_id, killed = "", 0
    for _ in range(KILLS + 2):
        server = start_server(data, environment=environment)
        sdk = OpenAI(base_url=f"{server.url}/v1", api_key=key)
        if not batch_id:
            file = sdk.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
            batch_id = sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        staged = data / "batches" / batch_id / "done.jsonl"
        at_start = staged.read_bytes() if staged.exists() else b""
        wanted = len(at_start) + 20_000 if killed < KILLS else None

        def enough(
            staged: Path = staged, wanted: int | None = wanted, sdk: OpenAI = sdk, batch_id: str = batch_id
        ) -> bool:
            if wanted is not None and staged.exists() and staged.stat().st_size > wanted:
                return True
            return sdk.batches.retrieve(batch_id).status == "completed"

        wait_for(enough, "progress", 120)
        if staged.exists():
            assert staged.read_bytes().startswith(at_start[: at_start.rfind(b"\n") + 1]), "nothing was done again"
        done = sdk.batches.retrieve(batch_id)
        if done.status == "completed":
            break
        server.stop(signal.SIGKILL)
        killed += 1
    assert killed == KILLS
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (
        len(lines),
        len(lines),
        0,
    )
    assert done.output_file_id
    ids = [json.loads(one)["custom_id"] for one in sdk.files.content(done.output_file_id).text.splitlines()]
    assert ids == [f"r{i}" for i in range(len(lines))]
    server.stop()
