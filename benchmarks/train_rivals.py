"""What runs inside one rival's process: the same examples learned by TRL or by Afina, timed update by update.

Comes in: a model folder and a file of token lists. Goes out: a dictionary of figures, for one line of JSON. It
compares nothing. TRL's rivals import nothing heavy of Afina, so their start-up and memory are their own.

Every rival learns the same 16 examples in the same update (`update_order`), and is judged by one function
(`validation_loss`) on the same rows. Past 400 lines: what is the same for the rivals should be seen in one place.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

# Of the notebook (module 4), and the same for every rival.
EXAMPLES_PER_UPDATE = 16
LORA_R, LORA_ALPHA, LORA_DROPOUT = 16, 64, 0.1
SEVEN_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE, SCHEDULE, MAX_GRAD_NORM = 4e-4, "constant", 0.3
SEED = 42
WARM_UP_UPDATES = 2  # not counted in the steady rate


@dataclass(frozen=True)
class Row:
    """One example as tokens; the first num_prompt are the prompt, the last one is the end of sequence."""

    ids: tuple[int, ...]
    num_prompt: int

    @property
    def num_completion(self) -> int:
        return len(self.ids) - self.num_prompt


@dataclass(frozen=True)
class Work:
    """What a rival is to do. updates: of 16 examples. num_epochs: instead, where Afina's planner decides."""

    model: Path
    train: list[Row]
    validation: list[Row]
    updates: int
    num_epochs: float
    scratch: Path


@dataclass(frozen=True)
class TrlSettings:
    """One way to use SFTTrainer.

    nf4: base weights in NF4 with double quantisation; else bfloat16. whole_text: loss on the prompt too.
    padding_free: each micro-batch is one row, with position ids that start again at each example.
    adapters_bf16: adapters in bfloat16, as TRL itself does over a quantised base; else float32.
    kbit: PEFT's prepare_model_for_kbit_training first.
    autocast: False leaves it to the weights' own type; only with adapters_bf16.
    """

    nf4: bool = False
    kbit: bool = False
    whole_text: bool = False
    batch: int = 16
    accumulation: int = 1
    checkpointing: bool = False
    padding_free: bool = False
    adapters_bf16: bool = False
    autocast: bool = True
    compiled: bool = False


NOTEBOOK = TrlSettings(nf4=True, whole_text=True, batch=4, accumulation=4)
TRL_RIVALS = {
    # TrainingArguments, which the notebook uses, has gradient checkpointing off; TRL's own SFTConfig has it on.
    "notebook": NOTEBOOK,
    "notebook-kbit": TrlSettings(nf4=True, kbit=True, whole_text=True, batch=4, accumulation=4),
    "notebook-checkpointing": TrlSettings(nf4=True, whole_text=True, batch=4, accumulation=4, checkpointing=True),
    "trl-best": TrlSettings(batch=4, accumulation=4),
    "trl-16x1": TrlSettings(),
    "trl-8x2": TrlSettings(batch=8, accumulation=2),
    "trl-2x8": TrlSettings(batch=2, accumulation=8),
    "trl-compiled": TrlSettings(batch=4, accumulation=4, compiled=True),
    "trl-nf4": TrlSettings(nf4=True, batch=4, accumulation=4),
    "trl-4x4-bf16": TrlSettings(batch=4, accumulation=4, adapters_bf16=True),
    "trl-4x4-pure": TrlSettings(batch=4, accumulation=4, adapters_bf16=True, autocast=False),
    "trl-2x8-pure": TrlSettings(batch=2, accumulation=8, adapters_bf16=True, autocast=False),
    "trl-free-4x4": TrlSettings(batch=4, accumulation=4, padding_free=True),
    "trl-free-2x8": TrlSettings(batch=2, accumulation=8, padding_free=True),
}
AFINA_RIVALS = ("afina", "afina-compiled", "afina-planner")
RIVALS = (*TRL_RIVALS, *AFINA_RIVALS)


def run_rival(name: str, work: Work) -> dict[str, Any]:
    """The figures of one rival's training."""
    if name in TRL_RIVALS:
        return run_trl(TRL_RIVALS[name], work)
    return run_planner(work) if name == "afina-planner" else run_afina(work, compiled=name == "afina-compiled")


def update_order(num_examples: int, updates: int, seed: int = SEED) -> list[list[int]]:
    """Example numbers of each update: a new shuffle for each epoch, drawn as afina.training.collate draws it."""
    import torch

    found: list[list[int]] = []
    epoch = 0
    while len(found) < updates:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(num_examples, generator=generator).tolist()
        found += [order[i : i + EXAMPLES_PER_UPDATE] for i in range(0, num_examples, EXAMPLES_PER_UPDATE)]
        epoch += 1
    return found[:updates]


@dataclass(frozen=True)
class Stamp:
    """A moment: wall clock, and processor seconds of this process, which a busy machine disturbs less."""

    wall_s: float
    cpu_s: float


