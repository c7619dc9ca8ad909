"""Adding seeds without cheating: looks fixed beforehand, alpha spent over them, and how many seeds an effect asks for.

Looking again after every new seed until p < 0.05 finds "effects" in noise far more often than 5 % of the time. Here the
looks are fixed before the first run, and the chance of a false claim is divided among them by a spending function
(Lan and DeMets, Biometrika 1983).
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
    """When the seeds are looked at, and the two-sided level each look may use.

    ``seeds`` is the number of seeds at each look, rising, the first at least 3. ``obrien_fleming`` keeps nearly all of
    ``alpha`` for the last look, ``pocock`` spreads it evenly: easier early stops, a dearer end.
    """

    seeds: tuple[int, ...]
    spending: Spending = "obrien_fleming"
    alpha: float = 0.05

    @property
    def levels(self) -> tuple[float, ...]:
        """The level of each look: what the spending function releases since the look before.

        The levels sum to alpha, so by the union bound the chance of any false claim is at most alpha, whatever the
        dependence between looks. A t-test is exact at each of them, at any number of seeds: no normal approximation
        enters. This is conservative: the usual boundaries, which use the dependence, would spend a little more.
        """
        spent = (0.0, *(self._spent(seeds / self.seeds[-1]) for seeds in self.seeds))
        return tuple(later - earlier for earlier, later in pairwise(spent))

    def _spent(self, fraction: float) -> float:
        if self.spending == "pocock":
            return self.alpha * math.log1p((math.e - 1) * fraction)
        return 2 * float(special.ndtr(special.ndtri(self.alpha / 2) / math.sqrt(fraction)))


def power(effect: float, spread: float, seeds: int, *, level: float = 0.05) -> float:
    """The chance that a two-sided paired t-test finds ``effect`` (0.03: 3 %) on its own side.

    ``spread`` is the standard deviation of the paired log ratios. From the noncentral t distribution.
    """
    if spread == 0:
        return float(effect != 0)
    shift = abs(math.log1p(effect)) / spread * math.sqrt(seeds)
    return float(1 - special.nctdtr(seeds - 1, shift, special.stdtrit(seeds - 1, 1 - level / 2)))


def seeds_needed(
    effect: float, spread: float, *, power_wanted: float = 0.8, level: float = 0.05, pilot: int | None = None
) -> int | None:
    """The fewest seeds that find ``effect`` with the power wanted; None where even 10,000 would not.

    Args:
        effect: relative, 0.03 for 3 %.
        spread: standard deviation of the paired log ratios.
        level: two-sided level of the (last) look.
        pilot: the number of seeds ``spread`` was measured on. So few seeds often show too small a spread, so its upper
            80 % confidence bound is used then. None: the spread is known.
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
    while high - low > 1:  # power rises with the seeds, so bisect
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, spread, middle, level=level) >= power_wanted else (middle, high)
    return high
