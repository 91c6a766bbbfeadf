"""The training stage: prepared examples become a specialist folder; a killed training continues."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afina import __version__
from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.storage import explain_write_errors, read_json, write_json, write_text
from afina.data.formats import read_table
from afina.data.leaks import contained_in
from afina.data.prepare import Prepared
from afina.engine.decode import against_gold, write_answers
from afina.engine.loader import LoadedModel, load_spec, load_specialist
from afina.engine.renderer import Renderer
from afina.evaluation.calibration import fit_temperature
from afina.pipeline.opening import say
from afina.pipeline.planning import plan_of, settings_of
from afina.pipeline.splits import Encode, encode, prepare, renderer_of
from afina.runs import Run
from afina.strategies.drafter import AnswerDrafter, build_drafter
from afina.strategies.finetuned import Manifest
from afina.strategies.local import LocalPredictor
from afina.training import local, planner
from afina.training.plan import require_fit
from afina.training.settings import Settings

ADAPT_MAX_TOKENS = 512  # of one piece of unlabelled text
CONTAINED = 0.5  # share of a test text's 3-grams in an unlabelled text that makes it a leak


def train(opened: Run, encode_train: Encode = encode, encode_validation: Encode = encode) -> Path:
    """The specialist's folder. Continues a killed training. Raises MachineError if it will not fit.

    encode_train, encode_validation: what is learned of the rows, and what the best weights are chosen by.
    """
    if opened.is_done("train", opened.train_key) and opened.specialist.is_dir():
        return opened.specialist
    prepared = prepare(opened)
    settings, train_set = settings_of(opened, prepared, encode_train)
    found = plan_of(opened, settings, train_set, measure=False)
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
        adapt_to(opened, loaded, settings, renderer, prepared)
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


def adapt_to(opened: Run, loaded: LoadedModel, settings: Settings, renderer: Renderer, prepared: Prepared) -> None:
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
        no_repeat_ngram_size=opened.recipe.answer.no_repeat_ngram_size,
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
        no_repeat_ngram_size=recipe.answer.no_repeat_ngram_size,
    ).write(staging)
    if drafter is not None:
        drafter.save(staging)
    shutil.rmtree(opened.specialist, ignore_errors=True)
    staging.rename(opened.specialist)
