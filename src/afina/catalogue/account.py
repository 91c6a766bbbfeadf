"""The report of a preparation: every row accounted for, and lines for the screen.

Comes in: the summaries of parts and shards, and what was decided. Goes out: what report.json holds, the same whenever
and however often the preparation was interrupted: no times, no machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from afina.catalogue.clean import STEP_NAMES
from afina.catalogue.deciding import REPEATS, Decided
from afina.catalogue.judging import EQUALS_TITLE
from afina.catalogue.language import count_languages
from afina.catalogue.uids import DUPLICATE_UID
from afina.core.catalogue_config import CatalogueConfig
from afina.core.errors import DataError

if TYPE_CHECKING:
    from afina.catalogue.duplicates import Duplicates

SAMPLE_ROWS = 2000
REPETITIONS = (EQUALS_TITLE, DUPLICATE_UID, *REPEATS)  # kinds that say nothing against the file
PERCENTILES = (50, 90, 99)
TokenCounter = Callable[[Sequence[str]], Sequence[int]]


@dataclass
class Reading:
    """What the row pass found. lines: not blank. rows: usable. rejected: kind -> rows. steps: name -> rows changed."""

    lines: int
    rows: int
    cleaned: int
    rejected: Counter[str]
    steps: dict[str, int]
    equal: int


def sum_parts(summaries: Iterable[Mapping[str, Any]]) -> Reading:
    total = Reading(0, 0, 0, Counter(), dict.fromkeys(["not_utf8_repaired", *STEP_NAMES.values()], 0), 0)
    for summary in summaries:
        total.lines += summary["lines"]
        total.rows += summary["rows"]
        total.cleaned += summary["cleaned"]
        total.equal += summary["equal"]
        total.rejected.update(summary["rejected"])
        for name, count in summary["steps"].items():
            total.steps[name] += count
    return total


def require_usable(read: Reading, config: CatalogueConfig, first: Mapping[str, str]) -> None:
    """Raises DataError when more rows are unusable than the recipe allows, or none is left.

    first: kind -> place and reason of the first such row.
    """
    unusable = Counter({kind: count for kind, count in read.rejected.items() if kind not in REPETITIONS})
    share = unusable.total() / max(1, read.lines)
    if read.rows and share <= config.max_rejected:
        return
    reasons = "; ".join(f"{count:,} × {kind} (first: {first[kind]})" for kind, count in unusable.most_common(3))
    if not read.lines:
        raise DataError(f"{config.path}: holds no rows, only blank lines. Expected one JSON object on each line.")
    raise DataError(
        f"{config.path}: {unusable.total():,} of {read.lines:,} rows cannot be used ({share:.0%}), "
        f"catalogue.max_rejected allows {config.max_rejected:.0%}. The commonest reasons: {reasons or 'repetitions'}. "
        "Check that the file and the columns are the right ones, or raise catalogue.max_rejected."
    )


def make_report(
    read: Reading,
    found: Duplicates | None,
    decided: Decided,
    shards: Sequence[Mapping[str, Any]],
    repeated_uids: int,
    config: CatalogueConfig,
) -> dict[str, Any]:
    """All that is counted of every row. The caller adds what is known of the source."""
    rejected = read.rejected.copy()
    for rows, name in ((repeated_uids, DUPLICATE_UID), *((_dropped(decided, kind), kind) for kind in REPEATS)):
        if rows:
            rejected[name] += rows
    kept = decided.kept_N
    return {
        "rows": {"read": read.lines, "kept": int(kept.sum()), "rejected": rejected.total(), "cleaned": read.cleaned},
        "steps": read.steps,
        "rejected": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        "found": {
            "content_equals_title": {"rows": read.equal, "choice": config.content_equals_title},
            **_repetitions(found, config),
        },
        "clusters": _clusters(decided),
        "splits": _splits(decided),
        "characters": {column: _spread(shards, column) for column in ("title", "content")},
        "shards": len(shards),
    }


def describe_sample(shards: Sequence[Mapping[str, Any]], count_tokens: TokenCounter | None) -> dict[str, Any]:
    """What would take too long of every row: tokens, where they can be counted, and languages."""
    sample = [tuple(pair) for shard in shards for pair in shard["sample"]]
    languages = {
        "sampled": len(sample),
        "how": f"py3langid, contents of at most {SAMPLE_ROWS:,} kept rows at even distances",
        "contents": count_languages([content for _, content in sample]),
    }
    return {"tokens": _tokens(sample, count_tokens), "languages": languages}


def _dropped(decided: Decided, kind: str) -> int:
    return sum(int((table["kind"] == kind).sum()) for table in decided.dropped.values())


def _repetitions(found: Duplicates | None, config: CatalogueConfig) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "exact_duplicates": {"rows": found.exact, "choice": config.exact_duplicates},
        "boilerplate": {"rows": found.boilerplate, "choice": config.boilerplate},
        "near_duplicates": {
            "rows": found.near,
            "choice": config.near_duplicates,
            "threshold": config.near_duplicate_threshold,
        },
    }


def _clusters(decided: Decided) -> dict[str, int]:
    """Of the rows that are kept."""
    _, sizes = np.unique(decided.cluster_N[decided.kept_N], return_counts=True)
    return {"clusters": len(sizes), "largest": int(sizes.max())}


def _splits(decided: Decided) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for place, name in enumerate(decided.splits):
        rows = decided.kept_N & (decided.split_N == place)
        table[name] = {"rows": int(rows.sum()), "clusters": len(np.unique(decided.cluster_N[rows]))}
    return table


def _spread(shards: Sequence[Mapping[str, Any]], column: str) -> dict[str, int | float]:
    """Exact, from how often each length stands in each shard."""
    values = np.concatenate([shard["characters"][column][0] for shard in shards]).astype(np.int64)
    counts = np.concatenate([shard["characters"][column][1] for shard in shards]).astype(np.int64)
    order = np.argsort(values, kind="stable")
    values, ranks = values[order], np.cumsum(counts[order])
    total = int(ranks[-1])
    spread: dict[str, int | float] = {"min": int(values[0])}
    for percent in PERCENTILES:  # the smallest length that so many texts do not exceed
        spread[f"p{percent}"] = int(values[np.searchsorted(ranks, -(-total * percent // 100))])
    mean = int((values * counts[order]).sum()) / total
    return {**spread, "max": int(values[-1]), "mean": round(mean, 1)}


def _tokens(sample: Sequence[tuple[str, ...]], count_tokens: TokenCounter | None) -> dict[str, Any] | None:
    if count_tokens is None or not sample:
        return None
    described: dict[str, Any] = {"sampled": len(sample), "how": "the kept rows that the languages were told from"}
    for column, texts in zip(("title", "content"), zip(*sample, strict=True), strict=True):
        lengths = np.sort(np.asarray(count_tokens(texts)))
        ranks = {f"p{percent}": int(lengths[-(-len(lengths) * percent // 100) - 1]) for percent in PERCENTILES}
        described[column] = {"min": int(lengths[0]), **ranks, "max": int(lengths[-1])}
    return described


# -- for the screen --------------------------------------------------------------------------------


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """report: what report.json holds."""
    lines: list[str] = []
    rows = report["rows"]
    for source in report["sources"]:
        member = f"!{source['member']}" if source["member"] else ""
        lines.append(f"{source['path']}{member}: {source['kind']}, {source['bytes'] / 1e6:,.1f} MB")
    lines.append(f"rows: {rows['read']:,} read, {rows['rejected']:,} left out, {rows['kept']:,} kept")
    for kind, count in report["rejected"].items():
        first = report["first_rejected"][kind]
        lines.append(f"  {count:,} × {kind} (first: line {first['line']:,}, {first['reason']})")
    changed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in report["steps"].items() if count)
    lines.append(f"cleaned ({rows['cleaned']:,} rows): {changed or 'nothing to do'}")
    for name, found in report["found"].items():
        fate = {"keep": "kept", "drop": "dropped"}[found["choice"]]
        lines.append(f"  {name.replace('_', ' ')}: {found['rows']:,} found, {fate}")
    clusters = report["clusters"]
    shown = ", ".join(f"{name} {of['rows']:,} ({of['clusters']:,})" for name, of in report["splits"].items())
    lines.append(f"split by cluster ({clusters['clusters']:,}, the largest of {clusters['largest']:,} rows): {shown}")
    for column, spread in report["characters"].items():
        lines.append(f"characters of a {column}: " + ", ".join(f"{name} {value:,}" for name, value in spread.items()))
    if tokens := report["tokens"]:
        for column in ("title", "content"):
            spread = ", ".join(f"{name} {value:,}" for name, value in tokens[column].items())
            lines.append(f"tokens of a {column} (sample of {tokens['sampled']:,}): {spread}")
    if languages := report["languages"]:
        told = ", ".join(f"{name} {count:,}" for name, count in list(languages["contents"].items())[:6])
        lines.append(f"languages (sample of {languages['sampled']:,}): {told}")
    lines.append(f"shards: {report['shards']:,}")
    return lines + [f"note: {note}" for note in report["notes"]]
