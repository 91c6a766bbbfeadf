"""What a training would take, said before it runs: parameters, memory by part, steps, tokens, time.

Comes in: settings, model facts, example lengths, the machine, and if wanted the measured seconds of a step. Goes
out: a `Plan` for screen and JSON, with what would fit when this does not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from afina.core.errors import MachineError
from afina.core.progress import seconds, size
from afina.training.facts import ModelFacts
from afina.training.machine import Machine
from afina.training.memory import FORMULA, estimate, num_trainable
from afina.training.planner import USABLE
from afina.training.settings import Settings

WIDTH = 100  # characters of a line on the screen
LABEL_WIDTH = 26
# Of a training step's arithmetic, what an evaluation of as many tokens does: forward 2 operations for each weight;
# backward 2 for the activations' gradients, and 2 more for the weights' own where they are trained.
FORWARD_SHARE = {"lora": 1 / 2, "full": 1 / 3}


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * LABEL_WIDTH
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{label:<{LABEL_WIDTH}}", subsequent_indent=indent, break_on_hyphens=False
    )


@dataclass(frozen=True)
class Plan:
    """memory_bytes: by part, with their sum as "peak". tokens: read in the whole run.

    estimated_s: steps x measured seconds per step, and `evaluations_s` of it for validation losses; None when no step
    was measured. Loading the model, writing checkpoints and the answers after training are not in it.
    advice: what would fit; empty when the plan does.
    """

    base_model: str
    finetuning_type: str
    quantisation: str
    parameters: int
    trainable_parameters: int
    memory_bytes: dict[str, int]
    available_bytes: int
    disk_bytes: int
    steps: int
    epochs: float
    tokens: int
    seconds_per_step: float | None
    evaluations: int
    evaluations_s: float | None
    estimated_s: float | None
    formula: str
    fits: bool
    advice: str
    notes: tuple[str, ...]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the screen."""
        chosen, share = self.settings, 100 * self.trainable_parameters / self.parameters
        kind = {"full": "all weights", "lora": f"LoRA of rank {chosen['lora_r']}"}[self.finetuning_type]
        held = "" if self.quantisation == "none" else f", held in {self.quantisation.replace('bit', ' bit')}"
        batch, accumulated = chosen["per_device_train_batch_size"], chosen["gradient_accumulation_steps"]
        rows = [
            ("base model", f"{self.base_model}{held}"),
            ("parameters", f"{self.parameters:,}"),
            ("  trainable", f"{self.trainable_parameters:,} ({share:.3g} %: {kind})"),
            ("update", f"{batch} x {accumulated} examples, learning rate {chosen['learning_rate']:g}"),
            ("steps", f"{self.steps:,} updates, {self.epochs:g} epochs, {self.tokens:,} tokens"),
        ]
        if self.estimated_s is not None:
            took = f"{self.steps:,} x {self.seconds_per_step:.2f} s, measured here; "
            took += (
                f"{self.evaluations} evaluations, {seconds(self.evaluations_s)}"
                if self.evaluations_s
                else "no evaluation"
            )
            rows.append(("time, estimated", f"{seconds(self.estimated_s)} ({took})"))
        rows.append(("memory, estimated", f"{size(self.memory_bytes['peak'])}, {size(self.available_bytes)} are free"))
        parts = {name.replace("_", " "): n for name, n in self.memory_bytes.items() if name != "peak" and n}
        rows += [(f"  {name}", f"{size(n):>9}") for name, n in parts.items()]
        rows.append(("disk", f"{size(self.disk_bytes)} for two checkpoints and the result"))
        found = [f"{name:<{LABEL_WIDTH}}{value}" for name, value in rows]
        found += _wrapped("formula", self.formula)
        for note in self.notes:
            found += _wrapped("note", note)
        return found + _wrapped("fits", "yes" if self.fits else f"no. {self.advice}")


