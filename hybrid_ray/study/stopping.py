"""When nothing new may start: a signal asked to stop, or a budget is used up."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.cluster import run_needs

__all__ = ["Budget", "StopFlag", "Stopped", "check_budget"]


class Stopped(Exception):
    """Work was left undone on purpose. ``reason`` says why; what is finished is kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopFlag:
    """Set by the first SIGINT or SIGTERM while the block is entered; a second signal ends the process at once.

    A plain attribute and no event: signal handlers run between two instructions of the main thread. Outside the main
    thread, where Python allows no handlers, it is never set by a signal.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def __bool__(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        """Take over the signals; called again after Ray has put its own handler in place."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._received)
            self._previous.setdefault(number, previous)

    def raise_if_set(self) -> None:
        """Raises `Stopped` once a signal has come."""
        if self:
            raise Stopped("asked to stop")

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number


class Budget:
    """Minutes of this session and GPU-hours of its runs. What runs already may end; nothing new starts."""

    def __init__(self, job: JobConfig) -> None:
        self._limits, self._gpus = job.budget, run_needs(job).gpus
        self._started = time.monotonic()
        self._gpu_seconds = 0.0

    def spend(self, seconds: float) -> None:
        """Count one run's wall time, on all its GPUs."""
        self._gpu_seconds += seconds * self._gpus

    @property
    def used_up(self) -> str | None:
        """Which limit was reached, in words; None while there is some left."""
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
    """Raises `ConfigError` for a budget that could never be used up. ``job`` is resolved."""
    if job.budget.gpu_hours is not None and not run_needs(job).gpus:
        raise ConfigError(
            f"budget.gpu_hours is {job.budget.gpu_hours:g} but the runs use no GPU, so it would limit nothing: "
            "set budget.minutes instead"
        )
