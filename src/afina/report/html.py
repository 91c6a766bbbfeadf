"""One self-contained HTML page from a run folder.

Comes in: a run folder. Goes out: `report.html` in it, with no script and no reference to anything outside
itself. Everything that comes from data, recipe or models is escaped. Measures nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from afina.core.storage import write_text
from afina.report import plots
from afina.report.advice import advice_lines
from afina.report.comparison import (
    FEW_PAIRS,
    curve_figure,
    forest_figures,
    has_cost,
    metric_name,
    num_pairs,
    pareto_figures,
    place_name,
    seeds_of,
    spread_text,
    verdict_by_measure,
)
from afina.report.figure import Figure
from afina.report.run_folder import RunFiles, finite, outcome, read_run
from afina.report.texts import (
    ABSENT,
    CITATIONS,
    is_text,
    language_bars,
    quality_of,
    samples,
    section_cell,
    share_rows,
    text_bars,
    text_cell,
    text_columns,
    text_notes,
    values,
)
from afina.report.trails import flat, steps_of, trails
from afina.report.words import MISSING, Language

FIRST_SHOWN = 4  # examples of a kind in plain view; the rest unfold
FEW_TESTS = 15  # more unfold under their figures


def write_report(run_dir: Path, language: str = "en") -> Path:
    """Write `report.html` into the run folder and return its path.

    language: "en" or "pt" (Brazilian Portuguese).
    Raises RunError when there is no evaluated run, or a file of it is damaged.
    """
    run = read_run(run_dir)
    path = run_dir / "report.html"
    write_text(path, render(run, Language(language)))
    return path


def render(run: RunFiles, words: Language) -> str:
    """The whole page as text."""
    # Data files may lack a key; the filters then show a dash instead of failing.
    environment = Environment(
        loader=PackageLoader("afina.report"), autoescape=True, undefined=ChainableUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        number=words.number, count=words.count, signed=words.signed, interval=words.interval, p_value=words.p_value,
        percent=words.percent, duration=words.duration, bytes=words.bytes, text=as_text, outcome=outcome,
        money=words.money, metric=partial(metric_name, words),
    )  # fmt: skip
    style = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        t=words,
        style=Markup(style),  # ours, and no user text reaches it
        run=run,
        report=run.report,
        specialist=run.specialist,
        verdict=verdict_lines(run, words),
        advice=advice_lines(run.report, words),
        is_text=is_text(run),
        columns=text_columns(run) if is_text(run) else columns(run),
        few_systems=FEW_PAIRS,
        support=lambda name: _support(run, name),
        bars=list(text_bars(run, words) if is_text(run) else comparison_bars(run, words)),
        has_seeds=bool(_seed_counts(run)),
        num_seeds=words.join([str(n) for n in _seed_counts(run)]),
        spread=lambda values, metric: spread_text(values, metric, words),
        forests=list(forest_figures(run, words)),
        fold_tests=len(run.report.get("tests") or []) > FEW_TESTS,
        paretos=pareto_figures(run, words),
        has_cost=has_cost(run),
        curve=curve_figure(run, words),
        trails=trails(run, words),
        matrices=matrices,
        reliabilities=lambda system: list(reliability_figures(system, run, words)),
        training=training(run, words),
        lengths=lengths(run, words),
        examples=examples(run, words),
        first_shown=FIRST_SHOWN,
        **_text_parts(run, words),
        memory=memory(run, words),
        recipe_text=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100) if run.recipe else None,
        environment=[(name, list(flat(part))) for name, part in (run.environment or {}).items()],
    )


def _text_parts(run: RunFiles, words: Language) -> dict[str, Any]:
    """What only free text and catalogues have."""
    report = run.report
    return {
        "samples": samples(run),
        "values": values,
        "cell": lambda system, metric: text_cell(system, metric, words),
        "section_cell": lambda section, key: section_cell(section, key, words),
        "citation_rows": share_rows(report.get("citations") or {}, CITATIONS, words),
        "absent_rows": share_rows(report.get("absent") or {}, ABSENT, words),
        "languages": language_bars(run, words),
        "place": partial(place_name, words),
    }


def _seed_counts(run: RunFiles) -> list[int]:
    """How many seeds systems have, each number once; none where every system has one run."""
    found: set[int] = set()
    for system in run.systems:
        metric, place = quality_of(run, system)
        found.add(len(seeds_of(place, metric)))
    return sorted(found - {0})


def as_text(value: Any) -> str:
    """A value of an answer as a person reads it."""
    if value is None:
        return MISSING
    if isinstance(value, list):
        return ", ".join(map(as_text, value)) or "[ ]"
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- what the figures say -----------------------------------------------------------------------


def verdict_lines(run: RunFiles, words: Language) -> list[str]:
    """The verdict, one sentence a line: the run's own in English, rebuilt from the tests in other languages."""
    if words.code == "en" or not run.report.get("tests"):
        return [line for line in str(run.report.get("verdict", "")).splitlines() if line.strip()]
    notes = text_notes(run, words) if is_text(run) else []
    if num_pairs(run) >= FEW_PAIRS and (lines := verdict_by_measure(run, words)):
        return [*lines, *notes]
    said: dict[tuple[str, str], dict[str, list[str]]] = {}
    for test in run.report["tests"]:
        fields = said.setdefault((test["a"], test["b"]), {"better": [], "worse": [], "none": []})
        metric = metric_name(words, test["metric"])
        p = words.p_value(test.get("p_holm", test.get("p")))
        where = f"{test['field']}, {metric}" if test.get("field") and not is_text(run) else metric
        fields[outcome(test)].append(f"{where} ({words.signed(test['difference'], 2)}; {words('p_holm')} {p})")
    lines = [
        f"{a}: " + "; ".join(words(f"says_{kind}", b=b, fields=words.join(f)) for kind, f in fields.items() if f) + "."
        for (a, b), fields in said.items()
    ]
    return [*lines, *notes]


