"""The fingerprint that two runs must share to be compared: hardware class, software, data, setting."""

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
    """Hardware class and software of a run, as plain values. ``device`` as `choose_device` returns it.

    The machine's number of cores is left out, since a worker uses ``train.threads`` of them.
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
    """`machine`, the data's fingerprint, and the `TrainSetup.setting`: runs in different settings are not compared."""
    return {**machine(run, device), "corpus": task.fingerprint, "setting": dict(setting)}
