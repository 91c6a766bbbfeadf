"""The account of a teacher's work: every row is counted once, every answer's cost with it.

Comes in: rows, answers, what was left out. Goes out: what labels.report.json holds, and lines for the screen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from afina.core.predictor import Prediction, Usage
from afina.core.progress import seconds
from afina.providers.prices import dollars
from afina.teaching.filters import FAILED, REASONS, LeftOut, Triage

REPORT_VERSION = 1
WORDS = {
    "unreadable": "cannot be read",
    "near_duplicate_of_test": "near-duplicates of test rows, not asked about",
    "failed": "without a valid answer",
    "disagrees_with_gold": "with another label than the table's",
    "low_agreement": "of which the teacher is not sure enough",
    "unwritable": "whose answer a table cannot hold",
}


def counts(
    num_rows: int, num_kept: int, left_out: Mapping[int, LeftOut], sorted_out: Triage, answers: Sequence[Prediction]
) -> dict[str, Any]:
    """The figures of rows and answers. Each row is kept, or left out for one reason."""
    reasons = Counter(one.why for one in left_out.values())
    assert num_kept + sum(reasons.values()) == num_rows, "a row is counted twice, or not at all"
    kinds = Counter(one.kind for one in left_out.values() if one.why == FAILED)
    total: Usage = reduce(add, (answer.usage for answer in answers), Usage())
    num_asked = len(sorted_out.questions)
    return {
        "rows": {"read": num_rows, "kept": num_kept, "left_out": num_rows - num_kept},
        "left_out": {why: reasons[why] for why in REASONS},
        "failed": dict(kinds.most_common()),
        "asked": {
            "questions": num_asked,
            "repeated": len(sorted_out.question_of) - num_asked,
            "valid": sum(answer.error is None for answer in answers),
            "truncated": sum(answer.truncated for answer in answers),
            "with_reasoning": sum(bool(answer.reasoning) for answer in answers),
            "with_confidence": sum(bool(answer.confidence) for answer in answers),
        },
        "requests": {"sent_or_cached": total.requests, "repaired": total.repairs},
        "tokens": {"prompt": total.prompt_tokens, "completion": total.completion_tokens},
        "forward_passes": total.forward_passes,
        "cost_usd": total.cost_usd,
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """For the screen: rows, reasons, money, time."""
    rows, asked = report["rows"], report["asked"]
    lines = [f"{rows['kept']:,} of {rows['read']:,} rows are labelled by {report['teacher']}"]
    if rows["left_out"]:
        lines.append(f"{rows['left_out']:,} are left out (labels.rejected.jsonl says why):")
        lines[-1] = lines[-1].replace("labels.rejected.jsonl", str(report["files"]["rejected"]))
        for why, count in report["left_out"].items():
            if count:
                kinds = ", ".join(f"{n} × {kind}" for kind, n in report["failed"].items()) if why == FAILED else ""
                lines.append(f"  {count:,} {WORDS[why]}" + (f" ({kinds})" if kinds else ""))
    gold = report["gold"]
    if gold["compared"]:
        lines.append(f"gold: {gold['agreeing']:,} of {gold['compared']:,} valid answers have the table's labels")
    repeated = f", {asked['repeated']:,} more rows repeat one of them" if asked["repeated"] else ""
    kept = f", {report['continued']:,} of them before an interruption" if report["continued"] else ""
    lines.append(f"asked: {asked['questions']:,} different rows{repeated}{kept}")
    requests = report["requests"]
    if requests["sent_or_cached"]:
        parts = [f"{requests['sent_or_cached']:,} requests"]
        parts += [f"{requests['from_cache']:,} from the cache"] if requests["from_cache"] else []
        parts += [f"{requests['retried']:,} rows asked again"] if requests["retried"] else []
        parts += [f"{requests['repaired']:,} answers repaired"] if requests["repaired"] else []
        lines.append("; ".join(parts))
    tokens = report["tokens"]
    if tokens["prompt"] or tokens["completion"]:
        lines.append(f"tokens: {tokens['prompt']:,} read, {tokens['completion']:,} written")
    if report["cost_usd"] or report["spent_usd"]:
        lines.append(f"cost: {dollars(report['cost_usd'])} for these answers, {dollars(report['spent_usd'])} of it now")
    lines.append(f"time: {seconds(report['seconds'])}, {report['rows_per_s']:.1f} rows/s")
    return lines
