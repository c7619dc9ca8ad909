"""Statistics of paired runs: t-intervals on log ratios, and time to a target loss.

Runs are paired by seed (same seed, same data order), so variation that both arms share cancels. Ratios are compared as
logarithms: a ratio and its reciprocal then have equal weight, and the exponential of the mean is again a ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from hybrid_ray.run_result import RunResult

__all__ = [
    "MIN_BOOTSTRAP",
    "MIN_SEEDS",
    "Interval",
    "MedianInterval",
    "bootstrap_interval",
    "holm",
    "log_ratios",
    "median_interval",
    "paired_interval",
    "time_to_target",
]

MIN_SEEDS = 3
MIN_BOOTSTRAP = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean ratio (1: no difference) with a confidence interval, and the two-sided p-value of "no difference"."""

    mean: float
    low: float
    high: float
    n: int
    p: float
    spread: float  # standard deviation of the log ratios


def log_ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """log(value / other), pair by pair. Raises ValueError unless all are positive and finite."""
    if not all(0 < value < math.inf for value in (*values, *others)):
        raise ValueError("a ratio needs values above 0 and finite: leave out the pairs of runs that failed")
    return [math.log(value) - math.log(other) for value, other in zip(values, others, strict=True)]


def paired_interval(logs: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t-interval of the mean of log ratios, converted back to ratios.

    The interval is exact for normally distributed log ratios at any number of seeds. Raises ValueError below 3 seeds,
    because two seeds give only one difference to estimate the spread from. If all log ratios are equal, the interval
    is a point and p is 0 (1 if there is no difference).
    """
    n = len(logs)
    if n < MIN_SEEDS:
        raise ValueError(f"{n} paired seeds but an interval needs at least {MIN_SEEDS}: run more seeds")
    mean, spread = float(np.mean(logs)), float(np.std(logs, ddof=1))
    error = spread / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * error
    if error > 0:
        p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    else:
        p = float(mean == 0)
    return Interval(mean=_exp(mean), low=_exp(mean - half), high=_exp(mean + half), n=n, p=p, spread=spread)


def bootstrap_interval(
    logs: Sequence[float], *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated (BCa) bootstrap interval of the mean log ratio, as ratios (Efron 1987).

    It does not assume normality. Raises ValueError below 10 seeds, because resamples of a few values carry no
    information about the tails.
    """
    if len(logs) < MIN_BOOTSTRAP:
        raise ValueError(f"{len(logs)} paired seeds but a bootstrap needs at least {MIN_BOOTSTRAP}: use the t-interval")
    if len(set(logs)) == 1:
        return _exp(logs[0]), _exp(logs[0])
    from scipy import stats  # takes a second to import, and every process that trains imports this module

    found = stats.bootstrap(
        (np.asarray(logs),), np.mean, confidence_level=level, n_resamples=resamples, rng=np.random.default_rng(seed)
    ).confidence_interval
    return _exp(float(found.low)), _exp(float(found.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values for several candidates (Holm 1979): they control the family-wise error rate.

    The smallest of n p-values is multiplied by n, the next by n - 1, and so on; the results never decrease with rank
    and never exceed 1. The correction does not assume independence: candidates that share baselines are dependent.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def time_to_target(result: RunResult, target: float) -> float:
    """Plain steps until the loss on the search split first reaches ``target``, interpolated linearly in log loss.

    The result is infinity if the run never reaches the target, so that misses still count. It is the time of the first
    evaluation if the run has reached the target by then, since no earlier loss is known.
    """
    before = None
    for point in result.curve:
        if point.loss <= target:
            if before is None or before.loss <= point.loss:
                return point.time
            share = math.log(before.loss / target) / math.log(before.loss / point.loss)
            return before.time + share * (point.time - before.time)
        before = point
    return math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class MedianInterval:
    """A median with an interval between two order statistics. Infinite values (misses) are allowed."""

    median: float
    low: float
    high: float
    n: int
    misses: int


def median_interval(values: Sequence[float], *, level: float = 0.95) -> MedianInterval:
    """Distribution-free interval of a median (the inverted sign test), valid for any continuous distribution.

    With few values even the full range can have less coverage than ``level`` (3 values: 75 %, 6 values: 97 %). Raises
    ValueError below 3 values.
    """
    n = len(values)
    if n < MIN_SEEDS:
        raise ValueError(f"{n} values but a median's interval needs at least {MIN_SEEDS}: run more seeds")
    from scipy import stats

    ordered = sorted(values)
    drop = max(0, int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return MedianInterval(
        median=ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2,
        low=ordered[drop],
        high=ordered[n - 1 - drop],
        n=n,
        misses=sum(math.isinf(value) for value in ordered),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
