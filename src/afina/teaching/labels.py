"""Rows and a teacher -> a table of its answers that a student can learn from, and an account of every row.

Comes in: a task, a predictor, rows with or without gold answers, the test rows. Goes out, beside each other:
labels.jsonl (the kept rows; `afina run data.path=labels.jsonl` reads it), labels.report.json, labels.rejected.jsonl
and, where the teacher tells how its answers came about, labels.traces.jsonl. They appear when all rows are answered.
Who the teacher is, and what it may cost, is not known here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.config import DataConfig
from afina.core.errors import AfinaError, DataError
from afina.core.kept import KeptRows
from afina.core.predictor import Example, Prediction, Predictor
from afina.core.storage import (
    digest,
    ensure_folder,
    file_digest,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from afina.core.task import Task
from afina.data.table import shorten
from afina.teaching import filters
from afina.teaching.answers import Meter, ask_all
from afina.teaching.columns import Columns, name_columns
from afina.teaching.filters import UNWRITABLE, LeftOut, Triage, triage
from afina.teaching.report import REPORT_VERSION, counts
from afina.teaching.source import LabelRow


class LabelError(AfinaError):
    """A setting of the filters asks for what the teacher does not give."""


@dataclass(frozen=True)
class LabelSettings:
    """min_agreement: rows of which the teacher is less sure are left out; 0 keeps all.

    keep_wrong: keep answers with another label than gold. near_duplicate_threshold: to test rows, Jaccard similarity.
    rows_at_once: asked and kept together; of a model on this machine a multiple of its batch. overwrite: an output that
    is there is replaced; it is kept and given back instead where it was made of the same (`reuse`). may_be_empty: that
    no row is kept is no error.
    """

    min_agreement: float = 0.0
    keep_wrong: bool = False
    near_duplicate_threshold: float = 0.8
    rows_at_once: int = 32
    overwrite: bool = False
    reuse: bool = False
    may_be_empty: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_agreement <= 1:
            raise LabelError(f"--min-agreement is {self.min_agreement:g}, expected a share between 0 and 1.")


@dataclass(frozen=True)
class LabelReport:
    """examples: the kept rows, labelled by the teacher, reasoning included. counts: what labels.report.json holds."""

    examples: list[Example]
    counts: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        return self.counts["rows"]["read"]


@dataclass(frozen=True)
class Files:
    """Where the results stand: beside each other, named after the first."""

    labels: Path

    @property
    def report(self) -> Path:
        return self.labels.with_suffix(".report.json")

    @property
    def rejected(self) -> Path:
        return self.labels.with_suffix(".rejected.jsonl")

    @property
    def traces(self) -> Path:
        return self.labels.with_suffix(".traces.jsonl")


def label(
    task: Task,
    teacher: Predictor,
    rows: Sequence[LabelRow],
    output: Path,
    settings: LabelSettings | None = None,
    *,
    test: Sequence[Example] = (),
    data: DataConfig | None = None,
    teacher_key: str = "",
    fewest_requests: int | None = None,
    meter: Meter | None = None,
    sorted_out: Triage | None = None,
) -> LabelReport:
    """Ask the teacher for every row's answer, filter, and write. A killed call continues; equal rows are asked once.

    rows: an Example with an output has gold. test: rows that no kept row may be a near-duplicate of. data: of the
    recipe that will read the table, whose names of columns are kept. teacher_key: of all that decides the teacher's
    answers; its name when not given. fewest_requests: to other machines, of one row if nothing is asked again; None
    where that varies. sorted_out: what `triage` made of these rows, where the caller has it.
    Raises DataError (output, no row kept), LabelError, and what the teacher raises; what was answered is then kept.
    """
    settings, meter = settings or LabelSettings(), meter or Meter()
    refuse_output(output, overwrite=settings.overwrite or settings.reuse)
    columns = name_columns(task, output, data)
    # 1. What will be asked, and whether that has been done.
    found = sorted_out or triage(rows, task, test, settings.near_duplicate_threshold)
    key = digest([task.to_json(), teacher_key or teacher.name, settings.rows_at_once, found.questions, __version__])
    whole_key = digest([key, asdict(settings), _identities(rows, found), columns.data.model_dump(mode="json")])
    if settings.reuse and (known := _made_before(Files(output), columns, whole_key)) is not None:
        return known
    if settings.reuse and not settings.overwrite:
        refuse_output(output, overwrite=False)
    # 2. Ask; what is answered is kept at once.
    ensure_folder(output.parent)
    began, num_paid = time.perf_counter(), meter.num_paid()
    before_usd = meter.spent_usd() if meter.before_usd is None else meter.before_usd
    with KeptRows(output, key, settings.rows_at_once) as kept:
        continued = len(kept.rows)
        check = partial(_require_confidence, teacher.name, settings.min_agreement)
        answers = ask_all(teacher, found.questions, kept, settings.rows_at_once, meter, check)
        passed = time.perf_counter() - began
        # 3. Filter, count, write.
        made = _filter(task, teacher.name, rows, found, answers, settings, columns)
        account = counts(len(rows), len(made.kept), made.left_out, found, answers)
        num_new = meter.num_paid() - num_paid
        requests = account["requests"]
        requests["from_cache"] = max(0, requests["sent_or_cached"] - num_new) if continued == 0 else None
        requests["retried"] = None if fewest_requests is None else _num_retried(answers, fewest_requests)
        account |= _circumstances(task, teacher, settings, test, made, columns) | {
            "key": whole_key,
            "continued": continued,
            "spent_usd": meter.spent_usd() - before_usd,
            "seconds": passed,
            "rows_per_s": (len(answers) - continued) / max(passed, 1e-9),
        }
        if all(answer.error is not None for answer in answers):
            kept.discard()  # the same command asks again
        _write(Files(output), rows, made, answers, found, account)
        if not made.kept and not settings.may_be_empty:
            raise DataError(_none_kept(Files(output), account))
        kept.discard()
    return LabelReport([columns.example(row, line) for line, row in enumerate(made.kept.values(), 1)], account)


def refuse_output(output: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Raises DataError for an output that is no .jsonl, is there already, or is the input itself."""
    if output.suffix.lower() != ".jsonl":
        raise DataError(f"{output}: labels are written as .jsonl. Rename the output.")
    if output.exists() and source is not None and source.exists() and output.samefile(source):
        raise DataError(f"{output}: is the input itself, which would be lost. Choose another --output.")
    if output.exists() and (output.is_dir() or not overwrite):
        raise DataError(f"{output}: exists already. Choose another --output, or pass --yes to overwrite a file.")


