"""Measures a GPU during a run with NVML: memory, utilisation, power, energy. Without a GPU it measures nothing."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import pynvml
import torch

from hybrid_ray.method.ranks import rank, sum_over_ranks, world_size
from hybrid_ray.training.telemetry.phase_meter import PhaseMeter

__all__ = ["Gpu", "GpuMonitor", "Monitor", "NullMonitor", "device_name", "energy_of_all", "gpus", "watch"]

log = logging.getLogger("hybrid_ray")

INTERVAL = 0.5  # seconds between samples: NVML's own averages are about as long


class Monitor(Protocol):
    """A context that measures the device. ``summary`` then returns plain values; empty if nothing was measured."""

    def __enter__(self) -> "Monitor": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def spent(self, phase: str, started: float, ended: float) -> None:
        """Record that a step of ``phase`` ran from ``started`` to ``ended`` (seconds of `time.perf_counter`)."""
        ...

    def summary(self) -> dict[str, Any]: ...


class NullMonitor:
    """Measures nothing: there is no GPU or no NVML."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def spent(self, phase: str, started: float, ended: float) -> None:
        return None

    def summary(self) -> dict[str, Any]:
        return {}


class GpuMonitor:
    """Samples one GPU from its own thread. A failure of NVML ends the sampling, not the run.

    Energy is the difference of the driver's energy counter between two samples (Volta and newer), which also covers
    the time between power readings. Without a counter it is power times time. The counter is not read at every change
    of phase: it updates about ten times per second and phases change far more often. `PhaseMeter` divides the energy of
    a sampling interval among phases instead.

    A GPU shared by several runs is measured as a whole, so each run's values include the others'.

    Args:
        handle: NVML's handle of the device.
        interval: seconds between samples.
    """

    def __init__(self, handle: Any, *, interval: float = INTERVAL) -> None:
        self._handle = handle
        self._interval = interval
        self._meter = PhaseMeter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gpu-monitor", daemon=True)
        self._peak_memory = 0
        self._last: tuple[float, float | None] | None = None  # when it was sampled, and the energy counter then

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._meter.finish()

    def spent(self, phase: str, started: float, ended: float) -> None:
        self._meter.spent(phase, started, ended)

    def summary(self) -> dict[str, Any]:
        """Peak memory (bytes); power (watts), utilisation (percent) and energy (joules), in total and by phase."""
        peak = {"gpu_peak_memory_bytes": self._peak_memory} if self._peak_memory else {}
        return peak | self._meter.summary()

    def _sample(self) -> None:
        samples = 0
        try:
            while True:
                self._read()
                samples += 1
                if self._ended.wait(self._interval):
                    self._read()
                    return
        except pynvml.NVMLError as error:
            log.info("NVML stopped answering after %d samples: %s", samples, error)

    def _read(self) -> None:
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        utilisation = _ask(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        milliwatts = _ask(pynvml.nvmlDeviceGetPowerUsage, self._handle)
        millijoules = _ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        now, last = time.perf_counter(), self._last
        self._last = (now, millijoules)
        if memory is not None:
            self._peak_memory = max(self._peak_memory, int(memory.used))
        if last is None:
            return
        then, counter = last
        joules = None if milliwatts is None else milliwatts / 1e3 * (now - then)
        if millijoules is not None and counter is not None:
            joules = (millijoules - counter) / 1e3
        busy = None if utilisation is None else float(utilisation.gpu)
        self._meter.measured(then, now, joules=joules, utilisation=busy)


def watch(device: torch.device) -> Monitor:
    """A monitor of the device; one that measures nothing if there is no GPU or NVML does not work."""
    if device.type != "cuda":
        return NullMonitor()
    try:
        pynvml.nvmlInit()
        # By UUID, because CUDA_VISIBLE_DEVICES renumbers torch's devices but not NVML's.
        return GpuMonitor(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{device_name(device)}"))
    except pynvml.NVMLError as error:
        log.info("GPU memory, power and utilisation are not measured: %s", error)
        return NullMonitor()


def device_name(device: torch.device) -> str:
    """A GPU's UUID; an empty string for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def energy_of_all(joules: float, device: str) -> float:
    """Joules of all ranks' devices; a device that several ranks share counts once (collective)."""
    name = float(int.from_bytes(hashlib.sha256(device.encode()).digest()[:6]))  # 48 bits: exact in a float
    names = sum_over_ranks([name * (number == rank()) for number in range(world_size())])
    return sum_over_ranks([joules / names.count(name)])[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One of the machine's GPUs. A field is None if NVML does not report it."""

    name: str
    driver: str | None
    memory_bytes: int | None
    power_limit_watts: float | None


def gpus() -> list[Gpu]:
    """The machine's GPUs as NVML reports them; empty if there are none, or no NVML."""
    try:
        pynvml.nvmlInit()
        driver = _ask(pynvml.nvmlSystemGetDriverVersion)
        return [_gpu(index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu(index: int, driver: str | None) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = _ask(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        driver=driver,
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_watts=None if milliwatts is None else milliwatts / 1e3,
    )


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The value of an NVML query; None if the device or driver does not support it (old GPUs, MIG slices)."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return None
        raise
