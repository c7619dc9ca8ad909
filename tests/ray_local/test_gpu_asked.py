"""A node that promises a GPU and has a PyTorch that cannot use it: nothing trains, and the reason is told."""

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.ray_local

SCRIPT = """
import ray
from hybrid_ray.config import JobConfig, ResourcesConfig, TrainConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.runner import machine_of_runs
from hybrid_ray.study.stopping import StopFlag

ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
job = JobConfig(train=TrainConfig(device="cuda"), resources=ResourcesConfig(gpus_per_worker=1))
try:
    machine_of_runs(job, job.run(), flag=StopFlag())
except ConfigError as error:
    print("refused:", " ".join(str(error).split()))
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_gpu_that_torch_cannot_use_is_refused_before_anything_trains() -> None:
    """A study asks one worker what it trains on before its first run (`machine_of_runs`)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    refused = done.stdout.strip().splitlines()[-1]
    assert refused.startswith("refused:")
    assert "train.device is 'cuda' but PyTorch sees no GPU: torch" in refused
    assert "is a build without CUDA" in refused
