"""The main job with everything that can be compared: strategies, students, several seeds, a learning curve.

Comes in: an opened run. Goes out: what report.json holds, and the page. Adds to `pipeline` (and to `hosting`, where a
provider trains) who else answers. How answers are judged is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afina import hosting, pipeline
from afina.core.config import Recipe
from afina.core.storage import read_json
from afina.core.strategy_config import STUDENT
from afina.data.prepare import Prepared
from afina.distilling import CurvePoint, Student, curve_runs, distill, train_seed
from afina.evaluation.pareto import measured
from afina.evaluation.runner import SystemRun, run_system, with_seeds
from afina.evaluation.runner import evaluate as evaluate_systems
from afina.pipeline import Answerer
from afina.recorded import recorded
from afina.runs import Run
from afina.strategies.build import Builder
from afina.strategies.finetuned import Specialist
from afina.teaching.bill import agree_to_bill
from afina.training.hosted import Agree


def compare(opened: Run, agree: Agree) -> dict[str, Any]:
    """Prepare, train what is missing, ask every system of `compare`, judge, report. Returns what report.json holds.

    Killed, the same call goes on: nothing is trained, asked or paid twice. Raises AfinaError.
    """
    result = evaluate(opened, agree)
    pipeline.write_reports(opened.folder)
    return result


def evaluate(opened: Run, agree: Agree, others: Others | None = None, add: Add | None = None) -> dict[str, Any]:
    """`compare` without the page.

    others: who answers to names that are not known here. add: what else the report holds.
    """
    recipe, path = opened.recipe, opened.folder / "report.json"
    if opened.is_done("evaluate", opened.evaluate_key) and path.exists():
        return read_json(path)
    is_hosted = recipe.train.provider is not None
    prepared = hosting.prepare(opened) if is_hosted else pipeline.prepare(opened)
    agree_to_bill(opened, prepared, agree, teaches=_teaches(recipe))
    if is_hosted:
        return hosting.evaluate(opened, agree)
    if "finetuned" in recipe.compare:
        pipeline.train(opened)
    students = distill(opened, _agreed) if any(name.startswith(STUDENT) for name in recipe.compare) else []
    points = curve_runs(opened, _agreed)
    more = [*([partial(_curve, points)] if points else []), *([add] if add else [])]
    return pipeline.evaluate(opened, partial(_answerer, students, others or {}), partial(_all_of, more))


Others = Mapping[str, Callable[[Run, Prepared], SystemRun]]
"""Names of `compare` -> their answers to the test rows."""
Add = Callable[[Run, Prepared, Mapping[str, Any]], dict[str, Any]]
"""Further entries of report.json, from what it holds already."""


def _all_of(adds: Sequence[Add], opened: Run, prepared: Prepared, result: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for add in adds:
        found |= add(opened, prepared, {**result, **found})
    return found


# -- money ----------------------------------------------------------------------------------------


def _agreed(lines: Sequence[str], cost_usd: float | None) -> None:
    """The teacher was among the models that were agreed to."""


def _teaches(recipe: Recipe) -> bool:
    return any(name.startswith(STUDENT) for name in recipe.compare) or bool(recipe.distill.curve)


# -- who answers ----------------------------------------------------------------------------------


def _answerer(students: Sequence[Student], others: Others, opened: Run, prepared: Prepared) -> Answerer:
    """Strategies and built-in systems as `pipeline` has them; students and seeds from what was trained."""
    builder = pipeline.strategy_builder(opened, prepared)
    return partial(_answers_of, opened, prepared, builder, students, others)


def _answers_of(
    opened: Run, prepared: Prepared, builder: Builder, students: Sequence[Student], others: Others, name: str
) -> SystemRun:
    if name in others:
        return others[name](opened, prepared)
    seeds = opened.recipe.comparison.seeds
    if name.startswith(STUDENT):
        ours = [student for student in students if STUDENT + student.kind == name]
        return _over_seeds(_student_runs(opened, prepared, name, ours))
    if name == "finetuned" and seeds is not None:
        return _over_seeds(_seed_runs(opened, prepared, builder, seeds))
    return pipeline.answers_of(opened, prepared, builder, name)


def _student_runs(
    opened: Run, prepared: Prepared, name: str, students: Iterable[Student]
) -> list[tuple[int, SystemRun]]:
    found: list[tuple[int, SystemRun]] = []
    for student in students:
        run = _specialist_run(opened, prepared, student.folder, name, f"{student.kind} {student.seed}")
        found.append((student.seed, replace(run, train_seconds=student.train_seconds)))
    return found


def _seed_runs(opened: Run, prepared: Prepared, builder: Builder, seeds: Sequence[int]) -> list[tuple[int, SystemRun]]:
    """The specialist, trained once with each seed; the recipe's own seed is the run's specialist."""
    found: list[tuple[int, SystemRun]] = []
    for seed in seeds:
        if seed == opened.recipe.seed:
            found.append((seed, pipeline.answers_of(opened, prepared, builder, "finetuned")))
            continue
        pipeline.say(f"finetuned, seed {seed}")
        trained = train_seed(opened, prepared, seed)
        run = _specialist_run(opened, prepared, trained.folder, "finetuned", f"seed {seed}")
        found.append((seed, replace(run, name="specialist", train_seconds=trained.train_seconds)))
    return found


def _specialist_run(opened: Run, prepared: Prepared, folder: Path, strategy: str, label: str) -> SystemRun:
    specialist = Specialist.load(folder, batch_size=opened.recipe.answer.batch_size)
    found = run_system(
        pipeline.WithProgress(specialist.predictor, label),
        prepared.splits["test"],
        strategy,
        opened.recipe.train.base_model,
    )
    return replace(found, name=strategy)


def _over_seeds(runs: Sequence[tuple[int, SystemRun]]) -> SystemRun:
    return with_seeds([run for _, run in runs], [seed for seed, _ in runs])


# -- the learning curve ---------------------------------------------------------------------------


def _curve(points: Sequence[CurvePoint], opened: Run, prepared: Prepared, result: Mapping[str, Any]) -> dict[str, Any]:
    """How good the first student is with ever more rows, beside the teacher's level. For report.json."""
    recipe, kind = opened.recipe, opened.recipe.distill.students[0]
    found: list[dict[str, Any]] = []
    for point in points:
        name = f"curve-{kind}-{point.num_rows}-{point.seed}"
        ask = partial(_specialist_run, opened, prepared, point.folder, name, f"{point.num_rows} rows")
        run = recorded(opened.folder, name, f"{opened.system_key(STUDENT + kind)} {point}", ask)
        judged = evaluate_systems(opened.task, prepared.splits["test"], prepared.splits["train"], [run], recipe.seed)[
            "systems"
        ][0]
        metric = "chrf" if opened.task.free_text else "exact_match"
        of = measured(judged, metric)
        value, interval = of[metric], of[f"{metric}_ci"]
        found.append(
            {"system": STUDENT + kind, "rows": point.num_rows, "seed": point.seed, "accuracy": value, "ci": interval}
        )
    metric = "chrf" if opened.task.free_text else "exact_match"
    found_teachers = [system for system in result["systems"] if system["name"] == recipe.distill.teacher]
    teachers = [measured(system, metric)[metric] for system in found_teachers]
    return {"curve": found, "curve_lines": {"teacher": teachers[0]} if teachers else {}}
