"""Other projects' clients, each in an environment of its own, against a real server with a real trainer.

pytest -m clients tests/clients             (environments are made once under build/clients)
"""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENTS = Path(__file__).parents[2] / "build" / "clients"
CLIENTS = {
    "openai-3": ("openai_sdk.py", ["openai>=3.54,<4"], 40),
    "openai-1": ("openai_sdk.py", ["openai==1.109.1"], 40),
    "instructor": ("instructor_client.py", ["instructor"], 3),
    "langchain": ("langchain_client.py", ["langchain-openai"], 6),
    "litellm": ("litellm_client.py", ["litellm"], 6),
    "dspy": ("dspy_client.py", ["dspy"], 4),
    "llamaindex": ("llamaindex_client.py", ["llama-index-finetuning", "llama-index-llms-openai", "mistralai<2"], 4),
}

pytestmark = [pytest.mark.clients, pytest.mark.slow]


def environment(name: str, packages: list[str]) -> Path:
    """The interpreter of an environment that holds these packages and nothing of ours."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=900)
        (folder / ".ready").touch()
    return python


def settings(server) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    telemetry = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1", "ANONYMIZED_TELEMETRY": "False"}
    return (
        kept
        | telemetry
        | {
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_BASE": server.base_url,
            "OPENAI_API_KEY": server.key,
            "PYTHONPATH": str(HERE),
        }
    )


@pytest.mark.parametrize("name", CLIENTS)
def test_python_client(name, server):
    script, packages, at_least = CLIENTS[name]
    python = environment(name, packages)
    done = subprocess.run(
        [python, HERE / script], env=settings(server), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert int(done.stdout.rsplit("checks: ", 1)[1]) >= at_least


def test_node_client(server):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = ENVIRONMENTS / "node"
    if not (folder / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"type": "module", "private": true}', encoding="utf-8")
        subprocess.run(["npm", "install", "--silent", "openai", "zod"], cwd=folder, check=True, timeout=600)
        (folder / ".ready").touch()
    shutil.copy(HERE / "node_client.mjs", folder)
    done = subprocess.run(
        ["node", "node_client.mjs"], cwd=folder, env=settings(server), capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert int(done.stdout.rsplit("checks: ", 1)[1]) >= 10
