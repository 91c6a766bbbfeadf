"""What the page shows of free text: columns, figures, answers side by side, and a catalogue's sections.

Comes in: a run's files and a language. Goes out: plain values and figures for the templates; nothing for reports of
fields. It computes no statistic: what it shows stands in report.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afina.evaluation.pareto import measured
from afina.evaluation.verdict import LOOPS
from afina.report import plots
from afina.report.figure import Figure
from afina.report.run_folder import RunFiles, finite
from afina.report.words import MISSING, Language

SHARES = ("copied_share", "memorised_share", "repetition", "empty_share", "unfinished_share")
BARS = {  # measure -> its axis
    "chrf": "chrf_axis",
    "rouge_l": "rouge_l_axis",
    "bits_per_byte": "bits_per_byte_axis",
    "memorised_share": "memorised_share_axis",
    "copied_share": "copied_share_axis",
    "repetition": "repetition_axis",
}
CITATIONS = {
    "precision": "citation_precision",
    "first_right": "citation_first_right",
    "recall": "citation_recall",
    "verbatim": "citation_verbatim",
}
ABSENT = {
    "refusal_precision": "refusal_precision",
    "refusal_recall": "refusal_recall",
    "answered": "absent_answered",
}
SHOWN_CHARACTERS = 420  # of one answer in plain view; the rest unfolds


@dataclass(frozen=True)
class Cell:
    """A figure and its interval, in words."""

    text: str
    interval: str = ""


def is_text(run: RunFiles) -> bool:
    """Whether the answers are free text."""
    return any(system.get("text") for system in run.systems)


def values(system: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every measure of a system's texts under one roof: name -> value, name_ci -> interval."""
    text: Mapping[str, Any] = system.get("text") or {}
    length: Mapping[str, Any] = text.get("length") or {}
    known = {"length_ratio": length.get("ratio"), "length_ratio_ci": length.get("ratio_ci")}
    return {**length, **text, **known, **(system.get("perplexity") or {})}


def text_cell(system: Mapping[str, Any], metric: str, words: Language) -> Cell:
    """A measure as a person reads it: shares in percent, chrF with one digit."""
    found = values(system)
    value, bounds = found.get(metric), found.get(f"{metric}_ci")
    if not finite(value):
        return Cell(MISSING)
    if metric in SHARES or metric.endswith("_share"):
        known = [100 * bound for bound in bounds or ()]
        return Cell(whole_percent(value), words.interval(known, 0))
    digits = 1 if metric == "chrf" else 2
    return Cell(words.number(value, digits), words.interval(bounds, digits))


def whole_percent(share: float) -> str:
    """Without digits, and neither none nor all of them where it is not."""
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "< 1 %"
    return "> 99 %" if rounded == 100 and share < 1 else f"{rounded} %"


def text_columns(run: RunFiles) -> dict[str, list[str]]:
    """Block of the results table -> measures that some system has."""
    blocks = {
        "likeness": ["chrf", "rouge_l", "bits_per_byte"],
        "habits": ["length_ratio", "copied_share", "memorised_share", "repetition", "empty_share", "unfinished_share"],
    }
    return {
        block: [metric for metric in metrics if any(finite(values(system).get(metric)) for system in run.systems)]
        for block, metrics in blocks.items()
    }


def text_bars(run: RunFiles, words: Language) -> Iterator[Figure]:
    """A figure for each measure: every system that has it, with its interval."""
    for metric, axis in BARS.items():
        found = [system for system in run.systems if finite(values(system).get(metric))]
        if not found:
            continue
        scale = 100.0 if metric in SHARES else 1.0
        rows = [_bar(run, system, metric, scale, words) for system in found]
        ends = [bound for row in rows for bound in (row.value or 0.0, *(row.interval or ()))]
        label = words(axis, n=words.count(run.report.get("num_test")))
        yield Figure(words(metric), plots.bars(rows, plots.nice_axis(0.0, max(ends), label, words.short, 4)))


