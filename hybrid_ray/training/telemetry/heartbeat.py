"""Heartbeats: a training process says that it makes progress, so that a process that hangs can be ended.

A process writes one small file, named after it, about twice a second while it takes steps, and removes it at the end of
its run. The driver reads these files (`ray_tune.recovery.watchdog`): the same content for too long means that the
process hangs. Files work the same for every stage, for one worker or several, and need no connection.
"""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Self

from hybrid_ray.config import RunConfig
from hybrid_ray.run_result import Evaluation, Replay, Status, StepRecord
from hybrid_ray.training.reporter import NullReporter
from hybrid_ray.training.telemetry.process_start import start_of

__all__ = ["FOLDER", "Heartbeat"]

FOLDER = "heartbeats"
_SECONDS = 0.5  # between two writes


class Heartbeat(NullReporter):
    """Writes ``folder/<node>-<process id>.json`` while the block is entered. A failed write is ignored.

    Args:
        folder: on storage that the driver can read.
        run: its evaluation schedule says how long the next evaluation interval will take.
        name: of the run, for messages.
        node: Ray's id of this machine.
    """

    def __init__(self, folder: Path, run: RunConfig, *, name: str, node: str) -> None:
        self._run, self._written = run, -math.inf
        self._steps, self._seconds, self._evaluated = 0, 0.0, 0
        pid = os.getpid()
        self._process = {"name": name, "node": node, "pid": pid, "created": start_of(pid)}
        self._path = folder / f"{node}-{pid}.json"

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write(0, None)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def step(self, record: StepRecord) -> None:
        self._steps += 1
        self._seconds += record.seconds
        train = self._run.train
        slow = record.step >= train.steps or any(
            self._evaluated < point <= record.step for point in train.evaluation_steps
        )
        slow |= train.checkpoint_every > 0 and record.step % train.checkpoint_every == 0
        if slow or time.monotonic() - self._written >= _SECONDS:
            interval = train.steps / max(1, train.evaluations) * self._seconds / self._steps
            self._write(record.step, None if slow else interval)

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        self._evaluated = evaluation.step
        return None

    def _write(self, step: int, interval: float | None) -> None:
        """``interval``: planned seconds of an evaluation interval; None if something of unknown length comes next
        (start, evaluation, checkpoint), so that the step after it is written at once.
        """
        self._written = time.monotonic() if interval is not None else -math.inf
        with contextlib.suppress(OSError):
            self._path.write_text(json.dumps({**self._process, "step": step, "interval": interval}), encoding="utf-8")
