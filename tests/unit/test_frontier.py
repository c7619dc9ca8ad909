"""The frontier of stopping earlier: laws of the envelope, its range, and net speedup."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from simulated_runs import law, result

from hybrid_ray.config import FrontierConfig, RunConfig
from hybrid_ray.evaluation.arms import frontier_run
from hybrid_ray.evaluation.frontier import Frontier

LENGTHS = FrontierConfig().lengths
CLEAN = Frontier.from_results([result(frontier_run(RunConfig(), length)) for length in LENGTHS], "val")

points = st.lists(st.tuples(st.floats(1, 1e5), st.floats(0.5, 10)), min_size=1, max_size=12)
frontiers = points.map(Frontier.from_points)
shares = st.floats(0, 1)


def inside(low: float, high: float, share: float) -> float:
    return min(high, max(low, low + share * (high - low)))


@given(points)
def test_the_envelope_is_monotone_and_no_run_is_below_it(runs: list[tuple[float, float]]) -> None:
    frontier = Frontier.from_points(runs)
    assert list(frontier.times) == sorted(set(frontier.times))
    assert list(frontier.losses) == sorted(set(frontier.losses), reverse=True)
    assert set(zip(frontier.times, frontier.losses, strict=True)) <= set(runs)
    for time, loss in runs:
        assert loss >= min(at for t, at in zip(frontier.times, frontier.losses, strict=True) if t <= time)


@given(frontiers, shares, shares)
def test_more_time_never_means_a_higher_loss(frontier: Frontier, a: float, b: float) -> None:
    early, late = sorted(inside(frontier.times[0], frontier.times[-1], share) for share in (a, b))
    reached = frontier.loss_at(early), frontier.loss_at(late)
    assert reached[0] is not None
    assert reached[1] is not None
    assert reached[1] <= reached[0] * (1 + 1e-12)


@given(frontiers, shares)
def test_loss_and_time_are_inverse(frontier: Frontier, share: float) -> None:
    gaps = [math.log(a / b) for a, b in zip(frontier.losses, frontier.losses[1:], strict=False)]
    assume(all(gap > 1e-6 for gap in gaps))  # a flat piece has no well-conditioned inverse
    time = inside(frontier.times[0], frontier.times[-1], share)
    loss = frontier.loss_at(time)
    assert loss is not None
    assert frontier.time_at(loss) == pytest.approx(time, rel=1e-6)


@given(frontiers)
def test_its_own_points_have_a_net_speedup_of_exactly_one(frontier: Frontier) -> None:
    for time, loss in zip(frontier.times, frontier.losses, strict=True):
        assert frontier.net_speedup(loss, time) == 1
        assert frontier.advantage_bounds(loss, time) == (1, 1)


@given(frontiers, st.floats(0.1, 20), st.floats(0.5, 2e5))
def test_net_speedup_and_advantage_agree_on_what_is_a_gain(frontier: Frontier, loss: float, time: float) -> None:
    net, advantage = frontier.net_speedup_bounds(loss, time), frontier.advantage_bounds(loss, time)
    assert net[0] <= net[1]
    assert advantage[0] <= advantage[1]
    # Two true statements about one run can never claim opposite things.
    assert not (net[0] > 1 + 1e-9 and advantage[1] < 1 - 1e-9)
    assert not (net[1] < 1 - 1e-9 and advantage[0] > 1 + 1e-9)


@given(frontiers, st.floats(0.01, 100))
def test_nothing_is_extrapolated(frontier: Frontier, factor: float) -> None:
    assume(abs(factor - 1) > 1e-9)
    beyond = (frontier.times[0] if factor < 1 else frontier.times[-1]) * factor
    assert frontier.loss_at(beyond) is None
    outside = (frontier.losses[-1] if factor < 1 else frontier.losses[0]) * factor
    assert frontier.time_at(outside) is None
    assert frontier.net_speedup(outside, 1.0) is None


def test_off_its_range_one_side_is_known() -> None:
    best, worst = CLEAN.losses[-1], CLEAN.losses[0]
    assert CLEAN.net_speedup_bounds(best * 0.9, 330.0) == (pytest.approx(2.0), math.inf)
    assert CLEAN.net_speedup_bounds(worst * 1.1, 480.0) == (0.0, pytest.approx(0.5))
    assert CLEAN.net_speedup_bounds(math.nan, 480.0)[0] == 0.0
    assert CLEAN.advantage_bounds(worst, 100.0) == (pytest.approx(1.0), math.inf)
    assert CLEAN.advantage_bounds(best, 1000.0) == (0.0, pytest.approx(1.0))


def test_a_known_gain_is_measured() -> None:
    # A run as good as 500 real steps in the time of 400.
    assert CLEAN.net_speedup(law(500), 400) == pytest.approx(1.25, rel=2e-3)


def test_one_noisy_run_does_not_bend_it_upwards() -> None:
    noisy = [
        result(frontier_run(RunConfig(), length), **({"loss": 9.9} if length == 0.7 else {})) for length in LENGTHS
    ]
    frontier = Frontier.from_results(noisy, "val")
    assert len(frontier.times) == len(LENGTHS) - 1
    assert frontier.loss_at(420) == pytest.approx(law(420), rel=2e-3)


def test_runs_that_did_not_finish_are_left_out_and_four_are_not_enough() -> None:
    fine = [result(frontier_run(RunConfig(), length)) for length in LENGTHS[:4]]
    with pytest.raises(ValueError, match="4 finished runs"):
        Frontier.from_results([*fine, result(RunConfig(), status="failed", error="oom")], "val")


def test_losses_that_are_not_above_zero_are_named() -> None:
    runs = [result(frontier_run(RunConfig(), length), loss=0.5 - length) for length in LENGTHS]
    with pytest.raises(ValueError, match=r"of the frontier's runs ended with a loss of -\d.* ratios of losses"):
        Frontier.from_results(runs, "val")
