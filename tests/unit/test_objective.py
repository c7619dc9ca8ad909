"""The objective: signs, tolerance, finiteness, and a baseline's curve at any step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_runs import result

from hybrid_ray.config import ObjectiveConfig, RunConfig
from hybrid_ray.objective import LARGEST, Baseline, degradation, pareto_front, ranked, score, speedup

CONFIG = ObjectiveConfig()
any_float = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
losses = st.floats(min_value=0.1, max_value=20)
times = st.floats(min_value=0.1, max_value=1e6)


def test_the_score_by_hand() -> None:
    assert speedup(600, 400) == 1.5
    assert degradation(3.4 * 1.03, 3.4) == pytest.approx(0.03)
    assert score(1.5, 0.03, CONFIG) == pytest.approx(1.5 - 20 * 0.01)
    assert score(1.5, 0.02, CONFIG) == 1.5  # the tolerance is free
    assert score(1.5, -0.1, CONFIG) == 1.5  # and an improvement earns nothing


@given(any_float, any_float, any_float, any_float)
def test_every_number_is_finite_whatever_comes_in(a: float, b: float, c: float, d: float) -> None:
    parts = speedup(a, b), degradation(c, d)
    assert all(math.isfinite(value) for value in (*parts, score(*parts, CONFIG), score(a, b, CONFIG)))


@given(losses, losses)
def test_degradation_is_positive_exactly_when_the_loss_is_higher(loss: float, other: float) -> None:
    assert (degradation(loss, other) > 0) == (loss > other)
    assert degradation(other, other) == 0


@given(times, times, times)
def test_less_time_is_never_less_speedup(baseline: float, time: float, other: float) -> None:
    faster, slower = sorted((time, other))
    assert speedup(baseline, faster) >= speedup(baseline, slower)


@given(finite, finite, finite, finite)
def test_the_score_rises_with_speedup_and_falls_with_degradation(s: float, t: float, d: float, e: float) -> None:
    (slow, fast), (good, bad) = sorted((s, t)), sorted((d, e))
    assert score(fast, d, CONFIG) >= score(slow, d, CONFIG)
    assert score(s, good, CONFIG) >= score(s, bad, CONFIG)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_loss_is_the_worst_there_is(loss: float) -> None:
    assert degradation(loss, 3.4) == LARGEST
    assert score(100.0, degradation(loss, 3.4), CONFIG) < score(0.0, degradation(50.0, 3.4), CONFIG)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 0.0), (1.2, 0.03), (1.1, 0.05), (1.2, 0.02), (1.5, 0.2), (0.9, -0.01), (1.5, 0.2)]
    assert pareto_front(points) == [True, False, False, True, True, True, True]
    assert pareto_front([(math.nan, 0.0), (1.0, 0.1)]) == [False, True]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=12), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_highest_score_is_never_beaten_by_the_front(
    points: list[tuple[float, float]], weight: float, tolerance: float
) -> None:
    config = ObjectiveConfig(penalty_weight=weight, tolerance=tolerance)
    scores = [score(*point, config) for point in points]
    front = [value for value, on in zip(scores, pareto_front(points), strict=True) if on]
    assert max(front) == max(scores)


def trial(number: int, speedup: float, degradation: float, **changes: float | str | None) -> dict:
    return {
        "number": number,
        "state": "COMPLETE",
        "speedup": speedup,
        "degradation": degradation,
        "score": score(speedup, degradation, CONFIG),
        "objective": score(speedup, degradation, CONFIG),
        "diverged": 0,
        "inert": 0,
        **changes,
    }


def test_trials_rank_by_what_was_searched_and_on_the_front_first_where_that_is_two_things() -> None:
    rows = [
        trial(0, 1.1, 0.02),  # score 1.1
        trial(1, 1.05, 0.021),  # score 1.03, beaten by 0 in both
        trial(2, 1.5, 0.08),  # score 0.3
        trial(3, 2.0, 0.0, state="PRUNED"),
        trial(4, 2.0, 0.0, diverged=1),
        trial(5, 1.02, -0.01, inert=1),
        trial(6, 1.01, 0.0),  # score 1.01, beaten by the inert one
        trial(7, 1.0, 0.0, objective=None, score=math.nan),
    ]
    assert [row["number"] for row in ranked(rows, "score")] == [0, 1, 6, 2]
    assert [row["number"] for row in ranked(rows, "pareto")] == [0, 2, 1, 6]
    net = [{**row, "objective": net} for row, net in zip(rows, (0.9, 0.95, 1.1, 2, 2, 2, 0.8, None), strict=True)]
    assert [row["number"] for row in ranked(net, "net")] == [2, 1, 0, 6]


BASELINE = Baseline.from_result(result(RunConfig()))


def test_a_baseline_is_exact_at_its_evaluations_and_between_them_lies_between() -> None:
    for step, loss, time in zip(BASELINE.steps, BASELINE.losses, BASELINE.times, strict=True):
        assert BASELINE.loss_at(step) == pytest.approx(loss)
        assert BASELINE.time_at(step) == pytest.approx(time)
    assert BASELINE.loss_at(BASELINE.steps[-1]) == BASELINE.loss
    assert BASELINE.losses[1] < BASELINE.loss_at(200) < BASELINE.losses[0]


def test_a_power_law_is_interpolated_exactly() -> None:
    end = BASELINE.steps[-1]
    assert BASELINE.loss_at(400) == pytest.approx(BASELINE.loss * (end / 400) ** 0.1)


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_a_baseline_gets_no_worse_and_no_earlier(a: int, b: int) -> None:
    early, late = sorted((a, b))
    assert BASELINE.loss_at(late) <= BASELINE.loss_at(early)
    assert BASELINE.time_at(late) >= BASELINE.time_at(early)
    assert BASELINE.losses[-1] <= BASELINE.loss_at(a) <= BASELINE.losses[0]  # held outside the curve


def test_time_is_linear_from_zero_and_in_plain_steps() -> None:
    slow = Baseline.from_result(result(RunConfig(), step_seconds=0.04))
    assert BASELINE.time_at(0) == 0
    assert BASELINE.time_at(60) == pytest.approx(60)
    assert slow.time_at(60) == pytest.approx(30)


@pytest.mark.parametrize("values", [{"status": "failed", "error": "oom"}, {"curve": ()}, {"loss": math.nan}])
def test_no_baseline_from_a_run_without_a_score(values: dict) -> None:
    with pytest.raises(ValueError, match="baseline"):
        Baseline.from_result(result(RunConfig(), **values))


def test_a_baseline_from_elsewhere_is_named() -> None:
    here = {"hardware": "cpu", "software": "torch 2.13", "data": "abc"}
    baseline = replace(BASELINE, fingerprint=here)
    assert baseline.mismatches(dict(here)) == []
    (sentence,) = baseline.mismatches({**here, "hardware": "H200"})
    assert "hardware" in sentence
    assert "H200" in sentence
    assert len(baseline.mismatches({"hardware": "cpu"})) == 2
