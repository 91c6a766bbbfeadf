"""transformers.Trainer with our steps, our loss and our checkpoints; its loop, optimizer and schedule are its own.

One item of the dataset is one update (`collate.Step`), so an update sees the same examples whether they are packed,
padded or accumulated, and the loss is the mean over all their trained tokens.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from afina.engine.loader import LoadedModel
from afina.training import checkpoints
from afina.training.adapters import restore_weights, save_weights
from afina.training.collate import MicroBatch, Schedule, Step
from afina.training.loss import calibrated_sum, loss_parts
from afina.training.passes import Passes
from afina.training.recorder import Recorder
from afina.training.settings import Settings

CHECKPOINT_EVERY_S = 600.0  # most training time that a kill can cost, where evaluations are far apart


class StepTrainer(Trainer):
    """Trains on Steps. Evaluation is the mean loss over all trained validation tokens; the best one
    after temperature scaling is kept."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: Settings,
        schedule: Schedule,
        validation: list[MicroBatch],
        folder: Path,
        recorder: Recorder,
        passes: Passes,
        arguments: TrainingArguments,
    ) -> None:
        super().__init__(model=loaded.model, args=arguments, train_dataset=schedule, eval_dataset=validation or None)  # type: ignore[arg-type]
        self.loaded, self.settings, self.schedule, self.validation = loaded, settings, schedule, validation
        self.folder, self.recorder, self.passes = folder, recorder, passes
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(self))
        self.loss_is_scaled_for_ga = True

    # -- data ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Step]:
        return DataLoader(self.schedule, batch_size=1, sampler=SequentialSampler(self.schedule), collate_fn=_only)

    def num_examples(self, dataloader: Any) -> int:
        return len(self.schedule)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # each Step counts its own

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # never shown

    # -- one update --------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        step: Step = inputs
        total = self.passes.learn(step, self.accelerator.backward)
        self.recorder.count(step.num_tokens)
        return total

    # -- evaluation ----------------------------------------------------------------------------------

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
        return round(self.state.global_step / self.schedule.steps_per_epoch, 4)

    # -- checkpoints -------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        step, best = self.state.global_step, self.state.best_global_step
        final = checkpoints.checkpoint_path(self.folder, step)
        if best:
            self.state.best_model_checkpoint = str(checkpoints.checkpoint_path(self.folder, best))
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


def _only(items: list[Step]) -> Step:
    return items[0]


def out_of_patience(log_history: list[dict[str, Any]], best_step: int | None, patience: int | None) -> bool:
    """Whether the last `patience` evaluations were all worse than the best before them."""
    if patience is None:
        return False
    later = {row["step"] for row in log_history if "eval_loss" in row and row["step"] > (best_step or 0)}
    return len(later) >= patience


class _Flow(TrainerCallback):
    """When to stop and when to save beyond the evaluations. Keeps no state: a continued run decides alike."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer = trainer
        self.saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.recorder.step_done()
        if time.monotonic() - self.saved_at > CHECKPOINT_EVERY_S:
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs.get("metrics", {})
        better = state.best_metric is None or metrics.get("eval_calibrated_loss", 0.0) < state.best_metric
        patience = self.trainer.settings.early_stopping_patience
        if not better and out_of_patience(state.log_history, state.best_global_step, patience):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at = time.monotonic()
