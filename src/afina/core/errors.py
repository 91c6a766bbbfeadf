"""The errors a user can cause. Everything else that escapes is a bug of ours (exit code 1)."""

from __future__ import annotations


class AfinaError(Exception):
    """What the user can mend. The message says where, what was found, what was wanted, what to do."""

    exit_code = 2


class RecipeError(AfinaError):
    """The recipe, or an override of it, cannot be used as written."""


class SchemaError(RecipeError):
    """The output schema asks for something that cannot be guaranteed."""


class DataError(AfinaError):
    """A data file, or too many of its rows, cannot be used."""


class ModelError(AfinaError):
    """A base model or specialist is absent, gated, damaged or of the wrong kind."""


class MachineError(AfinaError):
    """This machine cannot do what was asked: memory, disk, hardware."""


class RunError(AfinaError):
    """A run folder is missing, incomplete, or belongs to another recipe."""
