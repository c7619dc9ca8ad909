"""Paired statistics against textbook numbers and against simulation with a known truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated_runs import result

from hybrid_ray.config import RunConfig
from hybrid_ray.evaluation.interim_analyses import InterimAnalyses, power, seeds_needed
from hybrid_ray.evaluation.statistics import (
    bootstrap_interval,
    holm,
    log_ratios,
    median_interval,
    paired_interval,
    time_to_target,
)

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_the_t_interval_by_hand() -> None:
    # Mean 0.02, spread 0.01, n 3: half width 4.3027 * 0.01 / sqrt(3); t = 3.4641, two-sided p = 0.07418 at 2 degrees.
    found = paired_interval([0.01, 0.02, 0.03])
    assert found.mean == pytest.approx(math.exp(0.02))
    assert found.low == pytest.approx(math.exp(0.02 - 0.0248414), abs=1e-6)
    assert found.high == pytest.approx(math.exp(0.02 + 0.0248414), abs=1e-6)
    assert found.p == pytest.approx(0.07418, abs=1e-5)
    assert (found.n, found.spread) == (3, pytest.approx(0.01))


@given(st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=12), st.sampled_from([0.8, 0.95, 0.99]))
def test_an_interval_leaves_out_1_exactly_when_p_is_below_its_level(logs: list[float], level: float) -> None:
    found = paired_interval(logs, level=level)
    assert found.low <= found.mean <= found.high
    if abs(found.p - (1 - level)) > 1e-9 and found.spread > 1e-9:
        assert (found.low > 1 or found.high < 1) == (found.p < 1 - level)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=8))
def test_swapping_the_arms_turns_the_ratio_over(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    one, other = paired_interval(log_ratios(a, b)), paired_interval(log_ratios(b, a))
    assert one.mean == pytest.approx(1 / other.mean)
    assert one.low == pytest.approx(1 / other.high)
    assert one.p == pytest.approx(other.p)


def test_pairing_removes_what_a_seed_shares() -> None:
    shared = [1.0, 2.0, 4.0, 8.0]
    found = paired_interval(log_ratios([1.03 * value for value in shared], shared))
    assert found.mean == pytest.approx(1.03)
    assert found.high - found.low < 1e-9


def test_equal_log_ratios_have_no_spread() -> None:
    assert paired_interval([0.0, 0.0, 0.0]).p == 1
    assert paired_interval([0.5, 0.5, 0.5]).p == 0


def test_two_seeds_are_not_enough_and_failures_are_not_ratios() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        paired_interval([0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        log_ratios([1.0, math.inf], [1.0, 1.0])


def test_the_bootstrap_waits_for_ten_seeds_and_then_covers() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        bootstrap_interval([0.1] * 9)
    rng = np.random.default_rng(1)
    hits = 0
    for draw in rng.normal(0.02, 0.03, size=(200, 20)):
        low, high = bootstrap_interval(list(draw), resamples=999)
        hits += low <= math.exp(0.02) <= high
    assert 0.87 <= hits / 200 <= 0.99  # 20 values: BCa is a little short of 95 %


@given(p_values)
def test_holm_is_never_kinder_than_no_correction_nor_harsher_than_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    assert all(a <= b <= min(1, len(p) * a) + 1e-12 for a, b in zip(p, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p, kind="stable")] == sorted(corrected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_time_to_target_counts_misses_as_never() -> None:
    run = result(RunConfig(), loss=1.0)  # evaluated at steps 150, 300, 450 and 600, losses (4 / part) ** 0.1
    assert time_to_target(run, 1.0) == pytest.approx(600)
    assert time_to_target(run, 0.99) == math.inf
    assert time_to_target(run, 9.0) == pytest.approx(150)
    assert 300 < time_to_target(run, 1.05) < 450
    assert time_to_target(result(RunConfig(), loss=1.0, step_seconds=0.04), 1.0) == pytest.approx(300)


def test_a_median_with_misses() -> None:
    found = median_interval([3.0, math.inf, 1.0, 2.0, 5.0, 4.0])
    assert (found.median, found.low, found.high, found.misses) == (3.5, 1.0, math.inf, 1)
    assert median_interval([1.0, math.inf, math.inf]).median == math.inf


@pytest.mark.parametrize("n", [6, 9, 15, 30])
def test_the_medians_interval_is_the_narrowest_that_covers(n: int) -> None:
    found = median_interval([float(i) for i in range(n)])
    drop = int(found.low)
    assert found.high == n - 1 - drop
    assert 1 - 2 * stats.binom.cdf(drop, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(drop + 1, n, 0.5) < 0.95


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_all_looks_together_spend_alpha(spending: str) -> None:
    analyses = InterimAnalyses(seeds=(3, 5, 8, 12), spending=spending)  # type: ignore[arg-type]
    assert sum(analyses.levels) == pytest.approx(0.05)
    assert min(analyses.levels) > 0
    assert InterimAnalyses(seeds=(5,), spending=spending).levels == pytest.approx((0.05,))  # type: ignore[arg-type]


def test_spending_functions_by_their_published_values() -> None:
    # Lan and DeMets 1983, alpha 0.05, half of the information: 0.00557 (O'Brien-Fleming), 0.03101 (Pocock).
    assert InterimAnalyses(seeds=(5, 10)).levels[0] == pytest.approx(0.00557, abs=1e-5)
    assert InterimAnalyses(seeds=(5, 10), spending="pocock").levels[0] == pytest.approx(0.03101, abs=1e-5)


def detections(effect: float, spread: float, analyses: InterimAnalyses, studies: int, seed: int) -> tuple[float, float]:
    """Shares of simulated studies, seeds added at the looks, that call a gain and that call a loss."""
    draws = np.random.default_rng(seed).normal(math.log1p(effect), spread, size=(studies, analyses.seeds[-1]))
    gains = losses = 0
    for logs in draws:
        for seeds, level in zip(analyses.seeds, analyses.levels, strict=True):
            found = paired_interval(list(logs[:seeds]), level=1 - level)
            if found.low > 1 or found.high < 1:
                gains, losses = gains + (found.low > 1), losses + (found.high < 1)
                break
    return gains / studies, losses / studies


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_adding_seeds_keeps_false_positives_below_five_percent(spending: str) -> None:
    analyses = InterimAnalyses(seeds=(3, 5, 8, 12), spending=spending)  # type: ignore[arg-type]
    gains, losses = detections(0.0, 0.03, analyses, 1000, seed=0)
    assert gains + losses <= 0.05


def test_looking_until_significant_would_not() -> None:
    # The same looks at 5 % each: what the spending is for. If this did not fail, the test above would prove nothing.
    draws = np.random.default_rng(0).normal(0, 0.03, size=(1000, 12))
    called = sum(any(paired_interval(list(logs[:n])).p < 0.05 for n in (3, 5, 8, 12)) for logs in draws)
    assert called / 1000 > 0.09


@pytest.mark.parametrize("spread", [0.01, 0.03, 0.06])
def test_the_seeds_asked_for_find_three_percent(spread: float) -> None:
    analyses = InterimAnalyses(seeds=(1, 2))  # half and all of the seeds: the levels depend on the fractions alone
    seeds = seeds_needed(0.03, spread, level=analyses.levels[-1])
    assert seeds is not None
    design = InterimAnalyses(seeds=(max(3, seeds // 2), max(4, seeds)))
    gains, _ = detections(0.03, spread, design, 5000, seed=1)
    assert gains >= 0.80


def test_the_seeds_asked_for_from_a_small_pilot_find_it_too() -> None:
    rng, found, studies = np.random.default_rng(2), 0, 500
    for _ in range(studies):
        spread = float(np.std(rng.normal(0, 0.02, size=4), ddof=1))
        seeds = seeds_needed(0.03, spread, pilot=4)
        assert seeds is not None
        found += paired_interval(list(rng.normal(math.log1p(0.03), 0.02, size=seeds))).low > 1
    assert found / studies >= 0.80


@given(st.floats(0.002, 0.1), st.floats(0.01, 0.2))
def test_the_number_of_seeds_is_the_fewest(spread: float, effect: float) -> None:
    seeds = seeds_needed(effect, spread)
    assert seeds is not None
    assert seeds == 3 or power(effect, spread, seeds - 1) < 0.8 <= power(effect, spread, seeds)


def test_power_against_its_published_value() -> None:
    # One-sample t-test, effect of half a standard deviation, 34 pairs, 5 %: power 0.808 (Cohen 1988, G*Power).
    assert power(math.expm1(0.5), 1.0, 34) == pytest.approx(0.808, abs=1e-3)


def test_an_effect_too_small_for_any_number_of_seeds() -> None:
    assert seeds_needed(1e-5, 0.1) is None
    with pytest.raises(ValueError, match="not 0"):
        seeds_needed(0.0, 0.1)