def columns(run: RunFiles) -> dict[str, list[str]]:
    """Group -> the metrics that some system has for it."""
    return {
        name: [
            metric
            for metric in ("accuracy", "macro_f1", "ece")
            if metric == "accuracy" or any(finite(s["fields"].get(name, {}).get(metric)) for s in run.systems)
        ]
        for name in run.groups
    }


def _support(run: RunFiles, name: str) -> Any:
    """How many labelled answers a group or field has in the test."""
    return run.specialist["fields"].get(name, {}).get("support", run.report.get("num_test"))


def comparison_bars(run: RunFiles, words: Language) -> Iterator[Figure]:
    """One figure per group and metric, then the whole answer: every system with its interval."""
    num_test = run.report.get("num_test")
    for name, metrics in columns(run).items():
        for metric in metrics:
            if metric != "ece":
                found = [(s, s["fields"].get(name, {})) for s in run.systems]
                yield _bars_figure(run, words, found, name, metric, _support(run, name))
    yield _bars_figure(run, words, [(s, s) for s in run.systems], words("whole_answer"), "exact_match", num_test)


def _bars_figure(run: RunFiles, words: Language, found: list[Any], name: str, metric: str, n: Any) -> Figure:
    rows = [
        plots.Bar(
            system["name"],
            values.get(metric) if finite(values.get(metric)) else None,
            words.number(values.get(metric)),
            tuple(values[f"{metric}_ci"]) if words.interval(values.get(f"{metric}_ci")) else None,  # type: ignore[arg-type]
            words.interval(values.get(f"{metric}_ci")),
            system is run.specialist,
            seeds_of(values, metric),
        )
        for system, values in found
    ]
    label = words("bar_axis", metric=words(metric), n=words.count(n))
    axis = plots.Axis(0, 1, plots.UNIT_TICKS, label, words.short)
    return Figure(words("bar_title", field=name, metric=words(metric)), plots.bars(rows, axis))


