"""A fine-tuning job as the API means it: a training file and a base in, a trained folder out.

Comes in: `JobSpec`, numbers and absolute paths only. `get_ready` reads the files and decides everything without loading
a weight; `train` does it, and does it again from its checkpoints after a kill. Knows nothing of processes, logs, names
of models or databases.

Peak learning rate: learning_rate_multiplier x `planner.auto_learning_rate(kind, parameters)` (1e-3 for all weights of
afina/nano, 2e-3 for an adapter on it, 2e-4 for adapters from 1 B parameters on); for preferences a tenth of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from afina.core.chat import Completion, Conversation, Message, Preference
from afina.core.errors import DataError, RecipeError
from afina.core.storage import read_json, write_json
from afina.core.train_config import TrainConfig
from afina.data import training_file
from afina.engine.chat import ChatFormat
from afina.engine.codec import Codec
from afina.engine.encoded import Encoded
from afina.engine.hub import no_telemetry
from afina.engine.loader import LoadedModel, load_spec, load_tokenizer, specialist_spec, weights_folder
from afina.training import dpo, local
from afina.training.adapters import go_on
from afina.training.collate import common_beginning
from afina.training.dpo import Pair
from afina.training.facts import ModelFacts, model_facts
from afina.training.machine import Machine, machine
from afina.training.plan import plan, require_fit
from afina.training.planner import resolve_batch
from afina.training.settings import Settings
from afina.training.watch import Watcher

Style = Literal["chat", "completion"]
SETTINGS = "settings.json"
# Of the recipe's train section: what the job's own numbers decide, and what has no part in it.
DECIDED = (
    *("base_model", "revision", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "loss_on", "adapt"),
    *("early_stopping_patience", "eval_steps", "report_to", "chat_template", "max_length"),
)
ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora")
HELD_KEYS = ("finetuning_type", "load_in_4bit", "load_in_8bit")  # and all that begin with bnb_4bit_


@dataclass(frozen=True)
class JobSpec:
    """base_name: afina/nano, a model folder or a hub id; used where base_folder, an earlier fine-tune, is None.
    train: settings of the recipe's train section. max_length: tokens of an example; the model's context if None."""

    method: Literal["supervised", "dpo"]
    base_name: str | None
    base_folder: Path | None
    training_file: Path
    validation_file: Path | None
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    beta: float
    seed: int
    train: dict[str, Any]
    max_length: int | None
    style: Literal["chat", "completion", "auto"]


@dataclass(frozen=True)
class Base:
    """What is trained. name: where weights and tokenizer are read. root: the model at the beginning of its lineage, a
    name that lasts. adapter: folder of the earlier fine-tune's adapter, which is trained further."""

    name: str
    revision: str | None
    root: str
    train: dict[str, Any]
    adapter: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclass
class Tokens:
    """A file's examples as tokens; as Encoded or, for preferences, as Pair. num_tokens: of all, learned or not, after
    cutting. num_cut: examples that were cut at the end. num_empty: left out, since nothing of them could be learned."""

    examples: list[Any] = field(default_factory=list)
    num_tokens: int = 0
    num_cut: int = 0
    num_empty: int = 0


@dataclass(frozen=True)
class Ready:
    """All that a training needs but the weights. style: how prompts are to be written when the result is served."""

    spec: JobSpec
    base: Base
    settings: Settings
    style: Style
    train_set: list[Any]
    validation_set: list[Any]
    tokens_per_epoch: int
    warnings: list[str]

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set) / self.settings.effective_batch)


def get_ready(spec: JobSpec, folder: Path) -> Ready:
    """Read, tokenise, and decide. folder: of the training; the first call's decisions are kept there.

    Raises AfinaError: DataError about the files, RecipeError about `spec.train`, ModelError, MachineError where the
    training does not fit.
    """
    no_telemetry()
    if spec.method == "dpo":
        dpo.require_trl()
    base = _base(spec)
    config = _config(spec, base)
    facts = model_facts(base.name, base.revision)
    limits = [length for length in (spec.max_length, facts.context) if length]
    config = config.model_copy(update={"max_length": min(limits, default=config.max_length)})
    chat, style = _format(spec, base)
    found = read_tokens(training_file.read(spec.training_file), chat, config.max_length)
    if not found.examples:
        raise DataError("No example has a token that can be learned: an assistant's answer of weight 1.")
    validation = Tokens()
    if spec.validation_file is not None:
        validation = read_tokens(training_file.read(spec.validation_file), chat, config.max_length)
    settings = _settings(spec, config, facts, found.examples, folder)
    notes = [*base.warnings, *_warnings(found, "training", config.max_length)]
    notes += _warnings(validation, "validation", config.max_length)
    return Ready(spec, base, settings, style, found.examples, validation.examples, found.num_tokens, notes)


