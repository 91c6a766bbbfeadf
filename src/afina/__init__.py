"""Afina: from a labelled table to a small language model that its owner keeps.

`from afina import Specialist` loads a finished run; everything else is reached by the command line
(`afina --help`) or by the modules below. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afina.strategies.finetuned import Specialist as Specialist

__version__ = "0.1.0"
__all__ = ["Specialist", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Specialist":
        from afina.strategies.finetuned import Specialist

        return Specialist
    raise AttributeError(f"module 'afina' has no attribute {name!r}")
