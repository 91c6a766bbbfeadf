"""Free-text answers -> every measure with its interval, and the system's entry in report.json.

Comes in: a system's answers to the test, counted row by row by `text_rows`. Goes out: values, resamples, and a
JSON-ready entry. As in `scores`, it knows nothing of other systems.

Shapes: C clusters, S seeds, K summed columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afina.evaluation import chrf, overlap, statistics
from afina.evaluation.scores import WHOLE, Measure, Scores, interval, put, score_sums, system_entry
from afina.evaluation.setting import Setting
from afina.evaluation.system import SystemRun
from afina.evaluation.text_rows import AT, CHRF, Golds, Row, rows_of, seen_in_train

TESTED = ("chrf", "rouge_l")
# measure -> what is summed above and below the line; is_share as in Measure
RATIOS: dict[str, tuple[str, str, bool]] = {
    "rouge_l": ("rouge_l", "answers", True),
    "length_ratio": ("characters", "gold_characters", False),
    "copied_share": ("copied", "grams", True),
    "longest_copied_share": ("span", "with_words", True),
    "memorised_share": ("memorised", "grams", True),
    "repetition": ("repetition", "with_loop_grams", True),
    "empty_share": ("empty", "answers", True),
    "cut_prompt_share": ("cut", "answers", True),
    "unfinished_share": ("unfinished", "answers", True),
}
MEANS = ("tokens", "words", "characters", "gold_words", "gold_characters")


def measures() -> list[Measure]:
    """chrF, ROUGE-L, then what describes the answers."""
    found = [Measure(WHOLE, "chrf", CHRF, chrf.chrf)]
    for name, (above, below, is_share) in RATIOS.items():
        found.append(Measure(WHOLE, name, slice(0, CHRF.start), _ratio(AT[above], AT[below]), is_share))
    return found


def _ratio(above: int, below: int) -> statistics.Statistic:
    """0 where nothing is below the line."""

    def ratio(sums: np.ndarray) -> np.ndarray:
        return sums[..., above] / np.where(sums[..., below] > 0, sums[..., below], np.inf)

    return ratio


@dataclass(frozen=True)
class Texts:
    """One system, scored, and its answers of each seed."""

    scores: Scores
    runs: tuple[list[Row], ...]


def score_texts(on: Setting, systems: Sequence[SystemRun], found: Sequence[Measure]) -> list[Texts]:
    """Each system scored. The train texts are read once, for all systems."""
    golds = Golds([str(example.output) for example in on.test])
    answered = [tuple(rows_of(on.test, run) for run in system.runs) for system in systems]
    seen = seen_in_train([row for runs in answered for rows in runs for row in rows], on.train)
    texts: list[Texts] = []
    for system, runs in zip(systems, answered, strict=True):
        counted = [golds.columns(rows, seen, on.max_text_tokens) for rows in runs]
        by_seed = [statistics.cluster_sums(values, on.cluster_of, on.num_clusters) for values in counted]
        sums = np.stack(by_seed, axis=1)
        texts.append(Texts(Scores(system, (), sums, score_sums(sums, found, on.seed)), runs))
    return texts


# -- the entry in report.json ---------------------------------------------------------------------


def text_entry(on: Setting, texts: Texts, found: Sequence[Measure]) -> dict[str, Any]:
    """One entry of `systems`. A measure of nothing (no 8-gram, no known limit) is None and has no interval."""
    scores = texts.scores
    totals = scores.sums.sum(axis=(0, 1))
    text: dict[str, Any] = {}
    for measure, score in zip(found, scores.measured, strict=True):
        if _is_known(measure.metric, totals, on.max_text_tokens):
            put(text, measure, score)
        else:
            text |= {measure.metric: None, f"{measure.metric}_ci": None}
    text["length"] = _length(text, totals)
    text["num_grams"] = int(totals[AT["grams"]])
    for size in (1, 2):
        shares = [overlap.distinct((row.words for row in rows), size) for rows in texts.runs]
        text[f"distinct_{size}"] = None if None in shares else float(np.mean([s for s in shares if s is not None]))
    measured: dict[str, Any] = {"fields": {}, "text": text}
    if scores.system.perplexity is not None:
        measured["perplexity"] = perplexity_entry(scores.system.perplexity, on.cluster_of, on.seed)
    return system_entry(on.task, scores.system, measured, on.machine_usd_per_hour)


def _is_known(metric: str, totals: np.ndarray, max_text_tokens: int | None) -> bool:
    if metric == "unfinished_share":
        return max_text_tokens is not None and totals[AT["tokens"]] > 0
    return metric not in RATIOS or totals[AT[RATIOS[metric][1]]] > 0


def _length(text: dict[str, Any], totals: np.ndarray) -> dict[str, Any]:
    """Means per answer, and the answers' characters by the gold texts'."""
    means: dict[str, float | None] = {name: float(totals[AT[name]] / totals[AT["answers"]]) for name in MEANS}
    means["tokens"] = means["tokens"] or None  # a system that writes no tokens has copied, not written
    return {**means, "ratio": text.pop("length_ratio"), "ratio_ci": text.pop("length_ratio_ci")}


def perplexity_entry(found: Mapping[str, Any], cluster_of: np.ndarray, seed: int) -> dict[str, Any]:
    """What report.json holds of a model's losses on the gold texts, with intervals where the rows are known."""
    entry = {
        "nats_per_token": float(found["nats_per_token"]),
        "perplexity": math.exp(min(700.0, found["nats_per_token"])),  # of e**710 there is no float
        "bits_per_byte": float(found["bits_per_byte"]),
        "num_tokens": int(found["num_tokens"]),
    }
    rows = found.get("rows")
    if not rows:
        return entry
    assert len(rows) == len(cluster_of), f"{len(rows)} rows with losses but {len(cluster_of)} test rows"
    kept = np.array([row is not None for row in rows])
    _, clusters = np.unique(cluster_of[kept], return_inverse=True)
    values = np.array([row for row in rows if row is not None], dtype=np.float64)
    sums = statistics.cluster_sums(values, clusters, int(clusters.max()) + 1)[:, None, :]
    per_token, per_byte = (
        Measure(WHOLE, name, slice(0, 3), _ratio(0, below))
        for name, below in (("nats_per_token", 1), ("nats_per_byte", 2))
    )
    tokens, in_nats = score_sums(sums, [per_token, per_byte], seed)
    return {
        **entry,
        "nats_per_token_ci": interval(per_token, tokens),
        "bits_per_byte_ci": [bound / math.log(2) for bound in interval(per_byte, in_nats)],
        "num_rows": int(kept.sum()),
        "num_left_out": int((~kept).sum()),
    }
