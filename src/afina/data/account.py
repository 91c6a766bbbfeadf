"""The preparation report as lines for the screen: every count, nothing left out in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """report: what `prepare` made or `load_prepared` read."""
    lines: list[str] = []
    for source in report["sources"]:
        usable = source["rows_read"] - source["rows_rejected"]
        lines.append(
            f"{source['path']}: {_rows(source['rows_read'])} read ({source['format']}, {source['encoding']}), "
            f"{usable:,} usable, {source['rows_rejected']:,} rejected"
        )
        lines += [f"  note: {note}" for note in source["notes"]]
    rows = report["rows"]
    if rows["rejected"]:
        lines.append(f"{_rows(rows['rejected'])} left out, listed in rejected.jsonl:")
        for kind, count in report["rejected"].items():
            first = report["first_rejected"][kind]
            place = f"{first['source']}:{first['line']}" if first["source"] else f"line {first['line']}"
            lines.append(f"  {count:,} × {kind} (first: {place}, {first['reason']})")
    lines += _duplicate_lines(report["duplicates"])
    splits, clusters, leakage = report["splits"], report["split_clusters"], report["leakage"]
    shown = ", ".join(f"{name} {count:,} ({clusters[name]:,} clusters)" for name, count in splits.items())
    lines.append(f"split: {shown}")
    lines.append(
        f"leakage: {leakage['pairs']} pairs above {leakage['threshold']} cross the split; the most alike of train and "
        f"test found have similarity {leakage['highest_similarity']['train-test']:.3f}; "
        f"{_rows(leakage['removed'])} removed for it"
    )
    for group, labels in report["labels"].items():
        lines += _label_lines(group or "the answer", labels)
    lines += _length_lines(report["lengths"])
    return lines + [f"note: {note}" for note in report["notes"]]


def _label_lines(group: str, labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A small table: labels down, splits across."""
    title = f"labels of {group}:"
    width = max(len(title), *(len(label) + 2 for label in labels))
    splits = list(next(iter(labels.values())))
    rows = [f"  {label}".ljust(width) + "".join(f"{of[s]:>12,}" for s in splits) for label, of in labels.items()]
    return [title.ljust(width) + "".join(f"{name:>12}" for name in splits), *rows]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _duplicate_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"duplicates: {found['exact_duplicates']:,} exact, {found['near_duplicates']:,} near; {found['clusters']:,} "
        f"clusters, the largest has {_rows(found['largest_cluster'])}"
    ]
    if found["conflicting_labels"]:
        group = found["conflicts"][0]
        places = " and ".join(f"line {row['line']}" for row in group[:2])
        lines.append(
            f"  {found['conflicting_labels']:,} texts stand more than once with different labels, as {places}; "
            "all are kept, see report.json"
        )
    return lines


def _length_lines(lengths: Mapping[str, Any] | None) -> list[str]:
    if not lengths:
        return []
    spread = ", ".join(f"{name} {lengths[name]:,}" for name in ("min", "p50", "p90", "p99", "max"))
    what = {"truncate": "their inputs are cut", "drop": "left out", "refuse": ""}[lengths["on_too_long"]]
    above = f"{lengths['above']:,} above max_length {lengths['max_length']:,}"
    return [f"tokens of an example: {spread}; {above}{f': {what}' if lengths['above'] and what else ''}"]