def train(ready: Ready, folder: Path, watcher: Watcher) -> local.TrainResult:
    """Train as decided; a killed or stopped training is continued. Raises as `local.train` does."""
    spec, settings = ready.spec, ready.settings
    loaded = load(ready)
    if spec.method == "dpo":
        return dpo.train(
            loaded, settings, ready.train_set, ready.validation_set, folder, spec.seed, beta=spec.beta, watcher=watcher
        )
    return local.train(loaded, settings, ready.train_set, ready.validation_set, folder, spec.seed, watcher=watcher)


def load(ready: Ready) -> LoadedModel:
    """The base, with the adapter that is trained further."""
    loaded = load_spec(ready.settings.base, dequantize=ready.settings.dequantize)
    if ready.base.adapter is not None:
        return go_on(loaded, ready.base.adapter)
    # Whole weights of an earlier job lie in a folder that will not last: what is written down names their root.
    loaded.spec = replace(loaded.spec, name=ready.base.root)
    return loaded


# -- the base --------------------------------------------------------------------------------------


def _base(spec: JobSpec) -> Base:
    settings = {key: value for key, value in spec.train.items() if key not in DECIDED}
    if spec.base_folder is None:
        assert spec.base_name is not None, "a job has a base"
        return Base(spec.base_name, spec.train.get("revision"), spec.base_name, settings)
    place, root = weights_folder(spec.base_folder), specialist_spec(spec.base_folder)
    asked = sorted(k for k in settings if k in (*ADAPTER_KEYS, *HELD_KEYS) or k.startswith("bnb_4bit_"))
    settings = {key: value for key, value in settings.items() if key not in asked}
    if not (place / "adapter_config.json").exists():
        warnings = ()
        if asked and spec.train.get("finetuning_type") != "full":
            warnings = (f"The base is a whole model, so all weights are trained and {asked[0]} has no effect.",)
        return Base(str(place), None, root.name, {**settings, "finetuning_type": "full"}, None, warnings)
    adapter = read_json(place / "adapter_config.json")
    settings |= {
        "finetuning_type": "lora",
        "load_in_4bit": root.quantisation == "4bit",
        "load_in_8bit": root.quantisation == "8bit",
        "lora_r": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "lora_target_modules": sorted(adapter["target_modules"]),
        "use_dora": bool(adapter.get("use_dora")),
        "use_rslora": bool(adapter.get("use_rslora")),
    }
    if root.quantisation == "4bit":
        settings |= {"bnb_4bit_quant_type": root.bnb_quant_type, "bnb_4bit_use_double_quant": root.bnb_double_quant}
        settings |= {"bnb_4bit_compute_dtype": root.bnb_compute_dtype}
    return Base(root.name, root.revision, root.name, settings, place)


def _config(spec: JobSpec, base: Base) -> TrainConfig:
    given = {**base.train, "base_model": base.name, "revision": base.revision, "num_train_epochs": spec.n_epochs}
    try:
        config = TrainConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["train", *(str(part) for part in first["loc"][:1])])
        raise RecipeError(f"{key}: {first['msg']}. Correct it in the server's configuration.") from error
    return config if spec.method == "supervised" else config.model_copy(update=dpo.WITHOUT)


def _format(spec: JobSpec, base: Base) -> tuple[ChatFormat, Style]:
    tokenizer = load_tokenizer(base.name, base.revision)
    style: Style = "completion" if spec.style == "completion" or not tokenizer.chat_template else "chat"
    first = next(training_file.read(spec.training_file), None)
    if isinstance(first, Completion):
        style = "completion"
    return ChatFormat(Codec(tokenizer), style), style


# -- tokens ----------------------------------------------------------------------------------------


