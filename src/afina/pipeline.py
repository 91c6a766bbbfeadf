"""The main job, top to bottom: recipe -> data -> plan -> training -> evaluation -> report.

Each stage takes a `Run`, does nothing if its result is already there, and leaves files that the next
one reads. The test rows are read by `evaluate` alone.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.config import Recipe
from afina.core.errors import DataError, RunError
from afina.core.predictor import Example, Prediction, Predictor
from afina.core.recipe_file import load_recipe
from afina.core.storage import explain_write_errors, read_json, write_json, write_jsonl, write_text
from afina.core.strategy_config import STUDENT
from afina.core.task_config import load_task
from afina.data.formats import read_table
from afina.data.leaks import contained_in
from afina.data.prepare import Prepared, load_prepared, summary_lines
from afina.data.prepare import prepare as prepare_data
from afina.engine.codec import Codec
from afina.engine.decode import against_gold, write_answers
from afina.engine.encoded import Encoded
from afina.engine.loader import LoadedModel, load_spec, load_specialist, load_tokenizer
from afina.engine.renderer import Renderer, Style, prompt_style
from afina.engine.writer import check_grammar
from afina.evaluation.calibration import fit_temperature
from afina.evaluation.runner import SystemRun, run_system
from afina.evaluation.runner import evaluate as evaluate_systems
from afina.recorded import recorded
from afina.report.card import write_card
from afina.report.html import write_report
from afina.runs import STAGING, Run, environment, open_recipe
from afina.strategies.build import Builder
from afina.strategies.classical import Majority, TfidfLogistic
from afina.strategies.drafter import AnswerDrafter, build_drafter
from afina.strategies.finetuned import Manifest, Specialist
from afina.strategies.local import LocalPredictor
from afina.strategies.local_chat import LocalChat
from afina.training import local, planner
from afina.training.collate import common_beginning
from afina.training.facts import model_facts
from afina.training.machine import machine
from afina.training.plan import Plan, require_fit
from afina.training.plan import plan as make_plan
from afina.training.settings import Settings

DEMO_RECIPE = Path(__file__).parent / "assets" / "noticias" / "recipe.yaml"
ADAPT_MAX_TOKENS = 512  # of one piece of unlabelled text
ANSWERS = "answers.sqlite"  # answers of models elsewhere; paid once
CONTAINED = 0.5  # share of a test text's 3-grams in an unlabelled text that makes it a leak


def read(path: Path, overrides: Sequence[str] | None = None) -> Recipe:
    return load_recipe(path, overrides or ())


def open_run(path: Path, overrides: Sequence[str] | None = None, *, overwrite: bool = False) -> Run:
    """Open the run folder of a recipe file. Raises RecipeError, RunError, MachineError."""
    return open_recipe(read(path, overrides), overwrite=overwrite)


def say(*lines: str) -> None:
    """Tell the user what happens, on standard error: standard output belongs to results."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


# -- the whole ------------------------------------------------------------------------------------


def run(opened: Run) -> dict[str, Any]:
    """Prepare, train, evaluate, report. Returns what report.json holds."""
    prepare(opened)
    if "finetuned" in opened.recipe.compare:
        train(opened)
    result = evaluate(opened)
    write_reports(opened.folder)
    return result


# -- 1. data --------------------------------------------------------------------------------------


def prepare(
    opened: Run, *, quiet: bool = False, lengths: Callable[[Run], Callable[[Example], int]] | None = None
) -> Prepared:
    """Split examples, from the run folder if they are already there. Raises DataError, SchemaError.

    quiet: say nothing of what was found; the caller does. lengths: makes what counts an example's tokens; as the
    recipe's local model counts them when not given.
    """
    if opened.is_done("prepare", opened.data_key):
        with contextlib.suppress(RunError):  # damaged since: they are made again
            prepared = load_prepared(opened.data)
            opened.claim()
            return prepared
    staging = opened.folder / STAGING
    try:
        prepared = prepare_data(opened.recipe, opened.task, staging, (lengths or _longest_part)(opened))
        opened.claim()
    except BaseException:
        opened.release()
        raise
    shutil.rmtree(opened.data, ignore_errors=True)
    staging.rename(opened.data)
    opened.mark_done("prepare", opened.data_key)
    if not quiet:
        say(*summary_lines(prepared.report))
    return prepared


