"""A real HTTP server that speaks as much of the Hugging Face Hub as a publication needs, and fails as it is told.

Create, look up, tree, preupload, LFS batch and upload, commit, download. What it stores is checked as the Hub checks
it: LFS objects by their SHA-256, tokens, branches. Every request is counted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34
LFS_NAMES = (".safetensors", ".parquet")  # as .gitattributes of a new repository says


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """files: of each branch, path -> bytes. commits: what each changed."""

    kind: str
    private: bool
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.x lfs\n"}})
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def main(self) -> dict[str, bytes]:
        return self.files["main"]


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def step(self) -> str:
        """What of a publication it is."""
        for name in ("create", "validate-yaml", "preupload", "batch", "commit", "tree", "resolve"):
            if f"/{name}" in self.path:
                return name
        return "put" if self.method == "PUT" else "info"


@dataclass(frozen=True)
class Fault:
    """status: instead of an answer; 0 breaks the connection. times: how often, then all is well."""

    status: int
    message: str = "no"
    times: int = 10_000
    code: str | None = None  # X-Error-Code
    body: bytes | None = None


class HubServer:
    """faults: step -> what goes wrong. can_write: whether the token may."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.faults: dict[str, Fault] = {}
        self.before: Callable[[Call], None] = lambda call: None
        self.url = ""
        self.lock = threading.Lock()

    def steps(self) -> list[str]:
        return [call.step for call in self.calls]

    def fault(self, step: str) -> Fault | None:
        with self.lock:
            found = self.faults.get(step)
            if found is None or found.times <= 0:
                return None
            self.faults[step] = Fault(found.status, found.message, found.times - 1, found.code, found.body)
            return found


class RefusalError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def make_handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            body = self._read()
            call = Call(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with hub.lock:
                hub.calls.append(call)
            hub.before(call)
            fault = hub.fault(call.step)
            if fault is not None and fault.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            if fault is not None:
                self._send(fault.status, fault.body or _error(fault.message), {"X-Error-Code": fault.code or ""})
                return
            try:
                with hub.lock:
                    status, content, headers = answer(hub, call)
            except RefusalError as refusal:
                named = {"X-Error-Code": refusal.code or "", "X-Error-Message": refusal.message}
                self._send(refusal.status, _error(refusal.message), named)
                return
            self._send(status, content if isinstance(content, bytes) else json.dumps(content).encode(), headers)

        do_GET = do_POST = do_PUT = do_HEAD = _serve

        def _read(self) -> bytes:
            if self.headers.get("transfer-encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("content-type", headers.get("content-type", "application/json"))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


Answered = tuple[int, Any, dict[str, str]]


def answer(hub: HubServer, call: Call) -> Answered:
    path = unquote(urlsplit(call.path).path)
    if call.step == "put":
        return _put(hub, path, call.body)
    if path == "/api/validate-yaml":
        return 200, {"warnings": [], "errors": []}, {}
    if call.headers.get("authorization") != f"Bearer {TOKEN}":
        raise RefusalError(401, "Invalid credentials in Authorization header")
    if path == "/api/repos/create":
        return _create(hub, json.loads(call.body))
    if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        return _batch(hub, json.loads(call.body))
    if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        return _resolve(hub, found[2], found[3], found[4])
    found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/([\w-]+)/([^/]+))?", path)
    assert found, f"the stand-in does not know {call.method} {path}"
    kind, name, verb, revision = found.groups()
    repository = hub.repositories.get(name)
    if repository is None or repository.kind != kind:
        raise RefusalError(404, "Repository not found", "RepoNotFound")
    if verb == "xet-write-token":
        raise RefusalError(403, "no other storage here")
    if verb in (None, "revision"):
        return 200, {"id": name, "private": repository.private, "sha": "f" * 40, "siblings": [], "tags": []}, {}
    if revision not in repository.files:
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    files = repository.files[revision]
    return {"tree": _tree, "preupload": _preupload, "commit": _commit}[verb](hub, repository, files, call)


def _create(hub: HubServer, body: dict[str, Any]) -> Answered:
    name, kind = f"{body['organization']}/{body['name']}", body.get("type", "model")
    url = _address(hub, kind, name)
    if name in hub.repositories:
        return 409, {"error": "You already created this repo", "url": url}, {}
    hub.repositories[name] = Repository(kind, body.get("visibility") == "private")
    return 200, {"url": url, "name": name}, {}


def _address(hub: HubServer, kind: str, name: str) -> str:
    return f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"


def _tree(hub: HubServer, repository: Repository, files: dict[str, bytes], call: Call) -> Answered:
    entries: list[dict[str, Any]] = []
    for path, data in sorted(files.items()):
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
        if path.endswith(LFS_NAMES):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return 200, entries, {}


def _preupload(hub: HubServer, repository: Repository, files: dict[str, bytes], call: Call) -> Answered:
    found: list[dict[str, Any]] = []
    for one in json.loads(call.body)["files"]:
        lfs = one["path"].endswith(LFS_NAMES)
        oid = None
        if one["path"] in files:
            data = files[one["path"]]
            oid = hashlib.sha256(data).hexdigest() if lfs else git_hash(data)
        mode = "lfs" if lfs else "regular"
        found.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": found}, {}


def _batch(hub: HubServer, body: dict[str, Any]) -> Answered:
    objects: list[dict[str, Any]] = []
    for one in body["objects"]:
        entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.objects:
            entry["actions"] = {"upload": {"href": f"{hub.url}/storage/{one['oid']}", "header": {}}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}, {}


def _put(hub: HubServer, path: str, body: bytes) -> Answered:
    oid = path.rsplit("/", 1)[-1]
    if hashlib.sha256(body).hexdigest() != oid:
        raise RefusalError(400, "the content does not match its hash")
    hub.objects[oid] = body
    return 200, b"", {}


def _commit(hub: HubServer, repository: Repository, files: dict[str, bytes], call: Call) -> Answered:
    lines = [json.loads(line) for line in call.body.splitlines()]
    after = dict(files)
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                after[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                assert value["oid"] in hub.objects, "a commit of what was not uploaded"
                after[value["path"]] = hub.objects[value["oid"]]
            case "deletedFile":
                del after[value["path"]]
            case _:
                assert line["key"] == "header", line["key"]
    files.clear()
    files.update(after)
    changed = [line["value"].get("path") for line in lines if line["key"] != "header"]
    repository.commits.append({"summary": lines[0]["value"]["summary"], "changed": changed})
    oid = f"{len(repository.commits):040x}"
    name = next(name for name, one in hub.repositories.items() if one is repository)
    url = f"{_address(hub, repository.kind, name)}/commit/{oid}"
    return 200, {"commitUrl": url, "commitOid": oid, "success": True}, {}


def _resolve(hub: HubServer, name: str, revision: str, path: str) -> Answered:
    files = hub.repositories[name].files.get(revision, {})
    if path not in files:
        raise RefusalError(404, "Entry not found", "EntryNotFound")
    data = files[path]
    headers = {"X-Repo-Commit": "f" * 40, "ETag": f'"{git_hash(data)}"', "content-type": "application/octet-stream"}
    return 200, data, headers


@contextmanager
def running() -> Generator[HubServer]:
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
