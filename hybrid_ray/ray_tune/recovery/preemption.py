"""Preempted trials: Tune's ``max_failures`` must not count them, because the settings did not fail."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ray.tune.experiment.trial import Trial

from hybrid_ray.training.ray_worker import MOST_PREEMPTIONS, was_preempted

__all__ = ["preemptions_not_counted"]


@contextlib.contextmanager
def preemptions_not_counted() -> Iterator[None]:
    """Within the block, Tune retries a trial whose process got SIGTERM or whose node went away without counting it.

    Tune does so itself for nodes that were drained (``RayActorError.preempted``); most preemptions come without that.
    A trial's first `MOST_PREEMPTIONS` are free.
    """
    count, so_far = Trial._handle_ray_actor_error, Counter[str]()

    def handle(trial: Trial, error: Any) -> None:
        if was_preempted(error) and so_far[trial.trial_id] < MOST_PREEMPTIONS:
            so_far[trial.trial_id] += 1
        else:
            count(trial, error)

    Trial._handle_ray_actor_error = handle  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Trial._handle_ray_actor_error = count  # type: ignore[method-assign]
