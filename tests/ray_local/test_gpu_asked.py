"""A Ray that promises a GPU: where PyTorch cannot use it nothing trains, and a budget of GPU-hours counts its share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.ray_local

TESTS = Path(__file__).resolve().parent.parent

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

import ray
from micro_jobs import micro_job

from hybrid_ray.config import BudgetConfig, JobConfig, ResourcesConfig, SearchConfig, TrainConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation import frontier
from hybrid_ray.ray_tune.runner import machine_of_runs
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.report.load import load_study
from hybrid_ray.study import stages
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.plan import plan
from hybrid_ray.study.stopping import StopFlag

all_runs = stages.frontier_runs
stages.frontier_runs = lambda job: {1.0: all_runs(job)[1.0]}  # the baseline alone: each run takes seconds to start
frontier.FEWEST, frontier._noise = 1, lambda points: frontier.LEAST_NOISE

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
asked = JobConfig(train=TrainConfig(device="cuda"), resources=ResourcesConfig(gpus_per_worker=1))
try:
    machine_of_runs(asked, asked.run(), flag=StopFlag())
    answer = "accepted"
except ConfigError as error:
    answer = "refused: " + " ".join(str(error).split())

folder, shared = map(Path, sys.argv[1:])
job = replace(micro_job(shared, search=SearchConfig(trials=500)), studies_dir=str(folder))
space, planned = load_space(job), plan(job)
job = replace(job, budget=BudgetConfig(gpu_hours=0.0002), resources=ResourcesConfig(gpus_per_worker=0.5))
with StudyDirectory.create(job, space=space, source=None) as study:
    outcome = stages.Stages(study, space, planned).run()
    while not len(load_study(study.path).trials):  # where the frontier used up the budget
        outcome = stages.Stages(study, space, planned).run()
print(answer)
print(outcome.status, len(load_study(study.path).trials), outcome.text.count("0.0002 GPU-hours is used up"))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> list[str]:
    """What the script printed. The GPU exists for Ray only."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("gpu")), str(shared_folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environment)
    return done.stdout.strip().splitlines()[-2:]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_gpu_that_torch_cannot_use_is_refused_before_anything_trains(said: list[str]) -> None:
    """A study asks one worker what it trains on before its first run (`machine_of_runs`)."""
    assert said[0].startswith("refused:")
    assert "train.device is 'cuda' but PyTorch sees no GPU: torch" in said[0]
    assert "is a build without CUDA" in said[0]


def test_a_budget_of_gpu_hours_ends_a_study_that_can_be_resumed(said: list[str]) -> None:
    """The runs train on the CPU and count for the half GPU that they reserve."""
    status, trials, told = said[1].split()
    assert status == "finished"
    assert 0 < int(trials) < 500
    assert told == "1"
