"""`afina serve` as a process of its own, for every test that needs the real one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

START_S = 120.0  # importing torch on a busy machine


@dataclass
class Server:
    """`afina serve` as a process. out: the lines of its standard output so far."""

    process: subprocess.Popen[str]
    url: str
    key: str | None
    data_dir: Path
    out: list[str] = field(default_factory=list[str])

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
