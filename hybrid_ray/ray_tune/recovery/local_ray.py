"""Notice that the Ray of this machine has died. Ray itself reports dead trials, waits for ever, or aborts."""

import contextlib

import psutil

from hybrid_ray.errors import HybridRayError
from hybrid_ray.training.telemetry.process_start import running_process, start_of

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
                    self._parts[child.pid] = name, start_of(child.pid)

    def check(self) -> None:
        """Raises `HybridRayError` if a part of it has died. Quick: it reads a few files of the operating system.

        Ray may end this process before that, with exit code 1 and a message of its own.
        """
        for pid, (name, start) in self._parts.items():
            if running_process(pid, start) is None:
                raise HybridRayError(
                    f"Ray on this machine has died: {_PARTS[name]} ({name}, process {pid}) was killed, perhaps for "
                    "lack of memory. Finished runs are kept: check free memory, then go on with hybrid-ray resume"
                )
