"""Servers to test: the application in this process, and the real one as a process of its own; on SQLite and PostgreSQL.

PostgreSQL is the one that AFINA_TEST_POSTGRES names (a URL), or a private one that is started here when its programs
are installed; without either those tests are skipped, and say so.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from afina.server.config import load_config
from afina.server.context import Context

KEY = "sk-afina-key-of-the-tests"
START_S = 120.0  # importing torch on a busy machine


# -- databases -----------------------------------------------------------------------------------------------------


def _program(name: str) -> str | None:
    """PostgreSQL's programs; Debian keeps them out of PATH."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(beside[-1]) if beside else shutil.which(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    given = os.environ.get("AFINA_TEST_POSTGRES")
    if given:
        yield given
        return
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL: install Debian's postgresql, or set AFINA_TEST_POSTGRES to a URL")
    folder = Path(tempfile.mkdtemp(prefix="afina-postgres-"))
    other: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = [user.pw_name for user in pwd.getpwall()]
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        other = ["runuser", "-u", owner.pw_name, "--"]
    data, port = folder / "data", free_port()

    def call(*argv: str) -> None:
        subprocess.run([*other, *argv], check=True, capture_output=True, cwd=folder, timeout=120)

    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        call(initdb, "-D", str(data), "-U", "afina", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        call(pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
        yield f"postgresql://afina@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*other, pg_ctl, "-D", str(data), "-m", "immediate", "stop"], capture_output=True, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> Generator[str | None]:
    """An empty database: None for a SQLite file in the data folder, or the URL of a PostgreSQL schema."""
    if request.param == "sqlite":
        yield None
        return
    import psycopg

    url: str = request.getfixturevalue("postgres_url")
    schema = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


# -- the application in this process -------------------------------------------------------------------------------


@dataclass
class Api:
    """http: carries the key. anonymous: does not."""

    app: FastAPI
    http: TestClient
    anonymous: TestClient

    @property
    def context(self) -> Context:
        return self.app.state.context

    def upload(self, content: bytes, name: str = "train.jsonl", purpose: str = "fine-tune", **fields: str) -> Any:
        return self.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose, **fields})


MakeApi = Callable[..., Api]


@pytest.fixture
def make_api(tmp_path: Path) -> Iterator[MakeApi]:
    """make_api(database_url=..., any other setting): a started application with the key KEY."""
    from afina.server.app import create_app

    opened: list[TestClient] = []

    def make(**settings: Any) -> Api:
        settings.setdefault("data_dir", tmp_path / "data")
        app = create_app(load_config(None, {}, **settings), preset_key=KEY)
        # The portal, and with it the event loop and the lifespan, is the first client's.
        http = TestClient(app, headers={"Authorization": f"Bearer {KEY}"}, client=("127.0.0.1", 50000))
        http.__enter__()
        opened.append(http)
        anonymous = TestClient(app, client=("192.0.2.1", 50000))
        anonymous.portal = http.portal
        return Api(app, http, anonymous)

    yield make
    for http in reversed(opened):
        http.__exit__(None, None, None)


@pytest.fixture
def api(make_api: MakeApi, database: str | None) -> Api:
    """On both kinds of database."""
    return make_api(database_url=database)


@pytest.fixture
def lite(make_api: MakeApi) -> Api:
    """On SQLite alone, for what does not touch the database."""
    return make_api()


# -- the real server -----------------------------------------------------------------------------------------------


@dataclass
class Server:
    """`afina serve` as a process. out: the lines of its standard output so far."""

    process: subprocess.Popen[str]
    url: str
    key: str | None
    data_dir: Path
    out: list[str] = field(default_factory=list[str])

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60, trust_env=False
        )

    def stop(self, how: int = signal.SIGTERM, patience_s: float = 60) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(patience_s)

    def errors(self) -> str:
        return (self.data_dir.parent / f"{self.data_dir.name}.stderr").read_text(encoding="utf-8")


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server() -> Iterator[StartServer]:
    """start_server(data_dir, *options, environment={...}): the server, when it answers /health."""
    started: list[Server] = []

    def start(data_dir: Path, *options: str, environment: dict[str, str] | None = None) -> Server:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AFINA_")}
        with (data_dir.parent / f"{data_dir.name}.stderr").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "afina", "serve", "--port", "0", "--data-dir", str(data_dir), *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**clean, "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        server = Server(process, "", (environment or {}).get("AFINA_API_KEY"), data_dir)
        started.append(server)
        _read_announcement(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


def _read_announcement(server: Server) -> None:
    assert server.process.stdout is not None
    reader = threading.Thread(target=lambda: server.out.extend(iter(server.process.stdout.readline, "")), daemon=True)
    reader.start()
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        text = "".join(server.out)
        address = re.search(r"Afina serves (http://\S+)/v1 ", text)
        if address and "print(client" in text:
            key = re.search(r"shown this once: (\S+)", text)
            server.url, server.key = address[1], key[1] if key else server.key
            return
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended with {server.process.returncode}: {server.errors()}")
        time.sleep(0.05)
    raise AssertionError(f"no announcement in {START_S} s: {server.errors()}")


@pytest.fixture(scope="session")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One real server for all tests that only ask it."""
    return start_server(tmp_path_factory.mktemp("served") / "data")
