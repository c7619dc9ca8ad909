"""What two runs must share before their times and losses are compared: hardware class, software, data."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from hybrid_ray.config import RunConfig
from hybrid_ray.processors import cpu_name
from hybrid_ray.tasks import Task
from hybrid_ray.version import __version__

__all__ = ["fingerprint", "machine"]


def machine(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """Hardware class and software of a run, plain values. ``device`` as `choose_device` gives it.

    The number of a machine's cores is left out: a worker has ``threads`` of them, whatever the rest does.
    """
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": run.train.threads,
        "workers": run.workers,
    }
    software = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hybrid_ray": __version__,
    }
    return {"hardware": hardware, "software": software}


def fingerprint(run: RunConfig, task: Task, device: torch.device, *, setting: Mapping[str, Any]) -> dict[str, Any]:
    """`machine`, the data, and the `TrainSetup.setting` in use: a run that fell back counts as another machine."""
    return {**machine(run, device), "corpus": task.fingerprint, "setting": dict(setting)}
