"""A running level and noise estimate of a series, for comparison with new values. Pure Python."""

import math
from typing import Any

__all__ = ["Trend"]

SETTLE = 20  # values needed before the noise estimate is used


class Trend:
    """Exponential averages of a series and of its squared residuals, over about 20 and 100 values.

    The level follows a falling loss closely enough that the fall does not count as noise. After `SETTLE` values,
    residuals are clipped to three standard deviations, so one outlier neither shifts the level nor hides the next one.

    Args:
        floor_share: the standard deviation is at least this share of the level,
        floor: and at least this value, in the units of the series.
    """

    LEVEL_RATE, NOISE_RATE = 0.05, 0.01

    def __init__(self, *, floor_share: float = 0.0, floor: float = 1e-12) -> None:
        self.floor_share = floor_share
        self.floor = floor
        self.count = 0
        self.level = 0.0
        self.variance = 0.0

    @property
    def settled(self) -> bool:
        return self.count >= SETTLE

    @property
    def sigma(self) -> float:
        """Standard deviation of one value about the level, in the units of the series."""
        return max(math.sqrt(self.variance), self.floor_share * abs(self.level), self.floor)

    def observe(self, value: float) -> float:
        """Return the residual of ``value`` in standard deviations (0 until settled), then update the averages."""
        if self.count == 0:
            self.level = value
        residual = value - self.level
        z = 0.0
        if self.settled:
            sigma = self.sigma
            z = residual / sigma
            residual = min(max(residual, -3.0 * sigma), 3.0 * sigma)
        self.count += 1
        share = 1.0 / self.count
        self.level += max(self.LEVEL_RATE, share) * residual
        self.variance += max(self.NOISE_RATE, share) * (residual * residual - self.variance)
        return z

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "level": self.level, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.level, self.variance = int(state["count"]), float(state["level"]), float(state["variance"])
