"""Placement groups that a stopped TorchTrainer leaves behind: found and removed, or the next trial waits for ever.

Tune kills the process that holds a stopped trial's trainer (ray#54305, #58515, #65447); nobody then frees what its
workers had reserved. A worker reports the id of its group with every evaluation, and that group is removed when its
trial ends. A trial that is stopped before its first report is found by the sweep.
"""

from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = ["GroupReaper", "sweep_groups"]


class GroupReaper(Callback):
    """Removes a trial's group when the trial ends, however it ends."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}

    def on_trial_result(
        self, iteration: int, trials: "list[Trial]", trial: "Trial", result: dict[str, Any], **_: Any
    ) -> None:
        if group := result.get("placement_group"):
            self._groups[trial.trial_id] = group

    def on_trial_complete(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self._remove(trial)

    def on_trial_error(self, iteration: int, trials: "list[Trial]", trial: "Trial", **_: Any) -> None:
        self._remove(trial)

    def _remove(self, trial: "Trial") -> None:
        if group := self._groups.pop(trial.trial_id, None):
            _remove_group(group)


def sweep_groups() -> int:
    """Remove every group of this driver that is left after a search. Returns how many. Groups of others are not
    touched.

    A group's id ends in the id of the Ray job that made it.
    """
    job = ray.get_runtime_context().get_job_id()
    left = [
        group for group, row in placement_group_table().items() if row["state"] != "REMOVED" and group.endswith(job)
    ]
    for group in left:
        _remove_group(group)
    return len(left)


def _remove_group(group: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
