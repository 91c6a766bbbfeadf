"""The application in this process, on SQLite and PostgreSQL; the real server is in `real_server.py`.

PostgreSQL is the one that AFINA_TEST_POSTGRES names (a URL), or a private one that is started here when its programs
are installed; without either those tests are skipped, and say so.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from real_server import Server, StartServer
from starlette.testclient import TestClient

from afina.server.config import load_config
from afina.server.context import Context

__all__ = ["Server", "StartServer"]

KEY = "sk-afina-key-of-the-tests"


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
