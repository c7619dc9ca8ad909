"""EMA-Nesterov (arXiv 2605.25395): move along a long average of what real steps did; the next gradient is taken there.

The average is over windows of real steps, weighted by age: S is the weighted sum of window displacements, Z that of
their steps, and S/Z the mean displacement of a real step, unbiased from the first window on. Nothing stores a window's
start: S takes -w when it opens and +w' when it closes, so one buffer is enough and the difference is exact up to
rounding.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from hybrid_ray.config.predictors import EmaNesterovOptions
from hybrid_ray.method.predictors.base import Number, Predictor

__all__ = ["EmaNesterov"]

SHARE = 1 / 16
"""Of the run's real steps: the time constant. 250 of 4,000 did best in trials (docs/findings.md)."""

USUAL_RUN = 1600
"""Real steps of a run whose length is not known: a time constant of 100."""


class EmaNesterov(Predictor):
    """D = H x gain x S/Z. Two buffers: S and D, 8 bytes a parameter in fp32.

    A window's weight falls by exp(-n / time_constant) when the next one opens, n being the window's own real steps. The
    time constant is a share of the run (`SHARE`) unless it is set.
    """

    Options: ClassVar[type] = EmaNesterovOptions
    options: EmaNesterovOptions
    weight_sum: float  # Z, in real steps
    last_steps: int  # of the window before

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
