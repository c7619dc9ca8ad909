"""Preempted trials: Tune's ``max_failures`` must not count them, because the settings did not fail.

Tune has no hook for this, so `ray.tune.experiment.Trial.handle_error` is replaced during a search.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.experiment.trial import Trial

from hybrid_ray.ray_tune.recovery.local_ray import LocalRay
from hybrid_ray.ray_tune.trial import in_one_line
from hybrid_ray.training.ray_worker import MOST_PREEMPTIONS, lost_its_node, was_preempted

__all__ = ["preemptions_not_counted"]

log = logging.getLogger("hybrid_ray")


@contextlib.contextmanager
def preemptions_not_counted(
    resources: Callable[[Mapping[str, Any]], PlacementGroupFactory], *, cluster: bool
) -> Iterator[None]:
    """Within the block, Tune retries a trial whose process got SIGTERM, or whose node went away or was unfit
    (`UnfitNode`), without counting it. A trial's first `MOST_PREEMPTIONS` are free.

    Tune does so itself for nodes that were drained (``RayActorError.preempted``); most preemptions come without that.
    If the Ray of this machine has died, `HybridRayError` ends the search instead.

    Args:
        resources: what a trial is tried again with, by its config. They may exclude nodes that its first request did
            not.
        cluster: whether nodes can go away.
    """
    count, so_far = Trial.handle_error, Counter[str]()

    ray_here = LocalRay(cluster=cluster)

    def handle(trial: Trial, error: Any = None) -> None:
        ray_here.check()
        failures = trial.run_metadata.num_failures
        count(trial, error)
        preempted = error is not None and (was_preempted(error) or (cluster and lost_its_node(error)))
        if preempted and so_far[trial.trial_id] < MOST_PREEMPTIONS:
            log.warning("trial %s is tried again: %s", trial, in_one_line(error))
            so_far[trial.trial_id] += 1
            trial.run_metadata.num_failures = failures
            trial.run_metadata.invalidate_cache()  # type: ignore[no-untyped-call]
        trial.placement_group_factory = resources(trial.config)  # type: ignore[assignment]

    Trial.handle_error = handle  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Trial.handle_error = count  # type: ignore[method-assign]
