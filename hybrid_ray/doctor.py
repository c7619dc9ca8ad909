"""``hybrid-ray doctor``: what this machine has, what is missing, and how to fix it."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from hybrid_ray.errors import ConfigError
from hybrid_ray.processors import cpu_count

if TYPE_CHECKING:
    from hybrid_ray.training.telemetry.monitor import Gpu

__all__ = ["Finding", "examine"]

_PACKAGES = ("torch", "ray", "optuna", "pandas", "pyarrow", "numpy", "nvidia-ml-py", "safetensors", "tokenizers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check. ``bad``: a search cannot run; ``note``: worth knowing."""

    state: Literal["ok", "note", "bad"]
    what: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.state:<5} {self.what:<14} {self.text}"


def examine() -> list[Finding]:
    """Check Python, packages, processors, memory, GPUs, disk, folders, compiler and Ray address. Starts nothing."""
    return [*_software(), _processors(), _memory(), *_gpus(), _disk(), *_folders(), _compiler(), _cluster()]


def _software() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding(
        state="ok" if good else "bad",
        what="python",
        text=platform.python_version() + ("" if good else ": hybrid_ray needs 3.11 or newer"),
    )
    for name in _PACKAGES:
        try:
            yield Finding(state="ok", what=name, text=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                state="bad", what=name, text="not installed: run `make tune`, or pip install -e . in this environment"
            )


def _processors() -> Finding:
    text = f"{cpu_count()} usable: at most that many one-thread trials run in parallel"
    return Finding(state="ok", what="processors", text=text)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    state: Literal["ok", "note"] = "ok" if free >= 4 else "note"
    return Finding(
        state=state, what="memory", text=f"{free:.1f} GiB free" + ("" if free >= 4 else ": Ray alone takes about 1 GiB")
    )


def _gpus() -> Iterator[Finding]:
    import torch

    from hybrid_ray.training.hardware.placement import why_no_gpu
    from hybrid_ray.training.telemetry.monitor import gpus

    found = gpus()
    if not found:
        yield Finding(state="note", what="gpu", text="NVML finds none: runs use the CPU")
    for index, gpu in enumerate(found):
        yield Finding(state="ok", what=f"gpu {index}", text=_described(gpu))
    if found and not torch.cuda.is_available():
        yield Finding(state="bad", what="torch and gpu", text=why_no_gpu())


def _described(gpu: "Gpu") -> str:
    """What NVML reports of a GPU; anything but the name may be missing."""
    parts = [gpu.name]
    if gpu.memory_bytes is not None:
        parts.append(f"{gpu.memory_bytes / 2**30:.0f} GiB")
    if gpu.power_limit_watts is not None:
        parts.append(f"power limit {gpu.power_limit_watts:.0f} W")
    if gpu.driver is not None:
        parts.append(f"driver {gpu.driver}")
    return ", ".join(parts)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        state="ok" if free > 2 else "bad",
        what="disk",
        text=f"{free:.1f} GiB free here" + ("" if free > 2 else ": at least 2 GiB are needed"),
    )


def _folders() -> Iterator[Finding]:
    from hybrid_ray.data.cache import cache_root
    from hybrid_ray.ray_tune.session_folder import temporary_root

    places: dict[str, Callable[[], Path]] = {"Ray's files": temporary_root, "cache": lambda: cache_root(None)}
    for what, find in places.items():
        try:
            yield Finding(state="ok", what=what, text=str(find()))
        except ConfigError as error:
            yield Finding(state="bad", what=what, text=str(error))


def _compiler() -> Finding:
    found = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    if found:
        return Finding(state="ok", what="compiler", text=f"{found}: torch.compile works on the CPU")
    return Finding(
        state="note", what="compiler", text="no g++ or clang++: on the CPU, train.compile runs without compilation"
    )


def _cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Finding(
            state="note",
            what="ray address",
            text=f"RAY_ADDRESS is set ({address}): jobs with resources.address: auto run there",
        )
    return Finding(state="ok", what="ray address", text="none set: jobs start their own Ray on this machine")
