"""What the page shows of a comparison: differences from the reference, quality against price, learning curves.

Comes in: a run's files and a language. Goes out: figures with what stands beside them; nothing for reports made before
these figures were. It computes no statistic: what it draws stands in report.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from afina.evaluation.pareto import measured
from afina.report import plots
from afina.report.figure import Figure
from afina.report.plots_comparison import Curve, Gap, Point, forest, learning_curve, scatter
from afina.report.run_folder import RunFiles, finite, outcome
from afina.report.words import WORDS, Language

FLOOR_S = 0.001  # times below are drawn at this value: nobody waits for them
FEW_PAIRS = 4  # from here on, verdict and tests are told measure by measure
QUALITY_AXES = {
    "mean_accuracy": "quality_axis_mean",
    "chrf": "quality_axis_chrf",
    "rouge_l": "quality_axis_rouge_l",
}
LABEL_ROOM = 0.06  # of the quality axis, above and below the points


def metric_name(words: Language, metric: str) -> str:
    """A metric as the language calls it; one that is not known, as the report does."""
    return words(metric) if metric in WORDS else metric


def place_name(words: Language, field: str | None, metric: str) -> str:
    """Where a measure was taken: a field, the whole answer, the whole text."""
    if metric in ("chrf", "rouge_l"):
        return words("whole_text")
    return words("whole_answer") if metric == "exact_match" or not field else field


def num_pairs(run: RunFiles) -> int:
    """How many pairs of systems were tested."""
    return len({(test["a"], test["b"]) for test in run.report.get("tests") or []})


# -- differences ------------------------------------------------------------------------------------


def by_measure(run: RunFiles) -> tuple[str | None, dict[tuple[str, str], list[dict[str, Any]]]]:
    """The system that stands on one side of every test, and the tests by field and metric.

    None where no system stands in all of them.
    """
    tests = run.report.get("tests") or []
    sides = {side: {test[side] for test in tests} for side in ("a", "b")}
    alone = next((next(iter(names)) for names in sides.values() if len(names) == 1), None)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for test in tests:
        found.setdefault((test["field"], test["metric"]), []).append(test)
    return alone, found


def forest_figures(run: RunFiles, words: Language) -> Iterator[Figure]:
    """One figure a measure: every difference from the reference, on one axis."""
    reference, measures = by_measure(run)
    if reference is None or num_pairs(run) < 2:
        return
    for (field, metric), tests in measures.items():
        drawn = [test for test in tests if finite(test.get("difference"))]
        rival = "b" if all(test["a"] == reference for test in tests) else "a"
        rows = [
            Gap(
                test[rival],
                test["difference"],
                words.signed(test["difference"], 2),
                tuple(test["ci"]) if words.interval(test.get("ci")) else None,  # type: ignore[arg-type]
                words.interval(test.get("ci")),
                outcome(test),
            )
            for test in drawn
        ]
        if not rows:
            continue
        ends = [0.0] + [bound for row in rows for bound in (row.interval or (row.value,))]
        axis = plots.nice_axis(min(ends), max(ends), words("forest_axis", n=words.count(_n(run))), words.short, 4)
        where = place_name(words, field, metric)
        difference = words("minus_each" if rival == "b" else "each_minus", reference=reference)
        name = metric_name(words, metric)
        yield Figure(words("forest_title", field=where, metric=name, difference=difference), forest(rows, axis))


def _n(run: RunFiles) -> Any:
    return run.report.get("num_test")


# -- quality against price --------------------------------------------------------------------------


def pareto_figures(run: RunFiles, words: Language) -> dict[str, list[Figure]]:
    """Quality metric -> its figures against cost (where something costs) and against latency."""
    fronts: Mapping[str, Mapping[str, Sequence[str]]] = run.report.get("pareto") or {}
    if len(run.systems) < 2:
        return {}
    return {
        metric: [
            _pareto_figure(run, words, metric, price, front)
            for price, front in by_price.items()
            if price != "cost" or has_cost(run)
        ]
        for metric, by_price in fronts.items()
    }


def has_cost(run: RunFiles) -> bool:
    return any((system.get("cost_per_1000_usd") or 0) > 0 for system in run.systems)


def _pareto_figure(run: RunFiles, words: Language, metric: str, price: str, front: Sequence[str]) -> Figure:
    systems = [s for s in run.systems if finite(measured(s, metric).get(metric))]
    heights = [measured(s, metric)[metric] for s in systems]
    if price == "cost":
        prices, show = [s["cost_per_1000_usd"] for s in systems], words.money
    else:
        prices, show = [max(FLOOR_S, s["latency_p50_s"]) for s in systems], words.duration
    bounds = [measured(s, metric).get(f"{metric}_ci") for s in systems]
    ends = [v for height, ci in zip(heights, bounds, strict=True) for v in (ci or [height])]
    points = [
        Point(
            system["name"],
            x,
            height,
            tuple(ci) if words.interval(ci) else None,  # type: ignore[arg-type]
            "front" if system["name"] in front else "beaten",
            f"{words.number(height)} · {words('at_most', value=show(x)) if _is_floor(price, x) else show(x)}",
            system is run.specialist,
            system["name"] == (run.report.get("recommendation") or {}).get("choice"),
        )
        for system, x, height, ci in zip(systems, prices, heights, bounds, strict=True)
    ]
    x_axis = plots.price_axis(prices, "", lambda v: _tick(words, price, v))
    label = words(f"{price}_axis{'_log' if x_axis.log else ''}")
    x_axis = replace(x_axis, label=label)
    name = metric_name(words, metric)
    y_label = words(QUALITY_AXES.get(metric, "quality_axis"), metric=name)
    top = 100.0 if metric == "chrf" else 1.0
    y_axis = plots.nice_axis(max(0.0, min(ends) - LABEL_ROOM * top), min(top, max(ends)), y_label, words.short)
    return Figure(words(f"pareto_{price}", metric=name), scatter(points, x_axis, y_axis), f"n = {words.count(_n(run))}")


def _is_floor(price: str, value: float) -> bool:
    return price == "latency" and value <= FLOOR_S


def _tick(words: Language, price: str, value: float) -> str:
    if price == "latency":
        text = words.duration(value)
        return words("at_most", value=text) if 0 < value <= FLOOR_S else text
    return words.short(value)


# -- learning curve -----------------------------------------------------------------------------------


def curve_figure(run: RunFiles, words: Language) -> Figure | None:
    """Quality against labelled rows, with lines for the teacher and its like; None where none was measured."""
    found = [c for c in run.report.get("curve") or [] if finite(c.get("rows")) and finite(c.get("accuracy"))]
    if not found:
        return None
    curves: list[Curve] = []
    for name in dict.fromkeys(point["system"] for point in found):
        mine = sorted((p for p in found if p["system"] == name), key=lambda p: p["rows"])
        by_rows: dict[float, list[float]] = {}
        for point in mine:
            by_rows.setdefault(point["rows"], []).append(point["accuracy"])
        means = [(rows, statistics.fmean(values)) for rows, values in by_rows.items()]
        seeds = [
            (p["rows"], p["accuracy"], tuple(p["ci"]) if words.interval(p.get("ci")) else None)  # type: ignore[misc]
            for p in mine
        ]
        curves.append(Curve(name, means, seeds))
    lines = {k: v for k, v in (run.report.get("curve_lines") or {}).items() if finite(v)}
    ends = [v for c in curves for _, value, ci in c.seeds for v in (value, *(ci or ()))] + list(lines.values())
    x = plots.count_axis([rows for c in curves for rows, _ in c.means], words("curve_x"), words.count)
    y = plots.nice_axis(min(ends), max(ends), words("curve_y"), words.short)
    levels = [(name, value, words.number(value)) for name, value in lines.items()]
    return Figure(words("curve_title"), learning_curve(curves, levels, x, y), words("curve_note"))


# -- the verdict, measure by measure --------------------------------------------------------------------


def verdict_by_measure(run: RunFiles, words: Language) -> list[str]:
    """One line a measure: who is better, who worse, who not shown to differ. Empty without a common reference."""
    reference, measures = by_measure(run)
    if reference is None:
        return []
    lines: list[str] = []
    for (field, metric), tests in measures.items():
        is_first = all(test["a"] == reference for test in tests)
        said: dict[str, list[str]] = {"better": [], "worse": [], "none": []}
        for test in tests:
            name = test["b" if is_first else "a"]
            kind = outcome(test)
            p = words.p_value(test.get("p_holm", test.get("p")))
            numbers = f" ({words.signed(test['difference'], 2)}; {words('p_holm')} {p})" if kind != "none" else ""
            said[kind].append(f"{name}{numbers}")
        key = "by_first" if is_first else "by_measure"
        clauses = [
            words(f"{key}_{kind}", a=reference, b=reference, names=words.join(names))
            for kind, names in said.items()
            if names
        ]
        where = place_name(words, field, metric)
        lines.append(f"{where}, {metric_name(words, metric)}: {'; '.join(clauses)}.")
    return lines


# -- seeds ----------------------------------------------------------------------------------------------


def seeds_of(values: Mapping[str, Any], metric: str) -> tuple[float, ...]:
    """A measure's value for each seed; empty where there is one run."""
    found = (values.get("by_seed") or {}).get(metric) or []
    return tuple(v for v in found if finite(v))


def spread_text(values: Mapping[str, Any], metric: str, words: Language) -> str:
    """The standard deviation between seeds, in words; "" where there is one run."""
    std = (values.get("seed_std") or {}).get(metric)
    if not finite(std):
        return ""
    return words("seed_std", std=words.number(std, 3 if 0 < std < 0.005 else 2))
