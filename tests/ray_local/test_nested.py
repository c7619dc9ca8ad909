"""Trials of two workers: a TorchTrainer inside each trial, its reports, and what a stopped one leaves behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.util.placement_group import placement_group_table

from hybrid_ray.config import ConfirmConfig, ObjectiveConfig, ResourcesConfig, SearchConfig
from hybrid_ray.evaluation import frontier
from hybrid_ray.ray_tune import search
from hybrid_ray.report.load import load_study
from hybrid_ray.study import stages
from hybrid_ray.study.pipeline import run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # four starts of a TorchTrainer, each up to a minute on two busy cores
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class StopsTheFirst(FIFOScheduler):
    """Stops trial 0 at its first report, as ASHA would a bad one."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if trial.config["number"] == 0 else TrialScheduler.CONTINUE


def test_a_stopped_trial_of_two_workers_leaves_room_for_the_next(
    tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one trial at a time. Two frontier runs instead of six: each takes 10 s to start."""
    all_runs = stages.frontier_runs
    monkeypatch.setattr(
        stages, "frontier_runs", lambda job: {key: run for key, run in all_runs(job).items() if key in (0.4, 1.0)}
    )
    monkeypatch.setattr(frontier, "FEWEST", 2)
    monkeypatch.setattr(frontier, "_noise", lambda points: frontier.LEAST_NOISE)  # of two runs there is no other
    monkeypatch.setattr(search, "build_scheduler", lambda job, space: StopsTheFirst())
    job = replace(
        micro_job(shared_folder),
        studies_dir=str(tmp_path),
        resources=ResourcesConfig(workers=2),
        search=SearchConfig(trials=2),
        objective=ObjectiveConfig(max_degradation=100.0),
        confirm=ConfirmConfig(best=0),
    )
    study = load_study(run_study(job).directory)
    assert list(study.trials["state"]) == ["PRUNED", "COMPLETE"]
    assert study.trials["steps"][0] < 60
    assert study.trials["steps"][1] == 60
    assert study.trials["score"].notna().all()
    assert study.baseline["status"].tolist() == ["finished"]
    assert [row for row in placement_group_table().values() if row["state"] != "REMOVED"] == []
