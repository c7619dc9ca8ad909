"""The frontier of just stopping earlier: the loss that real steps alone reach in a given time.

A speedup alone proves nothing, since a shorter run is also "faster" (docs/method.md, section 4). So the hybrid is
measured against real-steps-only runs of several lengths, each with its schedule fully decayed.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybrid_ray.config import Split
from hybrid_ray.run_result import RunResult

__all__ = ["FEWEST", "LEAST_NOISE", "Frontier"]

FEWEST = 5
"""Runs in a frontier (docs/method.md, section 4)."""

LEAST_NOISE = 0.002
"""Relative noise of a run's final loss that is always reckoned with: seeds differ by more than that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """Lower envelope of final loss against training time (plain steps), a power law between its points.

    A run that is beaten by a shorter one is noise, or over-training, and is left out: so ``times`` rise and ``losses``
    fall strictly, and both can be inverted. Taking the lowest points makes the frontier a little too good where losses
    are noisy, which is hard on the hybrid, never in its favour. Nothing is extrapolated: off its range the answer is
    None.
    """

    times: tuple[float, ...]
    losses: tuple[float, ...]
    noise: float = LEAST_NOISE  # of the final loss of one run: standard deviation, relative

    def __post_init__(self) -> None:
        assert self.times
        assert len(self.times) == len(self.losses)
        assert all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        assert all(a > b for a, b in zip(self.losses, self.losses[1:], strict=False))

    @classmethod
    def from_results(cls, results: Iterable[RunResult], split: Split) -> "Frontier":
        """From real-steps-only runs; those that did not finish are left out.

        Raises ValueError with fewer than five usable runs. Losses fall ever more slowly, so the chord between distant
        runs lies above the curve, and a coarse frontier would flatter whatever is measured against it: by 3 to 4 %
        between 0.4 and 1.1 of a run's length.
        """
        points = [
            (result.time, result.heldout[split].loss)
            for result in results
            if result.status == "finished" and split in result.heldout
        ]
        usable = [(time, loss) for time, loss in points if 0 < time < math.inf and 0 < loss < math.inf]
        if len(usable) < FEWEST:
            raise ValueError(
                f"the frontier has {len(usable)} finished runs with a loss on the {split} split but needs {FEWEST}: "
                "look at the errors of its runs, and run them again"
            )
        return replace(cls.from_points(usable), noise=_noise(usable))

    @classmethod
    def from_points(cls, points: Iterable[tuple[float, float]]) -> "Frontier":
        """From (time in plain steps, final loss) pairs, all positive and finite."""
        kept: list[tuple[float, float]] = []
        for time, loss in sorted(points):
            if not kept or loss < kept[-1][1]:
                kept.append((time, loss))
        times, losses = zip(*kept, strict=True)
        return cls(times=times, losses=losses)

    def loss_at(self, time: float) -> float | None:
        """The loss that real steps reach in this time; None off the range."""
        return _interpolate(time, self.times, self.losses)

    def time_at(self, loss: float) -> float | None:
        """The time in which real steps reach this loss; None off the range."""
        return _interpolate(loss, self.losses[::-1], self.times[::-1])

    def net_speedup(self, loss: float, time: float) -> float | None:
        """How many times longer real steps alone take to this loss. Above 1 is a real gain; None off the range."""
        reached = self.time_at(loss)
        return reached / time if reached is not None and 0 < time < math.inf else None

    @property
    def net_error(self) -> float | None:
        """The relative standard error of one run's net speedup: its noise in loss, by how slowly the frontier falls.

        Where a loss falls as the sixth root of time, 0.2 % of noise in loss is 1.2 % in time. None: it is one point.
        """
        if len(self.times) < 2:
            return None
        return self.noise * math.log(self.times[-1] / self.times[0]) / math.log(self.losses[0] / self.losses[-1])

    def net_speedup_bounds(self, loss: float, time: float) -> tuple[float, float]:
        """What can be said for certain: (x, x) on the range; off it only one side is known.

        Better than the longest run: (its time / time, inf). Worse than the shortest, or NaN: (0, its time / time).
        """
        known = self.net_speedup(loss, time)
        if known is not None:
            return known, known
        if not 0 < time < math.inf:
            return 0.0, math.inf
        return (self.times[-1] / time, math.inf) if loss < self.losses[-1] else (0.0, self.times[0] / time)

    def advantage_bounds(self, loss: float, time: float) -> tuple[float, float]:
        """The loss that real steps reach in this time over ``loss``: above 1 exactly where the net speedup is.

        (x, x) on the range of times; a time shorter than the shortest run: (its loss / loss, inf); longer than the
        longest: (0, its loss / loss). ``loss`` is positive and finite.
        """
        reached = self.loss_at(time)
        if reached is not None:
            return reached / loss, reached / loss
        return (self.losses[0] / loss, math.inf) if time < self.times[0] else (0.0, self.losses[-1] / loss)

    def shifted(self, log_loss: float) -> "Frontier":
        """The same frontier for a seed whose losses all lie higher by this much (in log loss)."""
        factor = math.exp(log_loss)
        points = zip(self.times, (loss * factor for loss in self.losses), strict=True)
        return replace(Frontier.from_points(points), noise=self.noise)


def _noise(points: Sequence[tuple[float, float]]) -> float:
    """How far the runs lie from a smooth curve, a parabola in log-log. So few tell little: there is a floor."""
    times, losses = np.log(np.asarray(points, dtype=float)).T
    left = losses - np.polyval(np.polyfit(times, losses, 2), times)
    return max(LEAST_NOISE, float(np.sqrt((left**2).sum() / (len(points) - 3))))


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """y at x, linear in log-log between points with rising xs; exact at the points; None off the range."""
    if not xs[0] <= x <= xs[-1]:
        return None
    right = bisect_left(xs, x)
    if xs[right] == x:
        return ys[right]
    share = math.log(x / xs[right - 1]) / math.log(xs[right] / xs[right - 1])
    low, high = sorted(ys[right - 1 : right + 1])
    return min(high, max(low, math.exp((1 - share) * math.log(ys[right - 1]) + share * math.log(ys[right]))))
