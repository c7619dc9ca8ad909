"""How many runs fit on the nodes of a cluster at a time."""

from collections.abc import Sequence

from hybrid_ray.config import JobConfig
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS, Resources, worker_slots

__all__ = ["runs_that_fit"]


def runs_that_fit(job: JobConfig, nodes: Sequence[Resources]) -> int:
    """Runs that fit at a time. A worker needs all its resources on one node; the workers of a run can be on several.

    A run with several workers also has a controller, which needs a small part of a CPU. If the workers could take all
    CPUs of all nodes, one worker's place is left free for the controllers.
    """
    slots = [worker_slots(job, node) for node in nodes]
    total = sum(slots)
    if job.resources.workers > 1:
        spare = [node.cpus - taken * job.resources.cpus_per_worker for node, taken in zip(nodes, slots, strict=True)]
        total -= not any(left >= CONTROLLER_CPUS for left in spare)
    return max(0, total) // job.resources.workers