def read_labels(output: Path, task: Task, data: DataConfig | None = None) -> list[Example]:
    """The labelled rows of a table that `label` wrote, reasoning included. data: as it was given to `label`."""
    columns = name_columns(task, output, data)
    return [columns.example(row, line) for line, row in enumerate(read_jsonl(output), 1)]


# -- details ---------------------------------------------------------------------------------------


@dataclass
class _Made:
    """kept: row number -> line of the table. left_out: of all other rows. gold: what was compared with it."""

    kept: dict[int, dict[str, Any]]
    left_out: dict[int, LeftOut]
    gold: dict[str, int]


def _filter(
    task: Task,
    teacher: str,
    rows: Sequence[LabelRow],
    found: Triage,
    answers: Sequence[Prediction],
    settings: LabelSettings,
    columns: Columns,
) -> _Made:
    """Every row that was asked about, in order: kept, or left out for the first reason that fits."""
    made = _Made({}, dict(found.left_out), {"rows": 0, "compared": 0, "agreeing": 0})
    for number, question in found.question_of.items():
        row, answer = rows[number], answers[question]
        gold = row.output if isinstance(row, Example) else None
        made.gold["rows"] += gold is not None
        problem = filters.failure(task, answer)
        if problem is None and gold is not None:
            wrong = filters.disagreement(task, answer, gold)
            made.gold["compared"] += 1
            made.gold["agreeing"] += wrong is None
            problem = None if settings.keep_wrong else wrong
        sureness = filters.agreement(task, answer)
        problem = problem or filters.unsure(sureness, settings.min_agreement)
        if problem is None:
            try:
                made.kept[number] = columns.row(row.id, row.inputs, answer, sureness, teacher)
                continue
            except DataError as error:
                problem = LeftOut(UNWRITABLE, str(error))
        made.left_out[number] = problem
    return made