def stamp() -> Stamp:
    """Now, once the GPU has finished."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Stamp(time.perf_counter(), time.process_time())


def process_clock() -> float:
    """Seconds since this process was created."""
    import psutil

    return time.time() - psutil.Process().create_time()


def own_peak_bytes() -> int:
    """Most memory so far: of the GPU, or else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def figures(stamps: Sequence[Stamp], work: Work, model: Any, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What every rival reports. stamps: at the end of each update, after one at the start of the first."""
    trained_s, peak = process_clock(), own_peak_bytes()
    update_s = [b.wall_s - a.wall_s for a, b in pairwise(stamps)]
    update_cpu_s = [b.cpu_s - a.cpu_s for a, b in pairwise(stamps)]
    warm = min(WARM_UP_UPDATES, len(update_s) - 1)
    learned = [work.train[i] for update in update_order(len(work.train), len(update_s)) for i in update]
    began = time.perf_counter()
    loss = validation_loss(model, work.validation)
    return {
        "updates": len(update_s),
        "examples": len(learned),
        "tokens": sum(len(row.ids) for row in learned),
        "examples_per_s": EXAMPLES_PER_UPDATE / median(update_s[warm:]),
        "examples_per_cpu_s": EXAMPLES_PER_UPDATE / median(update_cpu_s[warm:]),
        "trained_s": trained_s,
        "evaluation_s": time.perf_counter() - began,
        "peak_memory_bytes": peak,
        "validation_loss": loss,
        "update_s": [round(s, 4) for s in update_s],
        "plan": list(notes),
    }


def validation_loss(model: Any, rows: Sequence[Row]) -> float:
    """Mean nats per completion token (end of sequence included), one row at a time, logits in float32.

    The products run in bfloat16 by autocast, for every rival alike.
    """
    import torch

    model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would repack the weights in place
            module.support_avx512bf16_for_cpu = False
    device = next(model.parameters()).device
    total = 0.0
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        for row in rows:
            ids = torch.tensor([row.ids], device=device)
            # The positions from the last of the prompt on; the very last one predicts nothing.
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=row.num_completion + 1).logits[0, :-1]
            gold = ids[0, row.num_prompt :]
            total += float(torch.nn.functional.cross_entropy(logits.float(), gold, reduction="sum"))
    return total / sum(row.num_completion for row in rows)


# -- TRL -----------------------------------------------------------------------------------------


def run_trl(chosen: TrlSettings, work: Work) -> dict[str, Any]:
    """SFTTrainer over the tokens of `work`.

    Each update's examples stand by falling length, so that micro-batches pad little: what the notebook's
    group_by_length is for, with the examples of each update kept.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    cuda = torch.cuda.is_available()
    rows: list[dict[str, list[int]]] = []
    for update in update_order(len(work.train), work.updates):
        for row in sorted((work.train[i] for i in update), key=lambda r: -len(r.ids)):
            masked = [] if chosen.whole_text else [-100] * row.num_prompt
            rows.append({"input_ids": list(row.ids), "labels": masked + list(row.ids[len(masked) :])})
    model, adapter = _trl_model(chosen, work.model)
    arguments = SFTConfig(
        output_dir=str(work.scratch),
        max_steps=work.updates,
        per_device_train_batch_size=chosen.batch,
        gradient_accumulation_steps=chosen.accumulation,
        train_sampling_strategy="sequential",
        optim=("paged_adamw_32bit" if chosen.nf4 else "adamw_torch_fused") if cuda else "adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type=SCHEDULE,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=chosen.autocast,
        use_cpu=not cuda,
        gradient_checkpointing=chosen.checkpointing,
        torch_compile=chosen.compiled,
        padding_free=chosen.padding_free,
        max_length=None if chosen.padding_free else 1024,
        logging_steps=25,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=SEED,
    )
    clock = _clock()
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(work.scratch / "adapter"))
    return figures(clock.stamps, work, trainer.model)


def _trl_model(chosen: TrlSettings, folder: Path) -> tuple[Any, Any]:
    """The base model and its LoRA settings; the settings are None where the adapter is already on it."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"device_map": {"": "cuda" if torch.cuda.is_available() else "cpu"}}
    if chosen.nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
        )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
    if chosen.kbit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=chosen.checkpointing)
    adapter = LoraConfig(
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        target_modules=list(SEVEN_MODULES),
        bias="none",
        task_type="CAUSAL_LM",
    )
    if chosen.adapters_bf16:
        return get_peft_model(model, adapter, autocast_adapter_dtype=False), None
    return model, adapter


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Stamps the start of the training and the end of each update."""

        def __init__(self) -> None:
            self.stamps: list[Stamp] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.stamps.append(stamp())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.stamps.append(stamp())

    return Clock()


# -- Afina ---------------------------------------------------------------------------------------


