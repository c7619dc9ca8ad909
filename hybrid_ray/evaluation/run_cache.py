"""Runs that depend on nothing searched (baseline, frontier) are kept under a hash of everything that defines them.

A key holds every field of the run, the corpus, the class of hardware and software, and the results version. Leaving a
field out would save a run now and then, and one day compare a trial with a baseline that is not its own. For the same
reason a run directory says under which key its run was executed: what another machine or results version left there is
neither taken for this run nor kept under its key.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.evaluation.runner import Execute, Task, stored_result
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.fsync import sync_to_disk
from hybrid_ray.storage.results_version import RESULTS_VERSION, run_settings

__all__ = ["RunCache", "baseline_key", "cached"]

_MARK = "cache_key"
"""File of a run directory: the key that its run was, or is, executed under."""


def baseline_key(run: RunConfig, *, corpus: str, machine: Mapping[str, Any]) -> str:
    """The name of a run in the cache.

    Args:
        run: a run of real steps only. One that replays another run is refused with ValueError: a path names no content.
        corpus: the corpus' fingerprint.
        machine: hardware and software class of where it runs, JSON-ready.
    """
    if run.replay is not None:
        raise ValueError(f"a run that replays {run.replay} depends on more than its configuration and is never cached")
    parts = {
        "run": run_settings(run, Path()),
        "corpus": corpus,
        "machine": dict(machine),
        "results_version": RESULTS_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCache:
    """Run directories under ``root/<key>``. Safe with several writers: what is visible is whole, the first stays."""

    root: Path

    def fetch(self, key: str, directory: Path) -> RunResult | None:
        """Copy a kept run to ``directory`` (replacing it) and return its result; None if there is no readable one."""
        kept = self.root / key
        result = _read(kept)
        if result is not None:
            if directory.exists():
                shutil.rmtree(directory)
            _copy(kept, directory)
        return result

    def store(self, key: str, directory: Path) -> None:
        """Keep a finished run. Its checkpoint stays behind: nothing resumes a finished run."""
        kept = self.root / key
        if _read(kept) is None:
            shutil.rmtree(kept, ignore_errors=True)
            _copy(directory, kept)


def cached(execute: Execute, cache: RunCache, *, corpus: str, machine: Mapping[str, Any]) -> Execute:
    """An ``Execute`` that runs only what neither its directory nor the cache holds, and keeps what finishes as asked.

    What the directory holds comes first: a study's trials were measured against that very run.
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
    """Whether it did not fall back at a start (`train.fallback`).

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


def _read(directory: Path) -> RunResult | None:
    try:
        return RunResult.from_dict(json.loads((directory / "result.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copy(source: Path, target: Path) -> None:
    """Copy a run directory: ``target`` appears whole or not at all. If another writer was first, its copy stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        shutil.copytree(source, scratch / "run", ignore=shutil.ignore_patterns("checkpoint*"))
        for path in (scratch / "run").rglob("*"):
            if path.is_file():
                sync_to_disk(path)
        try:
            os.rename(scratch / "run", target)
        except OSError:
            if not target.is_dir():
                raise
        sync_to_disk(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
