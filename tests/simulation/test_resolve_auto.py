"""Auto settings that depend on the machine: the GPUs of a worker, and the device that follows from them."""

from typing import Any

import pytest
import torch

from hybrid_ray.config import JobConfig, ResourcesConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.cluster import Resources, check_resources, run_needs
from hybrid_ray.study.plan import resolve_auto


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with as many GPUs as the parameter says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


def job_of(device: Any = "auto", **resources: Any) -> JobConfig:
    return JobConfig(train=TrainConfig(device=device), resources=ResourcesConfig(**resources))


@pytest.mark.parametrize(
    "gpus, device, resources, decided",
    [
        (0, "auto", {}, ("cpu", 0.0)),
        (1, "auto", {}, ("cuda", 1.0)),
        (1, "cpu", {}, ("cpu", 0.0)),
        (1, "auto", {"gpus_per_worker": 0.0}, ("cpu", 0.0)),  # a machine with a GPU can still use processors
        (1, "auto", {"gpus_per_worker": 0.25}, ("cuda", 0.25)),
        (1, "auto", {"workers": 2}, ("cpu", 0.0)),
        (2, "auto", {"workers": 2}, ("cuda", 1.0)),
        (0, "cuda", {}, ("cuda", 1.0)),  # kept; the resource check reports that there is no GPU
        (8, "auto", {"address": "auto"}, ("cpu", 0.0)),  # the GPUs of this machine do not matter for a cluster
        (0, "auto", {"address": "auto", "gpus_per_worker": 1.0}, ("cuda", 1.0)),
        (0, "cuda", {"address": "auto"}, ("cuda", 1.0)),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_gpus_and_device_are_decided_together_once(
    device: str, resources: dict[str, Any], decided: tuple[str, float]
) -> None:
    job = resolve_auto(job_of(device, **resources))
    assert (job.train.device, job.resources.gpus_per_worker) == decided
    assert job.run().train.device == decided[0]
    assert resolve_auto(job) == job


@pytest.mark.parametrize(
    "job, parts",
    [
        (job_of("cuda", gpus_per_worker=0.0), ("train.device is 'cuda'", "gpus_per_worker is 0", "leave")),
        (job_of("cpu", gpus_per_worker=2.0), ("train.device is 'cpu'", "gpus_per_worker is 2", "set")),
    ],
)
def test_a_device_that_contradicts_the_gpus_is_a_mistake(job: JobConfig, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_auto(job)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_the_way_out_of_too_few_gpus_is_one() -> None:
    job = resolve_auto(job_of("cuda"))
    with pytest.raises(ConfigError, match=r"train\.device: cpu, resources\.gpus_per_worker: 0"):
        check_resources(job, Resources(cpus=2, gpus=0))
    check_resources(resolve_auto(job_of("cpu", gpus_per_worker=0.0)), Resources(cpus=2, gpus=0))


def test_open_gpus_are_written_read_and_counted_as_none() -> None:
    job = job_from_dict({"resources": {"gpus_per_worker": None}})
    assert job == JobConfig()
    assert "gpus_per_worker: null" in dump_job(job)
    assert run_needs(job).gpus == 0
