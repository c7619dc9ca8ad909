"""The memory plan of a job as text: what one worker needs, at which moment, and whether it fits a given device."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.memory.advice import advice_lines
from hybrid_ray.memory.estimate import MemoryNeed, memory_need, size_text
from hybrid_ray.memory.micro_batch import batch_text
from hybrid_ray.tasks import Task

__all__ = ["MemoryPlan", "memory_lines"]

_MOMENTS = {
    "model": "when the model is built",
    "trainer": "when the predictor's buffers are allocated",
    "forward": "in the forward pass",
    "forward/first": "in the forward pass",
    "forward/last": "in the forward pass",
    "forward/between": "in the forward pass",
    "forward/after": "in the loss",
    "backward": "in the backward pass of the loss",
    "backward/last": "at the start of the backward pass",
    "backward/between": "in the backward pass",
    "backward/after": "in the backward pass",
    "backward/first": "at the end of the backward pass",
    "backward/before": "at the end of the backward pass",
    "overhead": "in the method's own work after a real step",
    "optimizer": "in the optimizer's step",
    "predict": "in a predicted step",
}


def memory_lines(run: RunConfig, need: MemoryNeed) -> Iterator[str]:
    """The batch, the estimated memory of one worker with its moment, then the bytes by part."""
    moment = "in an evaluation" if need.moment.startswith("evaluation") else _MOMENTS.get(need.moment, "in a step")
    yield batch_text(run)
    yield f"estimated memory of one worker: {size_text(need.total)}, peak {moment}"
    for name, size in need.parts.items():
        yield f"  {name:<14}{size_text(size):>12}"
    if need.host:
        yield f"host memory in addition: {size_text(need.host)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Whether a job fits a device of a given size, which need not be part of this machine."""

    job: JobConfig
    task: Task
    room: int  # bytes

    @property
    def need(self) -> MemoryNeed:
        return memory_need(self.job.run(), self.task)

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room

    @property
    def text(self) -> str:
        """As `hybrid-ray plan --memory` prints it."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from memory_lines(self.job.run(), self.need)
        if self.fits:
            yield f"one worker fits into {size_text(self.room)}, {size_text(self.room - self.need.total)} to spare"
        else:
            yield f"one worker does not fit into {size_text(self.room)}"
            yield from advice_lines(self.job, self.task, self.room)
