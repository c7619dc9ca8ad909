"""Follows the heartbeats of training processes: ends those without progress, and measures how long each ran.

Ray itself notices a dead process, but not one that is stopped or waits for ever. Once it is ended, Ray reports it dead
and its run is retried. `Watchdog.check` is called by the loops that wait for runs (RayExecute, Tune).

A process that was killed leaves its heartbeat behind. Nothing is said of it here, since Ray reports it. On this machine
that is seen at the next look; on a cluster, when the heartbeat is as old as that of a process that hangs.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray.tune import Callback

from hybrid_ray.ray_tune.recovery.local_ray import LocalRay
from hybrid_ray.training.telemetry.heartbeat import FOLDER
from hybrid_ray.training.telemetry.process_start import running_process

__all__ = ["WatchTrials", "Watchdog", "end_process"]

log = logging.getLogger("hybrid_ray")

_POLL_SECONDS = 1.0
_LONGEST_GAP = 5.0  # seconds that count as quiet between two looks: after a longer gap it was the driver that slept
_INTERVALS = 10  # planned evaluation intervals without a step
_SLOW = 15  # a start, an evaluation or a checkpoint may take this many times as long as steps


class Watchdog:
    """Reads the heartbeats in ``storage`` and ends the processes that hang.

    Args:
        storage: the study's folder for files of Ray.
        least: seconds without progress that are always allowed (``resources.hang_seconds``).
        cluster: whether the runs are on a cluster, not on this machine's own Ray.
        ran: receives the seconds that each process was seen to run, while it does. Waiting for a free GPU and the time
            between two attempts do not count; a process that was killed or hung counts until its last heartbeat.
        end: ends a process, by the content of its heartbeat. The future says whether it still ran.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        storage: Path,
        *,
        least: float,
        cluster: bool = False,
        ran: Callable[[float], None] = lambda seconds: None,
        end: Callable[[dict[str, Any]], "Future[bool]"] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._least, self._clock = storage / FOLDER, least, clock
        self._ran, self._end, self._cluster = ran, end or end_process, cluster
        self._checked = clock()
        self._quiet: dict[Path, tuple[str, float]] = {}  # the last content, and the seconds since it changed
        self.ray = LocalRay(cluster=cluster)

    def check(self) -> None:
        """Look at all heartbeats, at most once a second. Raises `HybridRayError` if this machine's Ray has died."""
        if self._clock() - self._checked >= _POLL_SECONDS:
            self.ray.check()
            self.look()

    def look(self) -> None:
        """Look at all heartbeats now. Called after the last run too, so that its end is seen."""
        elapsed = self._clock() - self._checked
        self._checked += elapsed
        before, self._quiet = self._quiet, {}
        for path in self._folder.glob("*.json"):
            try:
                content = path.read_text(encoding="utf-8")
                limit = self._limit(beat := json.loads(content))
            except (OSError, ValueError):  # just removed, or read while it was written
                continue
            quiet = 0.0
            if path in before:
                last, quiet = before.pop(path)
                quiet += min(elapsed, _LONGEST_GAP)
                if content != last:
                    self._ran(quiet)
                    quiet = 0.0
            if not self._cluster and running_process(beat["pid"], beat["created"]) is None:
                path.unlink(missing_ok=True)
            elif quiet <= limit:
                self._quiet[path] = (content, quiet)
            else:
                path.unlink(missing_ok=True)
                self._end(beat).add_done_callback(partial(_say_if_it_ran, beat, quiet))
        for _, quiet in before.values():  # these processes have ended their runs
            self._ran(quiet + elapsed)

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

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        self._watchdog.look()


def _say_if_it_ran(beat: dict[str, Any], quiet: float, ended: "Future[bool]") -> None:
    """Warn of a process that hung. Its node may have gone away too, which Ray reports."""
    if ended.exception() is None and ended.result():
        log.warning(
            "%s made no progress for %.0f s after step %d: its process (%d) was ended",
            beat["name"], quiet, beat["step"], beat["pid"],
        )  # fmt: skip


def end_process(beat: dict[str, Any]) -> "Future[bool]":
    """SIGKILL the process of a heartbeat on its own machine. Does not wait. The future says whether it still ran."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(beat["node"], soft=False)
    task = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    ended: Future[bool] = task.remote(beat["pid"], beat["created"]).future()
    return ended


def _kill(pid: int, start: float) -> bool:
    """Returns whether the process still ran."""
    process = running_process(pid, start)
    if process is None:
        return False
    try:
        process.kill()
    except psutil.NoSuchProcess:  # it has just ended
        return False
    return True
