"""A specialist and a table in, a table of answers out: one row per row, in order, nothing lost.

Answers are kept in a file beside the output as they come, so that a killed job continues; the output
appears when all are there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from afina.core.errors import DataError
from afina.core.predictor import Prediction
from afina.core.progress import progress
from afina.core.storage import digest, ensure_folder, explain_write_errors, file_digest, require_file
from afina.data.examples import InputRow, read_inputs
from afina.data.formats import prediction_format, write_predictions
from afina.strategies.finetuned import Specialist

BATCHES = 4  # batches answered between two writes


def predict_file(
    run: Path,
    source: Path,
    output: Path,
    *,
    id_column: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Answer every row of a table; returns (rows, rows with an error).

    Raises DataError (table, output), RunError or ModelError (specialist), MachineError (disk).
    """
    # 1. Everything that can be refused without loading the model.
    prediction_format(output)
    require_file(source, "a table with rows to answer")
    if output.exists() and (output.is_dir() or not overwrite):
        raise DataError(f"{output}: exists already. Choose another --output, or pass --yes to overwrite a file.")
    if output.exists() and output.samefile(source):
        raise DataError(f"{output}: is the input itself, which would be lost. Choose another --output.")
    # 2. The specialist, the rows, and what an interrupted job has answered already.
    specialist = Specialist.load(run, batch_size=batch_size)
    rows = read_inputs(source, specialist.task, id_column)
    ensure_folder(output.parent)
    manifest = specialist.manifest
    key = digest([file_digest(source), manifest.fingerprint, manifest.recipe_hash, manifest.data_hash, id_column])
    partial = output.with_name(f".{output.name}.partial.jsonl")
    done = read_partial(partial, key, specialist.predictor.batch_size * BATCHES)
    if done:
        print(f"continuing after {len(done)} rows", file=sys.stderr)
    # 3. Answer the rest, kept as it comes; then all of it at once under the output's name.
    _answer_rest(specialist, rows, done, partial, key)
    write_predictions(output, done)
    partial.unlink()
    return len(done), sum(row["error"] is not None for row in done)


def _answer_rest(
    specialist: Specialist, rows: list[InputRow], done: list[dict[str, Any]], partial: Path, key: str
) -> None:
    """Answer the rows after `done`, appending to it and to the file. Raises MachineError where the disk is full."""
    step = specialist.predictor.batch_size * BATCHES
    left = "The answers so far are kept: with space for the rest, the same command continues."
    try:
        with (
            explain_write_errors(partial, left),
            progress("predict", len(rows)) as bar,
            partial.open("a", encoding="utf-8") as file,
        ):
            bar.advance(len(done))
            if not done:
                file.write(json.dumps({"key": key}) + "\n")
            for start in range(len(done), len(rows), step):
                chunk = rows[start : start + step]
                answers = specialist.predict([row.inputs for row in chunk])
                for row, answer in zip(chunk, answers, strict=True):
                    found = _row(row.id, answer if row.problem is None else Prediction(error=row.problem))
                    done.append(found)
                    file.write(json.dumps(found, ensure_ascii=False) + "\n")
                file.flush()
                bar.advance(len(chunk))
    except BaseException:
        if not read_partial(partial, key, step):
            partial.unlink(missing_ok=True)
        raise


def _row(row_id: str, answer: Prediction) -> dict[str, Any]:
    confidence = {path: round(value, 6) for path, value in answer.confidence.items()}
    return {"id": row_id, "output": answer.output, "confidence": confidence, "error": answer.error}


def read_partial(partial: Path, key: str, step: int) -> list[dict[str, Any]]:
    """Answers of an interrupted job with this key, in whole groups of `step` rows; the rest is cut off.

    Whole groups, so that the same rows are answered together as without the interruption: who shares a batch
    moves the last digits of a confidence.
    """
    if not partial.exists():
        return []
    lines = partial.read_bytes().split(b"\n")[:-1]  # after the last line end stands nothing, or half a line
    try:
        found = [json.loads(line) for line in lines]
    except ValueError:
        found = []  # not what we wrote: answered again
    if not found or found[0].get("key") != key:
        partial.unlink()
        return []
    num_kept = (len(found) - 1) // step * step
    with explain_write_errors(partial):
        os.truncate(partial, sum(len(line) + 1 for line in lines[: 1 + num_kept]))
    return found[1 : 1 + num_kept]
