"""What a hostile client sends: values, bytes, ids, forms, training lines; and what every answer to it must be."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

MODEL = "gpt-4o-mini-2024-07-18"
SAY = [{"role": "user", "content": "oi"}]
KEY = "sk-afina-a-key-that-must-stay-secret"
BODY_TIMEOUT_S = 2.0


def keeps_contract(answer: Any, *statuses: int) -> Any:
    """Any answer: its status is no 5xx (or one of `statuses`), it has an id, and an error has the four keys."""
    assert answer.status_code < 500, answer.text
    assert not statuses or answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["x-request-id"].startswith("req_")
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        error = json.loads(answer.content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        assert len(answer.content) < 50_000, "an error that repeats what was sent"
        assert all(word not in answer.text for word in ("Traceback", "<backtrace>", 'File "', KEY))
    return answer


def send(http: httpx.Client, path: str, body: Any) -> Any:
    """body: anything that Python can write as JSON or nearly so."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(path, content=content, headers={"content-type": "application/json"})


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": SAY, "max_completion_tokens": 4, "temperature": 0, **more}


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -(10**400), 0.5, -0.0, 1e308, 1e-320, "", "x", "\0",
    "auto", "\ud800", "é" * 3000, "../../etc/passwd", [], [None], [[]], [[[1]]], ["x"] * 50, {}, {"": ""},
    {"type": "text"}, {"type": "\ud800"}, {"type": {"type": []}}, {"\ud800": 1},
    [{"role": "user", "content": [{"type": "text"}]}],
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 10**40}}},
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": 3}}}],
]  # fmt: skip
BROKEN = {
    "nan": b'{"model": NaN}', "infinite": b'{"model": -Infinity}', "huge number": b'{"seed": 1e999}',
    "many digits": b'{"seed": ' + b"9" * 5000 + b"}", "no utf-8": b'{"model": "\xff\xfe"}',
    "utf-16": "{}".encode("utf-16"), "cut": b'{"model": "x', "empty": b"", "space": b"  ",
    "deep list": b"[" * 100_000, "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000, "two values": b"{}{}",
    "comment": b"{/**/}", "single quotes": b"{'a':1}", "surrogate": b'{"model": "\\ud800"}',
    "control": b'{"model": "a\nb"}', "trailing": b'{"model": 1,}', "bom": b"\xef\xbb\xbf{}", "array": b"[]",
    "null": b"null", "repeated": b'{"model": "a", "model": {"b": 1}}',
    "million keys": b"{" + b",".join(b'"k%d":1' % i for i in range(700_000)) + b"}",
}  # fmt: skip
IDS = [
    "%00", "a%00b", "%2F", "..", "%2e%2e", "%2e%2e%2f%2e%2e%2fafina.db", "..%5c..%5cafina.db", "file-%2e%2e%2fx",
    "x" * 10_000, "%F0%9F%98%80", "%ff%fe", "%c0%ae", "file-" + "a" * 22, "'; DROP TABLE files;--",
    "%0d%0aset-cookie:%20x", "{}", "%7B7*7%7D", "*", ";a=b", "a?b", "%E2%80%AE", "ft:gpt-4o:x::y", "ftjob-%00",
    ".incoming", "%25%32%66", "%2525", "\\", "|", "con", "~", "-",
]  # fmt: skip
ROUTES = [
    ("GET", "/v1/files/{}"), ("DELETE", "/v1/files/{}"), ("GET", "/v1/files/{}/content"), ("GET", "/v1/models/{}"),
    ("DELETE", "/v1/models/{}"), ("GET", "/v1/fine_tuning/jobs/{}"), ("POST", "/v1/fine_tuning/jobs/{}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{}/pause"), ("POST", "/v1/fine_tuning/jobs/{}/resume"),
    ("GET", "/v1/fine_tuning/jobs/{}/events"), ("GET", "/v1/fine_tuning/jobs/{}/checkpoints"),
    ("GET", "/v1/batches/{}"), ("POST", "/v1/batches/{}/cancel"), ("GET", "/v1/files?after={}"),
    ("GET", "/v1/files?limit={}"), ("GET", "/v1/files?order={}"), ("GET", "/v1/files?purpose={}"),
    ("GET", "/v1/fine_tuning/jobs?after={}"), ("GET", "/v1/fine_tuning/jobs?limit={}"),
    ("GET", "/v1/fine_tuning/jobs?metadata[{0}]={0}"), ("GET", "/v1/fine_tuning/jobs?metadata={}"),
    ("GET", "/v1/batches?after={}"), ("GET", "/v1/batches?limit={}"), ("GET", "/{}"), ("GET", "/v1/{}"),
    ("PATCH", "/v1/files/{}"), ("HEAD", "/v1/files/{}"),
]  # fmt: skip
AUTH = f"authorization: Bearer {KEY}\r\nconnection: close\r\n".encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + AUTH
WIRE = {
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 5\r\n\r\n{}abc",
    "length and chunks": POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": POST + b"content-length: -5\r\n\r\n{}",
    "no number": POST + b"content-length: x\r\n\r\n{}",
    "long number": POST + b"content-length: " + b"9" * 4000 + b"\r\n\r\n{}",
    "length above the limit": POST + b"content-length: 99999999999\r\n\r\n{}",
    "bad chunk": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "huge chunk": POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "gzip chunks": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nhost x\r\n\r\n",
    "space before colon": b"GET /health HTTP/1.1\r\nhost : x\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\nconnection: close\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
    "long header": b"GET /health HTTP/1.1\r\nhost: x\r\na: " + b"b" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    "long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "nul in header": b"GET /health HTTP/1.1\r\nhost: x\r\na: \0\r\nconnection: close\r\n\r\n",
    "raw bytes in path": b"GET /v1/files/\xff\xfe HTTP/1.1\r\nhost: x\r\n" + AUTH + b"\r\n",
    "http/0.9": b"GET /health\r\n\r\n",
    "http/9": b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "absolute": b"GET http://evil/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n" + AUTH + b"\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
DISPOSITION = b'content-disposition: form-data; name="%s"'
FILE = DISPOSITION % b"file" + b'; filename="a.txt"'
PURPOSE = b"--b\r\n" + DISPOSITION % b"purpose" + b"\r\n\r\nuser_data\r\n"
FORM = "multipart/form-data; boundary=b"
FORMS: dict[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", b"--b--\r\n"),
    "empty boundary": ("multipart/form-data; boundary=", b"----\r\n"),
    "long boundary": (FORM[:-1] + "b" * 5000, b"--b--\r\n"),
    "quoted boundary": ('multipart/form-data; boundary="b', b"--b--\r\n"),
    "no parts": (FORM, b"--b--\r\n"),
    "nothing": (FORM, b""),
    "no name": (FORM, b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    "no disposition": (FORM, b"--b\r\n\r\nx\r\n--b--\r\n"),
    "1000 parts": (FORM, PURPOSE * 1000 + b"--b--\r\n"),
    "many parts of other names": (
        FORM,
        b"".join(b"--b\r\n" + DISPOSITION % (b"n%d" % i) + b"\r\n\r\nx\r\n" for i in range(1000)) + b"--b--\r\n",
    ),
    "two files": (FORM, PURPOSE + (b"--b\r\n" + FILE + b"\r\n\r\nx\r\n") * 2 + b"--b--\r\n"),
    "nested": (
        FORM,
        PURPOSE
        + b"--b\r\n"
        + DISPOSITION % b"file"
        + b"\r\ncontent-type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
    ),
    "long header": (FORM, b"--b\r\na: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
    "many headers": (FORM, b"--b\r\n" + b"a: b\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n"),
    "long field": (FORM, b"--b\r\n" + DISPOSITION % b"purpose" + b"\r\n\r\n" + b"x" * 10**6 + b"\r\n--b--\r\n"),
    "cut": (FORM, PURPOSE + b"--b\r\n" + FILE + b"\r\n\r\nabc"),
    "no newline": (FORM, b"--bx"),
    "near boundaries": (FORM, PURPOSE + b"--b\r\n" + FILE + b"\r\n\r\n" + b"\r\n--" * 500_000),
    "newlines": (FORM, b"\r\n" * 500_000),
    "bad escape": (
        FORM,
        b"--b\r\n" + DISPOSITION % b"file" + b"; filename*=utf-8''%ff%fe\r\n\r\nx\r\n--b--\r\n",
    ),
    "unknown charset": (
        FORM,
        b"--b\r\n" + DISPOSITION % b"file" + b"; filename*=utf-7''x\r\n\r\nx\r\n--b--\r\n",
    ),
}
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def _with(**changes: Any) -> dict[str, Any]:
    """A good line whose last message is changed; ABSENT takes a key away."""
    return {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], **changes}]}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_VALUES: list[Any] = [
    {}, {"messages": []}, {"messages": None}, {"messages": "x"}, {"messages": {}}, {"messages": [3]},
    {"messages": [GOOD["messages"][0]]}, {"messages": [{}]},
    {"messages": [GOOD["messages"][1], GOOD["messages"][0]]}, {**GOOD, "x": 1}, {**GOOD, "tools": "x"},
    {**GOOD, "tools": [3]}, {**GOOD, "tools": [{"type": "function"}]}, {**GOOD, "parallel_tool_calls": "yes"},
    _with(role="robot"), _with(role=None), _with(role=["assistant"]), _with(content=None), _with(content=3),
    _with(content=[]), _with(content=[{"type": "text"}]),
    _with(content=[{"type": "image_url", "image_url": {"url": "x"}}]), _with(weight=2), _with(weight=True),
    _with(weight=0.5), _with(name=3), _with(tool_calls=[]), _with(tool_calls="x"), _with(tool_calls=[3]),
    _with(tool_calls=[{**CALL, "id": 3}]), _with(tool_calls=[{**CALL, "type": "x"}]),
    _with(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "{"}}]),
    _with(tool_calls=[{**CALL, "function": {"name": "a b", "arguments": "{}"}}]), _with(audio={"id": "x"}),
    _with(unknown=1), _with(content="\ud800"), {"prompt": "a"}, {"input": {}, "preferred_output": []},
    {"messages": [{"role": "user", "content": "a", "weight": 1}, GOOD["messages"][1]]},
]  # fmt: skip
BAD_BYTES = [
    b"x", b"[]", b"3", b"null", b'"x"', b"{", b'{"messages": NaN}', b'{"a": 1e999}', b'{"a": "\xff"}',
    b'{"a": "\x00"}', b"{}{}", b"{'a': 1}", b"[" * 5000, b'{"a":' * 5000, b'{"messages": 1, "messages": 2}',
    b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"a": ' + b"9" * 6000 + b"}",
]  # fmt: skip


def bad_line(chance: random.Random) -> bytes:
    """A line that is wrong for sure, without a line break inside it."""
    if chance.random() < 0.3:
        return chance.choice(BAD_BYTES)
    text = json.dumps(chance.choice(BAD_VALUES), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return text[: chance.randrange(1, len(text) - 1)] if chance.random() < 0.3 and len(text) > 2 else text