def _circumstances(
    task: Task,
    teacher: Predictor,
    settings: LabelSettings,
    test: Sequence[Example],
    made: _Made,
    columns: Columns,
) -> dict[str, Any]:
    """What the report says beside figures: who, how, and how the table is read."""
    return {
        "version": REPORT_VERSION,
        "task": task.name,
        "teacher": teacher.name,
        "settings": {name: getattr(settings, name) for name in ("min_agreement", "keep_wrong")},
        "test_rows": len(test),
        "near_duplicate_threshold": settings.near_duplicate_threshold,
        "gold": made.gold,
        "read_with": columns.settings(made.kept.values()),
    }


def _write(
    files: Files,
    rows: Sequence[LabelRow],
    made: _Made,
    answers: Sequence[Prediction],
    found: Triage,
    account: dict[str, Any],
) -> None:
    """Every file whole or absent; the labels last, so that they stand only beside their account."""
    rejected = [
        {"id": rows[number].id, "why": one.why, "kind": one.kind, "reason": shorten(one.reason)}
        for number, one in sorted(made.left_out.items())
    ]
    write_jsonl(files.rejected, rejected)
    traces = [
        {"id": rows[number].id, "trace": list(answers[question].trace)}
        for number, question in found.question_of.items()
        if answers[question].trace
    ]
    files.traces.unlink(missing_ok=True)
    if traces:
        write_text(files.traces, _lines(traces))
    named = {"labels": files.labels, "rejected": files.rejected} | ({"traces": files.traces} if traces else {})
    account["files"] = {name: path.name for name, path in named.items()}
    lines = list(made.kept.values())
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = _lines([{name: line.get(name) for name in columns} for line in lines])
    account["labels_digest"] = digest(text.encode())
    write_json(files.report, account)
    if lines:
        write_text(files.labels, text)
    else:
        files.labels.unlink(missing_ok=True)  # a table without rows cannot be read


def _none_kept(files: Files, account: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{count} × {why}" for why, count in account["left_out"].items() if count)
    num_rows = account["rows"]["read"]
    return (
        f"{files.labels}: not written, for none of the {num_rows} rows is kept: {reasons}. {files.rejected} says why."
    )


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON Lines; half a character that a model may have said becomes a question mark."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    return text.encode("utf-8", "replace").decode()


def _made_before(files: Files, columns: Columns, key: str) -> LabelReport | None:
    """What an earlier call with this key wrote, if it is still there as it was."""
    try:
        account = read_json(files.report)
        if account["key"] != key:
            return None
        if not account["rows"]["kept"]:
            return LabelReport([], account)
        if account["labels_digest"] != file_digest(files.labels):
            return None
        rows = read_jsonl(files.labels)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return LabelReport([columns.example(row, line) for line, row in enumerate(rows, 1)], account)


def _identities(rows: Sequence[LabelRow], found: Triage) -> list[Any]:
    golds = [row.output if isinstance(row, Example) else None for row in rows]
    return [[row.id for row in rows], golds, sorted(found.left_out)]


def _require_confidence(name: str, least: float, answers: Sequence[Prediction]) -> None:
    """An option that has no effect is an error, told after the first answers rather than after the last."""
    valid = [answer for answer in answers if answer.error is None]
    if least > 0 and valid and not any(answer.confidence for answer in valid):
        raise LabelError(
            f"{name} states no confidence, so --min-agreement {least:g} has no effect. Leave it out, or let several "
            "answers vote (strategy: vote)."
        )


def _num_retried(answers: Sequence[Prediction], fewest: int) -> int:
    return sum(answer.usage.requests > fewest for answer in answers)
