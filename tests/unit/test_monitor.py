"""The GPU monitor: what it tells of a device that can be read, and quiet where there is none.

NVML itself can't be had without a GPU, so it alone is played here, at its boundary; threads, clock and sums are real.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pynvml
import pytest
import torch
from cpu_cost import cost

from hybrid_ray import doctor
from hybrid_ray.training.telemetry import monitor as monitor_module
from hybrid_ray.training.telemetry.monitor import GpuMonitor, NullMonitor, gpus, watch


def nvml_answers() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


class Device:
    """NVML with one GPU: draws ``watts``, whose integral its counter has, and refuses what it is told to."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
    NVML_ERROR_FUNCTION_NOT_FOUND = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.lost_after: int | None = None
        self.counter_read: list[float] = []
        self.asked = 0
        self._watts, self._joules, self._since = 200.0, 0.0, time.perf_counter()

    def draw(self, watts: float) -> None:
        self._joules, self._since = self._energy(), time.perf_counter()
        self._watts = watts

    def _energy(self) -> float:
        return self._joules + self._watts * (time.perf_counter() - self._since)

    def _answer(self, name: str) -> None:
        self.asked += 1
        if self.lost_after is not None and self.asked > self.lost_after:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if name in self.refused:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:
        return None

    def nvmlSystemGetDriverVersion(self) -> str:
        self._answer("driver")
        return "580.65"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "H200"

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:
        self._answer("limit")
        return 700_000

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._answer("memory")
        return SimpleNamespace(used=3 * 2**30, total=141 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._answer("utilisation")
        return SimpleNamespace(gpu=int(self._watts / 4))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self._answer("power")
        return int(1e3 * self._watts)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        self._answer("energy")
        self.counter_read.append(self._energy())
        return 1e3 * self.counter_read[-1]


@contextmanager
def in_phase(monitor: GpuMonitor, phase: str, seconds: float) -> Iterator[None]:
    started = time.perf_counter()
    yield
    time.sleep(seconds)
    monitor.spent(phase, started, time.perf_counter())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(monitor_module, "pynvml", found)
    return found


def test_energy_is_the_counters_and_phases_have_what_they_drew(device: Device) -> None:
    with GpuMonitor("handle", interval=0.005) as monitor:
        for _ in range(2):
            with in_phase(monitor, "full", 0.15):
                device.draw(360.0)
            with in_phase(monitor, "predict", 0.15):
                device.draw(40.0)
    found = monitor.summary()
    drawn = device.counter_read[-1] - device.counter_read[0]
    assert found["gpu_energy_joules"] == pytest.approx(drawn)
    assert sum(phase["energy_joules"] for phase in found["gpu_phases"].values()) == pytest.approx(drawn)
    assert found["gpu_mean_power_watts"] == pytest.approx(drawn / found["gpu_seconds"])
    full, predict = found["gpu_phases"]["full"], found["gpu_phases"]["predict"]
    assert full["seconds"] == pytest.approx(0.3, abs=0.15)
    assert full["mean_power_watts"] > 2 * predict["mean_power_watts"]
    assert full["mean_utilisation_percent"] > 2 * predict["mean_utilisation_percent"]
    assert found["gpu_peak_memory_bytes"] == 3 * 2**30


def test_without_a_counter_energy_is_power_times_time(device: Device) -> None:
    device.refused = ("energy",)
    with GpuMonitor("handle", interval=0.005) as monitor, in_phase(monitor, "full", 0.05):
        pass
    found = monitor.summary()
    assert found["gpu_mean_power_watts"] == pytest.approx(200.0)
    assert found["gpu_energy_joules"] == pytest.approx(200.0 * found["gpu_seconds"])


def test_what_a_part_of_a_card_does_not_tell_is_left_out(device: Device) -> None:
    device.refused = ("energy", "power", "utilisation")
    with GpuMonitor("handle", interval=0.005) as monitor, in_phase(monitor, "full", 0.02):
        pass
    found = monitor.summary()
    assert found["gpu_peak_memory_bytes"] == 3 * 2**30
    assert set(found["gpu_phases"]["full"]) == {"seconds"}


def test_a_device_that_is_lost_leaves_what_was_seen(device: Device) -> None:
    device.lost_after = 40  # ten samples of four questions
    with GpuMonitor("handle", interval=0.001) as monitor, in_phase(monitor, "full", 0.1):
        pass
    found = monitor.summary()
    assert len(device.counter_read) == 10
    assert found["gpu_energy_joules"] == pytest.approx(device.counter_read[-1] - device.counter_read[0])


def test_telling_of_a_step_costs_microseconds(device: Device) -> None:
    """100,000 predicted steps: the loop tells of each, and a sample shares them out."""
    with GpuMonitor("handle", interval=0.05) as monitor:
        started = time.perf_counter()

        def work() -> None:
            for _ in range(100_000):
                monitor.spent("predict", started, started)

        assert cost(work) < 60  # the reference takes 16 ms


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_doctor_tells_of_every_gpu(device: Device) -> None:
    lines = {finding.what: finding for finding in doctor.examine()}
    assert lines["gpu 0"].text == "H200, 141 GiB, power limit 700 W, driver 580.65"
    device.refused = ("limit", "memory", "driver")
    assert {finding.what: finding.text for finding in doctor.examine()}["gpu 0"] == "H200"
    if not torch.cuda.is_available():
        assert lines["torch and gpu"].state == "bad"
        assert "torch" in lines["torch and gpu"].text


def test_a_cpu_is_not_watched() -> None:
    monitor = watch(torch.device("cpu"))
    with monitor:
        monitor.spent("full", 0.0, 1.0)
    assert isinstance(monitor, NullMonitor)
    assert monitor.summary() == {}


def test_nvml_that_refuses_ends_the_sampling_and_nothing_else() -> None:
    monitor = GpuMonitor(None, interval=0.001)  # no device has this handle
    with monitor:
        time.sleep(0.01)
    assert monitor.summary() == {}


@pytest.mark.skipif(nvml_answers(), reason="there is a GPU")
def test_without_nvml_there_is_no_gpu_and_the_doctor_says_so() -> None:
    assert gpus() == []
    assert any(finding.what == "gpu" and "NVML finds none" in finding.text for finding in doctor.examine())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_watched() -> None:
    monitor = watch(torch.device("cuda", 0))
    with monitor:
        torch.ones(2**20, device="cuda").sum().item()
    assert monitor.summary()["gpu_peak_memory_bytes"] > 0
    assert gpus()
