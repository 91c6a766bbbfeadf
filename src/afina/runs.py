"""The run folder: whose it is, and which stages in it are done.

A stage is keyed by the hash of its inputs and settings; the same command finds finished stages and
goes on with the first that is not. A folder that holds another recipe's run is never written into
without being asked, and a command that fails before it has any result leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.config import NOT_DECIDING, Recipe
from afina.core.config_base import Config
from afina.core.errors import RunError
from afina.core.storage import (
    digest,
    ensure_folder,
    explain_write_errors,
    file_digest,
    read_json,
    require_file,
    write_json,
)
from afina.core.strategy_config import STUDENT, inner_of, models_of
from afina.core.task import Task
from afina.core.task_config import load_task

RECIPE, STAGES, LOCK = "recipe.json", "stages.json", ".lock"
STAGING = ".data.tmp"  # splits that are being written
PAID = "answers.sqlite"  # answers of models elsewhere, which `label` keeps here too; SQLite adds endings to the name
CATALOGUE, INDEX = "catalogue", "index"  # each says by itself what it was made of
KEYED = ("students", "seeds", "systems")  # what is in them says by itself what it was made of
TRAINED = ("specialist", "plan.json", "metrics.jsonl")
EVALUATED = ("report.json", "report.html", "examples.json", "environment.json", "predictions")
LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "llguidance",
    "scikit-learn", "scipy", "numpy", "polars", "datasketch", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """An opened run folder and the recipe and task that own it.

    made: the folders created for it, innermost first. lock: held while the run is open.
    """

    recipe: Recipe
    task: Task
    folder: Path
    made: tuple[Path, ...] = ()
    lock: Any = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def catalogue(self) -> Path:
        """Shards of a catalogue recipe."""
        return self.folder / CATALOGUE

    @property
    def index(self) -> Path:
        """The search index over the shards."""
        return self.folder / INDEX

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
        sums = [file_digest(path) for path in files if path is not None and path.exists()]
        model = [recipe.train.base_model, recipe.train.revision, recipe.train.chat_template, recipe.train.max_length]
        model.append(recipe.answer.answer_format)  # decides how long an example is, and what is learned
        decided = [self.task.to_json(), recipe.data.model_dump(mode="json"), sums, model, recipe.seed, __version__]
        if recipe.catalogue is not None:
            shown = {"formats", "system", "rounds", "questions", "max_rejected"}  # decide nothing of these rows
            decided += [recipe.catalogue.model_dump(mode="json", exclude=shown), recipe.answer.max_text_tokens]
        return digest(decided)

    @property
    def train_key(self) -> str:
        adapt = self.recipe.train.adapt
        extra = file_digest(adapt.path) if adapt is not None and adapt.path.is_file() else ""
        written = [self.recipe.answer.max_text_tokens, self.recipe.answer.no_repeat_ngram_size]  # in the manifest
        decided: list[Any] = [self.data_key, self.recipe.train.model_dump(mode="json"), extra, written]
        if self.recipe.catalogue is not None:
            judged = {"min_support", "refusal_precision"}  # after training
            decided += [self.recipe.sources.model_dump(mode="json", exclude=judged), self.recipe.catalogue.questions]
        return digest(decided)

    @property
    def evaluate_key(self) -> str:
        recipe = self.recipe
        systems = [self.system_key(name) for name in recipe.compare]
        return digest([systems, recipe.compare, recipe.distill.curve, _plain(recipe.comparison)])

    def system_key(self, name: str) -> str:
        """Of all that decides one system's answers to the test rows."""
        recipe = self.recipe
        decided: list[Any] = [self.data_key, name, _plain(recipe.answer), _plain(recipe.train)]
        config = recipe.strategies.get(name)
        if config is not None:
            models = [[model, _plain(recipe.models[model])] for model in models_of(config) if model != "base"]
            decided += [_plain(config), models, [self.system_key(inner) for inner in inner_of(config)]]
        elif name == "finetuned":
            decided += [self.train_key, recipe.comparison.seeds]
        elif name == "sources":
            decided += [self.train_key, _plain(recipe.sources)]
        elif name.startswith(STUDENT):
            decided += [self.train_key, _plain(recipe.distill), self.system_key(recipe.distill.teacher)]
        return digest(decided)

    @property
    def keys(self) -> dict[str, str]:
        return {"prepare": self.data_key, "train": self.train_key, "evaluate": self.evaluate_key}

    def is_done(self, stage: str, key: str) -> bool:
        return _stages(self.folder).get(stage) == key

    def mark_done(self, stage: str, key: str) -> None:
        write_json(self.folder / STAGES, {**_stages(self.folder), stage: key})

    # -- whose folder it is -----------------------------------------------------------------------

    @property
    def only_prepared(self) -> bool:
        """The folder holds nothing but prepared data, and they are what this recipe would prepare."""
        begun = any((self.folder / name).exists() for name in ("training", *KEYED, *TRAINED, *EVALUATED))
        return self.is_done("prepare", self.data_key) and not begun

    def claim(self) -> None:
        """Make the folder this recipe's. Stages of the recipe before it that this one shares are kept,
        the others are removed; files that are none of ours stay."""
        if _owner(self.folder) == self.recipe.hash:
            return
        done = {stage: key for stage, key in self.keys.items() if self.is_done(stage, key)}
        stale = [*(TRAINED if "train" not in done else ()), *(EVALUATED if "evaluate" not in done else ())]
        with explain_write_errors(self.folder):
            for name in stale:
                _remove(self.folder / name)
        write_json(self.folder / STAGES, done)
        write_json(self.folder / RECIPE, {"hash": self.recipe.hash, **self.recipe.resolved()})

    def release(self) -> None:
        """Undo the opening of a folder in which nothing came to be: what was made for it is removed."""
        shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        with contextlib.suppress(OSError):
            if not (self.folder / RECIPE).exists():
                (self.folder / LOCK).unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()  # refuses where something is in it


