"""What a study ran in, for its ``environment.json``: packages, hardware, git state, the command."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

import hybrid_ray
from hybrid_ray.processors import cpu_count

__all__ = ["environment"]

_PACKAGES = ("hybrid-ray", "torch", "ray", "optuna", "numpy", "pandas", "scipy", "tokenizers", "safetensors")


def environment() -> dict[str, Any]:
    """Plain values for a file. No environment variables: they may hold secrets."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git": _git(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git() -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None where the source is not in a git repository."""
    commit = _git_output("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": _git_output("status", "--porcelain", "--untracked-files=no") != ""}


def _git_output(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(hybrid_ray.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
