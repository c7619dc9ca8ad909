"""How runs outside a search are executed: a list of tasks in, a list of results out, in the same order.

The protocol is one function type, so that ``evaluation/`` needs no Ray and yet uses a cluster when it is handed an
``Execute`` that does (``ray_tune/runner.py``).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, TrialOutOfMemory
from hybrid_ray.run_result import Replay, RunResult
from hybrid_ray.storage.results_version import RESULTS_VERSION, run_settings, warn_of_other_commit
from hybrid_ray.storage.run_cache import RunCache, baseline_key, read_result

__all__ = [
    "Execute",
    "Task",
    "cached",
    "check_results_version",
    "execute_here",
    "execute_missing",
    "failed_result",
    "stored_result",
]

_MARK = "cache_key"
"""File of a run directory: the key that its run was, or is, executed under."""


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
        calibration=1.0,
        plain_step=1.0,
        heldout={},
        curve=(),
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
    result = read_result(directory)
    return result if result is not None and result.status in ("finished", "diverged") else None


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


def cached(execute: Execute, cache: RunCache, *, corpus: str, machine: Mapping[str, Any]) -> Execute:
    """An ``Execute`` that runs only what neither its directory nor the cache holds, and keeps what finishes as asked.

    What the directory holds comes first: a study's trials were measured against that very run. A run directory says
    under which key its run was executed: what another machine or results version left there is neither taken for this
    run nor kept under its key.
    """

    def execute_cached(tasks: Sequence[Task]) -> list[RunResult]:
        keys = [baseline_key(task.run, corpus=corpus, machine=machine) for task in tasks]
        known = [_own(key, task) or cache.fetch(key, task.directory) for key, task in zip(keys, tasks, strict=True)]
        missing = [index for index, result in enumerate(known) if result is None]
        for index in missing:
            _claim(keys[index], tasks[index].directory)
        fresh = iter(execute([tasks[index] for index in missing]))
        results = [result or next(fresh) for result in known]
        for key, task, result in zip(keys, tasks, results, strict=True):
            if result.status == "finished" and _as_asked(result):
                cache.store(key, task.directory)
        return results

    return execute_cached


def _as_asked(result: RunResult) -> bool:
    """Whether it did not fall back at a start (`training/start.py`).

    One that did had too little memory that day. Trials that have enough could never be measured against it.
    """
    return not result.machine.get("fallbacks") and not result.fingerprint.get("setting", {}).get("others")


def _own(key: str, task: Task) -> RunResult | None:
    """What the task's directory holds, if it was executed under this key."""
    return stored_result(task) if _mark(task.directory) == key else None


def _claim(key: str, directory: Path) -> None:
    """Make the directory one of this key: empty, unless an interrupted run of the same key can be gone on with."""
    if _mark(directory) != key and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text(key)


def _mark(directory: Path) -> str | None:
    try:
        return (directory / _MARK).read_text()
    except OSError:
        return None
