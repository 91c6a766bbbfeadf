"""/v1/files: what clients send, what hostile ones send, and what is left when something stops half-way."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from afina.server import files
from afina.server.errors import ApiError
from afina.server.tables import File

LINE = b'{"messages": [{"role": "user", "content": "Oi"}, {"role": "assistant", "content": "Ola"}]}\n'
KEYS = {"object", "id", "purpose", "filename", "bytes", "created_at", "expires_at", "status", "status_details"}
SLOW = pytest.mark.slow


def left_over(data_dir: Path) -> list[str]:
    """Files on the disk that are neither named by a row nor the folders themselves."""
    return sorted(path.name for path in (data_dir / "files").rglob("*") if path.is_file())


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return answer.json()["error"]


# -- the contract --------------------------------------------------------------------------------------------------


def test_a_file_s_life(api: Any) -> None:
    made = api.upload(LINE * 10)
    assert made.status_code == 200
    file = made.json()
    assert set(file) == KEYS
    assert re.fullmatch(r"file-[A-Za-z0-9]{22}", file["id"])
    assert (file["purpose"], file["filename"], file["bytes"]) == ("fine-tune", "train.jsonl", len(LINE) * 10)
    assert (file["status"], file["status_details"], file["expires_at"]) == ("processed", None, None)
    assert abs(file["created_at"] - time.time()) < 60
    assert api.http.get(f"/v1/files/{file['id']}").json() == file
    content = api.http.get(f"/v1/files/{file['id']}/content")
    assert content.content == LINE * 10
    assert content.headers["content-type"] == "application/octet-stream"
    assert api.http.get("/v1/files").json() == {
        "object": "list", "data": [file], "first_id": file["id"], "last_id": file["id"], "has_more": False,
    }  # fmt: skip
    gone = api.http.delete(f"/v1/files/{file['id']}")
    assert gone.json() == {"object": "file", "id": file["id"], "deleted": True}
    for again in (
        api.http.delete(f"/v1/files/{file['id']}"),
        api.http.get(f"/v1/files/{file['id']}"),
        api.http.get(f"/v1/files/{file['id']}/content"),
    ):
        message = f"No such File object: {file['id']}"
        assert error_of(again, 404) == {
            "message": message, "type": "invalid_request_error", "param": "id", "code": None,
        }  # fmt: skip
    assert left_over(api.context.places.root) == []


@pytest.mark.parametrize("purpose", files.PURPOSES)
def test_every_purpose_is_taken(lite: Any, purpose: str) -> None:
    file = lite.upload(LINE, purpose=purpose).json()
    assert file["purpose"] == purpose
    assert (file["expires_at"] is not None) == (purpose == "batch")


@pytest.mark.parametrize("purpose", ["fine-tune-results", "batch_output", "", "x'; --", "fine-tune "])
def test_other_purposes_are_refused_in_the_contract_s_words(lite: Any, purpose: str) -> None:
    assert error_of(lite.upload(LINE, purpose=purpose)) == {
        "message": f"'{purpose}' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals'] "
        "- 'purpose'",
        "type": "invalid_request_error", "param": "purpose", "code": None,
    }  # fmt: skip
    assert left_over(lite.context.places.root) == []


def test_expiry(api: Any) -> None:
    anchor = {"expires_after[anchor]": "created_at"}
    file = api.upload(LINE, **anchor, **{"expires_after[seconds]": "3600"}).json()
    assert file["expires_at"] == file["created_at"] + 3600
    batch = api.upload(LINE, purpose="batch").json()
    assert batch["expires_at"] == batch["created_at"] + 30 * 86400
    with api.context.store.session() as session:
        session.query(File).filter(File.id == file["id"]).update({"expires_at": int(time.time()) - 1})
    assert api.http.get(f"/v1/files/{file['id']}").status_code == 404
    assert [one["id"] for one in api.http.get("/v1/files").json()["data"]] == [batch["id"]]
    assert api.http.delete(f"/v1/files/{file['id']}").status_code == 404
    assert files.sweep(api.context) == 1
    assert left_over(api.context.places.root) == [batch["id"]]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]", "missing_required_parameter"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]", "missing_required_parameter"),
        (("last_active", "3600"), "expires_after[anchor]", "invalid_value"),
        (("created_at", "3599"), "expires_after[seconds]", "integer_below_min_value"),
        (("created_at", "2592001"), "expires_after[seconds]", "integer_above_max_value"),
        (("created_at", "-1"), "expires_after[seconds]", "integer_below_min_value"),
        (("created_at", "soon"), "expires_after[seconds]", "invalid_type"),
        (("created_at", "1e4"), "expires_after[seconds]", "invalid_type"),
        (("created_at", "9" * 5000), "expires_after[seconds]", "invalid_type"),
        (("created_at", "٣٦٠٠"), "expires_after[seconds]", "invalid_type"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
    ],
)
def test_bad_fields(lite: Any, fields: Any, param: str, code: str) -> None:
    if isinstance(fields, tuple):
        fields = {"expires_after[anchor]": fields[0], "expires_after[seconds]": fields[1]}
    error = error_of(lite.upload(LINE, **fields))
    assert (error["param"], error["code"]) == (param, code)
    assert left_over(lite.context.places.root) == []


def test_paging_is_complete_and_in_order(api: Any) -> None:
    made = [
        api.upload(LINE, name=f"{i}.jsonl", purpose="batch" if i % 3 == 0 else "fine-tune").json() for i in range(11)
    ]
    ids = [file["id"] for file in made]
    for order, wanted in (("desc", ids[::-1]), ("asc", ids)):
        seen: list[str] = []
        after: dict[str, Any] = {}
        while True:
            answer = api.http.get("/v1/files", params={"limit": 4, "order": order, **after}).json()
            assert (answer["first_id"], answer["last_id"]) == (answer["data"][0]["id"], answer["data"][-1]["id"])
            seen += [file["id"] for file in answer["data"]]
            if not answer["has_more"]:
                break
            after = {"after": answer["last_id"]}
        assert seen == wanted
    only = api.http.get("/v1/files", params={"purpose": "batch"}).json()["data"]
    assert [file["id"] for file in only] == ids[::3][::-1]
    assert api.http.get("/v1/files", params={"purpose": "nothing"}).json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=10001", "limit", "integer_above_max_value"),
        ("limit=" + "9" * 400, "limit", "integer_above_max_value"),
        ("limit=ten", "limit", "invalid_type"),
        ("limit=", "limit", "invalid_type"),
        ("order=up", "order", "invalid_value"),
        ("after=file-nothing", "after", "invalid_value"),
        ("after=", "after", "invalid_value"),
        ("after=%00", None, None),
        ("after=%ff%fe", "after", "invalid_value"),
    ],
)
def test_bad_queries(api: Any, query: str, param: str | None, code: str | None) -> None:
    error = error_of(api.http.get(f"/v1/files?{query}"))
    assert (error["param"], error["code"]) == (param, code)


def test_ids_that_are_no_ids(api: Any) -> None:
    secret = api.context.places.root / "secret"
    secret.write_text("x")
    for name in (
        "..%2f..%2fsecret",
        "%2e%2e%2fafina.db",
        "file-%00",
        "a" * 5000,
        "%F0%9F%98%80",
        "'; drop table files;--",
    ):
        for method, suffix in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            assert api.http.request(method, f"/v1/files/{name}{suffix}").status_code == 404
    assert secret.exists()


# -- names ---------------------------------------------------------------------------------------------------------

NAMES = [
    ("../../etc/passwd", "passwd"),
    ("/home/maria/treino.jsonl", "treino.jsonl"),
    ("C:\\Users\\maria\\treino.jsonl", "treino.jsonl"),
    ("..", "file"),
    ("a/", "file"),
    ("notícias de março.jsonl", "notícias de março.jsonl"),
    ("данные 数据 データ.jsonl", "данные 数据 データ.jsonl"),
    ("😀👩‍👩‍👧.jsonl", "😀👩‍👩‍👧.jsonl"),
    ("a\u3000b\u00a0c.jsonl", "a\u3000b\u00a0c.jsonl"),
    ('with "quotes".jsonl', 'with "quotes".jsonl'),
    ("100%25.jsonl", "100%25.jsonl"),
    ("a\x7fb\u0085c.jsonl", "abc.jsonl"),
    ("gpj.\u202elnosj", "gpj.lnosj"),
    ("n" * 300, "n" * 300),
    ("con.jsonl", "con.jsonl"),
    ("'; DROP TABLE files; --", "'; DROP TABLE files; --"),
]


def test_names_come_back(api: Any) -> None:
    made = [api.upload(LINE, name=sent).json() for sent, _ in NAMES]
    assert [file["filename"] for file in made] == [kept for _, kept in NAMES]
    listed = api.http.get("/v1/files", params={"order": "asc"}).json()["data"]
    assert [file["filename"] for file in listed] == [kept for _, kept in NAMES]
    assert left_over(api.context.places.root) == sorted(file["id"] for file in made)
    assert len(made) == 16


def form(*parts: tuple[str, bytes], end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


def send(api: Any, body: bytes, content_type: str = "multipart/form-data; boundary=X") -> Any:
    return api.http.post("/v1/files", content=body, headers={"content-type": content_type})


PURPOSE = ('Content-Disposition: form-data; name="purpose"', b"fine-tune")


@pytest.mark.parametrize(
    ("disposition", "kept"),
    [
        ("filename*=utf-8''not%C3%ADcias%20%F0%9F%98%80.jsonl", "notícias 😀.jsonl"),
        ("filename=\"plain.jsonl\"; filename*=UTF-8'pt'a%C3%A7%C3%A3o.jsonl", "ação.jsonl"),
        ("filename*=iso-8859-1''a%E7%E3o.jsonl", "ação.jsonl"),
        ("filename*=utf-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("filename*=utf-8''a%00b%0D%0Ac.jsonl", "abc.jsonl"),
        ('filename="a\\"b.jsonl"', 'a"b.jsonl'),
        ('filename="a%22b%0D%0A.jsonl"', 'a"b.jsonl'),
        ("filename=bare.jsonl", "bare.jsonl"),
        ('filename=""', "file"),
        ('filename="semi;colon.jsonl"', "semi;colon.jsonl"),
    ],
)
def test_names_as_clients_write_them(lite: Any, disposition: str, kept: str) -> None:
    answer = send(lite, form((f'Content-Disposition: form-data; name="file"; {disposition}', LINE), PURPOSE))
    assert answer.json().get("filename") == kept, answer.text


FILE = 'Content-Disposition: form-data; name="file"; filename="a.jsonl"'


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (form((FILE, LINE), PURPOSE), "text/plain", 400, "only accepts 'multipart/form-data'"),
        (form((FILE, LINE), PURPOSE), "multipart/form-data", 400, "no boundary"),
        (form((FILE, LINE), PURPOSE), "multipart/form-data; boundary=" + "b" * 400, 400, "boundary is too long"),
        (form((FILE, LINE), PURPOSE), "multipart/form-data; boundary=Y", 400, "could not parse"),
        (b"", "multipart/form-data; boundary=X", 400, "ends before its closing boundary"),
        (b"nonsense", "multipart/form-data; boundary=X", 400, "could not parse"),
        (form((FILE, LINE), PURPOSE, end=b""), "multipart/form-data; boundary=X", 400, "ends before"),
        (form((FILE, LINE))[:-40], "multipart/form-data; boundary=X", 400, "ends before"),
        (form(PURPOSE), "multipart/form-data; boundary=X", 400, "Missing required parameter: 'file'."),
        (form((FILE, LINE)), "multipart/form-data; boundary=X", 400, "Missing required parameter: 'purpose'."),
        (form((FILE, b""), PURPOSE), "multipart/form-data; boundary=X", 400, "File is empty."),
        (form((FILE, LINE), (FILE, LINE), PURPOSE), "multipart/form-data; boundary=X", 400, "Duplicate parameter"),
        (form(PURPOSE, PURPOSE, (FILE, LINE)), "multipart/form-data; boundary=X", 400, "Duplicate parameter"),
        (form(*[PURPOSE] * 1, *[(f'Content-Disposition: form-data; name="f{i}"', b"") for i in range(40)]),
         "multipart/form-data; boundary=X", 400, "more than 16 parts"),
        (form((FILE, LINE), ('Content-Disposition: form-data; name="purpose"', b"x" * 100_000)),
         "multipart/form-data; boundary=X", 400, "too long"),
        (form(('Content-Disposition: form-data; name="file"', LINE), PURPOSE),
         "multipart/form-data; boundary=X", 400, "to be a file with a name"),
        (form(("Content-Disposition: form-data", LINE)), "multipart/form-data; boundary=X", 400, "has no name"),
        (form((f"X: {'y' * 20_000}", LINE)), "multipart/form-data; boundary=X", 400, "malformed"),
        (form((FILE.replace("a.jsonl", "n" * 1001), LINE), PURPOSE),
         "multipart/form-data; boundary=X", 400, "longer than 1000"),
        (form((FILE.replace('filename="a.jsonl"', "filename*=utf-7''a"), LINE), PURPOSE),
         "multipart/form-data; boundary=X", 400, "unknown character set"),
        (form((FILE.replace('filename="a.jsonl"', "filename*=utf-8''%ff"), LINE), PURPOSE),
         "multipart/form-data; boundary=X", 400, "not in the character set"),
    ],
)  # fmt: skip
def test_broken_forms_leave_nothing(lite: Any, body: bytes, content_type: str, status: int, message: str) -> None:
    error = error_of(send(lite, body, content_type), status)
    assert message in error["message"]
    assert left_over(lite.context.places.root) == []
    assert lite.http.get("/v1/files").json()["data"] == []


def test_every_cut_of_a_form_leaves_nothing(lite: Any) -> None:
    whole = form((FILE, LINE), PURPOSE)
    cuts = range(0, len(whole) - 3, 7)
    statuses = {send(lite, whole[:cut]).status_code for cut in cuts}
    assert statuses == {400}
    assert len(cuts) > 30
    assert left_over(lite.context.places.root) == []
    assert send(lite, whole).status_code == 200


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (b"a,b,c\n1,2,3\n", False),
        (b'[{"messages": []}]', False),
        (b'[\n {"messages": []},\n {"messages": []}\n]\n', False),
        (b'{\n "messages": [\n  {"role": "user", "content": "x"}\n ]\n}\n', False),
        (b"PK\x03\x04" + bytes(5000), False),
        (b"\n \n", False),
        ('{"messages": []}\n'.encode("utf-16"), False),
        (b"[" * 100_000 + b"\n", False),
        (LINE, True),
        (LINE.rstrip(b"\n"), True),
        (b"\xef\xbb\xbf" + LINE, True),
        (LINE * 2 + b"broken\n" + LINE, True),  # the job says which line
        (b"\n\n" + LINE.replace(b"\n", b"\r\n") * 3 + b"\n\n", True),
        (b'{"messages": "' + b"x" * 3_000_000 + b'"}\n', True),
    ],
)
def test_only_what_is_no_jsonl_at_all_is_refused_at_upload(lite: Any, content: bytes, taken: bool) -> None:
    answer = lite.upload(content)
    assert answer.status_code == (200 if taken else 400), answer.text
    if not taken:
        start = "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line "
        assert error_of(answer)["message"].startswith(start)
        assert left_over(lite.context.places.root) == []
    assert lite.upload(content, purpose="user_data").status_code == 200  # for other purposes anything is a file


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_the_limit_is_exact(make_api: Any) -> None:
    api = make_api(max_file_bytes=100_000, max_batch_file_bytes=50_000)
    assert api.upload(bytes(100_000), purpose="user_data").json()["bytes"] == 100_000
    error = error_of(api.upload(bytes(100_001), purpose="user_data"), 413)
    assert (error["type"], error["param"]) == ("invalid_request_error", "file")
    assert error_of(api.upload(bytes(5_000_000), purpose="user_data"), 413)["param"] in ("file", None)
    assert error_of(api.upload(bytes(50_001), purpose="batch"), 413)["message"].startswith("The file is larger than")
    assert len(left_over(api.context.places.root)) == 1


def test_a_body_without_a_length_is_measured_too(make_api: Any) -> None:
    api = make_api(max_file_bytes=100_000)
    head = b"--X\r\n" + FILE.encode() + b"\r\n\r\n"

    def endless() -> Any:
        yield head
        for _ in range(100):
            yield bytes(100_000)

    answer = api.http.post("/v1/files", content=endless(), headers={"content-type": "multipart/form-data; boundary=X"})
    error_of(answer, 413)
    assert left_over(api.context.places.root) == []


# -- what stops half-way -------------------------------------------------------------------------------------------


def test_what_a_killed_server_left_is_swept_at_the_next_start(lite: Any) -> None:
    kept = lite.upload(LINE).json()["id"]
    places, store = lite.context.places, lite.context.store
    (places.staging / "abc.part").write_bytes(b"half")
    places.file("file-moved").write_bytes(b"moved, and then killed before its row")
    places.moving("file-moved").touch()
    places.moving(kept).touch()  # killed after the row, before the mark went
    stranger = places.files / "not-ours"
    stranger.write_bytes(b"no mark: not touched")
    files.recover(store, places)
    assert left_over(places.root) == sorted([kept, "not-ours"])
    assert lite.http.get(f"/v1/files/{kept}/content").content == LINE


def test_a_database_that_refuses_leaves_no_bytes(api: Any) -> None:
    kept = api.upload(LINE).json()["id"]
    engine = api.context.store.engine
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE files RENAME TO away"))
    refused = api.upload(LINE * 2)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO files"))
    assert refused.status_code in (500, 503)
    assert error_of(refused, refused.status_code)["type"] == "server_error"
    assert left_over(api.context.places.root) == [kept]
    assert [file["id"] for file in api.http.get("/v1/files").json()["data"]] == [kept]


def _half_an_upload(url: str, key: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 9000000\r\n\r\n"
    )
    connection.sendall(head.encode() + b"--X\r\n" + FILE.encode() + b"\r\n\r\n" + LINE * 40_000)
    return connection


def _wait(for_: Any, patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while not for_():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@SLOW
def test_a_client_that_hangs_up_leaves_nothing(server: Any) -> None:
    before = left_over(server.data_dir)
    connection = _half_an_upload(server.url, server.key)
    _wait(lambda: len(left_over(server.data_dir)) > len(before))
    connection.close()
    _wait(lambda: left_over(server.data_dir) == before)


@SLOW
def test_a_server_killed_in_an_upload_keeps_what_was_whole(start_server: Any, tmp_path: Path) -> None:
    first = start_server(tmp_path / "data")
    file = first.http.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "fine-tune"}).json()
    with _half_an_upload(first.url, first.key):
        _wait(lambda: len(left_over(tmp_path / "data")) > 1)
        first.stop(signal.SIGKILL)
    second = start_server(tmp_path / "data", environment={"AFINA_API_KEY": "sk-another-one"})
    assert left_over(tmp_path / "data") == [file["id"]]
    assert second.http.get("/v1/files").json()["data"] == [file]
    assert second.http.get(f"/v1/files/{file['id']}/content").content == LINE
    assert second.stop() == 0


@SLOW
def test_memory_stays_bounded_during_a_large_upload(server: Any, tmp_path: Path) -> None:
    def peak_kib() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]

    small = tmp_path / "small.jsonl"
    small.write_bytes(LINE * 20_000)
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        for _ in range(300):
            file.write(LINE * (2**20 // len(LINE)))

    def put(path: Path) -> Any:
        with path.open("rb") as file:
            return server.http.post("/v1/files", files={"file": file}, data={"purpose": "fine-tune"}).json()

    put(small)
    before = peak_kib()
    file = put(large)
    assert file["bytes"] == large.stat().st_size > 290 * 2**20
    with server.http.stream("GET", f"/v1/files/{file['id']}/content") as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes()) == file["bytes"]
    # A megabyte waits for the disk, a quarter waits for the client; the rest is the allocator's.
    assert peak_kib() - before < 32 * 1024
    server.http.delete(f"/v1/files/{file['id']}")


# -- many at once --------------------------------------------------------------------------------------------------


def test_fifty_at_once(api: Any) -> None:
    def life(number: int) -> tuple[int, str]:
        content = LINE * (number + 1)
        file = api.upload(content, name=f"{number}.jsonl").json()
        assert api.http.get(f"/v1/files/{file['id']}/content").content == content
        assert file["id"] in [one["id"] for one in api.http.get("/v1/files").json()["data"]]
        if number % 2:
            assert api.http.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
        return number, file["id"]

    with ThreadPoolExecutor(50) as pool:
        made = list(pool.map(life, range(50)))
    kept = {file_id for number, file_id in made if number % 2 == 0}
    assert len(kept) == 25
    assert {file["id"] for file in api.http.get("/v1/files").json()["data"]} == kept
    assert set(left_over(api.context.places.root)) == kept


def test_of_two_deletions_at_once_one_succeeds(api: Any) -> None:
    for _ in range(5):
        file_id = api.upload(LINE).json()["id"]
        start = threading.Barrier(8)

        def delete(_: int, file_id: str = file_id, start: threading.Barrier = start) -> int:
            start.wait()
            return api.http.delete(f"/v1/files/{file_id}").status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(delete, range(8))) == [200] + [404] * 7
    assert left_over(api.context.places.root) == []


# -- for the rest of the server ------------------------------------------------------------------------------------


def test_files_that_the_server_makes(api: Any, tmp_path: Path) -> None:
    ctx = api.context
    made = files.add_made(ctx, "fine-tune-results", "step_metrics.csv", b"step,train_loss\n")
    source = tmp_path / "out.jsonl"
    source.write_bytes(LINE * 3)
    output = files.add_made(ctx, "batch_output", "out.jsonl", source, expires_after_s=3600)
    assert source.exists()
    assert api.http.get(f"/v1/files/{made.id}/content").content == b"step,train_loss\n"
    assert api.http.get(f"/v1/files/{output.id}/content").content == LINE * 3
    assert output.expires_at == output.created_at + 3600
    assert files.require(ctx, made.id, "fine-tune-results").id == made.id
    with pytest.raises(ApiError) as wrong:
        files.require(ctx, made.id, "fine-tune")
    assert wrong.value.status == 400
    with pytest.raises(ApiError) as absent:
        files.require(ctx, "file-nothing", "fine-tune")
    assert absent.value.status == 404
    assert left_over(ctx.places.root) == sorted([made.id, output.id])


@SLOW
def test_the_official_client(server: Any) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    file = client.files.create(
        file=("notícias 😀.jsonl", LINE), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (file.filename, file.bytes, file.expires_at) == ("notícias 😀.jsonl", len(LINE), file.created_at + 7200)
    assert client.files.content(file.id).read() == LINE
    assert file.id in [one.id for one in client.files.list(limit=1)]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.csv", b"a,b\n1,2\n"), purpose="fine-tune")
    assert refused.value.request_id is not None
