"""What all systems of one report are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afina.core.predictor import Example
from afina.core.task import Task


@dataclass(frozen=True)
class Setting:
    """The rows, their clusters, the seed of all resampling, and what an hour of this machine costs.

    cluster_of: (N,), in [0, num_clusters). max_text_tokens: where a free-text answer was made to end; None: not known.
    """

    task: Task
    test: Sequence[Example]
    train: Sequence[Example]
    cluster_of: np.ndarray
    num_clusters: int
    seed: int
    machine_usd_per_hour: float | None = None
    max_text_tokens: int | None = None
