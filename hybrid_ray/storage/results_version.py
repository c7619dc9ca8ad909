"""What defines a stored result: its settings, its data, and a version that is raised by hand. Not the source code.

The commit that made a result is recorded beside it. A difference is said and does not count: most commits change no
number, and hashes of the source made every comment a reason to train again.
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
from hybrid_ray.errors import ConfigError

__all__ = [
    "RESULTS_VERSION",
    "check_study_version",
    "code_record",
    "git_state",
    "run_settings",
    "warn_of_other_commit",
]

RESULTS_VERSION = 1
"""Raise it in the commit that changes what a run computes or how it is scored: results of two versions are never
compared, and runs of an older one are not reused."""

log = logging.getLogger("hybrid_ray")


def run_settings(run: RunConfig, directory: Path) -> dict[str, Any]:
    """All settings that define a run in ``directory``, as JSON values, with no path that a move of the study changes.

    The run that a control replays is named relative to the control's directory. Where prepared data are kept defines
    nothing.
    """
    settings: dict[str, Any] = json.loads(json.dumps(run.as_dict()))
    del settings["data"]["cache_dir"]
    if run.replay is not None:
        settings["replay"] = Path(os.path.relpath(run.replay, directory)).as_posix()
    return settings


def code_record() -> dict[str, Any]:
    """What is kept beside a run of the code that made it (``code.json``)."""
    return {"results_version": RESULTS_VERSION, "git": git_state()}


def check_study_version(directory: Path) -> None:
    """Refuse a study made before results versions were kept: its settings and figures have other names.

    Raises:
        ConfigError: one sentence. A directory that says nothing of itself is left to whoever reads it.
    """
    try:
        environment = json.loads((directory / "environment.json").read_text())
    except (OSError, ValueError):
        return
    made_from = environment.get("identity") if isinstance(environment, dict) else None
    if not isinstance(made_from, dict) or "results_version" in made_from:
        return
    commit = (environment.get("git") or {}).get("commit")
    raise ConfigError(
        f"{directory} was made by an older hybrid_ray, whose settings and figures had other names: read it with the "
        f"version that made it{f' (commit {commit:.9})' if commit else ''}, or run its job again with this one"
    )


def warn_of_other_commit(what: str, recorded: Mapping[str, Any] | None) -> None:
    """Say so where a stored result was made at another commit. ``recorded``: what `git_state` gave then."""
    now = git_state()
    if recorded and now and recorded["commit"] != now["commit"]:
        log.warning(
            "%s was made at commit %.9s and this is %.9s: its results count, since both have results version %d",
            what, recorded["commit"], now["commit"], RESULTS_VERSION,
        )  # fmt: skip


@cache
def git_state() -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None where the source is not in a git repository."""
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
