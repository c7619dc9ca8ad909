"""Group-sequential testing: interim analyses at planned numbers of seeds, alpha spending, and sample-size planning.

Testing again after every new seed until p < 0.05 has a false-positive rate far above 5 %. Here the interim analyses are
fixed before the first run, and a spending function divides alpha among them (Lan and DeMets, Biometrika 1983).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scipy import special

from hybrid_ray.evaluation.statistics import MIN_SEEDS

__all__ = ["InterimAnalyses", "Spending", "power", "seeds_needed"]

Spending = Literal["obrien_fleming", "pocock"]

_MOST_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class InterimAnalyses:
    """The interim analyses and the two-sided level of each.

    ``seeds`` is the number of seeds at each analysis, in increasing order, the first at least 3. ``obrien_fleming``
    keeps nearly all of ``alpha`` for the last analysis. ``pocock`` spreads it about evenly, so stopping early is easier
    and the last analysis is stricter.
    """

    seeds: tuple[int, ...]
    spending: Spending = "obrien_fleming"
    alpha: float = 0.05

    @property
    def levels(self) -> tuple[float, ...]:
        """The level of each analysis: the alpha that the spending function releases since the previous analysis.

        The levels sum to alpha, so by the union bound the probability of any false claim is at most alpha, however the
        analyses depend on each other. Each analysis is a t-test, which is exact at any number of seeds and needs no
        large-sample approximation. The levels are conservative: the usual boundaries account for the dependence and
        allow slightly higher levels.
        """
        spent = (0.0, *(self._spent(seeds / self.seeds[-1]) for seeds in self.seeds))
        return tuple(later - earlier for earlier, later in pairwise(spent))

    def _spent(self, fraction: float) -> float:
        if self.spending == "pocock":
            return self.alpha * math.log1p((math.e - 1) * fraction)
        return 2 * float(special.ndtr(special.ndtri(self.alpha / 2) / math.sqrt(fraction)))


def power(effect: float, spread: float, seeds: int, *, level: float = 0.05) -> float:
    """Probability that a two-sided paired t-test detects ``effect`` (0.03: 3 %) with the correct sign.

    ``spread`` is the standard deviation of the paired log ratios. The power follows from the noncentral t distribution.
    """
    if spread == 0:
        return float(effect != 0)
    shift = abs(math.log1p(effect)) / spread * math.sqrt(seeds)
    return float(1 - special.nctdtr(seeds - 1, shift, special.stdtrit(seeds - 1, 1 - level / 2)))


def seeds_needed(
    effect: float, spread: float, *, power_wanted: float = 0.8, level: float = 0.05, pilot: int | None = None
) -> int | None:
    """The smallest number of seeds that detects ``effect`` with ``power_wanted``; None if 10,000 are not enough.

    Args:
        effect: relative change; 0.03 is 3 %.
        spread: standard deviation of the paired log ratios.
        level: two-sided level of the test (the last analysis).
        pilot: the number of seeds that ``spread`` was estimated from. An estimate from few seeds is often too small, so
            its upper 80 % confidence bound is used instead. None: ``spread`` is exact.
    """
    if effect == 0 or effect <= -1:
        raise ValueError(f"effect is {effect} but must be above -1 and not 0: say 0.03 for 3 %")
    if pilot is not None:
        spread *= math.sqrt((pilot - 1) / float(special.chdtri(pilot - 1, 0.8)))
    low, high = MIN_SEEDS - 1, MIN_SEEDS
    while power(effect, spread, high, level=level) < power_wanted:
        low, high = high, 2 * high
        if low > _MOST_SEEDS:
            return None
    while high - low > 1:  # power increases with the number of seeds, so bisection works
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, spread, middle, level=level) >= power_wanted else (middle, high)
    return high
