"""The result of a comparison for the screen: tables of plain text, the verdict under them, the recommendation last.

Comes in: what report.json holds. Goes out: lines of at most 100 characters, where names are short. It computes
nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from afina.core.progress import seconds, size
from afina.evaluation.verdict import METRICS, percent
from afina.report.advice import advice_lines
from afina.report.texts import section_cell, text_cell, values
from afina.report.words import MISSING, Language

WIDTH = 100
FEW = 4  # systems stand side by side; more stand under each other
NONE = "-"


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """Every score with its 95 % interval. Then the verdict and the recommendation, a sentence a line."""
    systems = report["systems"]
    num_test = report["num_test"]
    title = f"{report['task']}: {num_test} unseen row{'s' * (num_test != 1)}; 95 % intervals in brackets"
    tables = _side_by_side(report) if len(systems) <= FEW else _under_each_other(report)
    return [title, "", *tables, "", *_catalogue(report), *verdict_lines(report["verdict"]), *_advice(report)]


def _catalogue(report: Mapping[str, Any]) -> list[str]:
    """What a catalogue's run found of passages, sources and refusals: a line each, an empty one behind them."""
    words = Language("en")

    def told(section: Mapping[str, Any], names: Mapping[str, str]) -> str:
        cells = {name: section_cell(section, key, words) for key, name in names.items()}
        return ", ".join(f"{name} {c.text} {c.interval}".strip() for name, c in cells.items() if c.text != MISSING)

    lines = [
        f"retrieval, {one['name']} ({one['num_questions']} questions): "
        + told(one, {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "mrr": "MRR"})
        for one in (report.get("retrieval") or {}).get("sets") or []
    ]
    for key, name, shares in (
        ("citations", "sources of the answers", {"precision": "precision", "recall": "recall", "verbatim": "verbatim"}),
        (
            "absent",
            "not in the catalogue",
            {
                "refusal_recall": "absent ones refused",
                "refusal_precision": "refusals right",
                "answered": "present ones answered",
            },
        ),
    ):
        if found := told(report.get(key) or {}, shares):
            lines.append(f"{name}: {found}")
    return [*verdict_lines("\n".join(lines)), ""] if lines else []


def verdict_lines(verdict: str) -> list[str]:
    """A sentence begins a line; what is longer than the screen goes on indented."""
    lines: list[str] = []
    for sentence in verdict.splitlines():
        lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _advice(report: Mapping[str, Any]) -> list[str]:
    """The recommendation, where there was something to choose from."""
    facts = report.get("recommendation") or {"why": "alone"}
    if facts["why"] == "alone":
        return []
    return ["", *verdict_lines("\n".join(["Recommendation", *advice_lines(report, Language("en"))]))]


def _side_by_side(report: Mapping[str, Any]) -> list[str]:
    """Systems across, measures down."""
    systems = report["systems"]
    rows: list[list[str]] = [["", *(system["name"] for system in systems)]]
    for block in _measured(report):
        rows += block
    rows.append(["cost"])
    rows += [[f"  {label}", *(show(system) for system in systems)] for label, show in _costs(systems).items()]
    return _aligned(rows)


def _under_each_other(report: Mapping[str, Any]) -> list[str]:
    """A table for each group of fields, for the whole answer and for the cost: systems down, measures across."""
    systems = report["systems"]
    lines: list[str] = []
    for block in _measured(report, failed=True):
        lines += [*_turned(systems, block), ""]
    costs = [["cost"], *([label, *(show(system) for system in systems)] for label, show in _costs(systems).items())]
    return [*lines, *_turned(systems, costs)]


def _measured(report: Mapping[str, Any], *, failed: bool = False) -> list[list[list[str]]]:
    """Blocks of rows, the block's title first: each group of fields and the whole answer, or the texts."""
    systems = report["systems"]
    if systems[0].get("text"):
        return [_texts(systems, title, metrics) for title, metrics in TEXTS.items()]
    blocks = [_group(group, [system["fields"][group] for system in systems]) for group in report["groups"]]
    whole = [
        ["whole answer"],
        ["  exact match", *(_score(system, "exact_match") for system in systems)],
        *_between_seeds(systems, "exact_match"),
        ["  valid", *(percent(system["valid_rate"]) for system in systems)],
    ]
    if failed:
        whole.append(["  failed", *(str(system["num_failed"]) for system in systems)])
    return [*blocks, whole]


