"""The scripts of examples/, run as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_server import Server

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_two_rounds_of_fine_tuning(server: Server) -> None:
    """Only the two variables that the `openai` package reads by itself say where it goes."""
    script = EXAMPLES / "openai_fine_tuning.py"
    assert "afina" not in script.read_text(encoding="utf-8").partition('"""\n\nimport')[2].lower()
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": str(server.key)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    models = re.findall(r"^(ft:\S+): \d+ tokens trained$", done.stdout, re.MULTILINE)
    assert [m.split(":")[1:4] for m in models] == [
        ["gpt-4o-mini-2024-07-18", "afina", "catalogue-1"],
        ["gpt-4o-mini-2024-07-18", "afina", "catalogue-2"],
    ]
    assert done.stdout.count("The job has successfully completed") == 2
    assert len(re.findall(r"Step \d/3: training loss=", done.stdout)) == 6
    assert re.search(r"^kind='(book|kitchen|home|outdoor|toy)' gift_for_children=(True|False)$", done.stdout, re.M)
