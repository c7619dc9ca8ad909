"""Execute runs outside a search: a function takes a list of tasks and returns their results in the same order.

The interface is a function type, `Execute`. So ``evaluation/`` does not depend on Ray, but runs on a cluster if the
caller passes an ``Execute`` that uses one (``ray_tune/runner.py``).
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, StoreError, TrialOutOfMemory
from hybrid_ray.run_result import Replay, RunResult
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.results_version import RESULTS_VERSION, run_settings, warn_of_other_commit
from hybrid_ray.storage.run_cache import RunCache, baseline_key, read_result

if TYPE_CHECKING:
    from hybrid_ray.training.reporter import Reporter

__all__ = [
    "Execute",
    "Task",
    "cached",
    "check_results_version",
    "execute_here",
    "execute_missing",
    "execute_one",
    "failed_result",
    "stored_result",
]

_MARK = "cache_key"
"""File in a run directory that holds the cache key of its run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One run and the directory that it writes to."""

    run: RunConfig
    directory: Path


Execute = Callable[[Sequence[Task]], list[RunResult]]
"""Runs every task. A failed task gives a result with status "failed" and an ``error``; it never raises an exception."""


def execute_here(tasks: Sequence[Task]) -> list[RunResult]:
    """Run the tasks one after another in this process.

    Raises KeyboardInterrupt if a signal stopped a run early. The training loop has then handled the signal and saved
    its state; no further task is started.
    """
    results = []
    for task in tasks:
        results.append(execute_one(task))
        if results[-1].status == "stopped":
            raise KeyboardInterrupt
    return results


def execute_one(task: Task, *, reporter: "Reporter | None" = None) -> RunResult:
    """Run one task in this process; an exception becomes a failed result."""
    from hybrid_ray.training.loop import train  # imported here so that the statistics do not require torch

    try:
        return train(task.run, directory=task.directory, reporter=reporter)
    except TrialOutOfMemory as error:
        return failed_result(task.run, f"oom: {error}")
    except Exception as error:  # one failed run must not abort the others
        return failed_result(task.run, f"{type(error).__name__}: {error}")


def failed_result(run: RunConfig, error: str) -> RunResult:
    """Result of a run that produced none: no losses and no seconds. A plain step of 1 s makes ``time`` equal 0."""
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        status="failed",
        step_seconds=1.0,
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
    """The result that an earlier session stored in the task's directory, if it can be reused; else None.

    The stored run must have the same settings and the current results version, and must have finished or diverged. A
    run that failed or was stopped is run again.
    """
    result = _ended(task.directory)
    try:
        run = read_json(task.directory / "run.json")
    except StoreError:
        return None
    same = run == run_settings(task.run, task.directory) and _results_version(task.directory) == RESULTS_VERSION
    return result if same else None


def _ended(directory: Path) -> RunResult | None:
    """The stored result if the run finished or diverged, else None."""
    result = read_result(directory)
    return result if result is not None and result.status in ("finished", "diverged") else None


def check_results_version(directory: Path) -> None:
    """Check that all finished or diverged runs under ``directory`` have the current results version.

    Runs of two versions must not be compared, and hours of finished runs must not be deleted silently. If only the
    commit differs, this logs a warning.

    Raises:
        ConfigError: a finished or diverged run has another results version.
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
    """Run only the tasks without a stored result, so that a resumed study does not repeat finished runs.

    Unfinished runs of another results version are deleted, so that no run resumes from their checkpoints.

    Raises:
        ConfigError: a directory holds a finished run of another results version (`check_results_version`). In this case
            nothing is run or deleted.
    """
    for task in tasks:
        check_results_version(task.directory)
    for task in tasks:
        if task.directory.exists() and _results_version(task.directory) != RESULTS_VERSION:
            shutil.rmtree(task.directory)
    stored = [stored_result(task) for task in tasks]
    _check_replaceable([task for task, result in zip(tasks, stored, strict=True) if result is None])
    fresh = iter(execute([task for task, result in zip(tasks, stored, strict=True) if result is None]))
    return [result or next(fresh) for result in stored]


def _check_replaceable(tasks: Sequence[Task]) -> None:
    """Refuse to train where a finished result would be removed.

    Raises:
        ConfigError: a directory holds a finished run that is not this task's, or a damaged result.
    """
    problems = []
    for task in tasks:
        path = task.directory / "result.json"
        try:
            status = read_json(path).get("status") if path.exists() else None
        except (StoreError, AttributeError) as error:
            problems.append(f"{error}: restore it, or remove {task.directory} to train that run again")
            continue
        if status in ("finished", "diverged"):
            problems.append(
                f"{task.directory} holds a finished run of other settings, or its run.json is damaged: restore that "
                "file, or remove the folder to train the run again"
            )
    if problems:
        raise ConfigError(problems)


def _results_version(directory: Path) -> int | None:
    """The results version that wrote a run directory; None if it is unknown."""
    return _code(directory).get("results_version")


def _code(directory: Path) -> dict[str, Any]:
    try:
        found = read_json(directory / "code.json")
    except StoreError:
        return {}
    return found if isinstance(found, dict) else {}


def cached(execute: Execute, cache: RunCache, *, corpus: str, machine: Mapping[str, Any]) -> Execute:
    """Wrap ``execute``: reuse results from the run directory or the cache, and cache new results.

    The run directory takes precedence over the cache, because the study's trials were compared with that run. Each run
    directory records the cache key of its run. So a run of another machine or results version is neither reused nor
    cached under this key. Only runs that finished with the requested settings are cached.
    """

    def execute_cached(tasks: Sequence[Task]) -> list[RunResult]:
        keys = [baseline_key(task.run, corpus=corpus, machine=machine) for task in tasks]
        known = [
            _own(key, task, machine) or cache.fetch(key, task.directory) for key, task in zip(keys, tasks, strict=True)
        ]
        missing = [index for index, result in enumerate(known) if result is None]
        # What the same run gave on another machine is trained again; what cannot be recognised is not removed.
        _check_replaceable([tasks[index] for index in missing if stored_result(tasks[index]) is None])
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
    """Whether the run used the requested settings, without a fallback at its start (`training/start.py`).

    A run falls back if memory is short at that time. Trials that do not fall back could not be compared with it.
    """
    return not result.machine.get("fallbacks") and not result.fingerprint.get("setting", {}).get("others")


def _own(key: str, task: Task, machine: Mapping[str, Any]) -> RunResult | None:
    """The stored result in the task's directory, if its run has this cache key, or lost it but ran on this machine."""
    result = stored_result(task)
    if result is None or _mark(task.directory) == key:
        return result
    here = all(result.fingerprint.get(name) == value for name, value in machine.items())
    return result if here else None


def _claim(key: str, directory: Path) -> None:
    """Assign the directory to this key. Delete its content unless it is from an interrupted run of the same key."""
    if _mark(directory) != key and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text(key)


def _mark(directory: Path) -> str | None:
    try:
        return (directory / _MARK).read_text()
    except OSError:
        return None