def open_recipe(recipe: Recipe, *, overwrite: bool = False) -> Run:
    """Open the recipe's run folder, creating it if need be. Nothing in it is changed yet.

    overwrite: another recipe's run may be replaced, once this one's data are prepared.
    Another recipe's folder in which nothing but the same data were prepared is taken over.
    Raises RunError if the folder holds another recipe's run, or files that are no run, or if another
    process works in it, and MachineError if it cannot be written.
    """
    task = load_task(recipe.task)
    require_files(recipe)
    folder = recipe.run_dir
    made = tuple(place for place in (folder, *folder.parents) if not place.exists())
    ensure_folder(folder)
    owner = _owner(folder)
    if owner is None and any(not _may_stand_alone(entry.name) for entry in folder.iterdir()):
        raise RunError(
            f"{folder}: is not empty and holds no run. Choose another folder with output_dir=..., "
            "so that nothing of yours is overwritten."
        )
    run = Run(recipe, task, folder, made)
    if owner not in (None, recipe.hash) and not overwrite and not run.only_prepared:
        raise RunError(
            f"{folder}: holds the run of another recipe (hash {owner}, this one is {recipe.hash}). "
            "Choose another folder with output_dir=..., or pass --yes to replace that run."
        )
    return replace(run, lock=_lock(folder))


def _may_stand_alone(name: str) -> bool:
    """Whether a folder that holds this, and no recipe, is nobody's run yet."""
    return name in (STAGING, LOCK, CATALOGUE) or name.startswith(PAID)


def require_files(recipe: Recipe) -> None:
    """Raise DataError for a data file that is missing or empty, before anything is made."""
    adapt = recipe.train.adapt
    table = recipe.data.path if recipe.catalogue is None else None  # a catalogue is looked at where it is read
    for path in (table, recipe.data.validation_path, recipe.data.test_path, adapt.path if adapt else None):
        if path is not None:
            require_file(path, "a table")


def _owner(folder: Path) -> str | None:
    """The hash of the recipe whose run the folder holds; None if it holds none."""
    path = folder / RECIPE
    if not path.exists():
        return None
    try:
        return str(read_json(path)["hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: is damaged ({error}), so whose run this is cannot be told. "
            "Choose another folder with output_dir=..., or delete this one."
        ) from error


def _plain(group: Config) -> Any:
    """The settings of a group that decide a result."""
    return group.model_dump(mode="json", exclude=set(NOT_DECIDING))


def _stages(folder: Path) -> dict[str, str]:
    try:
        return read_json(folder / STAGES)
    except (FileNotFoundError, ValueError):
        return {}  # nothing is proved to be done


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock(folder: Path) -> Any:
    """An open file that no other process can lock; it is freed when this process ends, however it ends."""
    try:
        import fcntl  # no such module on Windows
    except ImportError:
        return None
    file = (folder / LOCK).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise RunError(
            f"{folder}: another process is working in this run folder. Wait until it ends, or choose another folder "
            "with output_dir=..."
        ) from error
    except OSError:
        pass  # a file system without locks
    return file


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
