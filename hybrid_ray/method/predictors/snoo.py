"""SNOO (arXiv 2510.15830): an outer Nesterov step on what each cycle's real steps did; DiLoCo with one worker."""

from collections.abc import Sequence

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.predictors.base import Predictor
from hybrid_ray.method.weights import Weights

__all__ = ["Snoo"]


class Snoo(Predictor):
    """b <- mu b + delta; D = eta (mu b + delta) - delta, with delta the displacement since the last `plan`.

    The weights then are where the outer optimizer puts them: delta taken back, eta (mu b + delta) put in its place. D
    does not depend on the horizon. Its steady-state gain is eta / (1 - mu). Three buffers (delta, b, D): 12 bytes a
    parameter in fp32.
    """

    def __init__(self, weights: Weights, config: HybridConfig, *, seed: int = 0) -> None:
        super().__init__(weights, config, seed=seed)
        self.displacement = self._buffers(1)
        self.momentum = self._buffers(2)
        self.used = False  # the displacement was planned with: the next window starts a new one

    def open_window(self) -> None:
        self.displacement.accumulate_(0.0 if self.used else 1.0, self.weights.local(), -1.0)
        self.used = False
        super().open_window()

    def close_window(self, steps: int) -> None:
        self.displacement.accumulate_(1.0, self.weights.local(), 1.0)
        super().close_window(steps)

    def _write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        rate, inertia = self.config.outer_lr, self.config.outer_momentum
        if not self.used:
            self.momentum.accumulate_(inertia, self.displacement.tensors, 1.0)
        self.direction.assign_(self.momentum.tensors, [rate * inertia] * len(factors))
        self.direction.accumulate_(1.0, self.displacement.tensors, rate - 1.0)
        self.direction.multiply_(factors)
        self.used = True
