"""Sweeps in processes of their own, forked from one that has made the imports: quick to begin, and good to kill."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerProcess
from pathlib import Path


def start(recipe: Path, *overrides: str) -> ForkServerProcess:
    """`afina sweep RECIPE KEY=VALUE...`, as far as the command line is not asked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["afina.sweeping", "afina.training.trainer", "optuna.importance", "peft"])
    process = context.Process(target=_sweep, args=(recipe, overrides))
    process.start()
    return process


def _sweep(recipe: Path, overrides: tuple[str, ...]) -> None:
    os.dup2(os.open(recipe.parent / "sweep.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    import torch

    from afina import pipeline, sweeping

    torch.set_num_threads(1)
    sweeping.sweep(pipeline.open_run(recipe, overrides))
