"""Remove placement groups that a stopped TorchTrainer leaves behind. Otherwise the next trial waits forever.

Tune kills the process that holds a stopped trial's trainer (ray#54305, #58515, #65447). Train then frees the workers'
resources through Ray's State API, but only for groups whose workers had started. This module removes the other groups.
It waits before it does so: a controller that is still shutting down replaces a lost group by a new one.
"""

import time
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = ["GroupReaper", "sweep_groups"]

_GRACE_SECONDS = 3.0  # a trial's controller is dead by then; a new trial takes longer to make its group
_LONGEST_SWEEP_SECONDS = 15.0


class GroupReaper(Callback):
    """Removes the placement groups of a trial some seconds after it has ended.

    A worker reports the id of its group with every evaluation. If a trial ended before its first report, its group is
    unknown; all unknown groups are then removed, provided that every running trial has reported its own.
    """

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}  # key: running trial
        self._left: set[str] = set()
        self._due = 0.0

    def on_trial_result(
        self, iteration: int, trials: "list[Trial]", trial: "Trial", result: dict[str, Any], **_: Any
    ) -> None:
        if group := result.get("placement_group"):
            self._groups[trial.trial_id] = group

    def on_trial_complete(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self._ended(trial, trials)

    def on_trial_error(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self._ended(trial, trials)

    def on_step_end(self, iteration: int, trials: "list[Trial]", **_: Any) -> None:
        if self._left and time.monotonic() >= self._due:
            for group in self._left & _worker_groups():
                _remove(group)
            self._left.clear()

    def _ended(self, trial: "Trial", trials: "list[Trial]") -> None:
        own = self._groups.pop(trial.trial_id, None)
        running = [other.trial_id for other in trials if other.status == "RUNNING" and other is not trial]
        if own:
            self._left.add(own)
        elif all(other in self._groups for other in running):
            self._left |= _worker_groups() - set(self._groups.values())
        self._due = time.monotonic() + _GRACE_SECONDS


def sweep_groups() -> None:
    """Remove all worker groups of this driver, repeatedly until none comes back. Call it when no trainer is alive."""
    until, calm = time.monotonic() + _LONGEST_SWEEP_SECONDS, 0
    while calm < 3 and time.monotonic() < until:
        left = _worker_groups()
        for group in left:
            _remove(group)
        calm = 0 if left else calm + 1
        time.sleep(0.5)


def _worker_groups() -> set[str]:
    """Groups of this driver that hold workers. A group's id ends in the id of the Ray job that made it; Tune's own
    groups, which hold a trial's process, reserve almost no resources.
    """
    job = ray.get_runtime_context().get_job_id()
    return {
        group
        for group, row in placement_group_table().items()
        if row["state"] != "REMOVED"
        and group.endswith(job)
        and sum(bundle.get("CPU", 0) for bundle in row["bundles"].values()) > CONTROLLER_CPUS
    }


def _remove(group: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