def read_tokens(lines: Iterable[Conversation | Preference | Completion], chat: ChatFormat, max_tokens: int) -> Tokens:
    """Every line as tokens, at most `max_tokens` of them (of a pair: in each of its two readings)."""
    found = Tokens()
    for line in lines:
        if isinstance(line, Preference):
            pair, num_tokens, is_cut = _pair(line, chat, max_tokens)
            is_empty, example = pair is None, pair
        else:
            encode = chat.encode_completion if isinstance(line, Completion) else chat.encode
            example = encode(line, max_tokens)  # type: ignore[arg-type]
            num_tokens, is_cut = len(example.input_ids), example.truncated > 0
            is_empty = not example.trained("completion")
        found.num_tokens += num_tokens
        found.num_cut += is_cut
        found.num_empty += is_empty
        if not is_empty:
            found.examples.append(example)
    return found


def _pair(line: Preference, chat: ChatFormat, max_tokens: int) -> tuple[Pair | None, int, bool]:
    """(the pair, or None if nothing is left of an answer; tokens of prompt and both answers; whether they were cut)."""
    asked = tuple(replace(message, weight=0) for message in line.asked.messages)

    def told(answer: Message) -> Encoded:
        return chat.encode(Conversation((*asked, replace(answer, weight=1)), line.asked.tools), max_tokens)

    one, other = told(line.preferred), told(line.non_preferred)
    (prompt, chosen), (prompt_again, rejected) = _halves(one), _halves(other)
    is_cut = one.truncated > 0 or other.truncated > 0
    if not chosen or not rejected:
        return None, len(prompt) + len(chosen) + len(rejected), is_cut
    assert prompt == prompt_again, "the answer decides no token of its prompt"
    pair = Pair(prompt, chosen, rejected)
    return pair, pair.num_tokens, is_cut


def _halves(told: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens before the answer, tokens of the answer."""
    trained = told.trained("completion")
    if not trained:
        return told.input_ids, ()
    assert trained == list(range(trained[0], trained[-1] + 1)), "one answer is one run of tokens"
    return told.input_ids[: trained[0]], told.input_ids[trained[0] : trained[-1] + 1]


def _warnings(found: Tokens, what: str, max_tokens: int) -> list[str]:
    total = len(found.examples) + found.num_empty
    said: list[str] = []
    if found.num_cut:
        said.append(
            f"{found.num_cut} of {total} {what} examples are longer than {max_tokens} tokens, the context that this "
            "model is trained with; they are cut at the end."
        )
    if found.num_empty:
        said.append(
            f"{found.num_empty} of {total} {what} examples are left out: nothing that is to be learned is in them, or "
            "within the context."
        )
    return said


# -- settings --------------------------------------------------------------------------------------


def _settings(spec: JobSpec, config: TrainConfig, facts: ModelFacts, examples: Sequence[Any], folder: Path) -> Settings:
    """What the first start of this job decided; later ones may find the machine with less memory free."""
    kept = folder / SETTINGS
    if kept.exists():
        raw: dict[str, Any] = read_json(kept)
        raw |= {key: tuple(raw[key]) for key in ("lora_target_modules", "notes")}
        return Settings(**raw)
    here = machine(folder)
    if spec.method == "dpo":
        lengths, shared = [pair.num_read for pair in examples], 0
        here = _with_reference(here, config, facts)
    else:
        lengths, shared = [len(e.input_ids) for e in examples], common_beginning(examples)
    settings = resolve_batch(config, facts, lengths, here, shared, batch_size=spec.batch_size)
    rate = settings.learning_rate * spec.learning_rate_multiplier
    if spec.method == "dpo":
        rate *= dpo.RATE_SHARE
        settings = replace(settings, lora_dropout=0.0)
    settings = replace(settings, learning_rate=rate)
    require_fit(plan(settings, facts, lengths, here, shared=shared))
    write_json(kept, settings.to_json())
    return settings


def _with_reference(here: Machine, config: TrainConfig, facts: ModelFacts) -> Machine:
    """The machine without what a frozen copy of the model takes, where all weights may be trained."""
    if config.finetuning_type == "lora":
        return here
    copy = 4 * facts.num_parameters
    gpus = tuple(replace(gpu, free_bytes=max(0, gpu.free_bytes - copy)) for gpu in here.gpus)
    return replace(here, available_bytes=max(0, here.available_bytes - (0 if gpus else copy)), gpus=gpus)
