"""The run folder: whose it is, and which stages in it are done.

A stage is keyed by the hash of its inputs and settings; the same command finds finished stages and
goes on with the first that is not. A folder that holds another recipe's run is never written into
without being asked.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.config import Recipe, load_task
from afina.core.errors import RunError
from afina.core.storage import digest, ensure_folder, file_digest, read_json, write_json
from afina.core.task import Task

RECIPE, STAGES = "recipe.json", "stages.json"
LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "llguidance",
    "scikit-learn", "scipy", "numpy", "polars", "datasketch", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """An opened run folder and the recipe and task that own it."""

    recipe: Recipe
    task: Task
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    @property
    def specialist(self) -> Path:
        return self.folder / "specialist"

    # -- stages ---------------------------------------------------------------------------------

    @property
    def data_key(self) -> str:
        """Of all that decides the splits: files, how they are read, and what is too long."""
        recipe, files = (
            self.recipe,
            [self.recipe.data.path, self.recipe.data.validation_path, self.recipe.data.test_path],
        )
        sums = [file_digest(path) for path in files if path is not None and path.is_file()]
        model = [recipe.train.base_model, recipe.train.revision, recipe.train.chat_template, recipe.train.max_length]
        return digest([self.task.to_json(), recipe.data.model_dump(mode="json"), sums, model, recipe.seed, __version__])

    @property
    def train_key(self) -> str:
        adapt = self.recipe.train.adapt
        extra = file_digest(adapt.path) if adapt is not None and adapt.path.is_file() else ""
        return digest([self.data_key, self.recipe.train.model_dump(mode="json"), extra])

    @property
    def evaluate_key(self) -> str:
        return digest([self.train_key, self.recipe.compare, self.recipe.answer.model_dump(mode="json")])

    def is_done(self, stage: str, key: str) -> bool:
        path = self.folder / STAGES
        return path.exists() and read_json(path).get(stage) == key

    def mark_done(self, stage: str, key: str) -> None:
        path = self.folder / STAGES
        write_json(path, {**(read_json(path) if path.exists() else {}), stage: key})


def open_recipe(recipe: Recipe, *, overwrite: bool = False) -> Run:
    """Open the recipe's run folder, creating it if need be.

    Raises RunError if the folder holds another recipe's run, or files that are no run, and
    MachineError if it cannot be written.
    """
    task = load_task(recipe.task)
    folder = recipe.run_dir
    ensure_folder(folder)
    owner = folder / RECIPE
    if owner.exists():
        found = read_json(owner).get("hash")
        if found != recipe.hash and not overwrite:
            raise RunError(
                f"{folder}: holds the run of another recipe (hash {found}, this one is {recipe.hash}). "
                "Choose another folder with output_dir=..., or pass --yes to overwrite it."
            )
        if found != recipe.hash:
            _clear(folder)
    elif any(folder.iterdir()):
        raise RunError(
            f"{folder}: is not empty and holds no run. Choose another folder with output_dir=..., "
            "so that nothing of yours is overwritten."
        )
    if not owner.exists():
        write_json(owner, {"hash": recipe.hash, **recipe.resolved()})
    return Run(recipe, task, folder)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def versions() -> dict[str, str]:
    """What made this run: Afina, Python, and the libraries that decide numbers."""
    found = {"afina": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment(run: Run, machine: dict[str, Any]) -> dict[str, Any]:
    """Versions, machine and hashes, as the report shows them."""
    hashes = {"recipe": run.recipe.hash, "data": run.data_key, "training": run.train_key}
    return {"versions": versions(), "machine": machine, "hashes": hashes}
