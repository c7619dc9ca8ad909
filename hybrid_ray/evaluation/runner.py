"""How runs outside a search are executed: a list of tasks in, a list of results out, in the same order.

The protocol is one function type, so that ``evaluation/`` needs no Ray and yet uses a cluster when it is handed an
``Execute`` that does (``ray_tune/runner.py``).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, TrialOutOfMemory
from hybrid_ray.run_result import Replay, RunResult
from hybrid_ray.storage.results_version import RESULTS_VERSION, run_settings, warn_of_other_commit

__all__ = [
    "Execute",
    "Task",
    "check_results_version",
    "execute_here",
    "execute_missing",
    "failed_result",
    "stored_result",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One run, and the run directory that it fills."""

    run: RunConfig
    directory: Path


Execute = Callable[[Sequence[Task]], list[RunResult]]
"""Runs every task. A failed one gives a result with status "failed" and ``error``, never an exception."""


def execute_here(tasks: Sequence[Task]) -> list[RunResult]:
    """Run the tasks one after another in this process.

    Raises KeyboardInterrupt when a signal ended a run early: the training loop took the signal, saved its state and
    left in good order, and nothing more may start.
    """
    results = []
    for task in tasks:
        results.append(_run(task))
        if results[-1].status == "stopped":
            raise KeyboardInterrupt
    return results


def _run(task: Task) -> RunResult:
    from hybrid_ray.training.loop import train  # here, so that the statistics need no torch

    try:
        return train(task.run, directory=task.directory)
    except TrialOutOfMemory as error:
        return failed_result(task.run, f"oom: {error}")
    except Exception as error:  # the boundary of the protocol: one failed run must not take the others with it
        return failed_result(task.run, f"{type(error).__name__}: {error}")


def failed_result(run: RunConfig, error: str) -> RunResult:
    """A result for a run that left none. It has no losses and no time; its calibration of 1 keeps ``time`` at 0."""
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        status="failed",
        steps=0,
        real_steps=0,
        predicted_steps=0,
        train_seconds=0.0,
        calibration=1.0,
        plain_step=1.0,
        heldout={},
        curve=(),
        phase_steps={},
        phase_seconds={},
        part_seconds={},
        other_seconds={},
        tokens={},
        replay=Replay(phases="", norms=()),
        error=error,
    )


def stored_result(task: Task) -> RunResult | None:
    """What an earlier, interrupted session left in the task's directory, if it is this very run of today's results
    version and it came to its end.

    A run that failed or was stopped is not an end: it is run again.
    """
    result = _ended(task.directory)
    try:
        run = json.loads((task.directory / "run.json").read_text())
    except (OSError, ValueError):
        return None
    same = run == run_settings(task.run, task.directory) and _results_version(task.directory) == RESULTS_VERSION
    return result if same else None


def _ended(directory: Path) -> RunResult | None:
    """The result of a run that came to an end of its own."""
    try:
        result = RunResult.from_dict(json.loads((directory / "result.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if result.status in ("finished", "diverged") else None


def check_results_version(directory: Path) -> None:
    """Whether all that came to its end under ``directory`` is of today's results version. Another commit is said.

    Runs of two versions must not be compared, and hours of finished runs are not removed without a word.

    Raises:
        ConfigError: a finished run is of another version.
    """
    ended = [path.parent for path in sorted(directory.rglob("result.json")) if _ended(path.parent) is not None]
    others = [found for found in ended if _results_version(found) != RESULTS_VERSION]
    if others:
        version = _results_version(others[0])
        raise ConfigError(
            f"{directory} holds {len(others)} finished run(s) of another results version ({version}; this is "
            f"{RESULTS_VERSION}), {others[0]} the first: choose another folder (--out, or another name), check out the "
            "commit that made them, or delete the folder"
        )
    if ended:
        warn_of_other_commit(str(directory), _code(ended[0]).get("git"))


def execute_missing(execute: Execute, tasks: Sequence[Task]) -> list[RunResult]:
    """Run only the tasks without a stored result, so that a resumed study repeats nothing finished.

    What another results version left unfinished in a task's directory is removed: no run goes on from its checkpoint.

    Raises:
        ConfigError: another results version finished a run there (`check_results_version`). Nothing was run or removed.
    """
    for task in tasks:
        check_results_version(task.directory)
    for task in tasks:
        if task.directory.exists() and _results_version(task.directory) != RESULTS_VERSION:
            shutil.rmtree(task.directory)
    stored = [stored_result(task) for task in tasks]
    fresh = iter(execute([task for task, result in zip(tasks, stored, strict=True) if result is None]))
    return [result or next(fresh) for result in stored]


def _results_version(directory: Path) -> int | None:
    """That a run directory was filled by; None: by nobody knows which."""
    return _code(directory).get("results_version")


def _code(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "code.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
