"""The content of a study's ``environment.json``: packages, hardware, git state, the command."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from hybrid_ray.processors import cpu_count, cpu_name
from hybrid_ray.storage.results_version import git_state

__all__ = ["environment"]

_PACKAGES = ("hybrid-ray", "torch", "ray", "optuna", "numpy", "pandas", "scipy", "tokenizers", "safetensors")


def environment() -> dict[str, Any]:
    """Plain values for the file. Environment variables are left out because they may hold secrets."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git": git_state(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