# title -> measure -> what it is called here
TEXTS: Mapping[str, Mapping[str, str]] = {
    "likeness to gold": {"chrf": "chrF", "rouge_l": "ROUGE-L", "bits_per_byte": "bits per byte"},
    "how it writes": {
        "length_ratio": "length",
        "copied_share": "copied",
        "memorised_share": "memorised",
        "repetition": "repetition",
        "empty_share": "empty",
        "unfinished_share": "unfinished",
    },
}
WITH_INTERVAL = ("chrf", "rouge_l", "bits_per_byte")


def _texts(systems: Sequence[Mapping[str, Any]], title: str, metrics: Mapping[str, str]) -> list[list[str]]:
    """Measures that some system has; those of likeness with their intervals."""
    words, rows = Language("en"), [[title]]
    for metric, name in metrics.items():
        cells = [text_cell(system, metric, words) for system in systems]
        if not any(_known(values(system).get(metric)) for system in systems):
            continue
        shown = [f"{cell.text} {cell.interval}".strip() if metric in WITH_INTERVAL else cell.text for cell in cells]
        rows.append([f"  {name}", *(NONE if text == MISSING else text for text in shown)])
        rows += _between_seeds([values(system) for system in systems], metric)
    return rows


def _turned(systems: Sequence[Mapping[str, Any]], rows: list[list[str]]) -> list[str]:
    """A block of measures (its title first) with a line per system."""
    (title,), measures = rows[0], rows[1:]
    table = [[title, *(row[0].strip() for row in measures)]]
    table += [[system["name"], *(row[1 + at] for row in measures)] for at, system in enumerate(systems)]
    return _aligned(table)


def _group(name: str, entries: list[Mapping[str, Any]]) -> list[list[str]]:
    shown = ("mae", "accuracy") if entries[0]["kind"] == "number" else ("accuracy", "macro_f1")
    rows = [[name]]
    for metric in shown:
        if metric in entries[0]:
            rows.append([f"  {METRICS[metric]}", *(_score(entry, metric) for entry in entries)])
            rows += _between_seeds(entries, metric)
    if any(_known(entry.get("ece")) for entry in entries):
        rows.append(["  calibration error", *(_number(entry.get("ece")) for entry in entries)])
    return rows


def _between_seeds(entries: Sequence[Mapping[str, Any]], metric: str) -> list[list[str]]:
    """The standard deviation over seeds, where some system has several."""
    stds = [(entry.get("seed_std") or {}).get(metric) for entry in entries]
    if not any(map(_known, stds)):
        return []
    return [["  ± seeds", *(NONE if std is None else f"± {_number(std)}" for std in stds)]]


def _known(value: Any) -> bool:
    return value is not None


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def _score(entry: Mapping[str, Any], metric: str) -> str:
    interval = entry.get(f"{metric}_ci")
    value = _number(entry.get(metric))
    return f"{value} [{_number(interval[0])}, {_number(interval[1])}]" if interval and value != NONE else value


def _duration(value: float) -> str:
    if value < 1e-3:
        return "< 1 ms"
    return f"{value * 1000:.0f} ms" if value < 1 else seconds(value)


COSTS: Mapping[str, Any] = {
    "latency p50 / p95": lambda s: f"{_duration(s['latency_p50_s'])} / {_duration(s['latency_p95_s'])}",
    "answers per second": lambda s: f"{s['answers_per_s']:,.1f}" if s["answers_per_s"] < 100 else "> 100",
    "tokens in + out": lambda s: (
        f"{s['prompt_tokens']:.0f} + {s['completion_tokens']:.0f}" if s.get("prompt_tokens") else NONE
    ),
    "US$ per 1,000": lambda s: Language("en").money(s.get("cost_per_1000_usd")),
    "peak memory": lambda s: size(s["peak_memory_bytes"]) if s.get("peak_memory_bytes") else NONE,
    "training": lambda s: seconds(s["train_seconds"]) if s.get("train_seconds") else NONE,
}


def _costs(systems: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Money only where some system costs any; of many systems, what fits the screen."""
    paid = any(system.get("cost_per_1000_usd") for system in systems)
    left_out = ([] if paid else ["US$ per 1,000"]) + (["answers per second"] if len(systems) > FEW else [])
    return {label: show for label, show in COSTS.items() if label not in left_out}


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns padded to their widest cell; a rule under the names."""
    num_columns = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(num_columns)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return [lines[0], "─" * (sum(widths) + 2 * (num_columns - 1)), *lines[1:]]
