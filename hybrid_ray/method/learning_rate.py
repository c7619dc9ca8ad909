"""The learning rate of each parameter group relative to its maximum, which scales predicted steps like real ones."""

import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hybrid_ray.errors import ConfigError

__all__ = ["LearningRate"]


class LearningRate:
    """Steps the schedule once per nominal step, real or predicted, and gives lr / lr_max by group.

    Instead of using a schedule, a loop may write each step's rate into the parameter groups before calling the trainer.

    lr_max is the largest rate seen, or the schedule's own base rate (``initial_lr``) where that is larger.

    Raises:
        ConfigError: for a scheduler that needs a loss (ReduceLROnPlateau): predicted steps have none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigError("lr_scheduler is ReduceLROnPlateau but predicted steps have no loss: use a schedule")
        self._optimizer = optimizer
        self.scheduler = scheduler
        self.largest: list[float] = []
        self.note()

    @property
    def now(self) -> list[float]:
        return [_rate(group) for group in self._optimizer.param_groups]

    @property
    def ratios(self) -> list[float]:
        """lr / lr_max of each group, in [0, 1]."""
        return [now / most if most > 0.0 else 0.0 for now, most in zip(self.now, self.largest, strict=True)]

    def advance(self, *, optimizer_stepped: bool) -> None:
        """Step the schedule after a nominal step."""
        if self.scheduler is None:
            return
        if optimizer_stepped:
            self.scheduler.step()
        else:
            with warnings.catch_warnings():  # the first step may have been skipped; the schedule still advances
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                self.scheduler.step()
        self.note()

    def note(self) -> None:
        """Update lr_max with the current rates. New parameter groups are added."""
        groups = self._optimizer.param_groups
        before = self.largest + [0.0] * (len(groups) - len(self.largest))
        self.largest = [
            max(most, _rate(group), float(group.get("initial_lr") or 0.0))
            for most, group in zip(before, groups, strict=False)
        ]

    def state_dict(self) -> dict[str, Any]:
        schedule = None if self.scheduler is None else self.scheduler.state_dict()
        return {"largest": list(self.largest), "schedule": schedule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest = list(state["largest"])
        if self.scheduler is not None and state["schedule"] is not None:
            self.scheduler.load_state_dict(state["schedule"])


def _rate(group: dict[str, Any]) -> float:
    """Return the group's rate. None means that the optimizer finds it itself; it counts as a constant 1."""
    rate = group.get("lr")
    return 1.0 if rate is None else float(rate)
