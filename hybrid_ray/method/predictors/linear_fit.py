"""Classical weight extrapolation: fit a least-squares line through the ends of the last cycles."""

from collections.abc import Sequence
from itertools import accumulate

from hybrid_ray.config.predictors import LinearFitOptions
from hybrid_ray.method.predictors.base import Number, Predictor

__all__ = ["LinearFit", "slope_weights"]


class LinearFit(Predictor):
    """D = H x gain x slope of the line through the last ``fit_windows`` points of the path of real steps.

    The path consists of real steps only, so that jumps are not extrapolated in turn; its points are the ends of cycles,
    and time is counted in real steps. The slope depends only on differences between points, so the buffers are the
    displacements of the last ``fit_windows`` - 1 cycles, in a ring, each updated in place as in ``ema_nesterov.py``.
    With D they take 4 x ``fit_windows`` bytes per parameter in fp32.
    """

    Options = LinearFitOptions
    options: LinearFitOptions
    ring_steps: list[int]  # real steps of each displacement; 0 if it is not yet filled
    newest: int  # index in the ring of the current cycle
    used: bool  # whether a plan used the newest displacement; if so, the next window starts another

    def prepare(self) -> None:
        self.ring = [self.add_buffers(f"displacement{place}") for place in range(self.options.fit_windows - 1)]

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        return {"ring_steps": [0] * len(self.ring), "newest": 0, "used": False}

    def open_window(self) -> None:
        if self.used:
            self.newest = (self.newest + 1) % len(self.ring)
            self.ring_steps[self.newest] = 0
        self.ring[self.newest].accumulate_(0.0 if self.used else 1.0, self.weights.local(), -1.0)
        self.used = False
        super().open_window()

    def close_window(self, steps: int) -> None:
        self.ring[self.newest].accumulate_(1.0, self.weights.local(), 1.0)
        self.ring_steps[self.newest] += steps
        super().close_window(steps)

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        oldest_first = [(self.newest + 1 + place) % len(self.ring) for place in range(len(self.ring))]
        kept = [place for place in oldest_first if self.ring_steps[place]]
        self.direction.zero_()
        for place, weight in zip(kept, slope_weights([self.ring_steps[place] for place in kept]), strict=True):
            self.direction.accumulate_(1.0, self.ring[place].tensors, weight * horizon * self.options.gain)
        self.direction.multiply_(factors)
        self.used = True


def slope_weights(steps: Sequence[int]) -> list[float]:
    """The weight of each displacement between adjacent points in the least-squares slope.

    With points P_0 = 0 and P_i = P_{i-1} + delta_i at times t_i, the slope is sum_i c_i P_i with
    c_i = (t_i - mean t) / sum_j (t_j - mean t)^2, so delta_j has the weight c_j + c_{j+1} + ...

    Args:
        steps: real steps of each displacement, all above 0.
    """
    times = [0, *accumulate(steps)]
    mean = sum(times) / len(times)
    spread = sum((time - mean) ** 2 for time in times)
    return [sum(time - mean for time in times[first:]) / spread for first in range(1, len(times))]
