"""EMA-Nesterov (arXiv 2605.25395): move along a long average of real steps, then take the next gradient there.

The average is over windows of real steps, weighted by age: S is the weighted sum of the window displacements, Z the
weighted sum of their steps, and S/Z the mean displacement of a real step, unbiased from the first window on. The
weights at a window's start are not stored: -w is added to S when it opens and +w' when it closes. So one buffer is
enough, and the difference is exact up to rounding.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from hybrid_ray.config.predictors import EmaNesterovOptions
from hybrid_ray.method.predictors.base import Number, Predictor

__all__ = ["EmaNesterov"]

SHARE = 1 / 16
"""Time constant as a share of the run's real steps. 250 of 4,000 did best in trials (docs/findings.md)."""

USUAL_RUN = 1600
"""Real steps assumed for a run of unknown length; its time constant is then 100."""


class EmaNesterov(Predictor):
    """D = H x gain x S/Z. Two buffers: S and D, 8 bytes per parameter in fp32.

    When a window opens, all earlier ones are weighted down by exp(-n / time_constant), where n is the number of real
    steps of the previous window. The time constant is a share of the run (`SHARE`) unless it is set.
    """

    Options: ClassVar[type] = EmaNesterovOptions
    options: EmaNesterovOptions
    weight_sum: float  # Z, in real steps
    last_steps: int  # real steps of the previous window

    def prepare(self) -> None:
        run = USUAL_RUN if self.total_steps is None else self.config.real_steps(self.total_steps)
        self.time_constant = self.options.time_constant or max(1.0, SHARE * run)
        self.average = self.add_buffers("average")

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        return {"weight_sum": 0.0, "last_steps": 0}

    def open_window(self) -> None:
        decay = math.exp(-self.last_steps / self.time_constant)
        self.average.accumulate_(decay, self.weights.local(), -1.0)
        self.weight_sum *= decay
        super().open_window()

    def close_window(self, steps: int) -> None:
        self.average.accumulate_(1.0, self.weights.local(), 1.0)
        self.weight_sum += steps
        self.last_steps = steps
        super().close_window(steps)

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        reach = horizon * self.options.gain / self.weight_sum if self.weight_sum else 0.0
        self.direction.assign_(self.average.tensors, [reach * factor for factor in factors])
