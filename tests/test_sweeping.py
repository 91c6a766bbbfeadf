"""Sweeps: what may be varied, that a killed one ends as an undisturbed one, pruning, and what is written."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import optuna
import pytest
import yaml
from command_line import afina, news, recipe_text, write_csv
from training_material import examples, here, settings_for, tiny_llama
from warm_process import Starter, Warm

from afina import pipeline, sweeping
from afina.core.catalogue_config import SweepConfig
from afina.core.errors import MachineError, RecipeError, RunError
from afina.core.recipe_file import load_recipe, make_recipe
from afina.sweeping import search as searching
from afina.sweeping.space import Parameter, parameters_of, require_effect
from afina.sweeping.study import SPARED, UNJUDGED, Study, require_optuna
from afina.sweeping.trial import Bases, Ended, Follower, Over
from afina.training.recorder import read_metrics
from afina.training.settings import Settings
from afina.training.watch import Measured, StepDone

SEARCH = {"lora_r": [2, 4], "learning_rate": {"low": 0.0003, "high": 0.01, "log": True}}
WAIT_S = 120.0


def place(folder: Path, **changes: Any) -> Path:
    """A small recipe with its table in a folder; `sweep__key=value` sets the sweep."""
    folder.mkdir(exist_ok=True, parents=True)
    write_csv(folder / "news.csv", news(40))
    sweep = {"trials": 3, "parameters": SEARCH}
    sweep |= {key.removeprefix("sweep__"): changes.pop(key) for key in list(changes) if key.startswith("sweep__")}
    changes.setdefault("output_dir", str(folder / "run"))
    changes.setdefault("data__min_examples_per_label", 0)
    changes.setdefault("train__max_steps", 4)
    text = recipe_text(**{key: value for key, value in changes.items() if value is not None})
    raw = yaml.safe_load(text) | {"sweep": sweep}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def recipe_with(parameters: Any, **changes: Any) -> Any:
    raw = yaml.safe_load(recipe_text(**changes))
    return make_recipe({**raw, "sweep": {"parameters": parameters}})


def run_sweep(recipe: Path, *overrides: str, overwrite: bool = False) -> sweeping.SweepResult:
    return sweeping.sweep(pipeline.open_run(recipe, overrides, overwrite=overwrite), overwrite=overwrite)


def start_sweep(starter: Starter, recipe: Path) -> Warm:
    """In a process of its own, which may be killed."""
    said = recipe.parent / "said.txt"
    return starter.run("afina", "sweep", recipe, out=said, errors=said)


def kept(folder: Path) -> list[str]:
    """Everything that a study's file says of its trials but when and how long; as text, in which NaN equals NaN."""
    return [repr(one) for one in trials_of(folder)]


def trials_of(folder: Path) -> list[dict[str, Any]]:
    storage = f"sqlite:///{folder / 'study.sqlite'}"
    found = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    for trial in found:
        trial.user_attrs.pop("seconds")
    names = ("number", "state", "values", "params", "intermediate_values", "user_attrs", "system_attrs")
    return [{name: getattr(trial, name) for name in names} for trial in found]


