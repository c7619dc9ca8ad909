"""Resolves `train.micro_batch_size: auto` to the largest that fits into free memory, once, before a job's first run."""

import logging
from bisect import bisect_right
from dataclasses import replace

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.estimate import memory_need, size_text
from hybrid_ray.tasks import load_task

__all__ = ["batch_text", "check_open_micro_batch", "resolve_micro_batch"]

log = logging.getLogger("hybrid_ray")

SHARE = 0.9  # of free memory; the rest is for what the estimate leaves out


def resolve_micro_batch(job: JobConfig, free: int) -> JobConfig:
    """The job with the largest micro-batch that the estimate says fits; 1 if none does.

    The effective batch stays the same; only the number of micro-batches changes. A job that does not fit even with 1
    is refused when its runs are planned (`study.concurrency`), with advice.

    Args:
        job: its ``train.micro_batch_size`` is ``auto``.
        free: bytes available to one worker, of which `SHARE` is used.

    Raises:
        ConfigError: the data cannot be found.
    """
    task = load_task(job.run())
    share = job.train.batch_size // job.resources.workers
    sizes = [size for size in range(1, share + 1) if share % size == 0]

    def at(size: int) -> JobConfig:
        return replace(job, train=replace(job.train, micro_batch_size=size))

    fitting = bisect_right(sizes, SHARE * free, key=lambda size: memory_need(at(size).run(), task).total)
    resolved = at(sizes[max(0, fitting - 1)])
    log.info("train.micro_batch_size is auto; for %s of free memory: %s", size_text(free), batch_text(resolved.run()))
    return resolved


def check_open_micro_batch(job: JobConfig) -> None:
    """Raises `ConfigError` if ``auto`` cannot be resolved: on a cluster, whose free memory only its workers can see."""
    if job.train.micro_batch_size == "auto" and job.resources.address != "local":
        raise ConfigError(
            "train.micro_batch_size is 'auto' but the job runs on a cluster, whose free memory this machine can't see: "
            "write a number (hybrid-ray plan JOB --memory GIB finds one for a device of that size)"
        )


def batch_text(run: RunConfig) -> str:
    """The batch of a step as text: ``effective batch 64 = 2 x 32 x 1 worker`` (accumulated x micro-batch x workers)."""
    workers = f"{run.workers} worker{'s' if run.workers > 1 else ''}"
    return f"effective batch {run.train.batch_size} = {run.accumulate} x {run.micro_batch_size} x {workers}"
