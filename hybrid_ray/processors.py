"""The CPU's name, and the number of processors this process may use, by its affinity and its container's CPU limit."""

import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["cpu_count", "cpu_name"]

_GROUPS = Path("/sys/fs/cgroup")  # where Linux shows a container its own limits


@cache
def cpu_name() -> str:
    """The CPU's model name, as Linux gives it; elsewhere the machine's type."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_count() -> int:
    """Processors in the affinity mask, or in the container's CPU limit if that is lower; at least 1.

    A limit of 2.5 counts as 2: a run that shares a processor would be timed wrongly.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(_GROUPS)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _quota(groups: Path) -> float | None:
    """The container's CPU limit in processors, by cgroup v2 or v1; None: no limit."""
    try:
        text = (groups / "cpu.max").read_text()  # "200000 100000", or "max 100000"
    except OSError:
        try:
            parts = [(groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
        except OSError:
            return None
        text = " ".join(parts)
    quota, period = text.split()
    return None if quota in ("max", "-1") else int(quota) / int(period)
