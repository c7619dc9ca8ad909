"""A cache of the runs that do not depend on the search (baseline, frontier), by a hash of everything that defines them.

The key covers every field of the run, the corpus, the class of hardware and software, and the results version. A key
without one of them would sooner or later compare a trial with the baseline of another configuration.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import StoreError
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.atomic import new_directory
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.results_version import RESULTS_VERSION, run_settings

__all__ = ["RunCache", "baseline_key", "read_result"]


def baseline_key(run: RunConfig, *, corpus: str, machine: Mapping[str, Any]) -> str:
    """The key of a run in the cache.

    Args:
        run: a run of real steps only.
        corpus: the fingerprint of its data.
        machine: class of hardware and software it runs on, JSON-ready.

    Raises:
        ValueError: the run replays another one, whose path does not identify its content.
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
    """Run directories under ``root/<key>``. Safe with several writers: entries are complete, the first one stays."""

    root: Path

    def fetch(self, key: str, directory: Path) -> RunResult | None:
        """Copy a cached run to ``directory``, replacing it, and return its result; None if there is no readable one."""
        kept = self.root / key
        result = read_result(kept)
        if result is not None:
            if directory.exists():
                shutil.rmtree(directory)
            _copy(kept, directory)
        return result

    def store(self, key: str, directory: Path) -> None:
        """Add a finished run to the cache, without its checkpoints: a finished run is never resumed."""
        kept = self.root / key
        if read_result(kept) is None:
            shutil.rmtree(kept, ignore_errors=True)
            _copy(directory, kept)


def read_result(directory: Path) -> RunResult | None:
    """The result in a run directory; None if there is no readable one."""
    try:
        return RunResult.from_dict(read_json(directory / "result.json"))
    except (StoreError, KeyError, TypeError, ValueError):
        return None


def _copy(source: Path, target: Path) -> None:
    """Copy a run directory to ``target``, atomically. If another writer was first, its copy stays."""
    with new_directory(target, keep_first=True) as made:
        shutil.copytree(source, made, ignore=shutil.ignore_patterns("checkpoint*"), dirs_exist_ok=True)
