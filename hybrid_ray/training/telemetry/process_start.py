"""Recognises a process by its number and its start, because numbers are used again."""

import psutil

__all__ = ["running_process", "start_of"]

_TOLERANCE = 60.0  # seconds; on Linux 1 would do, elsewhere a small correction of the clock may show


def start_of(pid: int) -> float:
    """Seconds from the machine's boot to the start of a process.

    psutil adds the boot time by the clock of each call, so the time of day of a start moves when the clock is set.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    boot = psutil.boot_time()  # first: psutil before 7.1 keeps what it read last
    return float(psutil.Process(pid).create_time() - boot)


def running_process(pid: int, start: float) -> psutil.Process | None:
    """The process of this machine with that `start_of`; None if it has ended."""
    try:
        process = psutil.Process(pid)
        same = abs(start_of(pid) - start) < _TOLERANCE
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
