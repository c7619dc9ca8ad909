"""Remove placement groups that a stopped TorchTrainer leaves behind. Otherwise the next trial waits forever.

Tune kills the process that holds a stopped trial's trainer (ray#54305, #58515, #65447). Train then frees the workers'
resources through Ray's State API, but only for groups whose workers had started. This module removes the other groups.
It waits before it does so: a controller that is still shutting down replaces a lost group by a new one.

Every group has its run's name in a label condition (`group_label`), from the moment it is made. So the group of a trial
is known even if its workers never started, and no other trial's group is removed.
"""

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from hybrid_ray.ray_tune.trial import run_name
from hybrid_ray.training.hardware.node import group_label
from hybrid_ray.training.ray_worker import remove_groups

if TYPE_CHECKING:
    from pathlib import Path

    from ray.tune.experiment import Trial

__all__ = ["GroupReaper", "sweep_groups"]

_GRACE_SECONDS = 3.0  # a trial's controller is dead by then
_LONGEST_SWEEP_SECONDS = 15.0


class GroupReaper(Callback):
    """Removes the placement groups of a trial some seconds after it has ended.

    Args:
        storage: folder for the state of Ray Train (`fit_with_workers`).
    """

    def __init__(self, storage: "Path") -> None:
        self._storage = storage
        self._ended: set[str] = set()  # labels
        self._due = 0.0

    def on_trial_complete(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self._ended.add(group_label(self._storage, run_name(trial.trial_id)))
        self._due = time.monotonic() + _GRACE_SECONDS

    def on_trial_error(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def on_step_end(self, iteration: int, trials: "list[Trial]", **_: Any) -> None:
        if self._ended and time.monotonic() >= self._due:
            remove_groups(self._ended.__contains__)
            self._ended.clear()


def sweep_groups(storage: "Path") -> None:
    """Remove all worker groups of the runs in ``storage``, repeatedly until none comes back. Call it when no trainer is
    alive.
    """
    prefix, until, calm = group_label(storage), time.monotonic() + _LONGEST_SWEEP_SECONDS, 0
    while calm < 3 and time.monotonic() < until:
        calm = 0 if remove_groups(lambda label: label.startswith(prefix)) else calm + 1
        time.sleep(0.5)
