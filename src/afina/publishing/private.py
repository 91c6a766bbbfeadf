"""What must not leave this machine, looked for in a publication before it is sealed.

Comes in: a folder. Goes out: nothing, or an error that names the file and what stands in it. The publication is put
together from named files and cleaned settings, so this is the second lock: it finds what the first let through. The
texts of a data set's rows are its content, and are not searched.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from afina.publishing.target import PublishError

TEXT = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja")
FOREIGN = ("tokenizer.json", "vocab.json", "merges.txt")  # a base model's vocabulary may hold any text
REFUSED = (".lock", ".sqlite", ".sqlite-wal", ".sqlite-shm", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".log", ".env")
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
LEAST_SECRET = 12  # characters; shorter values of such variables are words like "none"
KEY_SHAPES = re.compile(r"\b(sk-[\w-]{20,}|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")
ADDRESS = re.compile(r"https?://[^\s/@\"']+:[^\s/@\"']+@")  # a password in an address


def refuse_private(folder: Path) -> None:
    """Raises PublishError for a file that must not leave, or one that holds a key or a path of this machine."""
    paths, secrets = machine_paths(folder), environment_secrets()
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts) or place.name.endswith(REFUSED):
            raise PublishError(f"{name}: is no file to publish. This is a bug of Afina; please report it.")
        if place.is_dir() or place.suffix not in TEXT or place.name in FOREIGN:
            continue
        text = place.read_text(encoding="utf-8", errors="replace")
        if KEY_SHAPES.search(text) or ADDRESS.search(text) or any(secret in text for secret in secrets):
            raise PublishError(
                f"{name}: holds what looks like a key or password, so nothing was published. It comes from the recipe "
                "or its task: remove it there, and train again."
            )
        for path in paths:
            if re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", text):
                raise PublishError(
                    f"{name}: holds {path}, a path of this machine, so nothing was published. It comes from the recipe "
                    "or its task: write relative paths there."
                )


def machine_paths(folder: Path) -> list[str]:
    """Folders of this machine that nobody else needs to know; those of a few characters stand in any text."""
    here = [Path.home(), Path.cwd(), folder, folder.resolve(), Path(tempfile.gettempdir()), Path(__file__).parents[2]]
    return sorted({text for path in here if len(text := path.as_posix()) > 4 and text.count("/") > 1})


def environment_secrets() -> list[str]:
    """Values of variables that are called like a secret."""
    found = {value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted(value for value in found if len(value) >= LEAST_SECRET)
