"""The GPU's memory over a run: peaks by phase, and whether it grows."""

from collections.abc import Mapping

import torch

from hybrid_ray.method.phases import Phase

__all__ = ["PhaseMemory", "Slope"]


class Slope:
    """The least-squares slope of a series of whole numbers. Five sums are kept, exact however large, and no series."""

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
        """Of y over x; None before there are two different x."""
        spread = self._count * self._xx - self._x**2
        return (self._count * self._xy - self._x * self._y) / spread if spread else None


class PhaseMemory:
    """Peak bytes allocated and reserved on the GPU, by phase, and the slope of bytes allocated over steps.

    The allocator is asked at every change of phase, where its peak is reset too. What is allocated there, between two
    steps, makes the slope: weights, optimizer and buffers, no activations. The first step is not in it, since that
    makes the optimizer's state. On a CPU nothing is asked.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on = device.type == "cuda"
        self._phase: Phase | None = None
        self._peaks: dict[str, dict[str, int]] = {}
        self._slope = Slope()

    def enter(self, phase: Phase, step: int) -> None:
        """A step of ``phase`` begins, after ``step`` others."""
        if not self._on or phase is self._phase:
            return
        if self._phase is not None:
            self._slope.add(step, self._note(self._phase))
        torch.cuda.reset_peak_memory_stats(self._device)
        self._phase = phase

    def peaks(self) -> dict[str, dict[str, int]]:
        """Bytes by phase, ``allocated`` and ``reserved``."""
        if self._phase is not None:
            self._note(self._phase)
        return {phase: dict(peaks) for phase, peaks in self._peaks.items()}

    @property
    def slope(self) -> float | None:
        """Bytes a step, in this process; None before the third change of phase."""
        return self._slope.value

    def load(self, peaks: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from the peaks of a checkpoint. The slope begins anew: another process starts at another level."""
        self._peaks = {phase: dict(values) for phase, values in peaks.items()}
        self._phase, self._slope = None, Slope()

    def _note(self, phase: Phase) -> int:
        """Take in the peaks of a phase. Returns what is allocated now."""
        found = torch.cuda.memory_stats(self._device)
        peaks = self._peaks.setdefault(str(phase), {"allocated": 0, "reserved": 0})
        for kind in peaks:
            peaks[kind] = max(peaks[kind], found.get(f"{kind}_bytes.all.peak", 0))
        return int(found.get("allocated_bytes.all.current", 0))
