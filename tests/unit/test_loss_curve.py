"""The frontier of each seed: what a net speedup of a claim is measured against."""

import math
import random
from itertools import pairwise
from statistics import fmean

import pytest

from hybrid_ray.evaluation.loss_curve import LossCurve

SLOPE = -0.15
LENGTHS = (1680.0, 2040.0, 2400.0, 2880.0, 3600.0)
GAIN = 1.1  # the hybrid's true net speedup, in 2,000 plain steps


def loss(time: float) -> float:
    return 6.0 * time**SLOPE


def measured(noise: float, draw: random.Random) -> tuple[LossCurve, list[float]]:
    """A fit to one frontier and to three plain runs of each of 6 seeds, and the net speedups of 6 hybrid runs."""

    def run(time: float, level: float = 0.0) -> tuple[float, float]:
        return time, loss(time) * math.exp(level + draw.gauss(0.0, noise))

    other = [run(time) for time in LENGTHS]
    levels = {seed: draw.gauss(0.0, 0.01) for seed in range(6)}
    seeds = {seed: [run(t, level) for t in (2000.0, 2130.0, 2400.0)] for seed, level in levels.items()}
    law = LossCurve.fit(seeds, other=other)
    nets = []
    for seed, level in levels.items():
        own = law.frontier(seed)
        assert own is not None
        nets.append(own.net_speedup_bounds(run(2000.0 * GAIN, level)[1], 2000.0)[0])
    return law, nets


def test_without_noise_it_is_exact_for_every_seed() -> None:
    law, nets = measured(0.0, random.Random(0))
    assert law.slope == pytest.approx(SLOPE)
    assert law.slope_error == pytest.approx(0.0, abs=1e-6)
    assert nets == pytest.approx([GAIN] * 6)


def test_noise_in_the_frontier_does_not_double_a_gain() -> None:
    """Read off between two neighbouring runs, the same gain comes out between 1.03 and 1.2."""
    found = [measured(0.005, random.Random(number)) for number in range(200)]
    slopes = [law.slope for law, _ in found]
    assert fmean(slopes) == pytest.approx(SLOPE, rel=0.02)
    spread = math.sqrt(fmean((slope - SLOPE) ** 2 for slope in slopes))
    assert fmean(law.slope_error for law, _ in found) == pytest.approx(spread, rel=0.2)
    gains = sorted(math.exp(fmean(math.log(net) for net in nets)) for _, nets in found)
    assert gains[5] > 1.06
    assert gains[-6] < 1.15


def test_where_the_loss_falls_by_another_law_the_level_is_that_of_the_nearest_run() -> None:
    """A sudden drop after a plateau, which no parabola follows: the hybrid lies on the true frontier."""

    def dropping(time: float) -> float:
        return 0.3 + 2.0 / (1.0 + math.exp((time - 1900.0) / 200.0))

    other = [(t, dropping(t)) for t in LENGTHS]
    seeds = {1: [(2000.0, dropping(2000.0)), (2400.0, dropping(2400.0))]}

    def advantage(law: LossCurve) -> float:
        own = law.frontier(1)
        assert own is not None
        return own.advantage_bounds(dropping(2020.0), 2020.0)[0]

    assert abs(math.log(advantage(LossCurve.fit(seeds, other=other)))) > 0.03
    assert advantage(LossCurve.fit(seeds, near={1: 2020.0}, other=other)) == pytest.approx(1.0, abs=0.01)
    around = [LossCurve.fit(seeds, near={1: 2000.0 + 5 * i}, other=other).levels[1] for i in range(81)]
    assert max(abs(a - b) for a, b in pairwise(around)) < 0.01  # a small change changes little


def test_a_seed_without_plain_runs_has_no_frontier_and_nothing_is_extrapolated() -> None:
    law = LossCurve.fit({1: [(2000.0, loss(2000.0)), (4000.0, 9.0)], 2: []}, other=[(t, loss(t)) for t in LENGTHS])
    assert law.frontier(2) is None
    own = law.frontier(1)
    assert own is not None
    assert own.time_at(loss(3700.0)) is None
    assert own.net_speedup_bounds(loss(3700.0), 2000.0) == (pytest.approx(1.8), math.inf)


def test_a_loss_that_does_not_fall_with_time_gives_no_frontier() -> None:
    rising = {seed: [(2000.0, 1.0), (2400.0, 1.3)] for seed in range(20)}
    law = LossCurve.fit(rising, other=[(t, loss(t)) for t in LENGTHS])
    assert law.slope > 0.0
    assert law.frontier(3) is None


def test_without_runs_of_another_seed_the_range_is_that_of_all_runs() -> None:
    law = LossCurve.fit({1: [(t, loss(t)) for t in LENGTHS[:3]], 2: [(t, 1.1 * loss(t)) for t in LENGTHS[2:]]})
    assert law.slope == pytest.approx(SLOPE)
    own = law.frontier(1)
    assert own is not None
    assert own.time_at(loss(3500.0)) == pytest.approx(3500.0, rel=1e-3)
    assert own.time_at(loss(3700.0)) is None
