"""GPU memory over a run: the peaks by phase, and whether the memory grows."""

from collections.abc import Mapping

import torch

from hybrid_ray.method.phases import Phase

__all__ = ["PhaseMemory", "Slope"]


class Slope:
    """The least-squares slope of a series of integers. It stores five exact integer sums instead of the series."""

    def __init__(self) -> None:
        self._count = self._x = self._y = self._xx = self._xy = 0

    def add(self, x: int, y: int) -> None:
        self._count += 1
        self._x += x
        self._y += y
        self._xx += x * x
        self._xy += x * y

    @property
    def value(self) -> float | None:
        """The slope of y over x; None until two different x have been added."""
        spread = self._count * self._xx - self._x**2
        return (self._count * self._xy - self._x * self._y) / spread if spread else None


class PhaseMemory:
    """Peak bytes allocated and reserved on the GPU, by phase, and the slope of bytes allocated over steps.

    The allocator is read, and its peak is reset, at every change of phase. The slope is fitted to the bytes allocated
    at these points, between two steps: weights, optimizer state and buffers, but no activations. It excludes the first
    step, which creates the optimizer's state. On a CPU nothing is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on = device.type == "cuda"
        self._phase: Phase | None = None
        self._peaks: dict[str, dict[str, int]] = {}
        self._slope = Slope()

    def enter(self, phase: Phase, step: int) -> None:
        """Start a step of ``phase`` after ``step`` earlier steps."""
        if not self._on or phase is self._phase:
            return
        if self._phase is not None:
            self._slope.add(step, self._note(self._phase))
        torch.cuda.reset_peak_memory_stats(self._device)
        self._phase = phase

    def peaks(self) -> dict[str, dict[str, int]]:
        """Peak bytes by phase, ``allocated`` and ``reserved``."""
        if self._phase is not None:
            self._note(self._phase)
        return {phase: dict(peaks) for phase, peaks in self._peaks.items()}

    @property
    def slope(self) -> float | None:
        """Bytes per step, in this process; None before the third change of phase."""
        return self._slope.value

    def load(self, peaks: Mapping[str, Mapping[str, int]]) -> None:
        """Continue from the peaks of a checkpoint. The slope is reset: a new process starts from another level."""
        self._peaks = {phase: dict(values) for phase, values in peaks.items()}
        self._phase, self._slope = None, Slope()

    def _note(self, phase: Phase) -> int:
        """Update the peaks of a phase. Returns the bytes allocated now."""
        found = torch.cuda.memory_stats(self._device)
        peaks = self._peaks.setdefault(str(phase), {"allocated": 0, "reserved": 0})
        for kind in peaks:
            peaks[kind] = max(peaks[kind], found.get(f"{kind}_bytes.all.peak", 0))
        return int(found.get("allocated_bytes.all.current", 0))
