"""The optional libraries of a catalogue, imported where they are needed: their absence is one line, not a traceback."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from afina.core.errors import MachineError


@cache
def library(name: str) -> ModuleType:
    """The module of that name. Raises MachineError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(
            f"preparing a catalogue needs {name.partition('.')[0]}, which is not installed. "
            "Install it: pip install 'afina[assistant]'"
        ) from error
