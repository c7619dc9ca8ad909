"""SNOO (arXiv 2510.15830): an outer Nesterov step on the displacement of each cycle; DiLoCo with one worker."""

from collections.abc import Sequence

from hybrid_ray.config.predictors import SnooOptions
from hybrid_ray.method.predictors.base import Number, Predictor

__all__ = ["Snoo"]


class Snoo(Predictor):
    """b <- mu b + delta; D = eta (mu b + delta) - delta, with delta the displacement since the last `plan`.

    With D the weights are where the outer optimizer puts them: eta (mu b + delta) replaces delta. D does not depend on
    the horizon. Its steady-state gain is eta / (1 - mu). Three buffers (delta, b, D): 12 bytes per parameter in fp32.
    """

    Options = SnooOptions
    options: SnooOptions
    used: bool  # whether a plan used the displacement; if so, the next window starts a new one

    def prepare(self) -> None:
        self.displacement = self.add_buffers("displacement")
        self.momentum = self.add_buffers("momentum")

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        return {"used": False}

    def open_window(self) -> None:
        self.displacement.accumulate_(0.0 if self.used else 1.0, self.weights.local(), -1.0)
        self.used = False
        super().open_window()

    def close_window(self, steps: int) -> None:
        self.displacement.accumulate_(1.0, self.weights.local(), 1.0)
        super().close_window(steps)

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        rate, inertia = self.options.outer_lr, self.options.outer_momentum
        if not self.used:
            self.momentum.accumulate_(inertia, self.displacement.tensors, 1.0)
        self.direction.assign_(self.momentum.tensors, [rate * inertia] * len(factors))
        self.direction.accumulate_(1.0, self.displacement.tensors, rate - 1.0)
        self.direction.multiply_(factors)
        self.used = True
