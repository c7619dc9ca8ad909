"""Ends training processes whose heartbeats show no progress. Ray then reports them dead, and their runs are retried.

Ray itself notices a dead process, but not one that is stopped or waits for ever. `Watchdog.check` is called by the
loops that wait for runs (RayExecute, Tune); time in which the driver itself sleeps does not count.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray.tune import Callback

from hybrid_ray.training.telemetry.heartbeat import FOLDER

__all__ = ["WatchTrials", "Watchdog", "end_process"]

log = logging.getLogger("hybrid_ray")

_POLL_SECONDS = 1.0
_LONGEST_GAP = 5.0  # seconds that count between two checks: after a longer gap it was the driver that slept
_INTERVALS = 10  # planned evaluation intervals without a step
_SLOW = 15  # a start, an evaluation or a checkpoint may take this many times as long as steps
_SAME_PROCESS = 60.0  # seconds by which a process's start may seem to differ after the clock was set


class Watchdog:
    """Reads the heartbeats in ``storage`` and ends the processes that hang.

    Args:
        storage: the study's folder for files of Ray.
        least: seconds without progress that are always allowed (``resources.hang_seconds``).
        end: ends a process, by the content of its heartbeat.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        storage: Path,
        *,
        least: float,
        end: Callable[[dict[str, Any]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._least, self._end, self._clock = storage / FOLDER, least, end or end_process, clock
        self._checked = clock()
        self._quiet: dict[Path, tuple[str, float]] = {}  # the last content, and the seconds since it changed

    def check(self) -> None:
        """Look at all heartbeats, at most once a second."""
        elapsed = self._clock() - self._checked
        if elapsed < _POLL_SECONDS:
            return
        self._checked += elapsed
        before, self._quiet = self._quiet, {}
        for path in self._folder.glob("*.json"):
            try:
                content = path.read_text(encoding="utf-8")
                limit = self._limit(beat := json.loads(content))
            except (OSError, ValueError):  # just removed, or read while it was written
                continue
            last, quiet = before.get(path, ("", 0.0))
            quiet = quiet + min(elapsed, _LONGEST_GAP) if content == last else 0.0
            if quiet <= limit:
                self._quiet[path] = (content, quiet)
                continue
            log.warning(
                "%s made no progress for %.0f s after step %d: its process (%d) is ended and the run is tried again",
                beat["name"], quiet, beat["step"], beat["pid"],
            )  # fmt: skip
            path.unlink(missing_ok=True)
            self._end(beat)

    def _limit(self, beat: dict[str, Any]) -> float:
        """Seconds that a process may take until its next heartbeat."""
        if beat["interval"] is None:
            return _SLOW * self._least
        return max(self._least, _INTERVALS * float(beat["interval"]))


class WatchTrials(Callback):
    """Calls the watchdog from Tune's loop."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        self._watchdog.check()


def end_process(beat: dict[str, Any]) -> None:
    """SIGKILL the process of a heartbeat on its own machine, unless it has ended. Does not wait."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(beat["node"], soft=False)
    ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(beat["pid"], beat["created"])


def _kill(pid: int, created: float) -> None:
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < _SAME_PROCESS:
            process.kill()
    except psutil.Error:  # it has ended
        return
