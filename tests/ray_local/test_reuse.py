"""Trials on one device share a process: no start between them, the same results, and no use of one that failed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray_warnings import RAY_WARNINGS

from hybrid_ray import build_tuner
from hybrid_ray.config import ConfirmConfig, ResourcesConfig, SearchConfig
from hybrid_ray.ray_tune.space import settings
from hybrid_ray.report.load import load_study
from hybrid_ray.storage.run_cache import read_result
from hybrid_ray.training.loop import train

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]

SPACE = """
def space(trial, job):
    impossible = trial.number == 3
    return {"full_steps": trial.suggest_int("full_steps", 2, 40), "prediction_horizon": 0 if impossible else 2}
"""


class StopsTheSecond(FIFOScheduler):
    """Stops trial 1 at its first report, as ASHA would a bad one."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if trial.config["number"] == 1 else TrialScheduler.CONTINUE


class Processes(tune.Callback):
    """The process that each trial reported from."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        self.of[trial.config["number"]] = result["pid"]


def test_a_process_is_used_again_unless_its_trial_failed_and_trains_the_same_weights(
    tmp_path: Path, shared_folder: Path
) -> None:
    (tmp_path / "my_space.py").write_text(SPACE)
    job = replace(
        micro_job(shared_folder),
        studies_dir=str(tmp_path),
        folders=(str(tmp_path),),
        search=SearchConfig(trials=6, sampler="random", space="my_space:space"),
        confirm=ConfirmConfig(best=0),
        resources=ResourcesConfig(max_concurrent=1),
    )
    processes = Processes()
    tuner = build_tuner(job, callbacks=[processes], scheduler=StopsTheSecond())
    tuner.fit()
    study = load_study(tuner.directory)
    assert list(study.trials["state"]) == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "prediction_horizon" in study.trials["error"][3]
    first, second = {processes.of[number] for number in (0, 1, 2)}, {processes.of[number] for number in (4, 5)}
    assert len(first) == len(second) == 1
    assert first != second

    reused = read_result(tuner.directory / "trials/0005")
    assert reused is not None
    params = {"full_steps": int(study.trials["params_full_steps"][5]), "prediction_horizon": 2}
    alone = train(job.run(hybrid=settings(job, params)))
    assert [point.loss for point in reused.curve] == [point.loss for point in alone.curve]
    assert reused.heldout == alone.heldout
