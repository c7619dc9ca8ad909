"""What the GPU did during a run, by NVML: memory, utilisation, power, energy. Without a GPU nothing is seen."""

import logging
import threading
from types import TracebackType
from typing import Any, Protocol, Self

import pynvml
import torch

__all__ = ["GpuMonitor", "Monitor", "NullMonitor", "gpu_names", "watch"]

log = logging.getLogger("hybrid_ray")

INTERVAL = 0.5  # seconds between samples: NVML's own averages are about as long


class Monitor(Protocol):
    """A context in which the device is watched; ``summary`` afterwards, plain values, empty where nothing was seen."""

    def __enter__(self) -> "Monitor": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def summary(self) -> dict[str, float]: ...


class NullMonitor:
    """No GPU, or no NVML."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def summary(self) -> dict[str, float]:
        return {}


class GpuMonitor:
    """Samples one GPU from a thread of its own. A reading that NVML refuses ends the sampling, not the run.

    Args:
        handle: NVML's handle of the device.
        interval: seconds between samples.
    """

    def __init__(self, handle: Any, *, interval: float = INTERVAL) -> None:
        self._handle = handle
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gpu-monitor", daemon=True)
        self._samples = 0
        self._peak_memory = 0.0
        self._utilisation = 0.0
        self._power = 0.0
        self._energy: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def summary(self) -> dict[str, float]:
        """Peak memory of the whole device (bytes), mean utilisation (percent) and power (watts), energy (joules)."""
        if not self._samples:
            return {}
        found = {
            "gpu_peak_memory_bytes": self._peak_memory,
            "gpu_mean_utilisation_percent": self._utilisation / self._samples,
            "gpu_mean_power_watts": self._power / self._samples,
        }
        if self._energy is not None:
            found["gpu_energy_joules"] = self._energy[1] - self._energy[0]
        return found

    def _sample(self) -> None:
        try:
            while True:
                self._read()
                if self._ended.wait(self._interval):
                    self._read()
                    return
        except pynvml.NVMLError as error:
            log.info("NVML stopped answering after %d samples: %s", self._samples, error)

    def _read(self) -> None:
        memory = float(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        utilisation = float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        power = pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3
        self._peak_memory = max(self._peak_memory, memory)
        self._utilisation += utilisation
        self._power += power
        self._samples += 1
        energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        self._energy = (self._energy[0] if self._energy else energy, energy)


def watch(device: torch.device) -> Monitor:
    """A monitor of the device, or one that sees nothing where there is no GPU or NVML does not answer."""
    if device.type != "cuda":
        return NullMonitor()
    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's.
        uuid = torch.cuda.get_device_properties(device).uuid
        return GpuMonitor(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError as error:
        log.info("the GPU is not watched: %s", error)
        return NullMonitor()


def gpu_names() -> list[str]:
    """Names of the machine's GPUs as NVML tells them; empty where there are none."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count)]
    except pynvml.NVMLError:
        return []
