"""Notice that the Ray of this machine has died. Ray itself reports dead trials, waits for ever, or aborts."""

import contextlib

import psutil

from hybrid_ray.errors import HybridRayError

__all__ = ["LocalRay"]

_PARTS = {"gcs_server": "its server", "raylet": "its scheduler"}


class LocalRay:
    """The Ray that this process started.

    Args:
        cluster: whether it uses a cluster instead, whose nodes may come and go: nothing is checked then.
    """

    def __init__(self, *, cluster: bool) -> None:
        self._parts: dict[int, tuple[str, float]] = {}  # plain values: Tune pickles them
        for child in [] if cluster else psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that has just ended
                if (name := child.name()) in _PARTS:
                    self._parts[child.pid] = name, child.create_time()

    def check(self) -> None:
        """Raises `HybridRayError` if a part of it has died. Quick: it reads two files of the operating system.

        Ray may end this process before that, with exit code 1 and a message of its own.
        """
        for pid, (name, created) in self._parts.items():
            if not _runs(pid, created):
                raise HybridRayError(
                    f"Ray on this machine has died: {_PARTS[name]} ({name}, process {pid}) was killed, perhaps for "
                    "lack of memory. Finished runs are kept: check free memory, then go on with hybrid-ray resume"
                )


def _runs(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
