"""A running level, slope and noise of a noisy series: what a new value is compared with. Pure Python."""

import math
from typing import Any

__all__ = ["Trend"]

SETTLE = 20  # values before a noise level is trusted


class Trend:
    """Level, slope and noise of a series, one value at a time (Holt's linear smoothing, with a robust variance).

    The forecast follows a falling loss, so a fall is not taken for noise. After `SETTLE` values a residual counts with
    at most three standard deviations: one outlier neither drags the level along nor hides the next one.

    Args:
        floor_share: the standard deviation is taken to be at least this share of the level,
        floor: and at least this, in the units of the series.
    """

    LEVEL_RATE, SLOPE_RATE, NOISE_RATE = 0.1, 0.01, 0.02

    def __init__(self, *, floor_share: float = 0.0, floor: float = 1e-12) -> None:
        self.floor_share = floor_share
        self.floor = floor
        self.count = 0
        self.level = 0.0
        self.slope = 0.0
        self.variance = 0.0

    @property
    def settled(self) -> bool:
        return self.count >= SETTLE

    @property
    def sigma(self) -> float:
        """Standard deviation of one value about the forecast, in the units of the series."""
        return max(math.sqrt(self.variance), self.floor_share * abs(self.level), self.floor)

    def observe(self, value: float) -> float:
        """The residual of ``value`` in standard deviations (0 until settled); then learn from it."""
        if self.count == 0:
            self.level = value
        residual = value - (self.level + self.slope)
        sigma = self.sigma
        z = residual / sigma if self.settled else 0.0
        if self.settled:
            residual = min(max(residual, -3.0 * sigma), 3.0 * sigma)
        self.count += 1
        rate = max(self.LEVEL_RATE, 1.0 / self.count)
        self.level += self.slope + rate * residual
        self.slope += self.SLOPE_RATE * residual if self.settled else 0.0
        self.variance += max(self.NOISE_RATE, 1.0 / self.count) * (residual * residual - self.variance)
        return z

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "level": self.level, "slope": self.slope, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.level = int(state["count"]), float(state["level"])
        self.slope, self.variance = float(state["slope"]), float(state["variance"])
