"""The GPU monitor where there is no GPU: quiet, empty, in nobody's way."""

import time

import pynvml
import pytest
import torch

from hybrid_ray.train.monitor import GpuMonitor, NullMonitor, gpus, watch


def nvml_answers() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def test_a_cpu_is_not_watched() -> None:
    monitor = watch(torch.device("cpu"))
    with monitor:
        pass
    assert isinstance(monitor, NullMonitor)
    assert monitor.summary() == {}


def test_nvml_that_refuses_ends_the_sampling_and_nothing_else() -> None:
    monitor = GpuMonitor(None, interval=0.001)  # no device has this handle
    with monitor:
        time.sleep(0.01)
    assert monitor.summary() == {}


@pytest.mark.skipif(nvml_answers(), reason="there is a GPU")
def test_no_gpu_has_no_name() -> None:
    assert gpus() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_watched() -> None:
    monitor = watch(torch.device("cuda", 0))
    with monitor:
        torch.ones(2**20, device="cuda").sum().item()
    assert monitor.summary()["gpu_peak_memory_bytes"] > 0
    assert gpus()