def _bar(run: RunFiles, system: Mapping[str, Any], metric: str, scale: float, words: Language) -> plots.Bar:
    found, cell = values(system), text_cell(system, metric, words)
    bounds = found.get(f"{metric}_ci")
    interval = (scale * bounds[0], scale * bounds[1]) if bounds and words.interval(bounds) else None
    seeds = (found.get("by_seed") or {}).get(metric) or []
    dots = tuple(scale * v for v in seeds if finite(v))
    return plots.Bar(
        system["name"], scale * found[metric], cell.text, interval, cell.interval, system is run.specialist, dots
    )


def text_notes(run: RunFiles, words: Language) -> list[str]:
    """The verdict's sentences on how the systems write, in the reader's language."""
    lines: list[str] = []
    told: list[tuple[str, str, Callable[[float], str], float]] = [
        ("says_bits", "bits_per_byte", lambda value: words.number(value), 0.0),
        ("says_empty", "empty_share", lambda value: words.percent(value), 0.0),
        ("says_loops", "repetition", lambda value: words.percent(value), LOOPS),
    ]
    for key, metric, show, above in told:
        known = [(s["name"], values(s).get(metric)) for s in run.systems]
        listed = [f"{name} ({show(value)})" for name, value in known if finite(value) and value > above]
        if listed:
            lines.append(words(key, listed=words.join(listed)))
    return lines


def quality_of(run: RunFiles, system: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What systems are ranked by, and where a system's value of it stands; exact match in older reports."""
    metric = str(run.report.get("quality") or "exact_match")
    return metric, measured(system, metric)


# -- answers side by side -------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A text in two parts: what is shown, and what unfolds. num_more: characters of the second."""

    head: str
    rest: str = ""

    @property
    def num_more(self) -> int:
        return len(self.rest)


def folded(text: str) -> Said:
    """Broken at a space, so that no word is in both parts."""
    if len(text) <= SHOWN_CHARACTERS * 1.3:
        return Said(text)
    at = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
    at = SHOWN_CHARACTERS if at < 0 else at
    return Said(text[:at].rstrip(), text[at:].strip())


def samples(run: RunFiles) -> list[dict[str, Any]]:
    """Rows as the template takes them; empty where the report holds none."""
    rows: Sequence[Mapping[str, Any]] = (run.report.get("samples") or {}).get("rows") or []
    return [
        {
            "id": row.get("id"),
            "inputs": row.get("inputs") or {},
            "gold": folded(str(row.get("gold") or "")),
            "answers": [
                {**answer, "said": folded(str(answer.get("output") or "").strip())}
                for answer in row.get("answers") or []
            ],
        }
        for row in rows
    ]


# -- a catalogue's sections -----------------------------------------------------------------------


def section_cell(section: Mapping[str, Any], key: str, words: Language) -> Cell:
    """A share of a section: {"value", "ci"} under its key, or the value there and its interval under key_ci."""
    found = section.get(key)
    value, bounds = (
        (found.get("value"), found.get("ci")) if isinstance(found, Mapping) else (found, section.get(f"{key}_ci"))
    )
    return Cell(words.number(value), words.interval(bounds))


def share_rows(section: Mapping[str, Any], names: Mapping[str, str], words: Language) -> list[dict[str, Any]]:
    """The shares that a section holds, each with its counts where they are known. names: key -> key of the words."""
    rows: list[dict[str, Any]] = []
    for key, name in names.items():
        cell = section_cell(section, key, words)
        if cell.text == MISSING:
            continue
        found = section.get(key)
        counted = ""
        if isinstance(found, Mapping) and finite(found.get("hits")) and finite(found.get("total")):
            counted = words("of_total", hits=words.count(found["hits"]), total=words.count(found["total"]))
        rows.append({"name": words(name), "cell": cell, "counted": counted})
    return rows


def language_bars(run: RunFiles, words: Language) -> Figure | None:
    """How many products are in which language."""
    found: Mapping[str, Any] = (run.report.get("catalogue") or {}).get("languages") or {}
    known = sorted(((name, n) for name, n in found.items() if finite(n) and n > 0), key=lambda one: -one[1])[:12]
    if not known:
        return None
    rows = [plots.Bar(name, float(count), words.count(count)) for name, count in known]
    axis = plots.nice_axis(0.0, max(float(n) for _, n in known), words("languages_axis"), words.count, 3)
    return Figure(words("languages"), plots.bars(rows, axis))
