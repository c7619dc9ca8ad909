"""How many processors this process may use: those it may run on, and no more than its container's share of time."""

import os
from pathlib import Path

__all__ = ["cpu_count"]

_GROUPS = Path("/sys/fs/cgroup")  # where Linux shows a container its own limits


def cpu_count() -> int:
    """The affinity's processors, or the container's quota of them where that is less; at least 1.

    Half a processor is none: a run that shares one with a neighbour is timed wrongly.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(_GROUPS)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _quota(groups: Path) -> float | None:
    """Processors' worth of time that the container may use, by cgroup v2 or v1; None: no limit."""
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