# -- what may be varied ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"lora_rank": [8, 16]}, "sweep.parameters.lora_rank: is no key of train. Did you mean lora_r?"),
        ({"lr": [1e-3, 1e-4]}, "Did you mean learning_rate?"),
        ({"train.lora_r": [8, 16]}, "Did you mean lora_r?"),
        ({"learning_rates": [1e-3, 1e-4]}, "Did you mean learning_rate?"),
        ({"qqq": [1, 2]}, "sweep.parameters.qqq: is no key of train. Known:"),
        ({"lora_dropout": [0.1, 1.5]}, "sweep.parameters.lora_dropout: train.lora_dropout: found 1.5, expected less"),
        ({"lora_dropout": {"low": 0, "high": 1}}, "sweep.parameters.lora_dropout: train.lora_dropout: found 1.0"),
        ({"lora_r": {"low": 4.5, "high": 8}}, "lora_r is a whole number"),
        ({"lora_r": [8.5, 16]}, "sweep.parameters.lora_r: train.lora_r: found 8.5, expected a whole number"),
        ({"optim": {"low": 1, "high": 2}}, "optim is no number. List the values"),
        ({"optim": ["adamw_torch", "sgd"]}, "sweep.parameters.optim: train.optim: found 'sgd'"),
        ({"learning_rate": {"low": 1e-4, "high": float("inf")}}, "expected finite numbers"),
        ({"learning_rate": [1e-4, float("nan")]}, "expected finite numbers"),
        ({"lora_r": [8]}, "expected two values or more. Write a fixed one under train."),
        ({"lora_r": [8, 8]}, "a value stands twice"),
        ({"load_in_8bit": [1, True]}, "a value stands twice"),
        ({"base_model": ["a", "b"]}, "base_model decides what the examples are"),
        ({"max_length": [64, 128]}, "losses could not be compared"),
        ({"loss_on": ["completion", "choices"]}, "loss_on decides how trials are judged"),
        ({"torch_compile": [True, False]}, "torch_compile does not change what is learned"),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, "cannot be varied. What can: finetuning_type"),
        ({"num_train_epochs": [1, 2]}, "max_steps and num_train_epochs are both given"),
        ({"finetuning_type": ["lora", "full"], "lora_r": [8, 16]},
         "sweep.parameters: finetuning_type full with lora_r 8: train: finetuning_type: full has no adapter"),
        ({"lr_scheduler_type": ["linear", "constant"], "warmup_ratio": [0.0, 0.1]},
         "lr_scheduler_type constant with warmup_ratio 0.1"),
    ],
)  # fmt: skip
def test_what_cannot_be_varied_is_told_with_its_place(parameters: Any, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parameters_of(recipe_with(parameters))
    assert told in str(caught.value)


def test_an_adapter_is_not_varied_where_there_is_none() -> None:
    with pytest.raises(RecipeError, match=r"sweep\.parameters\.lora_r: train: finetuning_type: full has no adapter"):
        parameters_of(recipe_with({"lora_r": [8, 16]}, train__finetuning_type="full"))


def test_sweeps_train_here() -> None:
    raw = yaml.safe_load(recipe_text())
    hosted = make_recipe({**raw, "train": {"provider": "openai", "base_model": "gpt-4.1-mini-2025-04-14"}})
    with pytest.raises(RecipeError, match=r"train\.provider is openai, but a sweep trains on this machine"):
        parameters_of(hosted)
    with pytest.raises(RecipeError, match=r"train\.rounds: a sweep trains on one table"):
        parameters_of(make_recipe({**raw, "train": {"rounds": ["a.csv"]}, "data": {}}))


def test_the_default_parameters_can_be_varied() -> None:
    found = parameters_of(make_recipe(yaml.safe_load(recipe_text())))
    assert [(p.key, p.num_values) for p in found] == [
        ("lora_r", 5), ("lora_alpha", 4), ("lora_dropout", None), ("learning_rate", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 8}], "An update has 16 examples either"),
        ([{"bnb_4bit_quant_type": "nf4"}, {"bnb_4bit_quant_type": "fp4"}], "The weights are not held in 4 bits."),
        ([{"optim": "adamw_torch"}, {"optim": "adamw_8bit"}], "optim: adamw_8bit needs a CUDA device"),
    ],
)
def test_a_setting_without_effect_is_refused(tmp_path: Path, changes: list[dict[str, Any]], told: str) -> None:
    model = tiny_llama(tmp_path / "model")
    key = next(iter(changes[0]))
    parameter = Parameter(key, tuple(change[key] for change in changes))
    found = [(parameter, settings_for(model, examples(40), finetuning_type="lora", **change)) for change in changes]
    with pytest.raises(RecipeError) as caught:
        require_effect(found)
    assert f"sweep.parameters.{key}" in str(caught.value)
    assert told in str(caught.value)
    rates = Parameter("learning_rate", (1e-3, 1e-4))
    require_effect([(rates, settings_for(model, examples(40), learning_rate=rate)) for rate in (1e-3, 1e-4)])


