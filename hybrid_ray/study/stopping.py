"""Reasons to start nothing new: a signal to stop, or a budget that is used up."""

import os
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
    """The work ended early on request. ``reason`` says why; finished runs are kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopFlag:
    """Set by the first SIGINT or SIGTERM while the block is entered; a second signal ends the process at once.

    A plain attribute is enough, because signal handlers run in the main thread between two instructions. In other
    threads, where Python allows no handlers, it is never set.
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
        """Install the signal handlers. Called again after Ray has installed its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._received)
            self._previous.setdefault(number, previous)

    def raise_if_set(self) -> None:
        """Raises `Stopped` once a signal has come."""
        if self:
            raise Stopped("a signal asked to stop")

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number
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
