"""Do settings keep their order on a larger model? Spearman's rank correlation of a few settings, and how sure it is."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["Order", "RankCorrelation", "rank_correlation", "same_order"]

FEWEST = 4
"""Fewer settings have no interval."""
_MOST_PERMUTATIONS = 8  # settings of which every order is listed (40,320); above, Student's t distribution
_SURE = 2.0  # standard errors


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """Spearman's rank correlation of ``n`` settings, its 95 % interval, and the one-sided p-value of "no correlation".

    None where there are too few settings, or all have the same value.
    """

    n: int
    rho: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def shown(self) -> bool:
        """Whether the settings kept their order better than chance, at the 5 % level."""
        return self.p is not None and self.p < 0.05 and self.low is not None and self.low > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Of the pairs of settings that differ by more than the noise on both rungs, how many have the same order."""

    same: int
    of: int


def rank_correlation(below: Sequence[float], above: Sequence[float]) -> RankCorrelation:
    """Spearman's rank correlation between two rungs of the same settings.

    The interval is Fisher's z with the standard error of Bonett and Wright (Psychometrika 65, 2000):
    sqrt((1 + rho^2 / 2) / (n - 3)). At rho = 1 this would be a single point, which no handful of settings justifies; so
    there (and at -1) the inner end is computed from the nearest other value, that with two neighbours swapped. The
    p-value is one-sided: the share of all orders whose correlation is at least as high.
    """
    n = len(below)
    if n < 2 or len(set(below)) < 2 or len(set(above)) < 2:
        return RankCorrelation(n=n, rho=None, low=None, high=None, p=None)
    ranks = stats.rankdata(below), stats.rankdata(above)
    rho = _pearson(*ranks)
    if n < FEWEST:
        return RankCorrelation(n=n, rho=rho, low=None, high=None, p=_p_value(*ranks, rho))
    nearest = 1 - 12 / (n * (n**2 - 1))
    inner = max(-nearest, min(nearest, rho))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + sign * half) for sign in (-1, 1))
    return RankCorrelation(
        n=n,
        rho=rho,
        low=-1.0 if rho < -nearest else low,
        high=1.0 if rho > nearest else high,
        p=_p_value(*ranks, rho),
    )


def same_order(
    below: Sequence[float], above: Sequence[float], errors_below: Sequence[float], errors_above: Sequence[float]
) -> Order:
    """Count the pairs of settings that keep their order, among those that are told apart on both rungs.

    Args:
        errors_below, errors_above: the standard errors of the values.
    """
    same = known = 0
    for one, other in itertools.combinations(range(len(below)), 2):
        steps = [
            (values[one] - values[other]) / max(1e-12, math.hypot(errors[one], errors[other]))
            for values, errors in ((below, errors_below), (above, errors_above))
        ]
        if min(map(abs, steps)) > _SURE:
            known += 1
            same += steps[0] * steps[1] > 0
    return Order(same=same, of=known)


def _p_value(below: Any, above: Any, rho: float) -> float:
    n = len(below)
    if n > _MOST_PERMUTATIONS:
        if rho >= 1:
            return 0.0
        return float(stats.t.sf(rho * math.sqrt((n - 2) / max(1e-12, 1 - rho**2)), n - 2))
    orders = np.array(list(itertools.permutations(above)))
    centred = below - below.mean()
    found = (orders - above.mean()) @ centred / (n * below.std() * above.std())
    return float((found >= rho - 1e-9).mean())


def _pearson(one: Any, other: Any) -> float:
    return round(float(np.corrcoef(one, other)[0, 1]), 12)  # exactly 1 for the same order
