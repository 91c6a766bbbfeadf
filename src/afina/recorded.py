"""A system's answers to the test rows, kept as they were given: a killed comparison goes on with the next system.

Comes in: how to ask a system, and the key of all that decides its answers. Goes out: the same `SystemRun`, asked once.
Kept in the run folder under `systems/`, whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afina.core.predictor import Prediction, Usage
from afina.core.storage import read_json, write_json
from afina.evaluation.runner import SystemRun

FOLDER = "systems"


def recorded(folder: Path, name: str, key: str, ask: Callable[[], SystemRun]) -> SystemRun:
    """What `ask` returns, or returned when it was called with this key before."""
    path = folder / FOLDER / f"{name}.json"
    try:
        kept = read_json(path)
        if kept["key"] == key:
            return _read(kept["system"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: asked again
    system = ask()
    write_json(path, {"key": key, "system": asdict(system)})
    return system


def _read(raw: Mapping[str, Any]) -> SystemRun:
    read: dict[str, Any] = {
        "predictions": [_prediction(one) for one in raw["predictions"]],
        "repeats": tuple([_prediction(one) for one in run] for run in raw["repeats"]),
        "latencies_s": tuple(raw["latencies_s"]),
        "seeds": tuple(raw["seeds"]),
    }
    return SystemRun(**{**raw, **read})


def _prediction(raw: Mapping[str, Any]) -> Prediction:
    read: dict[str, Any] = {**raw, "usage": Usage(**raw["usage"])}
    read |= {name: tuple(raw[name]) for name in ("sources", "trace")}
    return Prediction(**read)
