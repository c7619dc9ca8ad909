"""Trials of two workers: a TorchTrainer inside each trial, its reports, and what a stopped one leaves behind."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from micro_jobs import micro_job
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import ConfirmConfig, ObjectiveConfig, ResourcesConfig, SearchConfig
from hybrid_ray.evaluation import frontier
from hybrid_ray.processors import cpu_count
from hybrid_ray.ray_tune import search
from hybrid_ray.ray_tune.recovery.cleaners import CLEANER
from hybrid_ray.report.load import load_study
from hybrid_ray.study import stages
from hybrid_ray.study.pipeline import run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # three starts of a TorchTrainer (twelve with STOPS=10), up to two minutes each
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]


STOPS = int(os.environ.get("STOPS", "1"))
"""Trials that are stopped, one after the other."""


class StopsAllButTheLast(FIFOScheduler):
    """Stops trials at their first report, as ASHA would bad ones."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if trial.config["number"] < STOPS else TrialScheduler.CONTINUE


def test_stopped_trials_of_two_workers_leave_room_for_the_next(
    tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one trial at a time: a group that is left would block the study for ever. The baseline alone
    instead of six frontier runs, since each start of nine processes takes 50 s of a processor."""
    all_runs = stages.frontier_runs
    monkeypatch.setattr(stages, "frontier_runs", lambda job: {1.0: all_runs(job)[1.0]})
    monkeypatch.setattr(frontier, "FEWEST", 1)
    monkeypatch.setattr(frontier, "_noise", lambda points: frontier.LEAST_NOISE)  # of one run there is no other
    monkeypatch.setattr(search, "build_scheduler", lambda job, space: StopsAllButTheLast())
    job = replace(
        micro_job(shared_folder),
        studies_dir=str(tmp_path),
        resources=ResourcesConfig(workers=2, cpus_per_worker=max(1, cpu_count() // 2)),
        search=SearchConfig(trials=STOPS + 1, sampler="random"),
        objective=ObjectiveConfig(max_degradation=100.0),
        confirm=ConfirmConfig(best=0),
    )
    study = load_study(run_study(job).directory)
    assert list(study.trials["state"]) == ["PRUNED"] * STOPS + ["COMPLETE"]
    assert study.trials["steps"][:STOPS].max() < 60
    assert study.trials["steps"][STOPS] == 60
    assert study.trials["score"].notna().all()
    assert study.baseline["status"].tolist() == ["finished"]
    assert [row for row in placement_group_table().values() if row["state"] != "REMOVED"] == []
    here = ray.get_runtime_context().gcs_address
    assert list_actors(address=here, filters=[("class_name", "=", CLEANER), ("state", "=", "ALIVE")]) == []
