"""Your own search: space, scheduler, logger callback and control arm, which own_search.yaml names.

hybrid-ray run examples/own_search.yaml
hybrid-ray compare examples/own_search.yaml
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from ray.tune.schedulers import FIFOScheduler

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.evaluation.arms import Finished, real_run


def space(trial: optuna.Trial, job: JobConfig) -> dict[str, Any]:
    """Settings of one trial: how long a cycle is, and how much of it is predicted."""
    return {
        "full_steps": trial.suggest_int("full_steps", 2, 16, log=True),
        "prediction_horizon": trial.suggest_int("prediction_horizon", 1, max(2, job.train.steps // 20), log=True),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """Settings to try first."""
    return {"short": {"full_steps": 4, "prediction_horizon": 2}}


class StopFarBehind(FIFOScheduler):
    """Stop a trial whose objective is more than ``margin`` below the best of all trials at the same step.

    Schedulers of Ray Tune see each report of a trial: ``step``, ``objective`` (higher is better), ``loss`` and more.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._margin = margin
        self._best: dict[int, float] = defaultdict(lambda: -float("inf"))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        step, objective = result["step"], result["objective"]
        self._best[step] = max(self._best[step], objective)
        return self.STOP if objective < self._best[step] - self._margin else self.CONTINUE


class JsonLines(LoggerCallback):
    """Writes one line per report, e.g. for your own dashboard. ``str(trial)`` is the trial's number in the study."""

    def __init__(self, *, file: str) -> None:
        self._file = Path(file)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        line = {"trial": int(str(trial)), **{name: result[name] for name in ("step", "loss", "objective")}}
        with self._file.open("a") as file:
            print(json.dumps(line), file=file)


def two_thirds(hybrid: Finished) -> RunConfig:
    """A control arm: two thirds of the hybrid's real steps, no predicted ones. See hybrid_ray/evaluation/arms.py."""
    return real_run(hybrid.run, "two_thirds", 2 * hybrid.result.real_steps // 3)
