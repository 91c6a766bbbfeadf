"""step_metrics.csv: what a finished job measured at each step, as OpenAI's result file holds it.

Comes in: the `data` of the job's metrics events, in order. Goes out: the file's bytes, which are the base64 of the CSV
(so the hosted service answers them, and its clients decode them). Knows nothing of files and jobs.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

FILENAME = "step_metrics.csv"
# The file's column: the key of an event's data.
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
DECIMALS = 5


def step_metrics_csv(steps: Iterable[Mapping[str, Any]]) -> str:
    """One row a step; empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for data in steps:
        writer.writerow([_cell(data.get(key)) for key in COLUMNS.values()])
    return text.getvalue()


def result_file(steps: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of the result file."""
    return base64.b64encode(step_metrics_csv(steps).encode())


def _cell(value: Any) -> str:
    """Integers as they are, decimals rounded without trailing zeros: 3.63265, 0.5, 1.0."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.{DECIMALS}f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
