"""How the figures of report.json were made, for its reader.

Comes in: the systems, and the tests that were made. Goes out: text. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afina.core.task import Task
from afina.evaluation import chrf, overlap, statistics
from afina.evaluation.system import SystemRun


def method(
    task: Task,
    systems: Sequence[SystemRun],
    tests: Sequence[Any],
    num_clusters: int,
    seed: int,
    reference: int | None,
) -> str:
    """How the figures were made, for the reader of the report. reference: position of a named one."""
    several = any(system.repeats for system in systems)
    text = (_TEXTS.format(signature=chrf.signature()) if task.free_text else _FIELDS) + (
        f" Intervals: 95 %, BCa bootstrap of {statistics.NUM_RESAMPLES:,} resamples of the test's {num_clusters} "
        "near-duplicate clusters, the same for every system; the exact binomial interval over clusters where "
    )
    if task.free_text:
        text += "a share is 0 or 1."
    else:
        text += (
            "all answers are right or all are wrong. Calibration error: 15 equal bins, over answers with a confidence."
        )
    if several:
        text += _SEVERAL
        if not task.free_text:
            text += " Confusion matrices, scores by label and reliability bins count the answers of all seeds."
    if tests:
        primary = "chrF" if task.free_text else "accuracy (of an open number: mean absolute error)"
        where = (
            "by chrF and ROUGE-L"
            if task.free_text
            else "on each group of fields by accuracy and macro-F1, and on the exact match of the whole answer"
        )
        text += (
            f" Tests: two-sided paired permutation test, {statistics.NUM_PERMUTATIONS:,} swaps of the two systems' "
            f"answers by cluster{_SWAPPED_SEEDS if several else ''}. Primary metric: {primary}. "
            f"Holm's correction over the whole family of {len(tests)} tests: "
            f"{_compared(systems, reference)}, {where}. Intervals are not corrected."
        )
    return f"{text} Seed: {seed}."


_FIELDS = (
    "Macro-F1: mean F1 over the labels that occur in the gold of train or test, the same for every system; "
    "a label neither in the test's gold nor predicted counts 0. A failed answer counts as wrong."
)
_TEXTS = (
    "chrF: of the corpus, as sacrebleu computes it ({signature}), 0 to 100; its interval resamples the rows' n-gram "
    "counts. ROUGE-L: mean F1 of the longest common subsequence, as rouge-score without a stemmer (its stemmer is "
    "English) and with the letters of every alphabet, 0 to 1. A failed answer is an empty text. "
    f"Copied and memorised: of the answers' runs of {overlap.GRAM} words, the share that stands verbatim in the "
    "prompt, and the share that stands in a train text but neither in the prompt nor in the gold text. Repetition: of "
    f"an answer's runs of {overlap.LOOP_GRAM} words, those that it had said before (seq-rep-4). Perplexity is of the "
    "gold text under the model, its end not counted; bits per byte compare models of different tokenizers."
)
_SEVERAL = (
    " Several seeds: each figure is the mean over a system's seeds, computed for each seed by itself; a "
    "resample of clusters is taken for all seeds together. So intervals say how a figure varies over rows, for "
    "the models as trained. How it varies over seeds stands apart (by_seed, and seed_std with n - 1)."
)
_SWAPPED_SEEDS = ", of all seeds together (the answers of a system with fewer runs stand for each of the other's)"


def _compared(systems: Sequence[SystemRun], reference: int | None) -> str:
    if reference is None and any(system.strategy == "finetuned" for system in systems):
        return "the specialist against each other system"
    name = systems[reference or 0].name
    if systems[reference or 0].strategy == "finetuned":
        return f"{name} against each other system"
    return f"each other system against {name}"
