"""Sweeps: settings of `train` are searched, trial after trial, judged on validation rows (docs/sweeps.md)."""

from afina.sweeping.result import result_lines
from afina.sweeping.search import SweepResult, sweep

__all__ = ["SweepResult", "result_lines", "sweep"]
