"""Waiting for room on a cluster that has none: a signal is heard, and there is an end to it."""

import signal
import time

import pytest

from hybrid_ray.config import JobConfig, ResourcesConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.runner import machine_of_runs
from hybrid_ray.study.stopping import StopFlag, Stopped

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

JOB = JobConfig(resources=ResourcesConfig(cpus_per_worker=4096))  # more than there ever is: as on a busy cluster


def test_a_wait_for_room_ends_with_a_reason() -> None:
    with pytest.raises(HybridRayError, match=r"4096 processors, 0 GPUs\) could start within 0\.3 seconds because"):
        machine_of_runs(JOB, JOB.run(), flag=StopFlag(), limit=0.3)


def test_a_wait_for_room_hears_a_signal() -> None:
    flag = StopFlag()
    flag.signal = signal.SIGTERM
    start = time.monotonic()
    with pytest.raises(Stopped):
        machine_of_runs(JOB, JOB.run(), flag=flag, limit=60)
    assert time.monotonic() - start < 10


def test_where_runs_train_is_told_by_a_worker() -> None:
    job = JobConfig()
    assert machine_of_runs(job, job.run(), flag=StopFlag())["hardware"]["threads"] == 1