def test_optuna_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "optuna" else real(name, *a))
    with pytest.raises(MachineError, match=re.escape("pip install 'afina[sweep]'")):
        require_optuna()


def test_optuna_is_not_imported_before_it_is_needed() -> None:
    import subprocess

    code = "import sys, afina.cli.sweep; assert not {'torch', 'optuna'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the study: cut anywhere, it goes on as if nothing had been ------------------------------------------

WIDE = [
    Parameter("learning_rate", low=1e-4, high=1e-1, log=True),
    Parameter("lora_r", (2, 4, 8)),
    Parameter("warmup", low=0, high=9, whole=True),
]
EVALUATIONS = 9


class Killed(BaseException):
    """In the place of SIGKILL: nothing is tidied up."""


def losses_of(params: dict[str, Any]) -> list[float]:
    """A made-up training: losses fall, to where the settings allow; one corner diverges."""
    if params["learning_rate"] > 0.05:
        return [3.0, math.nan, *[math.nan] * (EVALUATIONS - 2)]
    end = abs(math.log10(params["learning_rate"] / 3e-3)) + params["lora_r"] / 20 + params["warmup"] / 50
    return [end + 2 * 0.6**n for n in range(1, EVALUATIONS + 1)]


def search(folder: Path, config: SweepConfig, settings: Settings, kill: Any = lambda place: None) -> None:
    """The loop of `sweep` with a made-up training: real study, real follower. kill: is told every place, may raise."""
    study = Study(folder / "study.sqlite", config, WIDE, 7, max_evaluations=EVALUATIONS, start={"lora_r": 4})
    while len(study.trials) < config.trials:
        trial = study.ask()
        kill("asked")
        home = folder / str(trial.number)
        home.mkdir(exist_ok=True)
        follower = Follower(home, settings, trial)
        planned = losses_of(trial.params)
        try:
            for step in range(1, EVALUATIONS + 1) if not follower.is_over else ():
                kill("step")
                measured = Measured(planned[step - 1], 0.5)
                follower.on_step(StepDone(step, EVALUATIONS, False, 1.0, 0.5), lambda number=None, m=measured: m)
        except Over:
            pass
        ended = follower.found
        kill("judged")
        study.tell(trial, ended.state, ended.value, {"steps": ended.steps, "seconds": 0.0})
        kill("told")
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def nine_steps(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = tiny_llama(tmp_path_factory.mktemp("model"))
    found = settings_for(model, examples(40))
    return replace(found, total_steps=EVALUATIONS, eval_steps=1, early_stopping_patience=None)


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("tpe", "hyperband"), ("random", "none")])
def test_a_search_that_is_cut_anywhere_is_the_same_search(
    tmp_path: Path, nine_steps: Settings, sampler: Any, pruner: Any
) -> None:
    config = SweepConfig(trials=18, sampler=sampler, pruner=pruner)
    (tmp_path / "whole").mkdir()
    places: list[str] = []
    search(tmp_path / "whole", config, nine_steps, places.append)
    whole = trials_of(tmp_path / "whole")
    assert len(whole) == len({tuple(one["params"].values()) for one in whole}) == 18
    assert any(one["state"].name == "COMPLETE" for one in whole)
    behind = [one for one in whole if one["state"].name == "PRUNED" and one["params"]["learning_rate"] <= 0.05]
    assert bool(behind) == (pruner != "none")
    # Killed after every few places, at places that differ from one life to the next; also within a verdict.
    cut, draw, lives = tmp_path / "cut", random.Random(3), 0
    cut.mkdir()
    for _ in range(200):
        left = draw.randint(1, 30)

        def kill(place: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        lives += 1
        between = draw.random() < 0.3  # noted, not judged
        judge = mock.patch.object(optuna.Trial, "should_prune", side_effect=Killed) if between else mock.MagicMock()
        try:
            with judge:
                search(cut, config, nine_steps, kill)
        except Killed:
            continue
        if len(kept(cut)) == 18:
            break
    assert lives > 8
    assert kept(cut) == [repr(one) for one in whole]


def test_the_first_trial_begins_with_the_recipes_own_settings(tmp_path: Path, nine_steps: Settings) -> None:
    search(tmp_path, SweepConfig(trials=1), nine_steps)
    assert trials_of(tmp_path)[0]["params"]["lora_r"] == 4


def test_proposals_of_a_bracket_are_the_same_in_a_new_process(tmp_path: Path) -> None:
    """Enough trials that TPE has something to learn from in each of hyperband's brackets."""
    config = SweepConfig(pruner="hyperband")

    def ask_and_tell(study: Study) -> None:
        trial = study.ask()
        for number in range(1, 10):
            trial.report(
                losses_of({**trial.params, "learning_rate": trial.params["learning_rate"] / 2})[number - 1], number
            )
            if trial.should_prune():
                return study.tell(trial, "pruned", None, {"seconds": 0.0})
        return study.tell(trial, "complete", trial.params["learning_rate"], {"seconds": 0.0})

    for folder, sittings in (("one", [48]), ("many", [34, *[1] * 14])):
        (tmp_path / folder).mkdir()
        for number in sittings:
            study = Study(tmp_path / folder / "study.sqlite", config, WIDE, 7, max_evaluations=9)
            for _ in range(number):
                ask_and_tell(study)
    assert len(kept(tmp_path / "one")) == 48
    assert kept(tmp_path / "one") == kept(tmp_path / "many")


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_no_combination_is_tried_twice_and_all_are(tmp_path: Path, pruner: Any) -> None:
    few = [
        Parameter("lora_r", (2, 4, 8)),
        Parameter("use_dora", (True, False)),
        Parameter("n", low=1, high=3, whole=True),
    ]
    config = SweepConfig(trials=100, pruner=pruner)
    study = Study(tmp_path / "study.sqlite", config, few, 1, max_evaluations=9)
    while not study.is_exhausted:
        trial = study.ask()
        study.tell(trial, "complete", trial.params["lora_r"] / 10, {"seconds": 0.0})
    combinations = [tuple(one["params"].values()) for one in trials_of(tmp_path)]
    assert len(combinations) == len(set(combinations)) == 18


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"study\.sqlite: is no study of Optuna's that can be read"):
        Study(tmp_path / "study.sqlite", SweepConfig(), WIDE, 1, max_evaluations=1)


