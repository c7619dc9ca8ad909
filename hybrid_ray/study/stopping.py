"""Reasons to start nothing new: a signal to stop, or a budget that is used up."""

import os
import signal
import time
from types import FrameType

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.cluster import run_needs
from hybrid_ray.training.interruption import StopRequest

__all__ = ["Budget", "StopFlag", "Stopped", "check_budget"]


class Stopped(Exception):
    """The work ended early on request. ``reason`` says why; finished runs are kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopFlag(StopRequest):
    """The driver's request to stop, true once it came. A second signal of either kind ends the process at once."""

    def __bool__(self) -> bool:
        return self.asked

    def raise_if_set(self) -> None:
        """Raises `Stopped` once a signal has come."""
        if self:
            raise Stopped("a signal asked to stop")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
        # Not print: a handler may run inside another write to the same buffer.
        os.write(2, b"Stopping: finished runs are kept. A second signal ends this at once.\n")


class Budget:
    """Limits on the minutes of this session and the GPU-hours of its runs. Once reached, no new run starts."""

    def __init__(self, job: JobConfig) -> None:
        self._limits, self._gpus = job.budget, job.resources.gpus
        self._started = time.monotonic()
        self._gpu_seconds = 0.0

    def spend(self, seconds: float) -> None:
        """Count wall time of one worker, on its GPUs (`Watchdog` measures it)."""
        self._gpu_seconds += seconds * self._gpus

    @property
    def used_up(self) -> str | None:
        """The limit that was reached, as a sentence; None if none was."""
        minutes, hours = (time.monotonic() - self._started) / 60, self._gpu_seconds / 3600
        if self._limits.minutes is not None and minutes >= self._limits.minutes:
            return f"the budget of {self._limits.minutes:g} minutes is used up"
        if self._limits.gpu_hours is not None and self._gpus and hours >= self._limits.gpu_hours:
            return f"the budget of {self._limits.gpu_hours:g} GPU-hours is used up"
        return None

    def raise_if_used_up(self) -> None:
        """Raises `Stopped` once a limit was reached."""
        if reason := self.used_up:
            raise Stopped(reason)


def check_budget(job: JobConfig) -> None:
    """Raises `ConfigError` for a budget that can never be used up. ``job`` must be resolved."""
    if job.budget.gpu_hours is not None and not run_needs(job).gpus:
        raise ConfigError(
            f"budget.gpu_hours is {job.budget.gpu_hours:g} but the runs use no GPU, so it would limit nothing: "
            "set budget.minutes instead"
        )
