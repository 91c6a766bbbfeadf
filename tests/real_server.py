"""`afina serve` as a process of its own, for every test that needs the real one.

It is forked from a process that has made its imports, which are nearly all of its start; `cold=True` starts it as a
user does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from warm_process import Starter, Warm

START_S = 120.0  # importing torch on a busy machine


@dataclass
class Server:
    """`afina serve` as a process."""

    process: subprocess.Popen[bytes] | Warm
    url: str
    key: str | None
    data_dir: Path
    out_from: int = 0

    @property
    def out(self) -> list[str]:
        """The lines of its standard output so far."""
        return _beside(self.data_dir, "stdout").read_text(encoding="utf-8")[self.out_from :].splitlines(keepends=True)

    @property
    def base_url(self) -> str:
        """As OpenAI's clients want it."""
        return f"{self.url}/v1"

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
        return _beside(self.data_dir, "stderr").read_text(encoding="utf-8")


def _beside(data_dir: Path, stream: str) -> Path:
    return data_dir.parent / f"{data_dir.name}.{stream}"


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def server_starter() -> Iterator[Starter]:
    """What servers are forked from."""
    made = Starter("server")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def start_server(server_starter: Starter) -> Iterator[StartServer]:
    """start_server(data_dir, *options, environment={...}, cold=False): the server, when it answers /health."""
    started: list[Server] = []

    def start(data_dir: Path, *options: str, environment: dict[str, str] | None = None, cold: bool = False) -> Server:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AFINA_")}
        clean |= {"OMP_NUM_THREADS": "1", **(environment or {})}
        arguments = ["serve", "--port", "0", "--data-dir", str(data_dir), *options]
        out, errors = _beside(data_dir, "stdout"), _beside(data_dir, "stderr")
        said_before = len(out.read_text(encoding="utf-8")) if out.exists() else 0
        if cold:
            with out.open("ab") as to, errors.open("ab") as wrong:
                command = [sys.executable, "-m", "afina", *arguments]
                process = subprocess.Popen(command, stdout=to, stderr=wrong, env=clean)
        else:
            process = server_starter.run("afina", *arguments, out=out, errors=errors, environment=clean)
        server = Server(process, "", (environment or {}).get("AFINA_API_KEY"), data_dir, said_before)
        started.append(server)
        _read_announcement(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


def _read_announcement(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        text = "".join(server.out) if _beside(server.data_dir, "stdout").exists() else ""
        address = re.search(r"Afina serves (http://\S+)/v1 ", text)
        if address and "print(client" in text:
            key = re.search(r"shown this once: (\S+)", text)
            server.url, server.key = address[1], key[1] if key else server.key
            return
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended with {server.process.returncode}: {server.errors()}")
        time.sleep(0.02)
    raise AssertionError(f"no announcement in {START_S} s: {server.errors()}")


@pytest.fixture(scope="session")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One real server for all tests that only ask it."""
    return start_server(tmp_path_factory.mktemp("served") / "data")
