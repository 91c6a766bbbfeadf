"""Questions -> a teacher's answers, kept as they come: a killed job continues, and asks nothing again.

Comes in: a predictor, rows without repetition. Goes out: an answer each, in order. What is done with them is not known
here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from afina.core.errors import AfinaError
from afina.core.kept import KeptRows
from afina.core.predictor import Inputs, Prediction, Predictor, Usage
from afina.core.progress import progress
from afina.providers.budget import BudgetError
from afina.providers.prices import dollars


@dataclass
class Meter:
    """What paid models were asked so far, by this process and before. Reads what others count.

    spent_usd, num_paid: dollars paid, and answers that are kept and never paid again. before_usd: spent before this
    work began; what `spent_usd` says when it begins, if not given.
    """

    spent_usd: Callable[[], float] = lambda: 0.0
    num_paid: Callable[[], int] = lambda: 0
    before_usd: float | None = None


def ask_all(
    teacher: Predictor,
    questions: Sequence[Inputs],
    kept: KeptRows,
    rows_at_once: int,
    meter: Meter,
    check: Callable[[Sequence[Prediction]], None] = lambda answers: None,
) -> list[Prediction]:
    """The answers to all questions; those that `kept` has are not asked again.

    rows_at_once: asked and kept together. check: is shown each new group, and may refuse to go on.
    Raises what the teacher raises (a key, money, the network); what was answered by then is kept, and it says so.
    """
    began, first = time.perf_counter(), len(kept.rows)
    answers = [_from_json(row) for row in kept.rows]
    with progress("label", len(questions)) as bar:
        bar.advance(len(answers))
        for start in range(len(answers), len(questions), rows_at_once):
            group = questions[start : start + rows_at_once]
            try:
                found = list(teacher.predict(group))
            except BudgetError as error:
                raise BudgetError(f"{error}\n{_so_far(len(answers), len(questions), meter)}") from error
            except AfinaError as error:
                error.args = (f"{error}\n{_so_far(len(answers), len(questions), meter)}", *error.args[1:])
                raise
            assert len(found) == len(group), f"{teacher.name} gave {len(found)} answers to {len(group)} rows"
            kept.add([_to_json(answer) for answer in found])
            answers += found
            rate = (len(answers) - first) / max(1e-9, time.perf_counter() - began)
            spent = meter.spent_usd()
            bar.advance(len(found), f"{rate:.1f} rows/s" + (f" · {dollars(spent)}" if spent else ""))
            check(found)
    return answers


def _so_far(num_done: int, num_questions: int, meter: Meter) -> str:
    paid = f", {dollars(meter.spent_usd())} paid" if meter.spent_usd() else ""
    return (
        f"{num_done} of {num_questions} rows are answered{paid}. What was answered is kept: the same command goes on, "
        "with a higher --max-cost-usd where that was reached."
    )


def _to_json(answer: Prediction) -> dict[str, Any]:
    kept = asdict(answer)
    del kept["probabilities"], kept["sources"]
    return kept


def _from_json(row: dict[str, Any]) -> Prediction:
    fields: dict[str, Any] = {**row, "usage": Usage(**row["usage"])}
    return Prediction(**fields)
