"""First and last training loss of a run, its highest confidence after warmup, and the memory in use during the run."""

import os
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

import psutil
import torch

from hybrid_ray.method.phases import Phase
from hybrid_ray.method.step_result import StepResult

__all__ = ["RunExtremes", "bytes_in_use"]

_EVERY = 16


def bytes_in_use() -> int:
    """Bytes this process uses: allocated by PyTorch on the GPU if it uses one, else resident host memory.

    Memory reserved on the GPU would not show growth: the start reserves a whole step's memory and keeps most of it.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.memory_allocated()
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


@dataclass(slots=True)
class RunExtremes:
    """Losses, confidence and memory of a run, updated after every step.

    Memory is read between steps, every `_EVERY` steps and at the end, because reading it takes as long as a predicted
    step of a small model. The first value is read after the first step, when Adam has allocated its state. First and
    last value show growth; the peak within steps is measured by `PhaseMemory`.
    """

    first_loss: float | None = None
    last_loss: float | None = None
    highest_confidence: float | None = None  # None: none was computed
    first_memory_bytes: int | None = None
    last_memory_bytes: int | None = None
    most_memory_bytes: int = 0

    def note(self, step: int, result: StepResult) -> None:
        """Record the ``step``-th nominal step."""
        if result.loss is not None:
            self.first_loss = result.loss if self.first_loss is None else self.first_loss
            self.last_loss = result.loss
        if result.phase is not Phase.WARMUP and result.confidence is not None:  # in warmup it decides nothing
            self.highest_confidence = max(self.highest_confidence or 0.0, result.confidence)
        if step % _EVERY == 1:
            self._note_memory()

    def _note_memory(self) -> None:
        used = bytes_in_use()
        self.first_memory_bytes = used if self.first_memory_bytes is None else self.first_memory_bytes
        self.last_memory_bytes = used
        self.most_memory_bytes = max(self.most_memory_bytes, used)

    @property
    def memory(self) -> dict[str, int | None]:
        """Bytes, for a result's ``machine``."""
        self._note_memory()
        return {name: value for name, value in asdict(self).items() if name.endswith("_bytes")}

    @property
    def training(self) -> dict[str, float | None]:
        """Losses and confidence, for a result's ``statistics``."""
        return {name: getattr(self, name) for name in ("first_loss", "last_loss", "highest_confidence")}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            setattr(self, field.name, state[field.name])