def plan(
    settings: Settings,
    facts: ModelFacts,
    lengths: Sequence[int],
    machine: Machine,
    seconds_per_step: float | None = None,
    *,
    shared: int = 0,
    validation_tokens: int = 0,
) -> Plan:
    """The plan of a training.

    lengths: tokens of each training example. shared: those that all begin with (`collate.common_beginning`).
    validation_tokens: read in one evaluation.
    """
    memory = estimate(settings, facts, lengths, shared)
    trainable = num_trainable(settings, facts)
    epochs = settings.total_steps / -(-len(lengths) // settings.effective_batch)
    evaluations = settings.total_steps // settings.eval_steps if validation_tokens else 0
    estimated_s = evaluations_s = None
    if seconds_per_step is not None:
        per_token = seconds_per_step * settings.total_steps / (sum(lengths) * epochs)
        evaluations_s = evaluations * validation_tokens * per_token * FORWARD_SHARE[settings.finetuning_type]
        estimated_s = seconds_per_step * settings.total_steps + evaluations_s
    moments = 2 if settings.optim.endswith("8bit") else 8
    disk = 2 * trainable * (4 + moments) + 4 * trainable
    enough_memory = memory.peak <= machine.training_bytes * USABLE
    enough_disk = disk <= machine.disk_free_bytes
    advice = "" if enough_memory else _advice(settings, facts, lengths, machine)
    if not enough_disk:
        advice += (
            f" Its checkpoints need {size(disk)} of disk, {size(machine.disk_free_bytes)} are free. "
            "Free some space, or choose another output_dir."
        )
    return Plan(
        base_model=settings.base_model,
        finetuning_type=settings.finetuning_type,
        quantisation=settings.quantisation,
        parameters=facts.num_parameters,
        trainable_parameters=trainable,
        memory_bytes={**asdict(memory), "peak": memory.peak},
        available_bytes=machine.training_bytes,
        disk_bytes=disk,
        steps=settings.total_steps,
        epochs=round(epochs, 2),
        tokens=int(sum(lengths) * epochs),
        seconds_per_step=seconds_per_step,
        evaluations=evaluations,
        evaluations_s=evaluations_s,
        estimated_s=estimated_s,
        formula=FORMULA[settings.device],
        fits=enough_memory and enough_disk,
        advice=advice.strip(),
        notes=settings.notes,
        settings=settings.to_json(),
    )


def require_fit(found: Plan) -> None:
    """Raise MachineError, saying what would fit, unless the plan does."""
    if found.fits:
        return
    needed = f"about {size(found.memory_bytes['peak'])} of memory, {size(found.available_bytes)} are free"
    raise MachineError(f"{found.base_model}: training does not fit here (it takes {needed}). {found.advice}")


def _advice(settings: Settings, facts: ModelFacts, lengths: Sequence[int], machine: Machine) -> str:
    """The mildest change that fits, tried in order of what it costs the result."""
    room = machine.training_bytes * USABLE
    small = replace(settings, per_device_train_batch_size=1)
    checkpointed = replace(small, gradient_checkpointing=True)
    lora = replace(checkpointed, finetuning_type="lora", weights_dtype=settings.compute_dtype)
    attempts = [
        ("train.per_device_train_batch_size=1", small),
        ("train.per_device_train_batch_size=1 train.gradient_checkpointing=true", checkpointed),
    ]
    prefix = "train.per_device_train_batch_size=1 train.gradient_checkpointing=true"
    if settings.finetuning_type == "full":
        prefix += " train.finetuning_type=lora"
        attempts.append((prefix, lora))
    if settings.quantisation != "4bit" and machine.bitsandbytes:
        attempts.append((prefix + " train.load_in_4bit=true", replace(lora, quantisation="4bit")))
    for change, attempt in attempts:
        if estimate(attempt, facts, lengths).peak <= room:
            return f"This would fit: {change}."
    least = estimate(attempts[-1][1], facts, lengths).peak
    return f"Nothing fits: even {attempts[-1][0]} needs {size(least)}. Choose a smaller base_model or train.max_length."
