"""Statistics of paired runs: t-intervals on log ratios, and time to a target loss.

Runs are paired by seed (same seed, same data order), so what the two arms share cancels. Ratios are compared as
logarithms: a gain of 3 % and a loss of 3 % then weigh the same, and the mean of many is a ratio again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

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
    """Student's t-interval of the mean of log ratios, given back as ratios.

    Exact for normal log ratios at any number of seeds. Raises ValueError below 3 seeds: with two, one number decides
    the spread. Log ratios all equal have no spread, so the interval is a point and p is 0 (or 1 at no difference).
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
    """Bias-corrected and accelerated bootstrap interval of the mean log ratio, as ratios: no normality assumed.

    Raises ValueError below 10 seeds: the resamples of a handful of values say nothing of the tails. (BCa: Efron 1987.)
    """
    if len(logs) < MIN_BOOTSTRAP:
        raise ValueError(f"{len(logs)} paired seeds but a bootstrap needs at least {MIN_BOOTSTRAP}: use the t-interval")
    if len(set(logs)) == 1:
        return _exp(logs[0]), _exp(logs[0])
    found = stats.bootstrap(
        (np.asarray(logs),), np.mean, confidence_level=level, n_resamples=resamples, rng=np.random.default_rng(seed)
    ).confidence_interval
    return _exp(float(found.low)), _exp(float(found.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for having several candidates (Holm 1979): the chance of even one false claim stays bounded.

    The smallest is multiplied by their number, the next by one less, and so on, never falling and never above 1. No
    independence is assumed, which candidates that share their baselines would not have.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def time_to_target(result: RunResult, target: float) -> float:
    """Plain steps until the search-split loss first reaches ``target``, between evaluations linear in log loss.

    A run that never gets there has infinity, so that misses count instead of vanishing. A run already there at its
    first evaluation gets that evaluation's time, since nothing earlier is known.
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
    """A median with an interval between order statistics; infinities (misses) are ordinary values here."""

    median: float
    low: float
    high: float
    n: int
    misses: int
    coverage: float  # the least chance that the interval holds the true median


def median_interval(values: Sequence[float], *, level: float = 0.95) -> MedianInterval:
    """Distribution-free interval of a median (the sign test turned round): exact for any continuous distribution.

    With few seeds even the whole range falls short of ``level`` (3 seeds: 75 %, 6: 97 %): ``coverage`` says what it
    has. Raises ValueError below 3 values.
    """
    n = len(values)
    if n < MIN_SEEDS:
        raise ValueError(f"{n} values but a median's interval needs at least {MIN_SEEDS}: run more seeds")
    ordered = sorted(values)
    drop = max(0, int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return MedianInterval(
        median=ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2,
        low=ordered[drop],
        high=ordered[n - 1 - drop],
        n=n,
        misses=sum(math.isinf(value) for value in ordered),
        coverage=float(1 - 2 * stats.binom.cdf(drop, n, 0.5)),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
