"""End the cleaners of stopped TorchTrainers, which would stay until Ray ends: one process of 130 MB per stopped trial.

Ray Train starts a detached `PlacementGroupCleaner` with each trainer. When the trainer's controller dies, as in a trial
that Tune stops, the cleaner removes the workers' placement group and should exit, but it does so in a thread, which
ends only the thread (ray 2.60).
"""

import contextlib
import time
from typing import Any

import psutil
from ray.tune import Callback

__all__ = ["CLEANER", "CleanerReaper"]

CLEANER = "PlacementGroupCleaner"
_CONTROLLER = "TrainController"
_GRACE_SECONDS = 5.0  # a cleaner looks for its controller once a second, and then removes the group
_MOST_ACTORS = 10_000


class CleanerReaper(Callback):
    """Ends orphaned cleaners some seconds after a trial has ended.

    Ray does not say which controller a cleaner belongs to. It is one of those that were alive when the cleaner was
    first seen, or one that had died; so when none of these is alive any more, the cleaner is an orphan. Actors that
    were alive before the first trial belong to other runs.
    """

    def __init__(self) -> None:
        self._earlier: set[str] = set()
        self._controllers: dict[str, set[str]] = {}  # of each cleaner: those that it may belong to
        self._due: float | None = None

    def setup(self, *_: Any, **__: Any) -> None:
        self._earlier = {actor.actor_id for actor in _alive()}

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._due = time.monotonic() + _GRACE_SECONDS

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._due = time.monotonic() + _GRACE_SECONDS

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if self._due is None or time.monotonic() < self._due:
            return
        self._due = None
        actors = [actor for actor in _alive() if actor.actor_id not in self._earlier]
        alive = {actor.actor_id for actor in actors if actor.class_name == _CONTROLLER}
        cleaners = {actor.actor_id: actor for actor in actors if actor.class_name == CLEANER}
        self._controllers = {name: self._controllers.get(name, alive) & alive for name in cleaners}
        for name, controllers in self._controllers.items():
            if not controllers:
                _end(cleaners[name])


def _alive() -> list[Any]:
    """The living actors of this Ray job; none if Ray does not say, so that orphans are found after a later trial."""
    import ray
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    here = ray.get_runtime_context()
    filters: Any = [("state", "=", "ALIVE"), ("job_id", "=", here.get_job_id())]
    try:
        # Without an address it might ask another Ray of this machine.
        found: list[Any] = list_actors(
            here.gcs_address, filters=filters, detail=True, limit=_MOST_ACTORS, raise_on_missing_output=False
        )
    except (RayStateApiException, ConnectionError):
        return []
    return found


def _end(cleaner: Any) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(cleaner.node_id, soft=True)
    ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(cleaner.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(psutil.Error):  # it has ended
        process = psutil.Process(pid)
        if CLEANER in " ".join(process.cmdline()):
            process.kill()