def test_early_stopping_ends_a_trial_as_it_ends_a_training(tmp_path: Path, nine_steps: Settings) -> None:
    patient = replace(nine_steps, early_stopping_patience=2)
    study = Study(tmp_path / "s.sqlite", SweepConfig(), WIDE, 1, max_evaluations=9)
    follower = Follower(tmp_path, patient, study.ask())
    for step, loss in enumerate([3.0, 2.0, 2.5], 1):
        follower.on_step(StepDone(step, 9, False, 1.0, 0.5), lambda number=None, loss=loss: Measured(loss, 0.5))
    with pytest.raises(Over):
        follower.on_step(StepDone(4, 9, False, 1.0, 0.5), lambda number=None: Measured(2.1, 0.5))
    assert (follower.found.state, follower.found.value, follower.found.best_step) == ("complete", 2.0, 2)
    assert follower.found.reason == "no better for 2 evaluations"


# -- on the embedded model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, job_starter: Starter) -> sweeping.SweepResult:
    """Three trials of the embedded model, undisturbed, in a process like those that are killed."""
    folder = tmp_path_factory.mktemp("swept")
    process = start_sweep(job_starter, place(folder))
    assert process.wait(WAIT_S) == 0, process.errors.read_text(encoding="utf-8")
    report = json.loads((folder / "run" / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    home = folder / "run" / "sweep"
    return sweeping.SweepResult(home, report, home / "best.yaml", home / "sweep.html")


@pytest.mark.slow
def test_what_a_sweep_leaves(swept: sweeping.SweepResult) -> None:
    report = swept.report
    assert report["version"] == 1
    assert report["stopped"] == "trials"
    assert report["unit"] == "nats per completion token"
    assert [trial["number"] for trial in report["trials"]] == [1, 2, 3]
    for trial in report["trials"]:
        assert trial["state"] == "complete"
        assert trial["steps"] == trial["total_steps"] == 4
        assert len(trial["losses"]) == 4
        assert trial["value"] == min(trial["losses"])
        assert trial["losses"][trial["best_step"] - 1] == trial["value"]
        assert trial["seconds"] > 0
        assert 0.0003 <= trial["parameters"]["learning_rate"] <= 0.01
    values = [trial["value"] for trial in report["trials"]]
    assert len(set(values)) == 3, "different settings learn differently"
    assert values[report["best"] - 1] == min(values)
    assert report["top_spread"] == pytest.approx(max(values) - min(values), abs=1e-6)
    assert {path.name for path in swept.folder.iterdir()} == {
        "best.yaml", "key.json", "study.sqlite", "sweep.html", "sweep.json", "sweep.svg",
    }  # fmt: skip
    lines = sweeping.result_lines(report)
    assert lines[0] == "small, 3 trials: 3 complete (nats per completion token)"
    assert lines[3].split()[0] == str(report["best"])
    assert "the lowest of many losses is lower than it would be again" in lines[-1]


@pytest.mark.slow
def test_the_page_stands_by_itself(swept: sweeping.SweepResult) -> None:
    page = swept.page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    assert page.count("<figcaption>") == 4  # history, courses, one for each parameter
    for trial in swept.report["trials"]:
        assert f"trial {trial['number']}, complete: {trial['value']:.4f}" in page
    picture = ElementTree.parse(swept.folder / "sweep.svg").getroot()
    assert picture.tag.endswith("svg")
    assert len(picture.findall(".//{*}circle")) >= 3 * 3


@pytest.mark.slow
def test_the_best_recipe_is_whole_and_trains_to_the_same_loss(swept: sweeping.SweepResult, tmp_path: Path) -> None:
    text = swept.best.read_text(encoding="utf-8")
    best = swept.report["trials"][swept.report["best"] - 1]
    assert f"# Validation loss {best['value']:.4f} nats per completion token" in text
    assert str(swept.folder.parent.parent) not in text.partition("output_dir")[0], "paths are relative to its place"
    recipe = load_recipe(swept.best, [f"output_dir={tmp_path / 'run'}"])
    assert recipe.sweep == SweepConfig()
    assert {key: getattr(recipe.train, key) for key in best["parameters"]} == best["parameters"]
    opened = pipeline.open_recipe(recipe)
    pipeline.train(opened)
    losses = [
        row["validation_loss"] for row in read_metrics(opened.folder / "metrics.jsonl") if "validation_loss" in row
    ]
    # Another process with more threads sums in another order.
    assert losses == pytest.approx(best["losses"], rel=2e-3)


def _state(folder: Path) -> set[tuple[str, int]]:
    """What the folder holds, and when it was written."""
    found: set[tuple[str, int]] = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
            found.add((str(path), path.stat().st_mtime_ns))
    return found


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_undisturbed(
    swept: sweeping.SweepResult, tmp_path: Path, job_starter: Starter
) -> None:
    recipe = place(tmp_path / "killed")
    home = tmp_path / "killed" / "run" / "sweep"
    draw, killed = random.Random(11), 0
    for _ in range(5):
        process = start_sweep(job_starter, recipe)
        # Moments are counted in what it writes, not in seconds, which another machine has more or fewer of.
        changes, before = draw.randint(1, 5), _state(home)
        while changes and process.poll() is None:
            time.sleep(0.01)
            changes, before = changes - (_state(home) != before), _state(home)
        killed += process.poll() is None
        process.kill()
        process.wait(WAIT_S)
    process = start_sweep(job_starter, recipe)
    assert process.wait(WAIT_S) == 0, process.errors.read_text(encoding="utf-8")
    assert killed >= 3, "it was done before it was killed"
    assert kept(home) == kept(swept.folder)
    assert (home / "best.yaml").read_text() == swept.best.read_text().replace(
        str(swept.folder.parent.parent), str(tmp_path / "killed")
    )


@pytest.mark.slow
def test_more_trials_go_on_and_other_parameters_do_not(swept: sweeping.SweepResult, tmp_path: Path) -> None:
    shutil.copytree(swept.folder.parent, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    recipe, here_too = swept.folder.parent.parent / "recipe.yaml", f"output_dir={tmp_path / 'run'}"
    home = tmp_path / "run" / "sweep"
    same = run_sweep(recipe, here_too)  # nothing is trained again
    assert same.report["trials"] == swept.report["trials"]
    with pytest.raises(RunError, match=r"holds a sweep of other parameters, sampler or pruner\. Pass --yes"):
        run_sweep(recipe, here_too, "sweep.sampler=random")
    with pytest.raises(RunError, match="holds a sweep of other settings under train"):
        run_sweep(recipe, here_too, "train.weight_decay=0.1")
    (home / "key.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="holds a sweep of other"):
        run_sweep(recipe, here_too)
    assert kept(home) == kept(swept.folder), "a refusal changes nothing"
    shutil.copy(swept.folder / "key.json", home)
    more = run_sweep(recipe, here_too, "sweep.trials=4", "train.logging_steps=1")
    assert kept(home)[:3] == kept(swept.folder)
    assert len(more.report["trials"]) == 4
    anew = run_sweep(recipe, here_too, "sweep.trials=1", "train.max_steps=1", overwrite=True)
    assert [trial["total_steps"] for trial in anew.report["trials"]] == [1]


@pytest.mark.slow
def test_a_base_that_was_used_is_as_good_as_a_fresh_one(tmp_path: Path) -> None:
    """LoRA trials share their base; full tuning changes it."""
    model = tiny_llama(tmp_path / "model")
    bases = Bases()
    lora = settings_for(model, examples(8), finetuning_type="lora")
    first = bases.take(lora)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    from afina.training.adapters import prepare

    prepare(first, lora)
    again = bases.take(lora)
    assert again is first
    assert not again.has_adapter
    assert before.keys() == again.model.state_dict().keys()
    assert all(value.equal(before[name]) for name, value in again.model.state_dict().items())
    full = settings_for(model, examples(8), finetuning_type="full")
    assert bases.take(full) is not bases.take(full)


@pytest.mark.slow
def test_a_hopeless_rate_is_given_up(tmp_path: Path) -> None:
    rates = [0.001, 0.002, 0.003, 0.004, 0.005, 1e-7, 1e30]
    recipe = place(tmp_path, sweep__trials=7, sweep__sampler="random", sweep__parameters={"learning_rate": rates})
    # In the order of the list: a hopeless one before five good ones has nothing to lag behind.
    order = mock.patch(
        "afina.sweeping.proposals.Proposals._draw",
        lambda self, study, trial, seed: {"learning_rate": rates[trial.number]},
    )
    with order:
        found = run_sweep(recipe, "train.max_steps=5", "train.lora_r=2")
    trials = found.report["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * UNJUDGED + ["pruned"] * 2
    assert trials[5]["steps"] == SPARED + 1 < trials[5]["total_steps"]
    assert trials[5]["reason"] == "behind the other trials at update 3"
    assert trials[6]["reason"].startswith("diverged: the validation loss is ")
    assert None in trials[6]["losses"]
    assert found.report["stopped"] == "trials"
    json.loads((found.folder / "sweep.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert "ended early" in found.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_does_not_fit_fails_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    recipe = place(tmp_path, sweep__parameters={"per_device_train_batch_size": [1, 2, 4]}, sweep__trials=9)
    real, peaks = searching.make_plan, {}

    def small(settings: Settings, facts: Any, lengths: Sequence[int], machine: Any) -> Any:
        """A machine that has room for a batch of 2 and not of 4."""
        size = settings.per_device_train_batch_size
        peaks[size] = real(settings, facts, lengths, machine).memory_bytes["peak"]
        return real(settings, facts, lengths, here(available_bytes=1 << 20 if size == 4 else 12 << 30))

    with mock.patch.object(searching, "make_plan", small):
        found = run_sweep(recipe, "train.max_steps=1", "train.finetuning_type=full")
    assert peaks.keys() == {1, 2, 4}
    assert peaks[4] > peaks[1]
    assert found.report["stopped"] == "exhausted"
    by_size = {trial["parameters"]["per_device_train_batch_size"]: trial for trial in found.report["trials"]}
    assert {size: trial["state"] for size, trial in by_size.items()} == {1: "complete", 2: "complete", 4: "failed"}
    assert "training does not fit here" in by_size[4]["reason"]
    assert by_size[4]["value"] is None
    assert "failed" in found.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_plain_text_is_swept_and_test_rows_are_not_read(tmp_path: Path) -> None:
    recipe = place(
        tmp_path, task__output="text", data__columns={"": "f2"}, sweep__trials=1, train__max_steps=1,
        compare=["nearest"], answer__max_text_tokens=None, train__max_length=256,
    )  # fmt: skip
    opened = pipeline.open_run(recipe, ["train.max_steps=1"])
    pipeline.prepare(opened, quiet=True)
    test = opened.data / "test.jsonl"
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    test.write_text("".join(json.dumps({**row, "output": "outro"}) + "\n" for row in rows), encoding="utf-8")
    found = sweeping.sweep(opened)
    other = place(
        tmp_path / "other", task__output="text", data__columns={"": "f2"}, sweep__trials=1, train__max_steps=1,
        compare=["nearest"], answer__max_text_tokens=None, train__max_length=256,
    )  # fmt: skip
    assert run_sweep(other).report["trials"][0]["losses"] == found.report["trials"][0]["losses"]


@pytest.mark.slow
def test_the_verb(tmp_path: Path) -> None:
    recipe = place(tmp_path)
    done = afina("sweep", recipe, "sweep.trials=1", "train.max_steps=1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["trials"][0]["number"] == 1
    assert "trial 1 of 1: lora_r" in done.err
    assert "Trial 0 finished" not in done.err  # Optuna's own log
    assert "Best recipe:" in done.err
    table = afina("sweep", recipe, "sweep.trials=1", "train.max_steps=1")
    assert table.code == 0
    assert table.out.startswith("small, 1 trial: 1 complete")
    wrong = afina("sweep", recipe, "sweep.parameters.lora_dropout=[0.1,1.5]")
    assert wrong.code == 2
    assert "sweep.parameters.lora_dropout: train.lora_dropout: found 1.5" in wrong.err


def test_no_combination_left_ends_it_early_and_time_too(tmp_path: Path) -> None:
    """Of the loop alone: what is tried is made up."""
    study = Study(tmp_path / "s.sqlite", SweepConfig(), [Parameter("lora_r", (2, 4))], 1, max_evaluations=1)
    ground: Any = None
    ended = Ended("complete", [1.0], 1, 1, 1)
    with (
        mock.patch.object(searching, "_try", return_value=ended),
        mock.patch.object(searching, "_write", return_value={"best": None, "trials": []}),
    ):
        timed = SweepConfig(trials=9, timeout_minutes=1e-9)
        assert searching._search(ground, tmp_path, study, timed) == "timeout"
        assert searching._search(ground, tmp_path, study, SweepConfig(trials=1)) == "trials"
        assert searching._search(ground, tmp_path, study, SweepConfig(trials=9)) == "exhausted"
    with sqlite3.connect(tmp_path / "s.sqlite") as file:
        assert file.execute("select count(*) from trials").fetchone() == (2,)
