"""How many runs fit in a device's memory at a time. A job that does not fit is refused before anything starts.

The memory of one run is estimated (`hybrid_ray.memory.estimate`). Measured peaks are in a run's result.
"""

import math
from dataclasses import dataclass

import psutil
import torch

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.advice import advice_lines
from hybrid_ray.memory.estimate import MemoryNeed, size_text
from hybrid_ray.tasks import Task

__all__ = ["Concurrency", "available_bytes", "memory_concurrency", "room", "sharing"]

_RAY = 2**30  # host memory of Ray's own processes
_HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Concurrency:
    """The number of runs at a time, and the memory of the device they share."""

    runs: int
    need: MemoryNeed
    there: int  # bytes that are free
    sharing: int  # workers that share them

    @property
    def needed(self) -> int:
        """Bytes of all workers that share the device."""
        return self.sharing * self.need.total


def memory_concurrency(job: JobConfig, task: Task, need: MemoryNeed, device: torch.device, *, most: int) -> Concurrency:
    """The number of runs that fit in memory at a time, at most ``most``. The memory of a cluster is not known.

    A ``max_concurrent`` in the job is kept or refused, never lowered silently.

    Raises:
        ConfigError: not even one run fits, or not ``max_concurrent``. Says what would make one fit.
    """
    there, local = available_bytes(device), job.resources.address == "local"
    host = room(available_bytes(_HOST), _HOST) // (job.resources.workers * need.host) if local and need.host else most
    runs = most
    if local and job.resources.max_concurrent is None:
        left = room(there, device)
        runs = next((runs for runs in range(min(most, host), 1, -1) if sharing(job, runs) * need.total <= left), 1)
    found = Concurrency(runs=runs, need=need, there=there, sharing=sharing(job, runs))
    if runs > host:
        raise ConfigError(
            f"{runs} run{'s' if runs > 1 else ''} of {job.model_name} on a GPU need {size_text(need.host)} of host "
            "memory for each worker, which is more than is free: lower resources.max_concurrent or resources.workers, "
            "or keep the state on the device (train.optimizer_device, hybrid.buffer_device, hybrid.offload_optimizer)"
        )
    if local and found.needed > there:
        raise ConfigError([_too_much(job, found), *_mend(job, task, found)])
    return found


def available_bytes(device: torch.device) -> int:
    """Free bytes of a GPU, or of main memory for a run on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def room(there: int, device: torch.device) -> int:
    """Bytes of free memory that runs may use."""
    return there if device.type == "cuda" else there - _RAY


def sharing(job: JobConfig, runs: int) -> int:
    """Workers that share one memory: all workers on a CPU, or those on the same GPU."""
    workers, share = runs * job.resources.workers, job.resources.gpus
    return min(workers, max(1, math.floor(1 / share + 1e-9))) if share else workers


def _too_much(job: JobConfig, found: Concurrency) -> str:
    of_memory = f"about {size_text(found.needed)} of memory but {size_text(found.there)} are free: lower"
    if found.runs > 1:
        return f"{found.runs} runs of {job.model_name} at a time need {of_memory} resources.max_concurrent"
    smaller = "the model" if job.task.factory else "model.preset"
    lower = f"train.micro_batch_size, resources.workers or {smaller}"
    return f"one run of {job.model_name} needs {of_memory} {lower}"


def _mend(job: JobConfig, task: Task, found: Concurrency) -> list[str]:
    return list(advice_lines(job, task, found.there // found.sharing)) if found.runs == 1 else []
