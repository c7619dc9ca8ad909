"""Studies from Python, and searches whose parts are a user's own, on a real local Ray."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray_warnings import RAY_WARNINGS

from hybrid_ray import build_tuner, load_job, load_study, run_study
from hybrid_ray.config import ConfirmConfig, JobConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.errors import HybridRayError
from hybrid_ray.study.pipeline import resume_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def job(tmp_path: Path, shared_folder: Path) -> JobConfig:
    job = replace(micro_job(shared_folder), studies_dir=str(tmp_path))
    return replace(job, search=replace(job.search, trials=2), confirm=ConfirmConfig(best=0))


def test_importing_the_package_loads_neither_ray_nor_optuna_nor_torch() -> None:
    code = "import hybrid_ray, sys; sys.exit(bool({'ray', 'optuna', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Seen(tune.Callback):
    """What a user's callback hears."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def on_trial_result(
        self, iteration: int, trials: object, trial: object, result: dict[str, int], **_: object
    ) -> None:
        self.steps.setdefault(str(trial), []).append(result["step"])


def test_a_tuner_of_ones_own_keeps_its_trials_in_a_study_that_goes_on(job: JobConfig, tmp_path: Path) -> None:
    seen = Seen()
    tuner = build_tuner(
        job,
        callbacks=[seen],
        scheduler=ASHAScheduler(time_attr="step", max_t=61, grace_period=60),
        run_config=tune.RunConfig(name="mine", storage_path=str(tmp_path / "ray"), verbose=0),
    )
    grid = tuner.fit()
    assert isinstance(tuner, tune.Tuner)
    assert len(grid) == 2
    assert grid.num_errors == 0
    study = load_study(tuner.directory)
    assert study.trials["number"].tolist() == [0, 1]
    assert study.trials["objective"].max() == grid.get_best_result().metrics["objective"]
    assert {trial: (len(steps), steps[-1]) for trial, steps in seen.steps.items()} == {"0000": (4, 60), "0001": (4, 60)}
    assert (tmp_path / "ray/mine").is_dir()
    with pytest.raises(HybridRayError, match="has already run its trials"):
        tuner.fit()
    outcome = resume_study(tuner.directory)
    assert outcome.status == "finished"
    assert (tuner.directory / "report.html").is_file()


def test_a_search_by_parts_of_ones_own_is_run_and_resumed(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own_search.py", "own_search.yaml"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    own = load_job("own_search.yaml")
    (tmp_path / "job.yaml").write_text(
        dump_job(replace(job, search=replace(own.search, trials=3), confirm=replace(own.confirm, best=1)))
    )
    study = run_study(load_job("job.yaml", ["name=own", "hybrid.gate=always"]))
    assert study.finished
    assert study.trials["preset"].tolist()[0] == "short"
    assert {"params_full_steps", "params_prediction_horizon"} <= set(study.trials.columns)
    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    assert {line["trial"] for line in lines} == {0, 1, 2}
    assert {path.parent.name for path in study.directory.glob("tune/*/progress.csv")} == {"0000", "0001", "0002"}
    assert set(study.confirmation["arm"]) == {"baseline", "hybrid", "equal_steps", "placebo", "two_thirds"}
    report = (study.directory / "report.md").read_text()
    assert "two thirds" in report
    assert "class StopFarBehind" in study.environment["sources"]["own_search"]
    monkeypatch.chdir("/")
    assert resume_study(study.directory).status == "finished"
    assert len(load_study(study.directory).trials) == 3


def test_hyperband_pauses_trials_and_they_go_on_where_they_were(job: JobConfig) -> None:
    scheduler = {"name": "ray.tune.schedulers:HyperBandScheduler", "reduction_factor": 2, "max_t": 60}
    search = replace(job.search, trials=3, grace_steps=None, scheduler=scheduler)
    study = run_study(replace(job, name="bands", search=search, train=replace(job.train, checkpoint_every=15)))
    assert len(study.trials) == 3
    assert set(study.trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert "COMPLETE" in set(study.trials["state"])
