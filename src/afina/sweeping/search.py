"""The sweep, top to bottom: settings of `train` are searched by trainings that are judged on validation rows.

Comes in: an opened run. Goes out: `SweepResult`, and RUN/sweep with the study, the figures, a page, and the best
recipe written out. Killed at any moment the same call continues, to the same trials. Test rows are not read.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina import pipeline
from afina.core.catalogue_config import SweepConfig
from afina.core.errors import MachineError, RecipeError, RunError
from afina.core.storage import digest, ensure_folder, read_json, write_json
from afina.core.train_config import TrainConfig
from afina.data.prepare import Prepared
from afina.engine.encoded import Encoded
from afina.engine.loader import LoadedModel
from afina.pipeline import Encode
from afina.pipeline.training import adapt_to
from afina.runs import Run
from afina.sweeping.page import write_page
from afina.sweeping.result import BEST, REPORT, make_report, trial_line, write_best
from afina.sweeping.space import (
    Parameter,
    Params,
    described,
    middle_of,
    one_by_one,
    parameters_of,
    require_effect,
    with_settings,
)
from afina.sweeping.study import Study, require_optuna
from afina.sweeping.trial import Bases, Ended, run_trial, settings_of_trial
from afina.training import planner
from afina.training.collate import common_beginning
from afina.training.facts import ModelFacts, model_facts
from afina.training.machine import Machine, machine
from afina.training.plan import plan as make_plan
from afina.training.plan import require_fit
from afina.training.settings import Settings

FOLDER, STUDY, KEY, TRIALS, ADAPTED = "sweep", "study.sqlite", "key.json", "trials", "adapted"
KEY_NAMES = {"data": "data or the task", "train": "settings under train", "search": "parameters, sampler or pruner"}


@dataclass(frozen=True)
class SweepResult:
    """folder: RUN/sweep. report: what sweep.json holds. best: the best recipe, as a file."""

    folder: Path
    report: dict[str, Any]
    best: Path
    page: Path


@dataclass(frozen=True)
class Ground:
    """What all trials share, made once: rows as tokens, what the model is, what the machine can do."""

    opened: Run
    prepared: Prepared
    train_set: list[Encoded]
    validation_set: list[Encoded]
    facts: ModelFacts
    machine: Machine

    def settings(self, train: TrainConfig) -> Settings:
        lengths, shared = self.lengths, common_beginning(self.train_set)
        return planner.resolve(train, self.facts, lengths, self.machine, shared)

    @property
    def lengths(self) -> list[int]:
        return [one.longest for one in self.train_set]

    def require_fit(self, settings: Settings) -> None:
        require_fit(make_plan(settings, self.facts, self.lengths, self.machine))


def sweep(
    opened: Run,
    *,
    overwrite: bool = False,
    encode_train: Encode = pipeline.encode,
    encode_validation: Encode = pipeline.encode,
) -> SweepResult:
    """Search the settings that `recipe.sweep` names; those of earlier calls count.

    overwrite: a sweep of another recipe, of other data or parameters, may be replaced. encode_train, encode_validation:
    as of `pipeline.train`, so that a trial learns what a training would.
    Raises RecipeError for a parameter that cannot be swept, RunError for a folder with another sweep, or where no trial
    could be trained, DataError, MachineError.
    """
    # 1. Everything that can be refused is refused before anything is trained.
    require_optuna()
    parameters = parameters_of(opened.recipe)
    ground = _ground(opened, encode_train, encode_validation)
    resolved = [(p, _vary(ground, p, params)) for p, params in one_by_one(parameters, opened.recipe)]
    require_effect(resolved)
    folder = opened.folder / FOLDER
    _claim(folder, _key(opened, parameters), overwrite=overwrite)

    # 2. Trial after trial. A finished one is in the study; a killed one is the next.
    study = Study(
        folder / STUDY,
        opened.recipe.sweep,
        parameters,
        opened.recipe.seed,
        max_evaluations=max(s.total_steps // s.eval_steps for _, s in resolved),
        start={
            key: value for key, value in middle_of(parameters, opened.recipe).items() if _is_own(opened, key, value)
        },
    )
    stopped = _search(ground, folder, study, opened.recipe.sweep)

    # 3. What was found.
    report = _write(ground, folder, study, stopped)
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    if report["best"] is None:
        reasons = [trial["reason"] for trial in report["trials"] if trial["reason"]]
        raise RunError(
            f"{folder}: none of {len(report['trials'])} trials was completed. {reasons[0] if reasons else ''}"
        )
    return SweepResult(folder, report, folder / BEST, write_page(folder, report))


def _ground(opened: Run, encode_train: Encode, encode_validation: Encode) -> Ground:
    recipe, prepared = opened.recipe, pipeline.prepare(opened)
    renderer = pipeline.renderer_of(opened)
    train_set, validation_set = (
        encode(renderer, prepared.splits[name], recipe.train.max_length)
        for encode, name in ((encode_train, "train"), (encode_validation, "validation"))
    )
    facts = model_facts(recipe.train.base_model, recipe.train.revision)
    return Ground(opened, prepared, train_set, validation_set, facts, machine(recipe.run_dir))


def _vary(ground: Ground, parameter: Parameter, params: Params) -> Settings:
    place = f"sweep.parameters.{parameter.key}"
    recipe = with_settings(ground.opened.recipe, params, place)
    try:
        return ground.settings(recipe.train)
    except RecipeError as error:
        raise RecipeError(f"{place}: the value {params[parameter.key]} cannot be tried. {error}") from error


def _is_own(opened: Run, key: str, value: Any) -> bool:
    return getattr(opened.recipe.train, key) == value


# -- whose sweep it is ------------------------------------------------------------------------------


def _key(opened: Run, parameters: Sequence[Parameter]) -> dict[str, str]:
    """What may not change between the calls of one sweep, in parts that a message can name."""
    train = opened.recipe.train
    swept = {p.key for p in parameters}
    fixed = TrainConfig.model_validate(
        {k: v for k, v in train.model_dump(mode="json", exclude_unset=True).items() if k not in swept}
    )
    fixed = fixed.model_copy(update={"logging_steps": 1, "report_to": []})
    recipe = opened.recipe.model_copy(update={"train": fixed})
    return {
        "data": opened.data_key,
        "train": digest([replace(opened, recipe=recipe).train_key, opened.recipe.seed]),
        "search": digest(described(opened.recipe.sweep, parameters)),
    }


def _claim(folder: Path, key: dict[str, str], *, overwrite: bool) -> None:
    """The folder is this sweep's, or empty. Raises RunError."""
    found = _read_key(folder)
    if found not in (None, key):
        other = [name for part, name in KEY_NAMES.items() if found.get(part) != key[part]]
        if not overwrite:
            raise RunError(
                f"{folder}: holds a sweep of other {'; other '.join(other)}. Pass --yes to begin anew (its trials are "
                "deleted), or choose another folder with output_dir=..."
            )
        shutil.rmtree(folder)
    ensure_folder(folder)
    write_json(folder / KEY, key)


