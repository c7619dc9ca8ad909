"""The frontier of each seed: a curve through its own plain runs, with a shape that all seeds share.

A frontier is trained on one seed, and the final losses of single runs are noisy (about 0.5 % in the jobs that ship).
Neighbouring lengths differ by 1 to 3 % in loss, so that noise can double or halve the slope between them, and with it
every net speedup, the same way for every seed: no interval over seeds would show it. Losses also differ more between
seeds than between the arms compared.

So a claim uses all plain runs at once: log loss = level of the seed + slope x log time + bend x (log time)^2, by least
squares. Slope and bend come from the differences within each seed. The standard error of the slope is part of the
interval of a net speedup.

The loss may fall by another law than this one: in a sudden drop after a plateau, for example. The curve is then wrong
in the same way for every seed. So the level is that of the seed's plain runs that took about as long as the run to be
compared with them, and the curve only spans the rest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from hybrid_ray.evaluation.frontier import Frontier

__all__ = ["LossCurve"]

Points = Sequence[tuple[float, float]]  # (time in plain steps, final loss)

_NEAR = 0.15  # log time from which on a plain run has no weight, unless it is the nearest
_GRID = 65  # times at which a seed's frontier is computed; power laws between them err by less than 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """log loss = level + slope x + bend x^2, where x = log(time / reference), between two times."""

    slope: float  # at the reference
    bend: float
    slope_error: float  # standard error of the slope
    levels: Mapping[int, float]  # by seed
    reference: float  # the usual time of the seeds' plain runs
    range: tuple[float, float]  # of times

    @classmethod
    def fit(
        cls, seeds: Mapping[int, Points], *, near: Mapping[int, float] | None = None, other: Points = ()
    ) -> "LossCurve":
        """Fit to plain runs by seed. A seed without any has no frontier.

        Args:
            near: by seed, the time of the run to be compared. The nearer a plain run's time to it, the more weight it
                has for the seed's level; without it, all have the same.
            other: plain runs of a seed that is not compared. Then times outside their range are not used, neither
                in the fit nor later; without them, the range is that of all runs. Nothing is extrapolated.
        """
        every = other or [point for points in seeds.values() for point in points]
        low, high = (bound(time for time, _ in every) for bound in (min, max))
        within = {seed: [point for point in points if low <= point[0] <= high] for seed, points in seeds.items()}
        known = {seed: points for seed, points in within.items() if points}
        lengths = {time for time, _ in every}
        center = fmean(math.log(time) for points in known.values() or [other] for time, _ in points)
        groups: dict[int | None, Points] = dict(known.items())
        if other:
            groups[None] = other
        powers, losses, levels = [], [], {}
        for seed, points in groups.items():
            x = np.log([time for time, _ in points]) - center
            y = np.log([loss for _, loss in points])
            columns = np.stack([x, x * x], axis=1)[:, : 2 if len(lengths) > 2 else 1]
            weights = _nearness(x + center, near[seed]) if near and seed is not None else None
            levels[seed] = np.average(columns, axis=0, weights=weights), np.average(y, weights=weights)
            powers.append(columns - columns.mean(axis=0))
            losses.append(y - y.mean())
        design, wanted = np.concatenate(powers), np.concatenate(losses)
        found = np.linalg.lstsq(design, wanted, rcond=None)[0]
        free = max(1, len(wanted) - len(levels) - len(found))
        variance = ((wanted - design @ found) ** 2).sum() / free
        return cls(
            slope=float(found[0]),
            bend=float(found[1]) if len(found) > 1 else 0.0,
            slope_error=float(np.sqrt(variance * np.linalg.pinv(design.T @ design)[0, 0])),
            levels={seed: float(y - x @ found) for seed, (x, y) in levels.items() if seed is not None},
            reference=math.exp(center),
            range=(low, high),
        )

    @property
    def relative_error(self) -> float:
        """Relative standard error of the slope, and so of every log net speedup."""
        return self.slope_error / abs(self.slope) if self.slope else math.inf

    def frontier(self, seed: int) -> Frontier | None:
        """The seed's frontier; None without plain runs of that seed, or if the loss does not fall with time."""
        return self._at(self.levels[seed]) if seed in self.levels and self.slope < 0.0 else None

    def as_dict(self) -> dict[str, Any] | None:
        """The curve at the mean level of the seeds, and by how much each seed's log losses lie above it; JSON-ready.

        None where no seed has a frontier.
        """
        if not self.levels or self.slope >= 0.0:
            return None
        mean = fmean(self.levels.values())
        line = self._at(mean)
        above = {str(seed): level - mean for seed, level in self.levels.items()}
        return {"times": line.times, "losses": line.losses, "above": above}

    def _at(self, level: float) -> Frontier:
        times = np.geomspace(*self.range, _GRID)
        times[[0, -1]] = self.range  # exactly
        x = np.log(times / self.reference)
        losses = np.exp(level + self.slope * x + self.bend * x * x)
        return Frontier.from_points(zip(times.tolist(), losses.tolist(), strict=True))


def _nearness(logs: np.ndarray, time: float) -> np.ndarray:
    """Weights of these log times: tricube in their distance to ``time`` (the kernel of LOESS, Cleveland 1979)."""
    distance = np.abs(logs - math.log(time))
    weights: np.ndarray = (1.0 - np.minimum(1.0, distance / max(_NEAR, 1.2 * distance.min())) ** 3) ** 3
    return weights
