"""What identifies a stored result: its settings, its data, and a results version that is raised by hand.

The source code does not: most commits change no number, and a hash of the source would make every edited comment a
reason to train again. The commit is recorded, and a different one is only reported.
"""

import json
import logging
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.storage.json_files import read_json

__all__ = [
    "RESULTS_VERSION",
    "check_study_version",
    "code_record",
    "git_state",
    "run_settings",
    "warn_of_other_commit",
    "without_workers",
]

RESULTS_VERSION = 3
"""Raise it in the commit that changes what a run computes or how it is scored. Results of different versions are never
compared, and runs of an older version are not reused."""

_NAMED_AS_TODAY = 3  # settings and columns of earlier results versions had other names, so their studies can't be read

log = logging.getLogger("hybrid_ray")


def run_settings(run: RunConfig, directory: Path) -> dict[str, Any]:
    """All settings that identify a run in ``directory``, as JSON values. They stay the same when the study is moved.

    The path of a replayed run is relative to ``directory``. The cache folder of prepared data is left out.
    """
    settings: dict[str, Any] = json.loads(json.dumps(run.as_dict()))
    del settings["data"]["cache_dir"]
    if run.replay is not None:
        settings["replay"] = Path(os.path.relpath(run.replay, directory)).as_posix()
    return settings


def without_workers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`run_settings` less how many workers train the run and how they share the model: a run that was stopped may go on
    with others.
    """
    shared = {name: value for name, value in settings.items() if name != "workers"}
    return {**shared, "train": {name: value for name, value in settings["train"].items() if name != "parallel"}}


def code_record() -> dict[str, Any]:
    """The content of a run's ``code.json``: the results version and commit of the code that made it."""
    return {"results_version": RESULTS_VERSION, "git": git_state()}


def check_study_version(directory: Path) -> None:
    """Refuse a study of an old results version, or of none: its settings and columns had other names.

    A directory without a readable ``environment.json`` passes.

    Raises:
        ConfigError: the study is too old.
    """
    try:
        environment = read_json(directory / "environment.json")
    except StoreError:
        return
    made_from = environment.get("identity") if isinstance(environment, dict) else None
    if not isinstance(made_from, dict) or made_from.get("results_version", 0) >= _NAMED_AS_TODAY:
        return
    commit = (environment.get("git") or {}).get("commit")
    raise ConfigError(
        f"{directory} was made by an older hybrid_ray, whose settings and columns had other names: read it with the "
        f"version that made it{f' (commit {commit:.9})' if commit else ''}, or run its job again with this version"
    )


def warn_of_other_commit(what: str, recorded: Mapping[str, Any] | None) -> None:
    """Log a warning if a stored result was made at another commit. ``recorded``: the `git_state` of that time."""
    now = git_state()
    if recorded and now and recorded["commit"] != now["commit"]:
        log.warning(
            "%s was made at commit %.9s and this is commit %.9s; its results are used, as both have results version %d",
            what, recorded["commit"], now["commit"], RESULTS_VERSION,
        )  # fmt: skip


@cache
def git_state() -> dict[str, Any] | None:
    """The commit of the source, and whether files differ from it; None outside a git repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": _git("status", "--porcelain", "--untracked-files=no") != ""}


def _git(*arguments: str) -> str | None:
    folder, command = Path(__file__).parent, ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
