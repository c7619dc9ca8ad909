"""Trials of two workers: a TorchTrainer inside each trial, its reports, and what a stopped one leaves behind."""

from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job
from ray.util.placement_group import placement_group_table

from hybrid_ray.config import ConfirmConfig, ResourcesConfig, SearchConfig
from hybrid_ray.results.load import load_study
from hybrid_ray.tune import stages
from hybrid_ray.tune.driver import run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_trials_of_two_workers_and_no_group_left_behind(
    tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two frontier runs instead of six: a run of two workers takes 10 s to start."""
    all_runs = stages.frontier_runs
    monkeypatch.setattr(
        stages, "frontier_runs", lambda job: {key: run for key, run in all_runs(job).items() if key in (0.4, 1.0)}
    )
    job = replace(
        micro_job(shared_folder),
        studies_dir=str(tmp_path),
        resources=ResourcesConfig(workers=2),
        # The second trial is stopped half-way if it is behind the first: that leaks its group unless somebody looks.
        search=SearchConfig(trials=2, grace_steps=15, reduction_factor=2),
        confirm=ConfirmConfig(best=0),
    )
    study = load_study(run_study(job).directory)
    assert set(study.trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert (study.trials["state"] == "COMPLETE").any()
    assert study.trials["score"].notna().all()
    assert study.baseline["status"].tolist() == ["finished"]
    assert [row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED"] == []