def matrices(system: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """The confusion matrices of the named fields, each row with its total and shares, and the scores per label."""
    found: list[dict[str, Any]] = []
    for name in names:
        field = system["fields"].get(name, {})
        confusion = field.get("confusion")
        if not confusion and not field.get("per_label"):
            continue
        rows: list[dict[str, Any]] = []
        # A column more than there are labels counts answers that are none of them.
        for label, counts in zip(
            (confusion or {}).get("labels", []), (confusion or {}).get("matrix", []), strict=False
        ):
            total = sum(counts)
            cells = [{"count": c, "share": c / total if total else 0.0} for c in counts]
            rows.append({"label": label, "cells": cells, "total": total})
        labels = (confusion or {}).get("labels", [])
        num = sum(r["total"] for r in rows) or field.get("support")
        scores = field.get("per_label") or {}
        if isinstance(scores, list):  # as before the format was settled
            scores = {str(row.get("label")): row for row in scores}
        found.append({"name": name, "labels": labels, "rows": rows, "per_label": scores, "n": num})
    return found


def reliability_figures(system: Mapping[str, Any], run: RunFiles, words: Language) -> Iterator[Figure]:
    """One reliability diagram per group that has confidences."""
    for name in run.groups:
        field = system["fields"].get(name, {})
        bins = [b for b in field.get("reliability") or [] if b.get("count")]
        if not bins:
            continue
        accuracy = plots.Axis(0, 1, plots.UNIT_TICKS, words("accuracy_axis"), words.short)
        confidence = plots.Axis(0, 1, plots.UNIT_TICKS, words("confidence_axis"), words.short)
        num = sum(b["count"] for b in bins)
        scores = [f"{words(m)} {words.number(field[m], 3)}" for m in ("ece", "brier") if finite(field.get(m))]
        yield Figure(
            words("reliability_title", field=name, system=system["name"]),
            plots.reliability(bins, accuracy, confidence, words("count_axis"), words.count),
            " · ".join([*scores, f"n = {words.count(num)}"]),
        )


def training(run: RunFiles, words: Language) -> dict[str, Any] | None:
    """Loss curves, the learning rate, and what the log says of speed; None without a drawable log."""
    rows = [r for r in run.metrics or [] if finite(r.get("step"))]
    names = ("loss", "validation_loss", "calibrated_loss")
    losses = {k: [(r["step"], r[k]) for r in rows if finite(r.get(k))] for k in names}
    measured = "calibrated_loss" if losses["calibrated_loss"] else "validation_loss"
    drawn = losses["loss"] + losses[measured]
    if not drawn:
        return None
    best = min(losses[measured], key=lambda point: point[1], default=None)
    last = max(r["step"] for r in rows)
    x = plots.snug_axis(0, last, words("step_axis"), words.short)
    y = plots.nice_axis(min(0.0, *(v for _, v in drawn)), max(v for _, v in drawn), words("loss_axis"), words.short)
    kinds = (("loss", "train_loss", "first"), (measured, measured, "second"))
    lines = [plots.Line(words(text), losses[key], kind) for key, text, kind in kinds if losses[key]]
    mark = (best[0], words("best_step", step=words.count(best[0]))) if best else None
    figures = [Figure(words("loss_title"), plots.line_chart(lines, x, y, mark))]
    rates = [(r["step"], r["learning_rate"]) for r in rows if finite(r.get("learning_rate"))]
    if rates:
        y = plots.nice_axis(0.0, max(v for _, v in rates), words("rate_axis"), _power, 3)
        figures.append(Figure(words("rate_title"), plots.line_chart([plots.Line("", rates)], x, y)))
    speeds = [r["tokens_per_s"] for r in rows if finite(r.get("tokens_per_s"))]
    return {
        "figures": figures,
        "best": best,
        "last": last,
        "epochs": max((r["epoch"] for r in rows if finite(r.get("epoch"))), default=None),
        "elapsed_s": max((r["elapsed_s"] for r in rows if finite(r.get("elapsed_s"))), default=None),
        "tokens_per_s": statistics.median(speeds) if speeds else None,
    }


def _power(value: float) -> str:
    """A learning rate as an axis can hold it: 5e-4."""
    return "0" if not value else f"{value:.0e}".replace("e-0", "e-")


def lengths(run: RunFiles, words: Language) -> Figure | None:
    """Quantiles of the examples' tokens against max_length."""
    found = (run.data or {}).get("lengths") or {}
    values = [(name, found[name]) for name in ("min", "p50", "p90", "p99", "max") if finite(found.get(name))]
    if not values:
        return None
    limit = ((run.recipe or {}).get("train") or {}).get("max_length")
    high = max([v for _, v in values] + ([limit] if finite(limit) else []))
    axis = plots.nice_axis(0, high, words("tokens"), lambda v: words.count(v))
    mark = (f"max_length {words.count(limit)}", limit) if finite(limit) else None
    body = plots.quantiles(values, mark, axis)
    shown = " · ".join(f"{name} {words.count(v)}" for name, v in values)
    note = words("lengths_note", n=words.count(found.get("above")))
    return Figure(words("lengths"), body, f"{shown}. {note}")


def examples(run: RunFiles, words: Language) -> dict[str, list[dict[str, Any]]] | None:
    """Wrong and right ones, each with its answer field by field; the most confident mistakes first."""
    if run.examples is None:
        return None
    found: dict[str, list[dict[str, Any]]] = {"wrong": [], "right": []}
    for item in run.examples:
        gold, output = dict(flat(item.get("gold"))), dict(flat(item.get("output")))
        confidence = item.get("confidence") or {}
        fields = [
            {
                "path": path,
                "gold": label,
                "answer": output.get(path),
                "confidence": confidence.get(path),
                "right": path in output and output[path] == label,
            }
            for path, label in gold.items()
        ]
        sure = [c for c in (f["confidence"] for f in fields if not f["right"]) if finite(c)]
        entry = {
            "id": item.get("id"),
            "inputs": item.get("inputs") or {},
            "fields": fields,
            "sure": max(sure, default=0.0),
            "reasoning": item.get("reasoning") or {},
            "steps": steps_of(item, words),
        }
        found["right" if item.get("correct") else "wrong"].append(entry)
    found["wrong"].sort(key=lambda entry: -entry["sure"])
    return found


def memory(run: RunFiles, words: Language) -> Figure | None:
    """Planned memory, part by part."""
    parts = {k: v for k, v in ((run.plan or {}).get("memory") or {}).items() if finite(v) and k != "total"}
    if not parts:
        return None
    total = words.bytes(sum(parts.values()))
    rows = [plots.Bar(name.replace("_", " "), value, words.bytes(value)) for name, value in parts.items()]
    # Ticks in powers of two, so that they are round in the unit shown.
    step = 2 ** max(0, math.ceil(math.log2(max(max(parts.values()), 4) / 4)))
    ticks = tuple(float(i * step) for i in range(math.ceil(max(parts.values()) / step) + 1))
    axis = plots.Axis(0, ticks[-1] or 1, ticks, words("memory_axis", total=total), words.bytes)
    return Figure(words("memory_title"), plots.bars(rows, axis))
