"""The divergence monitor's signals. Each turns numbers of real steps into `Alarm`s. Pure Python, without torch.

Every threshold is relative to the run itself (its noise, its gradients, its progress so far), so that the same
settings work for a byte model and a 1.5B one. The thresholds were set on recorded runs and on heavy-tailed noise: see
``tests/unit/test_divergence.py``.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hybrid_ray.method.guard.trend import Trend

__all__ = ["Alarm", "GradientSignal", "Level", "LossSignal", "PredictionSignal"]


class Level(StrEnum):
    """The state of a run. Caution is unusual noise, Warning needs an action, Critical threatens the run."""

    NORMAL = "normal"
    CAUTION = "caution"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for NORMAL to 3 for CRITICAL."""
        return _RANKS[self]


_RANKS = {level: rank for rank, level in enumerate(Level)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One signal that is out of its usual range. ``single`` marks one bad step rather than a lasting state."""

    level: Level
    cause: str
    reason: str
    single: bool = False


class LossSignal:
    """Checks the loss for values above its trend (z-score), lasting rises, and loss of earlier progress.

    - z above ``sigma``: Caution; 5 of the last 6 steps: Warning, a blow-up.
    - After a prediction: z of the first step above 3.2 ``sigma`` and above 3 times the largest spike of this run
      without a prediction, or z of the first three steps all above ``sigma``: Warning, the jump overshot.
    - The median of the last 9 losses is above the best level by a quarter of the progress since the start plus four
      standard deviations: Warning. It is above the starting loss by a quarter of that loss plus four standard
      deviations: Critical.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.trend = Trend(floor_share=0.01)
        self.high: deque[bool] = deque(maxlen=6)
        self.recent: deque[float] = deque(maxlen=9)
        self.spike = 4.0  # the largest z without a prediction; decays over about 1000 steps
        self.overshot = 0  # steps since the last prediction, while all of them were above sigma
        self.start = 0.0  # largest of the first five losses, without values 4 times above it
        self.best = math.inf

    def observe(self, loss: float, *, after_prediction: bool) -> tuple[float, list[Alarm]]:
        """Return the z-score of a finite ``loss`` and its alarms."""
        trend = self.trend
        z = trend.observe(loss)
        if trend.count == 1:
            self.start = loss
        elif trend.count <= 5 and loss < 4.0 * abs(self.start):
            self.start = max(self.start, loss)
        self.high.append(z > self.sigma)
        self.recent.append(loss)
        self.overshot = self.overshot + 1 if z > self.sigma and (after_prediction or self.overshot) else 0
        alarms = []
        if z > self.sigma:
            alarms.append(self._above_trend(loss, z, after_prediction))
        if not after_prediction:
            self.spike = max(0.999 * self.spike, z)
        if trend.settled:
            self.best = min(self.best, trend.level)
            alarms.extend(self._given_back())
        return z, alarms

    def _above_trend(self, loss: float, z: float, after_prediction: bool) -> Alarm:
        reason = f"loss {loss:.4g} is {z:.1f} sigma above its trend"
        if sum(self.high) >= 5:
            return Alarm(level=Level.WARNING, cause="loss", reason=f"{reason}, as in 5 of the last 6 steps")
        if self.overshot >= 3 or (after_prediction and z > max(3.2 * self.sigma, 3.0 * self.spike)):
            return Alarm(level=Level.WARNING, cause="loss", reason=f"{reason}, right after a prediction", single=True)
        return Alarm(level=Level.CAUTION, cause="loss", reason=reason, single=True)

    def _given_back(self) -> Iterator[Alarm]:
        if len(self.recent) < 9:
            return
        now, noise = sorted(self.recent)[4], 4.0 * self.trend.sigma
        span = max(self.start - self.best, 0.25 * abs(self.start))
        scale = max(span, abs(self.start))  # no noise estimate if the run blew up at its start
        if now > self.start + 0.25 * scale + min(noise, scale):
            reason = f"loss {now:.4g} is far above the {self.start:.4g} the run began with"
            yield Alarm(level=Level.CRITICAL, cause="loss", reason=reason)
        elif now > self.best + 0.25 * span + noise:
            reason = f"loss {now:.4g} has given back a quarter of what was learned (best {self.best:.4g})"
            yield Alarm(level=Level.WARNING, cause="loss", reason=reason)

    def forget_recent(self) -> None:
        """Clear the recent values, so that the losses that led to a recovery do not trigger another."""
        self.high.clear()
        self.recent.clear()
        self.overshot = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "trend": self.trend.state_dict(),
            "high": list(self.high),
            "recent": list(self.recent),
            "spike": self.spike,
            "overshot": self.overshot,
            "start": self.start,
            "best": None if math.isinf(self.best) else self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trend.load_state_dict(state["trend"])
        self.high = deque(state["high"], maxlen=6)
        self.recent = deque(state["recent"], maxlen=9)
        self.spike, self.overshot, self.start = state["spike"], int(state["overshot"]), state["start"]
        self.best = math.inf if state["best"] is None else state["best"]


class GradientSignal:
    """Compares the gradient norm with its own geometric mean.

    - Exploding: above 3 times the mean and above ``sigma`` on the log scale is Caution, or Warning if 5 of the last 6
      steps are. Above 100 times the mean (10 times if the loss jumps too) and above 3.2 ``sigma`` is Warning at once.
      Above 10,000 times is Critical.
    - Vanishing: below a thousandth of the mean for 5 steps in a row, or a mean below a millionth of its own peak:
      Warning.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.trend = Trend(floor=0.1)
        self.high: deque[bool] = deque(maxlen=6)
        self.low = 0
        self.peak = -math.inf  # largest log mean

    def observe(self, norm: float, *, loss_jumped: bool) -> Iterator[Alarm]:
        """Yield the alarms of a finite gradient norm."""
        log_norm = math.log(max(norm, 1e-30))
        z = self.trend.observe(log_norm)
        if not self.trend.settled:
            return
        ratio = math.exp(min(log_norm - self.trend.level, 60.0))
        self.peak = max(self.peak, self.trend.level)
        self.high.append(ratio > 3.0 and z > self.sigma)
        self.low = self.low + 1 if ratio < 1e-3 else 0
        if self.high[-1]:
            yield self._exploding(norm, ratio, sudden=z > 3.2 * self.sigma, loss_jumped=loss_jumped)
        if self.low >= 5 or self.trend.level < self.peak - math.log(1e6):
            reason = f"gradient norm {norm:.3g} has vanished: it was {math.exp(self.peak):.3g} at its largest"
            yield Alarm(level=Level.WARNING, cause="vanishing", reason=reason)

    def _exploding(self, norm: float, ratio: float, *, sudden: bool, loss_jumped: bool) -> Alarm:
        reason = f"gradient norm {norm:.3g} is {ratio:.3g} times its mean"
        if ratio > 1e4:
            return Alarm(level=Level.CRITICAL, cause="gradient", reason=reason, single=True)
        if sum(self.high) >= 5:
            return Alarm(level=Level.WARNING, cause="gradient", reason=f"{reason}, as in 5 of the last 6 steps")
        bad = sudden and ratio > (10.0 if loss_jumped else 100.0)
        return Alarm(level=Level.WARNING if bad else Level.CAUTION, cause="gradient", reason=reason, single=True)

    def forget_recent(self) -> None:
        self.high.clear()
        self.low = 0

    def state_dict(self) -> dict[str, Any]:
        peak = None if math.isinf(self.peak) else self.peak
        return {"trend": self.trend.state_dict(), "high": list(self.high), "low": self.low, "peak": peak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trend.load_state_dict(state["trend"])
        self.high, self.low = deque(state["high"], maxlen=6), int(state["low"])
        self.peak = -math.inf if state["peak"] is None else state["peak"]


class PredictionSignal:
    """Checks the relative error of a cycle's prediction, |actual - predicted| / |actual|; predicting zero has error 1.

    Above 2, or above ``sigma`` against its own history: Caution, so the next jump is shorter. There is no Warning: in
    runs with a gain of 10, discarding the averaged displacement for an error above 5 raised the final loss
    (docs/findings.md).
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.trend = Trend(floor=0.05)

    def observe(self, error: float) -> Iterator[Alarm]:
        """Yield the alarms of a finite error."""
        if self.trend.observe(error) > self.sigma or error > 2.0:
            yield Alarm(level=Level.CAUTION, cause="prediction", reason=f"prediction error {error:.3g}")

    def state_dict(self) -> dict[str, Any]:
        return {"trend": self.trend.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trend.load_state_dict(state["trend"])