def _read_key(folder: Path) -> dict[str, str] | None:
    """None: no sweep is there. Empty: one whose key cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(read_json(folder / KEY))
    return {} if (folder / STUDY).exists() else None


# -- trials -------------------------------------------------------------------------------------------


def _search(ground: Ground, folder: Path, study: Study, config: SweepConfig) -> str:
    """Run trials until there are enough. Returns why it stopped: "trials", "timeout" or "exhausted"."""
    bases, began = Bases(), time.monotonic()
    while len(study.trials) < config.trials:
        if study.is_exhausted:
            return "exhausted"
        if config.timeout_minutes is not None and time.monotonic() - began > 60 * config.timeout_minutes:
            return "timeout"
        trial = study.ask()
        pipeline.say(f"trial {trial.number + 1} of {config.trials}: {trial_line(trial.params)}")
        ended = _try(ground, folder / TRIALS / str(trial.number), trial, bases)
        study.tell(trial, ended.state, ended.value, _attributes(ended))
        shutil.rmtree(folder / TRIALS / str(trial.number), ignore_errors=True)
        report = _write(ground, folder, study, "running")
        best = report["best"]
        so_far = "" if best is None else f"; best so far {report['trials'][best - 1]['value']:.4f}, trial {best}"
        why = f" ({ended.reason})" if ended.reason else ""
        loss = "" if ended.value is None else f", validation loss {ended.value:.4f}"
        pipeline.say(f"  {ended.state}{why}{loss}{so_far}")
    return "trials"


def _try(ground: Ground, folder: Path, trial: Any, bases: Bases) -> Ended:
    """One trial to its end. What does not fit the machine, or the model, is a failed trial with its reason."""
    opened = ground.opened

    def resolved() -> Settings:
        settings = ground.settings(with_settings(opened.recipe, trial.params, f"trial {trial.number}").train)
        ground.require_fit(settings)
        return settings

    try:
        settings = settings_of_trial(folder, resolved)
    except (MachineError, RecipeError) as error:
        return Ended("failed", reason=str(error))

    def prepared(settings: Settings) -> LoadedModel:
        loaded = bases.take(settings)
        if opened.recipe.train.adapt is not None:
            _adapt(ground, loaded, settings)
        return loaded

    return run_trial(
        trial.number + 1, folder, settings, trial, ground.train_set, ground.validation_set, opened.recipe.seed, prepared
    )


def _adapt(ground: Ground, loaded: LoadedModel, settings: Settings) -> None:
    """Adapted to the domain's text once for all trials that do it alike."""
    opened, adapt = ground.opened, ground.opened.recipe.train.adapt
    assert adapt is not None, "called only with adapt settings"
    alike = digest({**planner.adapt_settings(settings, adapt, 1000).to_json(), "logging_steps": 0})
    elsewhere = replace(opened, folder=opened.folder / FOLDER / ADAPTED / alike)
    adapt_to(elsewhere, loaded, settings, pipeline.renderer_of(opened), ground.prepared)


def _attributes(ended: Ended) -> dict[str, Any]:
    """What the study keeps of a trial beside its settings, value and evaluations."""
    return {
        "steps": ended.steps,
        "total_steps": ended.total_steps,
        "best_step": ended.best_step,
        "seconds": ended.seconds,
        "reason": ended.reason,
    }


def _write(ground: Ground, folder: Path, study: Study, stopped: str) -> dict[str, Any]:
    """sweep.json and best.yaml, after every trial: whoever stops the sweep has the best so far."""
    opened = ground.opened
    rows = {"train": len(ground.train_set), "validation": len(ground.validation_set)}
    report = make_report(opened, study, rows, stopped)
    write_json(folder / REPORT, report)
    write_best(opened, folder / BEST, report)
    return report