def run_afina(work: Work, *, compiled: bool = False) -> dict[str, Any]:
    """Afina told what the notebook is told, and nothing more; no evaluation on the way, as the others have none."""
    told = {
        "load_in_4bit": True,
        "lora_r": LORA_R,
        "lora_alpha": LORA_ALPHA,
        "lora_dropout": LORA_DROPOUT,
        "lora_target_modules": list(SEVEN_MODULES),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": SCHEDULE,
        "max_grad_norm": MAX_GRAD_NORM,
        "max_steps": work.updates,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": EXAMPLES_PER_UPDATE // 4,
        **({"torch_compile": True} if compiled else {}),  # these runs are too short for the planner to choose it
        "eval_steps": work.updates,
        "logging_steps": 1,
    }
    model, seen, notes = _train_afina(work, told, with_validation=False)
    stamps = [seen.began, *(now for now, row in seen.rows if "loss" in row)]
    assert len(stamps) == work.updates + 1, "metrics.jsonl has one row for each update"
    return figures(stamps, work, model, notes)


def run_planner(work: Work) -> dict[str, Any]:
    """Afina with its planner's own settings; the validation loss against the age of the process.

    The evaluations on the way, far more of them than `auto` makes, are part of the time.
    """
    num_updates = len(work.train) * work.num_epochs / EXAMPLES_PER_UPDATE
    told = {"num_train_epochs": work.num_epochs, "eval_steps": max(1, round(num_updates / 13))}
    offset = process_clock() - time.perf_counter()
    _, seen, notes = _train_afina(work, told, with_validation=True)
    curve = [(now.wall_s + offset, r["step"], r["validation_loss"]) for now, r in seen.rows if "validation_loss" in r]
    return {
        "trained_s": process_clock(),
        "peak_memory_bytes": own_peak_bytes(),
        "validation_loss": min(loss for _, _, loss in curve),
        "curve": [[round(s, 3), step, round(loss, 5)] for s, step, loss in curve],
        "plan": notes,
    }


class _Seen:
    """Rows of metrics.jsonl with the clock when each was written."""

    def __init__(self) -> None:
        self.began = Stamp(0.0, 0.0)
        self.rows: list[tuple[Stamp, dict[str, Any]]] = []


def _train_afina(work: Work, told: dict[str, Any], *, with_validation: bool) -> tuple[Any, _Seen, list[str]]:
    from afina.core.train_config import TrainConfig
    from afina.engine.encoded import Encoded
    from afina.engine.loader import load_spec
    from afina.training import local
    from afina.training.collate import common_beginning
    from afina.training.facts import model_facts
    from afina.training.machine import machine
    from afina.training.planner import resolve

    train, validation = ([Encoded(r.ids, r.num_prompt) for r in rows] for rows in (work.train, work.validation))
    config = TrainConfig(base_model=str(work.model), **told)
    facts, lengths = model_facts(config.base_model), [len(e.input_ids) for e in train]
    settings = resolve(config, facts, lengths, machine(work.scratch), common_beginning(train))
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    with _watched() as seen:
        folder = work.scratch / "training"
        result = local.train(loaded, settings, train, validation if with_validation else [], folder, SEED)
    return loaded.model, seen, [_plan_line(settings), *result.notes]


def _plan_line(settings: Any) -> str:
    shown = (
        "finetuning_type", "quantisation", "dequantize", "compute_dtype", "learning_rate", "packing", "share_prefix",
        "row_tokens", "attn_implementation", "fused_lora", "fused_loss", "torch_compile", "gradient_checkpointing",
    )  # fmt: skip
    told = settings.to_json()
    return f"batch {settings.per_device_train_batch_size} x {settings.gradient_accumulation_steps}, " + ", ".join(
        f"{key} {told[key]}" for key in shown
    )


def _watched() -> Any:
    """Stamps each record of afina.training.recorder.Recorder while the context is open."""
    from contextlib import contextmanager
    from unittest.mock import patch

    from afina.training.recorder import Recorder

    @contextmanager
    def watch() -> Any:
        seen = _Seen()
        make: Callable[..., None] = Recorder.__init__
        record: Callable[..., None] = Recorder.record

        def stamped_make(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            seen.began = stamp()

        def stamped_record(self: Any, row: dict[str, Any]) -> None:
            seen.rows.append((stamp(), dict(row)))
            record(self, row)

        with patch.object(Recorder, "__init__", stamped_make), patch.object(Recorder, "record", stamped_record):
            yield seen

    return watch()


def main(argv: Sequence[str]) -> None:
    """NAME and a JSON object of the work; the last line on standard output is the result."""
    name, told = argv[0], json.loads(argv[1])
    data = json.loads(Path(told["data"]).read_text(encoding="utf-8"))
    train, validation = ([Row(tuple(ids), n) for ids, n in data[key]] for key in ("train", "validation"))
    with tempfile.TemporaryDirectory(dir=Path(told["data"]).parent) as scratch:
        work = Work(Path(told["model"]), train, validation, told["updates"], told["num_epochs"], Path(scratch))
        result = run_rival(name, work)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
