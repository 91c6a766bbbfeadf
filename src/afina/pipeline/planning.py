"""The plan: what a run would take on this machine, before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from afina.core.config import Recipe
from afina.core.task_config import load_task
from afina.data.prepare import Prepared
from afina.engine.encoded import Encoded
from afina.engine.loader import load_spec
from afina.pipeline.opening import say
from afina.pipeline.splits import Encode, encode, prepare, renderer_of
from afina.runs import Run
from afina.training import local, planner
from afina.training.collate import common_beginning
from afina.training.facts import model_facts
from afina.training.machine import machine
from afina.training.plan import Plan
from afina.training.plan import plan as make_plan
from afina.training.settings import Settings


def plan(recipe: Recipe, *, measure: bool = True) -> Plan:
    """What a run would take, before anything is written. Reads the data and measures a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        opened = Run(recipe, load_task(recipe.task), Path(folder))
        prepared = prepare(opened)
        settings, encoded = settings_of(opened, prepared)
        return plan_of(opened, settings, encoded, measure=measure)


def settings_of(opened: Run, prepared: Prepared, encode_train: Encode = encode) -> tuple[Settings, list[Encoded]]:
    train = opened.recipe.train
    encoded = encode_train(renderer_of(opened), prepared.splits["train"], train.max_length)
    facts = model_facts(train.base_model, train.revision)
    lengths = [one.longest for one in encoded]
    return planner.resolve(train, facts, lengths, machine(opened.recipe.run_dir), common_beginning(encoded)), encoded


def plan_of(opened: Run, settings: Settings, encoded: Sequence[Encoded], *, measure: bool) -> Plan:
    here = machine(opened.recipe.run_dir)
    facts = model_facts(settings.base_model, settings.revision)
    lengths = [one.longest for one in encoded]
    found = make_plan(settings, facts, lengths, here)
    if not found.fits or not measure:
        return found
    say("measuring a few training steps")
    step_s = local.measure_step_s(
        load_spec(settings.base, dequantize=settings.dequantize), settings, encoded, opened.recipe.seed
    )
    return make_plan(settings, facts, lengths, here, step_s)
