"""Who is told what a run does: the search, the run directory, a test. The loop knows only this protocol."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from hybrid_ray.config import RunConfig
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, StepRecord
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import JsonLines
from hybrid_ray.storage.parquet import write_steps_parquet
from hybrid_ray.storage.results_version import code_record, run_settings

__all__ = ["NullReporter", "Reporter", "Reporters", "RunWriter"]


class Reporter(Protocol):
    """Hears of every nominal step and of every evaluation, outside the timed part of the loop.

    With several workers every rank has one of its own and hears the same evaluations, so that one built from the same
    plain values answers the same on every rank.
    """

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, evaluation: Evaluation, calibration: float, replay: Replay) -> Status | None:
        """A status ends the run there and then; None lets it go on.

        Args:
            calibration: seconds of a plain step.
            replay: the steps so far.
        """
        ...


class NullReporter:
    """Listens and says nothing."""

    def step(self, record: StepRecord) -> None:
        return None

    def evaluation(self, evaluation: Evaluation, calibration: float, replay: Replay) -> Status | None:
        return None


class Reporters:
    """Several reporters as one. All hear everything; the first status given counts."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def step(self, record: StepRecord) -> None:
        for reporter in self._reporters:
            reporter.step(record)

    def evaluation(self, evaluation: Evaluation, calibration: float, replay: Replay) -> Status | None:
        answers = [reporter.evaluation(evaluation, calibration, replay) for reporter in self._reporters]
        return next((answer for answer in answers if answer is not None), None)


class RunWriter:
    """Writes a run directory: ``run.json``, ``code.json`` (results version and commit), steps, ``result.json``.

    Steps are kept back and appended a chunk at a time, so that a predicted step of a few microseconds is not followed
    by a write. A killed run keeps every chunk; a resumed one writes some steps twice and the later line counts.

    Args:
        directory: the run directory, made when missing.
        resumed: a checkpoint is being continued. False starts a fresh record.
    """

    CHUNK = 256

    def __init__(self, directory: Path, run: RunConfig, *, resumed: bool) -> None:
        self._directory = directory
        self._steps = directory / "steps.jsonl"
        if not resumed:
            for name in ("result.json", "steps.jsonl", "steps.parquet"):
                (directory / name).unlink(missing_ok=True)
        write_json_atomic(directory / "code.json", code_record())
        write_json_atomic(directory / "run.json", run_settings(run, directory))
        self._lines = JsonLines(self._steps, sync=False)
        self._waiting: list[dict[str, Any]] = []

    def step(self, record: StepRecord) -> None:
        self._waiting.append(asdict(record))
        if len(self._waiting) >= self.CHUNK:
            self.flush()

    def evaluation(self, evaluation: Evaluation, calibration: float, replay: Replay) -> Status | None:
        self.flush()
        return None

    def flush(self) -> None:
        """Hand every step so far to the operating system."""
        for row in self._waiting:
            self._lines.append(row)
        self._waiting.clear()

    def close(self, result: RunResult) -> None:
        """Close the steps to Parquet and write the result last: a directory that has one is complete.

        A stopped run keeps its lines, since it may be resumed.
        """
        self.flush()
        if result.status != "stopped" and self._steps.exists():
            write_steps_parquet(self._steps, self._directory / "steps.parquet")
        write_json_atomic(self._directory / "result.json", result.as_dict())
