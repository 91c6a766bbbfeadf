"""What is varied: `sweep.parameters` checked against the recipe's group `train`, and a recipe with other settings.

Comes in: a recipe. Goes out: `Parameter`s, every value of which the recipe would take, and `with_settings`. A key that
would make trials incomparable, or change only how fast they are, is refused with its reason. Knows nothing of Optuna.
"""

from __future__ import annotations

import difflib
import itertools
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina.core.catalogue_config import Range, SweepConfig
from afina.core.config import Recipe
from afina.core.errors import RecipeError
from afina.core.recipe_file import ALIASES, make_recipe
from afina.core.train_config import TrainConfig
from afina.training.settings import Settings

Value = float | int | str | bool
Params = Mapping[str, Value]
DIGITS = 3  # of a number drawn from a range: enough to train by, and to read

SWEPT = (
    "finetuning_type", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype", "bf16", "lora_r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "optim", "group_by_length",
)  # fmt: skip
DATA = ("base_model", "revision", "chat_template", "max_length")
JUDGING = ("loss_on", "eval_steps", "early_stopping_patience")
SPEED = (
    "packing", "share_prefix", "gradient_checkpointing", "attn_implementation", "dequantize", "fused_lora",
    "fused_loss", "torch_compile", "use_liger_kernel", "logging_steps", "backend", "report_to",
)  # fmt: skip
WHY_NOT = {
    **dict.fromkeys(DATA, "decides what the examples are, so that losses could not be compared. Sweep once with each"),
    **dict.fromkeys(JUDGING, "decides how trials are judged, so that they could not be compared. Set it under train"),
    **dict.fromkeys(SPEED, "does not change what is learned. Set it under train"),
}
# Of resolved settings, what decides the weights that are learned; the rest decides how fast.
LEARNED = (
    "finetuning_type", "quantisation", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype",
    "compute_dtype", "weights_dtype", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora",
    "use_rslora", "effective_batch", "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay",
    "max_grad_norm", "optim", "group_by_length", "total_steps",
)  # fmt: skip
FOUR_BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")


@dataclass(frozen=True)
class Parameter:
    """One setting that is varied: among `choices`, or between `low` and `high`, both included.

    whole: only whole numbers. log: magnitudes are tried evenly.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for all of them: what is right for these is right for those between."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def num_values(self) -> int | None:
        """None: as many as there are numbers."""
        if self.choices:
            return len(self.choices)
        return int(self.high) - int(self.low) + 1 if self.whole else None

    def rounded(self, value: Value) -> Value:
        """A drawn value with as many digits as it is worth."""
        if self.choices or self.whole or isinstance(value, str):
            return value
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    def holds(self, value: Any) -> bool:
        if self.choices:
            return any(value == one and type(value) is type(one) for one in self.choices)
        return isinstance(value, float | int) and not isinstance(value, bool) and self.low <= value <= self.high

    def to_json(self) -> dict[str, Any]:
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.ends[0], "high": self.ends[1], "log": self.log}


def parameters_of(recipe: Recipe) -> list[Parameter]:
    """What the recipe's sweep varies. Raises RecipeError, naming the place, before anything is trained."""
    _require_local(recipe)
    found = [_parameter(key, wanted) for key, wanted in recipe.sweep.parameters.items()]
    _require_every_value(recipe, found)
    return found


def _require_local(recipe: Recipe) -> None:
    if recipe.train.provider is not None:
        raise RecipeError(
            f"train.provider is {recipe.train.provider}, but a sweep trains on this machine: at a provider every trial "
            "would be a job to pay for. Remove train.provider."
        )
    if recipe.train.rounds is not None:
        raise RecipeError("train.rounds: a sweep trains on one table. Name it as data.path, and remove train.rounds.")


def _parameter(key: str, wanted: Sequence[Value] | Range) -> Parameter:
    place = f"sweep.parameters.{key}"
    _require_key(key, place)
    if isinstance(wanted, Range):
        return _between(key, wanted, place)
    if any(isinstance(value, float) and not math.isfinite(value) for value in wanted):
        raise RecipeError(f"{place}: found {list(wanted)}, expected finite numbers.")
    if len(set(wanted)) < len(wanted):
        raise RecipeError(f"{place}: a value stands twice in {list(wanted)}. Remove one.")
    if len(wanted) < 2:
        raise RecipeError(f"{place}: found {list(wanted)}, expected two values or more. Write a fixed one under train.")
    return Parameter(key, tuple(wanted))


def _require_key(key: str, place: str) -> None:
    if key in SWEPT:
        return
    if key in WHY_NOT:
        raise RecipeError(f"{place}: {key} {WHY_NOT[key]}.")
    if key in TrainConfig.model_fields:
        raise RecipeError(f"{place}: cannot be varied. What can: {', '.join(SWEPT)}.")
    short = key.removeprefix("train.")
    near = [short] if short in SWEPT else [ALIASES[key]] if ALIASES.get(key) in SWEPT else []
    near += difflib.get_close_matches(short, SWEPT, n=1, cutoff=0.6)
    raise RecipeError(f"{place}: is no key of train. {f'Did you mean {near[0]}?' if near else f'Known: {SWEPT}.'}")


