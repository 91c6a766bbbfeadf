"""A specialist and a table in, a table of answers out: one row per row, in order, nothing lost.

Answers are kept in a file beside the output as they come, so that a killed job continues; the output
appears when all are there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from afina.core.errors import DataError
from afina.core.kept import KeptRows
from afina.core.predictor import Prediction
from afina.core.progress import progress
from afina.core.storage import digest, ensure_folder, file_digest, require_file
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
    step = specialist.predictor.batch_size * BATCHES
    with KeptRows(output, key, step) as kept:
        if kept.rows:
            print(f"continuing after {len(kept.rows)} rows", file=sys.stderr)
        # 3. Answer the rest, kept as it comes; then all of it at once under the output's name.
        _answer_rest(specialist, rows, kept, step)
        write_predictions(output, kept.rows)
        kept.discard()
        return len(kept.rows), sum(row["error"] is not None for row in kept.rows)


def _answer_rest(specialist: Specialist, rows: list[InputRow], kept: KeptRows, step: int) -> None:
    """Answer the rows after those that are kept. Raises MachineError where the disk is full."""
    with progress("predict", len(rows)) as bar:
        bar.advance(len(kept.rows))
        for start in range(len(kept.rows), len(rows), step):
            chunk = rows[start : start + step]
            answers = specialist.predict([row.inputs for row in chunk])
            made = zip(chunk, answers, strict=True)
            kept.add([_row(r.id, a if r.problem is None else Prediction(error=r.problem)) for r, a in made])
            bar.advance(len(chunk))


def _row(row_id: str, answer: Prediction) -> dict[str, Any]:
    confidence = {path: round(value, 6) for path, value in answer.confidence.items()}
    return {"id": row_id, "output": answer.output, "confidence": confidence, "error": answer.error}