def _longest_part(opened: Run) -> Callable[[Example], int]:
    """Tokens of an example's longest part. Raises SchemaError for what this tokenizer cannot write."""
    renderer = renderer_of(opened)
    for part in opened.task.parts:
        check_grammar(renderer.codec, part.schema)

    def longest(example: Example) -> int:
        encoded = [renderer.encode(part, example) for part in opened.task.parts]
        return max((len(one.input_ids) for one in encoded if one is not None), default=0)

    return longest


def renderer_of(opened: Run) -> Renderer:
    train = opened.recipe.train
    tokenizer = load_tokenizer(train.base_model, train.revision)
    style = prompt_style(tokenizer, train.chat_template, train.base_model)
    return Renderer(opened.task, Codec(tokenizer), style, answer_format=opened.recipe.answer.answer_format)


def encode(renderer: Renderer, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Every part of every example as training tokens."""
    found = [renderer.encode(part, e, max_length) for e in examples for part in renderer.task.parts]
    return [one for one in found if one is not None]


Encode = Callable[[Renderer, Sequence[Example], int], list[Encoded]]
"""As `encode`: examples as training tokens of at most so many; others leave out or add what is learned."""


# -- 2. plan --------------------------------------------------------------------------------------


def plan(recipe: Recipe, *, measure: bool = True) -> Plan:
    """What a run would take, before anything is written. Reads the data and measures a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        opened = Run(recipe, load_task(recipe.task), Path(folder))
        prepared = prepare(opened)
        settings, encoded = settings_of(opened, prepared)
        return _plan(opened, settings, encoded, measure=measure)


def settings_of(opened: Run, prepared: Prepared, encode_train: Encode = encode) -> tuple[Settings, list[Encoded]]:
    train = opened.recipe.train
    encoded = encode_train(renderer_of(opened), prepared.splits["train"], train.max_length)
    facts = model_facts(train.base_model, train.revision)
    lengths = [one.longest for one in encoded]
    return planner.resolve(train, facts, lengths, machine(opened.recipe.run_dir), common_beginning(encoded)), encoded


def _plan(opened: Run, settings: Settings, encoded: Sequence[Encoded], *, measure: bool) -> Plan:
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


# -- 3. training ----------------------------------------------------------------------------------


def train(opened: Run, encode_train: Encode = encode, encode_validation: Encode = encode) -> Path:
    """The specialist's folder. Continues a killed training. Raises MachineError if it will not fit.

    encode_train, encode_validation: what is learned of the rows, and what the best weights are chosen by.
    """
    if opened.is_done("train", opened.train_key) and opened.specialist.is_dir():
        return opened.specialist
    prepared = prepare(opened)
    settings, train_set = settings_of(opened, prepared, encode_train)
    found = _plan(opened, settings, train_set, measure=False)
    require_fit(found)
    write_json(opened.folder / "plan.json", {**found.to_json(), "memory": found.memory_bytes})
    say(*found.lines())

    # 1. A training of other data or settings gives way; an interrupted one of these goes on.
    key = opened.training / "key.json"
    if opened.training.exists() and (not key.exists() or read_json(key) != opened.train_key):
        shutil.rmtree(opened.training)
    write_json(key, opened.train_key)

    # 2. Adapt to the domain's text if the recipe says so, then learn the task.
    renderer = renderer_of(opened)
    validation_set = encode_validation(renderer, prepared.splits["validation"], opened.recipe.train.max_length)
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    if opened.recipe.train.adapt is not None:
        _adapt(opened, loaded, settings, renderer, prepared)
    result = local.train(
        loaded, settings, train_set, validation_set, opened.training, opened.recipe.seed, opened.recipe.train.report_to
    )

    # 3. Calibrate on validation as it will be served, and put the specialist together.
    loaded = load_specialist(opened.training / result.weights, merged=True)
    temperature = _calibrate(opened, loaded, renderer, prepared.splits["validation"])
    drafter = _drafter(opened, loaded, renderer, prepared)
    _assemble(opened, renderer, settings, result.weights, temperature, drafter)
    write_text(opened.folder / "metrics.jsonl", (opened.training / "metrics.jsonl").read_text(encoding="utf-8"))
    opened.mark_done("train", opened.train_key)
    return opened.specialist


def _adapt(opened: Run, loaded: LoadedModel, settings: Settings, renderer: Renderer, prepared: Prepared) -> None:
    """Language modelling on unlabelled text; texts that hold a validation or test text are left out."""
    adapt = opened.recipe.train.adapt
    assert adapt is not None, "called only with adapt settings"
    table = read_table(adapt.path)
    if adapt.column not in table.columns:
        raise DataError(
            f"{adapt.path}: train.adapt.column is {adapt.column!r}, the columns are {table.columns}. Name one of them."
        )
    texts = [str(row.values.get(adapt.column) or "").strip() for row in table.rows]
    texts = list(dict.fromkeys(text for text in texts if text))
    unseen = [t for name in ("validation", "test") for e in prepared.splits[name] for t in e.inputs.values()]
    leaks = contained_in(unseen, texts, CONTAINED)
    kept = [text for text, leak in zip(texts, leaks, strict=True) if not leak]
    say(f"adapt: {len(kept)} unlabelled texts of {adapt.path.name}, {sum(leaks)} left out that hold unseen rows")
    length = min(ADAPT_MAX_TOKENS, opened.recipe.train.max_length)
    pieces = [piece for text in kept for piece in renderer.encode_text(text, length)]
    held_out = max(1, len(pieces) // 20)
    lm = planner.adapt_settings(settings, adapt, len(pieces) - held_out)
    local.train(
        loaded,
        lm,
        pieces[held_out:],
        pieces[:held_out],
        opened.training / "adapt",
        opened.recipe.seed,
        label="adapting",
    )


def _calibrate(opened: Run, loaded: LoadedModel, renderer: Renderer, validation: Sequence[Example]) -> dict[str, float]:
    """Field path -> temperature, one per group of fields, fitted on what the specialist chooses on validation.

    On its own choices, not on gold ones: an emotion that follows a wrong polarity must not be sure of itself.
    """
    recipe = opened.recipe
    rows: dict[str, list[tuple[Any, int]]] = {}
    names = {field.path: group.name for group in opened.task.groups for field in group.fields}
    for part in opened.task.parts:
        labelled = [one for e in validation if (one := renderer.encode(part, e, recipe.train.max_length))]
        prompts = [
            (list(one.input_ids[: one.num_prompt]), renderer.writer(part, recipe.answer.max_text_tokens))
            for one in labelled
        ]
        written = write_answers(loaded.model, prompts, batch_size=recipe.answer.batch_size, pad_id=loaded.pad_token_id)
        for gold, answer in zip(labelled, written, strict=True):
            for path, logits, index in against_gold(answer.made, gold):
                full = f"{part.key}.{path}".strip(".")
                if full in names:
                    rows.setdefault(names[full], []).append((logits, index))
    fitted = {name: fit_temperature([x for x, _ in found], [g for _, g in found]) for name, found in rows.items()}
    return {path: round(fitted[name], 4) for path, name in names.items() if name in fitted}


def _drafter(opened: Run, loaded: LoadedModel, renderer: Renderer, prepared: Prepared) -> AnswerDrafter | None:
    """What guesses the specialist's answers, learned from its own answers to rows that are not test rows."""
    if not opened.recipe.answer.draft or opened.task.free_text:
        return None
    predictor = LocalPredictor(
        "specialist",
        loaded.model,
        loaded.tokenizer,
        opened.task,
        style=renderer.style,
        answer_format=renderer.answer_format,
        batch_size=opened.recipe.answer.batch_size,
        max_text_tokens=opened.recipe.answer.max_text_tokens,
        max_length=opened.recipe.train.max_length,
    )
    return build_drafter(opened.task, predictor, [*prepared.splits["validation"], *prepared.splits["train"]])


def _assemble(
    opened: Run,
    renderer: Renderer,
    settings: Settings,
    weights: str,
    temperature: dict[str, float],
    drafter: AnswerDrafter | None,
) -> None:
    """The specialist folder: weights, tokenizer, manifest; whole or absent."""
    staging = opened.folder / ".specialist.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with explain_write_errors(opened.specialist):
            shutil.copytree(opened.training / weights, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    recipe = opened.recipe
    Manifest(
        task=opened.task.to_json(),
        base_model=settings.base_model,
        finetuning_type=settings.finetuning_type,
        style=renderer.style,
        answer_format=renderer.answer_format,
        fingerprint=renderer.fingerprint,
        max_length=recipe.train.max_length,
        max_text_tokens=recipe.answer.max_text_tokens,
        batch_size=recipe.answer.batch_size,
        recipe_hash=recipe.hash,
        data_hash=opened.data_key,
        afina_version=__version__,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        temperature=temperature,
        draft=recipe.answer.draft,
        reuse_prefix=recipe.answer.reuse_prefix,
    ).write(staging)
    if drafter is not None:
        drafter.save(staging)
    shutil.rmtree(opened.specialist, ignore_errors=True)
    staging.rename(opened.specialist)


# -- 4. evaluation --------------------------------------------------------------------------------

Answerer = Callable[[str], SystemRun]
"""A name of `compare` -> that system's answers to the test rows."""


def evaluate(
    opened: Run,
    answerer: Callable[[Run, Prepared], Answerer] | None = None,
    add: Callable[[Run, Prepared, dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every system of `compare` on the test rows; what report.json holds.

    answerer: who asks the systems; `answer_locally` when not given. A system that has answered is not asked again.
    add: what else the report holds.
    """
    path = opened.folder / "report.json"
    if opened.is_done("evaluate", opened.evaluate_key) and path.exists():
        return read_json(path)
    prepared = prepare(opened)
    recipe, test = opened.recipe, prepared.splits["test"]
    answer = (answerer or answer_locally)(opened, prepared)
    systems = [recorded(opened.folder, name, opened.system_key(name), partial(answer, name)) for name in recipe.compare]
    chosen = recipe.comparison
    result = evaluate_systems(
        opened.task,
        test,
        prepared.splits["train"],
        systems,
        recipe.seed,
        reference=chosen.reference,
        priority=chosen.priority,
        machine_usd_per_hour=chosen.machine_usd_per_hour,
    )
    result = {"version": result.pop("version"), "recipe_hash": recipe.hash, **result}
    if add is not None:
        result |= add(opened, prepared, result)
    write_answers_of(opened, test, systems)
    write_json(opened.folder / "environment.json", environment(opened, machine(recipe.run_dir).to_json()))
    write_json(path, result)
    opened.mark_done("evaluate", opened.evaluate_key)
    return result


def answer_locally(opened: Run, prepared: Prepared) -> Answerer:
    """Systems on this machine, and the strategies of the recipe."""
    builder = strategy_builder(opened, prepared)
    return partial(answers_of, opened, prepared, builder)


def answers_of(opened: Run, prepared: Prepared, builder: Builder, name: str) -> SystemRun:
    """One system's answers to the test rows."""
    test, recipe = prepared.splits["test"], opened.recipe
    config = recipe.strategies.get(name)
    strategy = config.strategy if config is not None else name
    predictor = builder.predictor(name)
    if config is not None:
        say(f"{name}: answering {len(test)} rows")
        return run_system(predictor, test, strategy, num_timed=0)
    base_model = recipe.train.base_model if strategy in ("zero-shot", "finetuned") else None
    found = run_system(predictor, test, strategy, base_model)
    if strategy != "finetuned":
        return found
    training = read_json(opened.training / local.RESULT)
    peak = max(found.peak_memory_bytes or 0, training["peak_memory_bytes"])
    return replace(found, peak_memory_bytes=peak, train_seconds=training["train_seconds"])


def strategy_builder(
    opened: Run, prepared: Prepared, built_in: Callable[[str], Predictor | None] = lambda name: None
) -> Builder:
    """What makes predictors of the recipe's names. built_in: knows more names than `compare` alone."""
    recipe = opened.recipe

    def known(name: str) -> Predictor:
        return built_in(name) or make_built_in(opened, prepared, name)

    return Builder(
        recipe,
        opened.task,
        {name: prepared.splits[name] for name in ("train", "validation")},
        built_in=known,
        base=lambda: base_chat(opened, prepared),
        answers=opened.folder / ANSWERS,
        cap_usd=recipe.comparison.max_cost_usd,
        tell=say,
    )


def make_built_in(opened: Run, prepared: Prepared, name: str) -> Predictor:
    """A system that is no strategy of the recipe."""
    train_rows, task = prepared.splits["train"], opened.task
    if name == "majority":
        return Majority(task, train_rows)
    if name == "tfidf":
        say("tfidf: choosing its settings on validation")
        return TfidfLogistic(task, train_rows, prepared.splits["validation"], opened.recipe.seed)
    if name == "finetuned":
        return WithProgress(Specialist.load(train(opened), batch_size=opened.recipe.answer.batch_size).predictor)
    return WithProgress(_zero_shot(opened, prepared))


def _base(opened: Run, prepared: Prepared) -> tuple[LoadedModel, Style]:
    """The base model as it is."""
    settings, _ = settings_of(opened, prepared)
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    loaded.model.eval()
    train = opened.recipe.train
    return loaded, prompt_style(loaded.tokenizer, train.chat_template, train.base_model)


def base_chat(opened: Run, prepared: Prepared) -> LocalChat:
    answer = opened.recipe.answer
    loaded, style = _base(opened, prepared)
    return LocalChat("base", loaded, style, batch_size=answer.batch_size, max_text_tokens=answer.max_text_tokens)


def _zero_shot(opened: Run, prepared: Prepared) -> LocalPredictor:
    """The base model, told the labels in its prompt, held to them by the same engine."""
    loaded, style = _base(opened, prepared)
    return LocalPredictor(
        "zero-shot",
        loaded.model,
        loaded.tokenizer,
        opened.task,
        style=style,
        show_schema=True,
        answer_format=opened.recipe.answer.answer_format,
        batch_size=opened.recipe.answer.batch_size,
        max_text_tokens=opened.recipe.answer.max_text_tokens,
    )


class WithProgress:
    """A local predictor that shows its progress where there is something to wait for."""

    def __init__(self, predictor: LocalPredictor, label: str | None = None) -> None:
        self.predictor, self.name, self.label = predictor, predictor.name, label or predictor.name

    def predict(self, inputs: Sequence[Any]) -> list[Prediction]:
        return self.predictor.predict(inputs, label=self.label if len(inputs) > 1 else None)


def write_answers_of(opened: Run, test: Sequence[Example], systems: Sequence[SystemRun]) -> None:
    """predictions/ of every system, and examples.json for the page: of the specialist, or else of the first student, or
    else of the reference."""
    for system in systems:
        rows = [_prediction_row(e, p) for e, p in zip(test, system.predictions, strict=True)]
        write_jsonl(opened.folder / "predictions" / f"{system.name}.jsonl", rows)
    reference = opened.recipe.comparison.reference or systems[0].name
    wanted = (
        lambda s: s.strategy == "finetuned",
        lambda s: s.strategy.startswith(STUDENT),
        lambda s: reference in (s.name, s.strategy),
    )
    shown = next(s for test_for in wanted for s in systems if test_for(s))
    write_json(
        opened.folder / "examples.json",
        [_shown(e, p) for e, p in zip(test, shown.predictions, strict=True)],
    )


def _prediction_row(example: Example, prediction: Prediction) -> dict[str, Any]:
    row = {
        "id": example.id,
        "output": prediction.output,
        "confidence": dict(prediction.confidence),
        "error": prediction.error,
    }
    said = {"reasoning": dict(prediction.reasoning), "trace": list(prediction.trace)}
    return row | {name: value for name, value in said.items() if value}


def _shown(example: Example, prediction: Prediction) -> dict[str, Any]:
    return {
        **_prediction_row(example, prediction),
        "inputs": dict(example.inputs),
        "gold": example.output,
        "correct": prediction.output == example.output,
    }


# -- 5. report ------------------------------------------------------------------------------------


def write_reports(folder: Path, language: str = "en") -> Path:
    """report.html, and the model card beside the weights. Raises RunError if the run was not evaluated."""
    path = write_report(folder, language)
    if (folder / "specialist").is_dir():
        write_card(folder, folder / "specialist")
    return path
