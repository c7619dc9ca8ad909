"""Reporters receive a run's steps and evaluations, for the search, the run directory or a test."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from hybrid_ray.config import RunConfig
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, StepRecord
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import JsonLines
from hybrid_ray.storage.parquet import write_steps_parquet
from hybrid_ray.storage.results_version import code_record, run_settings

__all__ = ["NullReporter", "Progress", "Reporter", "Reporters", "RunWriter"]


class Reporter(Protocol):
    """Receives every nominal step and every evaluation, outside the timed part of the loop.

    With several workers each rank has its own reporter. All receive the same evaluations, so reporters built from the
    same plain values give the same answers.
    """

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        """Return a status to end the run at this evaluation, or None to continue.

        Args:
            evaluation: the held-out loss and its cost.
            step_seconds: seconds per plain step.
            replay: the phases of all steps so far.
        """
        ...


class NullReporter:
    """Ignores everything and never ends the run."""

    def step(self, record: StepRecord) -> None:
        return None

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        return None


class Progress(NullReporter):
    """Writes a line for each evaluation.

    Args:
        steps: nominal steps of the run.
        file: the lines are appended to it; None: they go to standard error.
    """

    def __init__(self, steps: int, file: Path | None = None) -> None:
        self._steps, self._file = steps, file

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        done = f"step {evaluation.step}/{self._steps}, {evaluation.real_steps} of them real"
        line = f"  {done}: loss {evaluation.loss:.4f}, {evaluation.train_seconds:.1f} s"
        if self._file is None:
            print(line, file=sys.stderr)
        else:
            with self._file.open("a") as file:
                print(line, file=file)
        return None


class Reporters:
    """Several reporters as one. All receive everything; the first status that is not None counts."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def step(self, record: StepRecord) -> None:
        for reporter in self._reporters:
            reporter.step(record)

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        answers = [reporter.evaluation(evaluation, step_seconds, replay) for reporter in self._reporters]
        return next((answer for answer in answers if answer is not None), None)


class RunWriter:
    """Writes a run directory: ``run.json``, ``code.json`` (results version and commit), steps, ``result.json``.

    Steps are written in chunks, because a write would take longer than a predicted step. A killed run loses at most the
    current chunk; a resumed run writes some steps twice, and the later line counts.

    Args:
        directory: the run directory, made if needed.
        run: its settings go to ``run.json``.
        resumed: True continues the record of a checkpointed run, False removes an old one.
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

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        self.flush()
        return None

    def flush(self) -> None:
        """Write the steps of the current chunk."""
        for row in self._waiting:
            self._lines.append(row)
        self._waiting.clear()

    def close(self, result: RunResult) -> None:
        """Convert the steps to Parquet, then write the result: a directory with ``result.json`` is complete.

        The steps of a stopped run stay in ``steps.jsonl``, since it may be resumed.
        """
        self.flush()
        if result.status != "stopped" and self._steps.exists():
            write_steps_parquet(self._steps, self._directory / "steps.parquet")
        write_json_atomic(self._directory / "result.json", result.as_dict())
