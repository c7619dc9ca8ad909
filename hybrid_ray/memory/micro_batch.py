"""`train.micro_batch_size: auto`: as large as free memory takes, resolved once, before a job's first run."""

import logging
from bisect import bisect_right
from dataclasses import replace

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.estimate import memory_need, size_text
from hybrid_ray.tasks import load_task

__all__ = ["batch_text", "check_open_micro_batch", "resolve_micro_batch"]

log = logging.getLogger("hybrid_ray")

SHARE = 0.9  # of free memory; the rest is for what an estimate does not see


def resolve_micro_batch(job: JobConfig, free: int) -> JobConfig:
    """The job with the largest micro-batch of which an estimate says that it fits, 1 where none does.

    The effective batch stays: it takes more or fewer micro-batches. What needs more memory than ``free`` even so is
    refused where runs are planned (`study.concurrency`), with advice.

    Args:
        job: its ``train.micro_batch_size`` is ``auto``.
        free: bytes for one worker. `SHARE` of them are used.

    Raises:
        ConfigError: the data are not there.
    """
    task = load_task(job.run())
    share = job.train.batch_size // job.resources.workers
    sizes = [size for size in range(1, share + 1) if share % size == 0]

    def at(size: int) -> JobConfig:
        return replace(job, train=replace(job.train, micro_batch_size=size))

    fitting = bisect_right(sizes, SHARE * free, key=lambda size: memory_need(at(size).run(), task).total)
    resolved = at(sizes[max(0, fitting - 1)])
    log.info("train.micro_batch_size: auto in %s of memory: %s", size_text(free), batch_text(resolved.run()))
    return resolved


def check_open_micro_batch(job: JobConfig) -> None:
    """Raises `ConfigError` where ``auto`` can't be resolved: on a cluster, whose devices only its own workers see."""
    if job.train.micro_batch_size == "auto" and job.resources.address != "local":
        raise ConfigError(
            "train.micro_batch_size is 'auto' but the job runs on a cluster, whose free memory this machine can't see: "
            "write a number (hybrid-ray plan JOB --memory GIB finds one for a device of that size)"
        )


def batch_text(run: RunConfig) -> str:
    """How a step's batch is put together: ``effective batch 64 = 2 x 32 x 1 worker``."""
    workers = f"{run.workers} worker{'s' if run.workers > 1 else ''}"
    return f"effective batch {run.train.batch_size} = {run.accumulate} x {run.micro_batch_size} x {workers}"
