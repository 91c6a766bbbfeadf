"""The search itself: which settings are tried next, and which trial is given up. Optuna decides both.

Comes in: parameters, a seed, a file. Goes out: `Study`, which proposes trials, judges them and keeps them. What a trial
does is not known here.

The file (SQLite, Optuna's own format) holds finished trials only, each written in one transaction. A proposal depends
on the seed, the trial's number and the trials before it, and on nothing else; so a trial that was killed is proposed
again with the same settings, and told again what it had measured it gets the same verdicts.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afina.core.catalogue_config import SweepConfig
from afina.core.errors import MachineError, RunError
from afina.sweeping.space import Parameter, Value

NAME = "sweep"
UNJUDGED = 5  # complete trials before the median says anything (Optuna's own number)
SPARED = 2  # first evaluations at which the median ends nothing: a high rate looks bad at first, and may win


def require_optuna() -> None:
    """Raise MachineError unless Optuna can be imported."""
    if importlib.util.find_spec("optuna") is None:
        raise MachineError("afina sweep needs Optuna, which is not installed. Install it: pip install 'afina[sweep]'")


class Study:
    """Trials so far, and the next one. Not thread-safe.

    path: the SQLite file. max_evaluations: of the longest trial. start: the first trial's settings, where they are
    given. Raises RunError for a file that is damaged.
    """

    def __init__(
        self,
        path: Path,
        config: SweepConfig,
        parameters: Sequence[Parameter],
        seed: int,
        *,
        max_evaluations: int,
        start: dict[str, Value] | None = None,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        from afina.sweeping.proposals import Proposals, distribution

        self.parameters = list(parameters)
        self._space = {p.key: distribution(p) for p in parameters}
        pruner = _pruner(config, max_evaluations)
        self._kept = _open(path)
        self._study = optuna.create_study(
            study_name=NAME,
            direction="minimize",
            sampler=Proposals(
                config.sampler, self.parameters, seed, start or {}, lambda: [t.params for t in self.trials]
            ),
            pruner=pruner,
        )
        self._study.add_trials(self.trials)
        # Hyperband counts its brackets at the first question, and a proposal is made of those of one bracket; so it is
        # asked before the first proposal, whenever a process begins.
        pruner.prune(self._study, optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))

    @property
    def trials(self) -> list[Any]:
        """Finished trials, in order of their numbers."""
        return self._kept.get_trials(deepcopy=False)

    @property
    def is_exhausted(self) -> bool:
        """Every combination has been tried."""
        sizes = [p.num_values for p in self.parameters]
        if any(size is None for size in sizes):
            return False
        tried = {tuple(trial.params[p.key] for p in self.parameters) for trial in self.trials}
        return len(tried) >= math.prod(size or 0 for size in sizes)

    def ask(self) -> Any:
        """The next trial, an optuna.Trial with `params`, `report` and `should_prune`."""
        return self._study.ask(self._space)

    def tell(self, trial: Any, state: str, value: float | None, attributes: dict[str, Any]) -> None:
        """A trial has ended: `complete` with a value, `pruned` or `failed`. Kept at once, whole."""
        from optuna.trial import TrialState

        for name, found in attributes.items():
            trial.set_user_attr(name, found)
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        finished = self._study.tell(trial, value if state == "complete" else None, state=states[state])
        self._kept.add_trial(finished)

    def importance(self) -> dict[str, float]:
        """Share of the values' variance that each parameter explains, by fANOVA (Hutter et al., ICML 2014)."""
        import optuna

        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self._kept, evaluator=evaluator)
        return {key: round(float(share), 4) for key, share in found.items()}


def _open(path: Path) -> Any:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        return optuna.create_study(storage=storage, study_name=NAME, direction="minimize", load_if_exists=True)
    except (SQLAlchemyError, RuntimeError, optuna.exceptions.OptunaError) as error:
        raise RunError(
            f"{path}: is no study of Optuna's that can be read ({str(error).splitlines()[0]}). Delete {path.parent}, "
            "or pass --yes, to begin the sweep again."
        ) from error


def _pruner(config: SweepConfig, max_evaluations: int) -> Any:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if config.pruner == "median":
        return MedianPruner(n_startup_trials=UNJUDGED, n_warmup_steps=SPARED + 1)
    if config.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max_evaluations)
    return NopPruner()
