"""What the server puts into a job's folder before its process starts, and takes away after its end.

    spec.json     what to train, with numbers and absolute paths; written once
    input/        the training file, the validation file and the model to go on from, as hard links: deleting one of
                  them through the API while the job runs does not pull it from under the process
    lock process.lock log.jsonl trainer.log train/ models/     the process's own (`executor.py`, `job_log.py`)

Comes in: paths and a job's numbers. Knows nothing of the database.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from afina.core.storage import write_json
from afina.server.job_plan import JobError, Plan, file_deleted, model_gone

SPEC = "spec.json"
INPUT = "input"
TRAIN = "train"
MODELS = "models"
KEPT_CHECKPOINTS = 3


def is_prepared(folder: Path) -> bool:
    return (folder / SPEC).is_file()


def prepare(folder: Path, plan: Plan) -> None:
    """Link the inputs and write spec.json, last, so that its presence says that all is there.

    Raises JobError for an input that is gone, OSError and MachineError where nothing can be written.
    """
    if is_prepared(folder):
        return
    inputs = folder / INPUT
    shutil.rmtree(inputs, ignore_errors=True)  # of an attempt that was killed
    inputs.mkdir(parents=True)
    training, validation = inputs / "training.jsonl", None
    _link(plan.training_file, training, file_deleted("training_file"))
    if plan.validation_file is not None:
        validation = inputs / "validation.jsonl"
        _link(plan.validation_file, validation, file_deleted("validation_file"))
    base = None if plan.base_folder is None else inputs / "base"
    if base is not None and plan.base_folder is not None:
        _link(plan.base_folder, base, model_gone(plan.model))
    spec = {
        "job_id": plan.job_id,
        "method": plan.method,
        "base": {"name": plan.base_name, "folder": None if base is None else str(base)},
        "training_file": str(training),
        "validation_file": None if validation is None else str(validation),
        "hyperparameters": plan.hyperparameters,
        "seed": plan.seed,
        "train": plan.train,
        "max_length": plan.max_length,
        "style": plan.style,
        "keep_checkpoints": KEPT_CHECKPOINTS,
    }
    write_json(folder / SPEC, spec)


def clean(folder: Path, kept_models: set[str]) -> None:
    """After the end: training checkpoints, inputs and models that no row names are removed. kept_models: names in
    `models/`, as step-30. May be repeated; what cannot be removed now is left."""
    for name in (TRAIN, INPUT):
        shutil.rmtree(folder / name, ignore_errors=True)
    models = folder / MODELS
    if models.is_dir():
        for model in models.iterdir():
            if model.name not in kept_models:
                shutil.rmtree(model, ignore_errors=True)


def is_clean(folder: Path) -> bool:
    return not any((folder / name).exists() for name in (TRAIN, INPUT))


def last_words(folder: Path, name: str, most_bytes: int = 64 * 1024) -> str:
    """The last line of a log that says something: no blank, no line of a stack trace."""
    try:
        with (folder / name).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = (line for line in reversed(lines) if line.strip() and not line.startswith((" ", "\t", "Traceback")))
    return next(said, "")


# -- details ---------------------------------------------------------------------------------------


def _link(source: Path, target: Path, gone: JobError) -> None:
    """A file, or a folder's files, under a second name. Raises `gone` when the source is no more."""
    try:
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link_or_copy)
        else:
            _link_or_copy(source, target)
    except FileNotFoundError as error:
        raise gone from error
    except shutil.Error as error:  # of a folder that is being removed
        raise gone from error


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
    return str(target)
