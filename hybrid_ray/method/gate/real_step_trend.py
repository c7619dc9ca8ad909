"""Where real steps alone would bring the loss: a line through the losses at the ends of cycles. Pure Python."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Line", "RealStepTrend"]

_LONGEST, _FAST = 150.0, 30.0  # real steps
_FEWEST, _SETTLED = 4, 16  # losses before there is a trend; before outliers are recognised
_SHORTEST = 8.0  # real steps
_CUT = 4.0  # standard deviations of one loss, by which an outlier moves the line at most
_RISE = 1000.0  # real steps in which the bounds follow a loss that stays higher


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A trend as it was at one real step."""

    step: int
    level: float  # at ``step``
    slope: float  # per real step, at most 0

    def at(self, step: int) -> float:
        """The expected loss after ``step`` real steps. A positive level decays, so that it stays positive."""
        fall = self.slope * (step - self.step)
        return self.level * math.exp(fall / self.level) if self.level > 0.0 else self.level + fall

    def relative(self, loss: float, step: int) -> float:
        """log(loss / expected loss); of a loss that may be negative, the same of 1 + difference / |expected|."""
        expected = self.at(step)
        return math.log1p(max(-0.95, (loss - expected) / max(abs(expected), 1e-12)))


class RealStepTrend:
    """A weighted least-squares line through the training loss, over about the last 150 real steps (fewer at the start
    of a run: a third of it).

    It takes the losses of the second half of every cycle, when the real steps have brought down what a jump raised.

    Two rules keep the line to what real steps alone can do. They do not raise the loss for long: the slope is at most
    0, and the level is at most the lowest average over 150 steps so far. Without this rule a loss that jumps slowly
    drive up would be its own trend. And the level is at least the lowest average over 30 steps so far, because a line
    through a loss that falls ever more slowly ends below it. Both bounds follow a loss that stays higher within about
    1,000 real steps.
    """

    def __init__(self) -> None:
        self.count = 0
        self.noise = 0.0  # standard deviation of one loss from the line
        self._weight = 0.0
        self._step = 0.0  # weighted means
        self._loss = 0.0
        self._spread = 0.0  # weighted sums about the means: of squared steps, and of products with the loss
        self._product = 0.0
        self._last = 0  # real step of the last loss
        self._fast = 0.0
        self._lowest = [math.inf, math.inf]  # lowest average over 30 steps, and over 150

    def observe(self, loss: float, step: int) -> None:
        """Update with the finite loss of a real step, the ``step``-th of the run."""
        line = self.line(step)
        if line is not None:
            residual = loss - line.at(step)
            if self.count > _SETTLED:
                residual = max(-_CUT * self.noise, min(_CUT * self.noise, residual))
                loss = line.at(step) + residual
            share = max(1.0 / (self.count - _FEWEST + 1), 1.0 / _LONGEST)
            self.noise = math.sqrt(self.noise**2 + share * (residual**2 - self.noise**2))
        self._average(loss, step)
        for number, average in enumerate((self._fast, self._loss)):
            lowest = self._lowest[number]
            above = 0.0 if math.isinf(lowest) else max(0.0, average - lowest)
            self._lowest[number] = min(average, lowest + above / _RISE)

    def _average(self, loss: float, step: int) -> None:
        passed = step - self._last
        kept = math.exp(-passed / min(_LONGEST, max(_SHORTEST, step / 3.0)))
        self.count, self._last = self.count + 1, step
        self._weight = kept * self._weight + 1.0
        step_before, loss_before = step - self._step, loss - self._loss
        self._step += step_before / self._weight
        self._loss += loss_before / self._weight
        self._spread = kept * self._spread + step_before * (step - self._step)
        self._product = kept * self._product + step_before * (loss - self._loss)
        self._fast += (loss - self._fast) * max(1.0 / self.count, 1.0 - math.exp(-passed / _FAST))

    def line(self, step: int) -> Line | None:
        """The trend after ``step`` real steps; None before it has seen 4 losses."""
        if self.count < _FEWEST:
            return None
        slope = min(0.0, self._product / self._spread) if self._spread > 0.0 else 0.0
        lowest, highest = self._lowest
        level = min(highest, max(lowest, self._loss + slope * (step - self._step)))
        return Line(step=step, level=level, slope=slope)

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"_lowest": list(self._lowest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_lowest": list(state["_lowest"])})
