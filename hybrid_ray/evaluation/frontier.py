"""The frontier of stopping earlier: the loss that training with real steps only reaches in a given time.

A speedup alone proves nothing, since a shorter run is also "faster" (docs/method.md, section 4). So the hybrid is
compared with runs of several lengths that use real steps only, each with a fully decayed learning-rate schedule.
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
"""Minimum number of runs in a frontier (docs/method.md, section 4)."""

LEAST_NOISE = 0.002
"""Lower bound on the assumed relative noise of a run's final loss; the observed noise between seeds is larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """Lower envelope of final loss against training time (plain steps), interpolated by a power law between points.

    A run with no lower loss than a shorter run reflects noise or over-training, and is left out. So ``times`` strictly
    increase, ``losses`` strictly decrease, and the curve can be inverted. If losses are noisy, choosing the lowest
    points makes the frontier slightly too good, which can only work against the hybrid. The frontier does not
    extrapolate: outside its range the methods return None.
    """

    times: tuple[float, ...]
    losses: tuple[float, ...]
    noise: float = LEAST_NOISE  # relative standard deviation of the final loss of one run

    def __post_init__(self) -> None:
        assert self.times
        assert len(self.times) == len(self.losses)
        assert all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        assert all(a > b for a, b in zip(self.losses, self.losses[1:], strict=False))

    @classmethod
    def from_results(cls, results: Iterable[RunResult], split: Split) -> "Frontier":
        """Build the frontier from runs with real steps only; unfinished runs are left out.

        Raises ValueError if there are fewer than five usable runs. The loss curve flattens with time, so interpolated
        values between distant runs lie above the true curve. A coarse frontier would overstate the gain of any run
        compared with it: by 3 to 4 % between runs of 0.4 and 1.1 times the nominal length.
        """
        points = [
            (result.time, result.heldout[split].loss)
            for result in results
            if result.status == "finished" and split in result.heldout
        ]
        usable = [(time, loss) for time, loss in points if 0 < time < math.inf and 0 < loss < math.inf]
        if low := [loss for _, loss in points if loss <= 0]:
            raise ValueError(
                f"{len(low)} of the frontier's runs ended with a loss of {min(low):.4g} on the {split} split, but net "
                "speedups and scores are ratios of losses: let the task's loss stay above 0"
            )
        if len(usable) < FEWEST:
            raise ValueError(
                f"the frontier has {len(usable)} finished runs with a loss on the {split} split but needs {FEWEST}: "
                "look at the errors of its runs, and run them again"
            )
        return replace(cls.from_points(usable), noise=_noise(usable))

    @classmethod
    def from_points(cls, points: Iterable[tuple[float, float]]) -> "Frontier":
        """Build the frontier from (time in plain steps, final loss) pairs, all positive and finite."""
        kept: list[tuple[float, float]] = []
        for time, loss in sorted(points):
            if not kept or loss < kept[-1][1]:
                kept.append((time, loss))
        times, losses = zip(*kept, strict=True)
        return cls(times=times, losses=losses)

    def loss_at(self, time: float) -> float | None:
        """The loss that real steps alone reach in this time; None outside the range."""
        return _interpolate(time, self.times, self.losses)

    def time_at(self, loss: float) -> float | None:
        """The time that real steps alone need to reach this loss; None outside the range."""
        return _interpolate(loss, self.losses[::-1], self.times[::-1])

    def net_speedup(self, loss: float, time: float) -> float | None:
        """(Time that real steps alone need for this loss) / time. Above 1 is a real gain; None outside the range."""
        reached = self.time_at(loss)
        return reached / time if reached is not None and 0 < time < math.inf else None

    @property
    def net_error(self) -> float | None:
        """Relative standard error of one run's net speedup: its noise in loss / the frontier's mean log-log slope.

        If the loss falls as the sixth root of time, 0.2 % of noise in loss becomes 1.2 % of noise in time. None if the
        frontier has only one point.
        """
        if len(self.times) < 2:
            return None
        return self.noise * math.log(self.times[-1] / self.times[0]) / math.log(self.losses[0] / self.losses[-1])

    def net_speedup_bounds(self, loss: float, time: float) -> tuple[float, float]:
        """Lower and upper bound on the net speedup: (x, x) within the range; outside it only one bound is known.

        Loss below that of the longest run: (the longest run's time / time, inf). Loss above that of the shortest run,
        or NaN: (0, the shortest run's time / time).
        """
        known = self.net_speedup(loss, time)
        if known is not None:
            return known, known
        if not 0 < time < math.inf:
            return 0.0, math.inf
        return (self.times[-1] / time, math.inf) if loss < self.losses[-1] else (0.0, self.times[0] / time)

    def advantage_bounds(self, loss: float, time: float) -> tuple[float, float]:
        """Bounds on (the loss that real steps alone reach in this time) / ``loss``.

        The ratio is above 1 exactly if the net speedup is above 1. Within the range of times the bounds are (x, x). If
        ``time`` is shorter than the shortest run they are (that run's loss / loss, inf); if it is longer than the
        longest run, (0, that run's loss / loss). ``loss`` must be positive and finite.
        """
        reached = self.loss_at(time)
        if reached is not None:
            return reached / loss, reached / loss
        return (self.losses[0] / loss, math.inf) if time < self.times[0] else (0.0, self.losses[-1] / loss)


def _noise(points: Sequence[tuple[float, float]]) -> float:
    """Residual standard deviation of the runs around a parabola in log-log space, at least `LEAST_NOISE`.

    The lower bound is needed because an estimate from so few runs is unreliable.
    """
    times, losses = np.log(np.asarray(points, dtype=float)).T
    left = losses - np.polyval(np.polyfit(times, losses, 2), times)
    return max(LEAST_NOISE, float(np.sqrt((left**2).sum() / (len(points) - 3))))


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """y at x, interpolated linearly in log-log space (xs increasing). Exact at the points; None outside the range."""
    if not xs[0] <= x <= xs[-1]:
        return None
    right = bisect_left(xs, x)
    if xs[right] == x:
        return ys[right]
    share = math.log(x / xs[right - 1]) / math.log(xs[right] / xs[right - 1])
    low, high = sorted(ys[right - 1 : right + 1])
    return min(high, max(low, math.exp((1 - share) * math.log(ys[right - 1]) + share * math.log(ys[right]))))
