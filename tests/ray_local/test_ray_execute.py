"""Waiting for room on a cluster that has none, and what it costs; whose placement groups are removed."""

import time
from pathlib import Path

import pytest
import ray
from micro_jobs import micro_job
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import JobConfig, ResourcesConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.ray_tune.recovery import placement_groups
from hybrid_ray.ray_tune.recovery.placement_groups import GroupReaper, sweep_groups
from hybrid_ray.ray_tune.runner import RayExecute, machine_of_runs
from hybrid_ray.ray_tune.trial import run_name
from hybrid_ray.study.stopping import Budget, StopFlag, Stopped
from hybrid_ray.training.hardware.node import RUN_LABEL, group_label

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]

JOB = JobConfig(resources=ResourcesConfig(cpus_per_worker=4096))  # more than there ever is: as on a busy cluster


def test_a_wait_for_room_ends_with_a_reason() -> None:
    with pytest.raises(HybridRayError, match=r"4096 processors, 0 GPUs\) could start within 0\.3 seconds because"):
        machine_of_runs(JOB, JOB.run(), flag=StopFlag(), limit=0.3)


def test_a_wait_for_room_hears_a_signal() -> None:
    flag = StopFlag()
    flag.asked = True
    start = time.monotonic()
    with pytest.raises(Stopped):
        machine_of_runs(JOB, JOB.run(), flag=flag, limit=60)
    assert time.monotonic() - start < 10


def test_where_runs_train_is_told_by_a_worker() -> None:
    job = JobConfig()
    assert machine_of_runs(job, job.run(), flag=StopFlag())["hardware"]["threads"] == 1


class Spent(Budget):
    """The seconds that runs cost."""

    seconds = 0.0

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


def test_runs_that_wait_for_room_cost_nothing(tmp_path: Path) -> None:
    """Three runs are sent, and one fits at a time."""
    all_cpus = int(ray.cluster_resources()["CPU"])
    job = micro_job(tmp_path, resources=ResourcesConfig(cpus_per_worker=all_cpus))
    budget, run = Spent(job), baseline(job.run())
    execute = RayExecute(job, concurrency=3, flag=StopFlag(), budget=budget, storage=tmp_path)
    start = time.monotonic()
    results = execute([Task(run=run, directory=tmp_path / name) for name in "abc"])
    assert [result.status for result in results] == ["finished"] * 3
    assert 0 < budget.seconds <= time.monotonic() - start


def waiting_group(storage: Path, trial_id: str) -> PlacementGroup:
    """The group of a trial whose workers wait for room, labelled as `fit_with_workers` does."""
    label = group_label(storage, run_name(trial_id))
    return placement_group([{"CPU": 4096}] * 2, bundle_label_selector=[{RUN_LABEL: f"!in({label})"}] * 2)


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def test_only_the_group_of_the_ended_trial_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a neighbour that is still starting and has reported nothing, nor a trial of another study."""
    monkeypatch.setattr(placement_groups, "_GRACE_SECONDS", 0.0)
    ended, neighbour, other = (
        waiting_group(folder, trial) for folder, trial in ((tmp_path, "a"), (tmp_path, "b"), (tmp_path / "other", "a"))
    )
    trials = [Trial("unused", trial_id=name, stub=True) for name in ("a", "b")]
    reaper = GroupReaper(tmp_path)
    reaper.on_trial_error(1, trials, trials[0])
    reaper.on_step_end(1, trials)
    assert [state(group) for group in (ended, neighbour, other)] == ["REMOVED", "PENDING", "PENDING"]
    sweep_groups(tmp_path)
    assert [state(group) for group in (neighbour, other)] == ["REMOVED", "PENDING"]
    sweep_groups(tmp_path / "other")
    assert state(other) == "REMOVED"