def _between(key: str, wanted: Range, place: str) -> Parameter:
    kinds = _kinds(TrainConfig.model_fields[key].annotation)
    if not kinds & {int, float}:
        raise RecipeError(f"{place}: found {{low, high}}, but {key} is no number. List the values to try, as [a, b].")
    if not (math.isfinite(wanted.low) and math.isfinite(wanted.high)):
        raise RecipeError(f"{place}: found {wanted.low} to {wanted.high}, expected finite numbers.")
    whole = float not in kinds
    if whole and not (wanted.low.is_integer() and wanted.high.is_integer()):
        raise RecipeError(f"{place}: found {wanted.low} to {wanted.high}, but {key} is a whole number. Round both.")
    return Parameter(key, low=wanted.low, high=wanted.high, whole=whole, log=wanted.log)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types inside an annotation, as {int, str} of `Annotated[int, ...] | Literal["auto"]`."""
    inner = typing.get_args(annotation)
    return set[Any]().union(*map(_kinds, inner)) if inner else {annotation}


# -- recipes with other settings --------------------------------------------------------------------


def with_settings(recipe: Recipe, params: Params, where: str = "recipe") -> Recipe:
    """The recipe with keys of `train` replaced, checked as if it had been written so. Raises RecipeError."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    return make_recipe({**raw, "train": {**raw.get("train", {}), **params}}, where)


def _require_every_value(recipe: Recipe, parameters: Sequence[Parameter]) -> None:
    """Each value must be one that `train` takes, and no two values may contradict each other."""
    for parameter in parameters:
        for value in parameter.ends:
            with_settings(recipe, {parameter.key: value}, f"sweep.parameters.{parameter.key}")
    for one, other in itertools.combinations(parameters, 2):
        for a, b in itertools.product(one.ends, other.ends):
            where = f"sweep.parameters: {one.key} {a} with {other.key} {b}"
            with_settings(recipe, {one.key: a, other.key: b}, where)


# -- settings that have no effect ---------------------------------------------------------------------


def middle_of(parameters: Sequence[Parameter], recipe: Recipe) -> dict[str, Value]:
    """One value for each: the recipe's own where it is among those to try, else the first."""
    own = {p.key: getattr(recipe.train, p.key) for p in parameters}
    return {p.key: own[p.key] if p.holds(own[p.key]) else p.ends[0] for p in parameters}


def one_by_one(parameters: Sequence[Parameter], recipe: Recipe) -> Iterator[tuple[Parameter, dict[str, Value]]]:
    """Every value of every parameter, the others left in the middle."""
    middle = middle_of(parameters, recipe)
    for parameter in parameters:
        for value in parameter.ends:
            yield parameter, {**middle, parameter.key: value}


def require_effect(resolved: Sequence[tuple[Parameter, Settings]]) -> None:
    """Raise RecipeError for a parameter whose values all come to the same training on this machine.

    resolved: the settings of every one of `one_by_one`.
    """
    for parameter in {one.key: one for one, _ in resolved}.values():
        mine = [settings for one, settings in resolved if one is parameter]
        learned = {tuple(_learned(settings, name) for name in LEARNED) for settings in mine}
        if len(learned) > 1:
            continue
        notes = [note for settings in mine for note in settings.notes if note.startswith(f"{parameter.key}:")]
        why = notes[0] if notes else _why_same(parameter.key, mine[0])
        raise RecipeError(
            f"sweep.parameters.{parameter.key}: {', '.join(map(str, parameter.ends))} come to the same training here. "
            f"{why} Remove it."
        )


def _learned(settings: Settings, name: str) -> Any:
    """None for what a setting cannot decide on its path."""
    if name in FOUR_BIT and settings.quantisation != "4bit":
        return None
    if settings.finetuning_type == "full" and (name.startswith("lora_") or name in ("use_dora", "use_rslora")):
        return None
    return getattr(settings, name)


def _why_same(key: str, settings: Settings) -> str:
    if key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        return (
            f"An update has {settings.effective_batch} examples either way; fix the one of per_device_train_batch_size "
            "and gradient_accumulation_steps under train to vary the other."
        )
    if key in FOUR_BIT:
        return "The weights are not held in 4 bits."
    return f"The finetuning_type is {settings.finetuning_type}."


def described(config: SweepConfig, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """What decides which trials there are, as plain JSON; their number is no part of it."""
    return {
        "parameters": {p.key: p.to_json() for p in parameters},
        "metric": config.metric,
        "sampler": config.sampler,
        "pruner": config.pruner,
    }


def same_size(settings: Settings) -> Settings:
    """The settings without the notes that the planner made on the way."""
    return replace(settings, notes=())
