"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import server, server_starter, start_server
from warm_process import Starter

__all__ = ["server", "server_starter", "start_server"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder beside the checkout (override: AFINA_SHARED); skips, and says so, when absent."""
    folder = Path(os.environ.get("AFINA_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"shared data is not at {folder}; set AFINA_SHARED")
    return folder


@pytest.fixture(scope="session")
def job_starter() -> Iterator[Starter]:
    """Starts processes that have made the imports of a training."""
    made = Starter()
    yield made
    made.stop()
