"""transformers.Trainer with our steps, our loss and our checkpoints; its loop, optimizer and schedule are its own.

One item of the dataset is one update (`collate.Step`), so an update sees the same examples whether they are packed,
padded or accumulated, and the loss is the mean over all their trained tokens. `Updates` is what every training has in
common, `StepTrainer` learns texts; `dpo.py` learns preferences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from afina.engine.hub import quiet
from afina.engine.loader import LoadedModel
from afina.training import checkpoints
from afina.training.adapters import restore_weights, save_final, save_weights
from afina.training.collate import MicroBatch, Schedule, Step
from afina.training.fused_loss import Hits
from afina.training.loss import calibrated_sum, loss_parts, loss_sum
from afina.training.passes import Passes
from afina.training.recorder import Recorder
from afina.training.settings import Settings
from afina.training.watch import Measured, StepDone, Watcher

# Most training time that a kill can cost, where evaluations or epochs are far apart; the second for a watched training,
# whose follower waits for it.
CHECKPOINT_EVERY_S, WATCHED_EVERY_S = 600.0, 30.0


@dataclass
class Sitting:
    """What a trainer is made with, beside its data: one stretch of a run between a start and an end or a kill."""

    loaded: LoadedModel
    settings: Settings
    folder: Path
    recorder: Recorder
    arguments: dict[str, Any]
    watcher: Watcher | None = None


class Updates(Trainer):
    """One item, one update; checkpoints that are whole or absent; metrics; a watcher.

    A subclass says what an update is (`training_step`, which sets `last`) and how the weights are measured.
    plan: the updates, one after the other: a `collate.Schedule` or one like it.
    last: (loss, share of trained tokens that were most likely) of the newest update. notes: what was chosen on the way.
    """

    def __init__(self, sitting: Sitting, plan: Any, arguments: TrainingArguments, **options: Any) -> None:
        super().__init__(model=sitting.loaded.model, args=arguments, **options)
        self.loaded, self.settings, self.folder = sitting.loaded, sitting.settings, sitting.folder
        self.recorder, self.watcher = sitting.recorder, sitting.watcher
        self.plan: Any = plan
        self.last = (0.0, 0.0)
        self.notes: Sequence[str] = ()
        self.label_names = []
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(self))
        self.loss_is_scaled_for_ga = True

    def measure(self, number: int | None = None) -> Measured | None:
        raise NotImplementedError

    def tokens_read(self, num_steps: int) -> int | None:
        """In the first `num_steps` updates; None where nobody counts."""
        return None

    def close(self) -> None:
        """Leave the model as other code knows it."""

    # -- data ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.plan, batch_size=1, sampler=SequentialSampler(self.plan), collate_fn=_only)

    def num_examples(self, dataloader: Any) -> int:
        return len(self.plan)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # each Step counts its own

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # never shown

    # -- what is said ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(dict(logs), start_time)
        row: dict[str, Any] = {"step": self.state.global_step, "epoch": self.epoch}
        if "eval_loss" in logs:
            calibrated = logs["eval_calibrated_loss"]
            self.recorder.record({**row, "validation_loss": logs["eval_loss"], "calibrated_loss": calibrated})
        elif "loss" in logs:
            kept = {k: logs[k] for k in ("loss", "learning_rate", "grad_norm") if k in logs}
            self.recorder.record({**row, **kept})

    @property
    def epoch(self) -> float:
        return round(self.state.global_step / self.plan.steps_per_epoch, 4)

    def tell(self, watcher: Watcher, step: int) -> tuple[bool, bool]:
        """Tell the watcher of an update. Returns whether to save a checkpoint, and whether to stop."""
        began = time.perf_counter()
        total = self.settings.total_steps
        done = StepDone(step, total, step % self.plan.steps_per_epoch == 0 or step == total, *self.last)
        stop = watcher.on_step(done, self.measure)
        if done.ends_epoch:
            watcher.on_epoch(done, self.write_servable)
        self.loaded.model.train()  # measuring has switched to evaluation
        self.recorder.pause(time.perf_counter() - began)
        return done.ends_epoch or stop, stop

    def write_servable(self, folder: Path) -> None:
        """The weights as they are, for whoever serves them; training goes on unchanged."""
        with quiet():
            save_final(self.loaded, self.settings, folder)
        self.loaded.model.config.use_cache = False

    # -- checkpoints -------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        step, best = self.state.global_step, self.state.best_global_step
        final = checkpoints.checkpoint_path(self.folder, step)
        if best:
            self.state.best_model_checkpoint = str(checkpoints.checkpoint_path(self.folder, best))
        if self.watcher is not None:
            self.watcher.on_save(step)
        with checkpoints.staged(final) as staging:
            save_weights(self.loaded, staging)
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self.state.save_to_json(str(staging / "trainer_state.json"))
        checkpoints.keep_only(self.folder, {step, best or step})
        self.recorder.pause(time.perf_counter() - began)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_weights(self.loaded, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        restore_weights(self.loaded, Path(str(self.state.best_model_checkpoint)))


class StepTrainer(Updates):
    """Trains on Steps. Evaluation is the mean loss over all trained validation tokens; the best one
    after temperature scaling is kept, unless there is a watcher, who measures for itself."""

    def __init__(self, sitting: Sitting, schedule: Schedule, validation: list[MicroBatch], passes: Passes) -> None:
        arguments = TrainingArguments(**sitting.arguments)
        super().__init__(sitting, schedule, arguments, train_dataset=schedule, eval_dataset=validation or None)
        self.validation, self.passes, self.notes = validation, passes, passes.notes

    def tokens_read(self, num_steps: int) -> int | None:
        return self.plan.num_tokens(num_steps)

    def close(self) -> None:
        self.passes.close()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        step: Step = inputs
        hits = Hits() if self.watcher is not None else None
        total = self.passes.learn(step, self.accelerator.backward, hits)
        if hits is not None:
            self.last = (float(total), int(hits.right) / step.num_trained)
        self.recorder.count(step.num_tokens)
        return total

    # -- evaluation ----------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, number: int | None = None) -> Measured | None:
        if not self.validation:
            return None
        batches = self.validation if number is None else [self.validation[number % len(self.validation)]]
        hits, total = Hits(), 0.0
        self.model.eval()  # type: ignore[union-attr]
        for batch in batches:
            with self.passes.autocast():
                total += float(loss_sum(self.model, batch.to(self.args.device), self.passes.logits_at, hits))
        count = sum(len(b.target_N) for b in batches)
        return Measured(total / count, int(hits.right) / count)

    @torch.no_grad()
    def validation_losses(self) -> tuple[float, float]:
        """Mean over trained tokens, in nats: as it is, and after the best temperature for the choices."""
        self.model.eval()  # type: ignore[union-attr]
        open_total, finite = 0.0, []
        for batch in self.validation:
            with self.passes.autocast():
                open_sum, logits_MK, chosen_M = loss_parts(
                    self.model, batch.to(self.args.device), self.passes.logits_at
                )
            open_total += float(open_sum)
            finite.append((logits_MK, chosen_M))
        plain = open_total + sum(float((m.logsumexp(1) - c).sum()) for m, c in finite)
        count = sum(len(b.target_N) for b in self.validation)
        return plain / count, min(plain, open_total + calibrated_sum(finite)) / count

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        began = time.perf_counter()
        plain, calibrated = self.validation_losses()
        metrics = {"eval_loss": plain, "eval_calibrated_loss": calibrated}
        self.recorder.pause(time.perf_counter() - began)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _only(items: list[Any]) -> Any:
    return items[0]


def out_of_patience(log_history: list[dict[str, Any]], best_step: int | None, patience: int | None) -> bool:
    """Whether the last `patience` evaluations were all worse than the best before them."""
    if patience is None:
        return False
    later = {row["step"] for row in log_history if "eval_loss" in row and row["step"] > (best_step or 0)}
    return len(later) >= patience


class _Flow(TrainerCallback):
    """When to stop and when to save beyond the evaluations. Keeps no state: a continued run decides alike."""

    def __init__(self, trainer: Updates) -> None:
        self.trainer = trainer
        self.saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.recorder.step_done()
        watcher, save, stop = self.trainer.watcher, False, False
        if watcher is not None:
            save, stop = self.trainer.tell(watcher, state.global_step)
        every_s = CHECKPOINT_EVERY_S if watcher is None else WATCHED_EVERY_S
        if save or time.monotonic() - self.saved_at > every_s:
            control.should_save = True
        if stop:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs.get("metrics", {})
        better = state.best_metric is None or metrics.get("eval_calibrated_loss", 0.0) < state.best_metric
        patience = self.trainer.settings.early_stopping_patience
        if not better and out_of_patience(state.log_history, state.best_global_step, patience):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at = time.monotonic()
