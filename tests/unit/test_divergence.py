"""The monitor is silent on healthy training, catches each kind of trouble in a stated time, and escalates as
documented."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from cpu_cost import cost
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ray.method.guard.divergence import Assessment, DivergenceMonitor, Level, Recovery

STEPS = 10_000
Row = tuple[float, float, bool]  # loss, gradient norm, right after a prediction


def rows(loss: np.ndarray, norm: np.ndarray, jumped: np.ndarray | None = None) -> list[Row]:
    after = np.zeros(len(loss)) if jumped is None else jumped
    return [(float(a), float(b), bool(c)) for a, b, c in zip(loss, norm, after, strict=True)]


def recorded(name: str) -> list[Row]:
    with np.load(Path(__file__).parents[1] / "golden" / "training_series.npz") as series:
        return rows(*series[name].astype(np.float64).T)


def heavy_tailed(seed: int) -> list[Row]:
    """Student's t with 3 degrees of freedom: single losses 20 sigma out; a jump after every tenth step."""
    rng = np.random.default_rng(seed)
    falling = 2.0 + 3.0 * np.exp(-np.arange(STEPS) / 500)
    loss = falling + 0.2 * rng.standard_t(3, STEPS)
    return rows(loss, np.exp(0.2 * rng.standard_t(5, STEPS)), np.arange(STEPS) % 10 == 5)


def skewed(seed: int) -> list[Row]:
    """A loss near zero that single batches lift tenfold, its gradient with it."""
    rng = np.random.default_rng(seed)
    loss = rng.lognormal(-2.0, 1.0, STEPS) * (1.0 + 10.0 * np.exp(-np.arange(STEPS) / 500))
    return rows(loss, loss)


def four_batches_in_a_fixed_order() -> list[Row]:
    rng = np.random.default_rng(0)
    loss = 2.0 + np.tile([0.3, -0.3, 0.1, -0.1], STEPS // 4) + 0.01 * rng.standard_normal(STEPS)
    return rows(loss, np.ones(STEPS))


def no_noise() -> list[Row]:
    falling = 5.0 * np.exp(-np.arange(STEPS) / 1000)
    return rows(falling, falling)


def nothing_to_learn() -> list[Row]:
    """Random tokens: the loss soon creeps a little above what the untrained model had, and stays."""
    rng = np.random.default_rng(0)
    loss = 5.55 + 0.05 * (1.0 - np.exp(-np.arange(STEPS) / 300)) + 0.02 * rng.standard_normal(STEPS)
    return rows(loss, np.exp(0.1 * rng.standard_normal(STEPS)))


HEALTHY = {
    "GPT, AdamW": lambda: recorded("gpt_adamw"),
    "MLP, SGD": lambda: recorded("mlp_sgd"),
    "GPT with jumps": lambda: recorded("gpt_jumps"),
    "heavy tails 1": lambda: heavy_tailed(1),
    "heavy tails 2": lambda: heavy_tailed(2),
    "skewed": lambda: skewed(1),
    "batches in a fixed order": four_batches_in_a_fixed_order,
    "no noise": no_noise,
    "nothing to learn": nothing_to_learn,
}


def run(monitor: DivergenceMonitor, series: list[Row]) -> list[Assessment]:
    return [monitor.observe_real(loss, norm, after_prediction=after) for loss, norm, after in series]


def worst(assessments: list[Assessment]) -> Assessment:
    return max(assessments, key=lambda a: a.level.rank)


def steps_until(level: Level, monitor: DivergenceMonitor, series: list[Row]) -> int:
    """Observations up to the first at ``level`` or worse; one more than there are when it never comes."""
    for count, assessment in enumerate(run(monitor, series), start=1):
        if assessment.level.rank >= level.rank:
            return count
    return len(series) + 1


@pytest.fixture
def trained() -> tuple[DivergenceMonitor, list[Row]]:
    """A monitor 2,000 steps into a real run, and how that run went on."""
    series = recorded("gpt_adamw")
    monitor = DivergenceMonitor()
    run(monitor, series[:2000])
    return monitor, series[2000:]


def altered(series: list[Row], loss: list[float] | None = None, norm: list[float] | None = None) -> list[Row]:
    """The run as it went on, with ``loss`` added and the gradient multiplied by ``norm``."""
    steps = len(loss or norm or [])
    return [
        (row[0] + (loss[i] if loss else 0.0), row[1] * (norm[i] if norm else 1.0), row[2])
        for i, row in enumerate(series[:steps])
    ]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_of_10000_steps_raises_no_warning(name: str) -> None:
    series = HEALTHY[name]()
    assert len(series) == STEPS
    assessments = run(DivergenceMonitor(), series)
    assert worst(assessments).level in (Level.NORMAL, Level.CAUTION), worst(assessments)
    assert sum(a.level is Level.CAUTION for a in assessments) < 0.06 * STEPS


def test_caution_is_a_loss_2_5_sigma_above_its_trend() -> None:
    rng = np.random.default_rng(0)
    series = rows(3.0 + 0.5 * rng.standard_normal(STEPS), np.ones(STEPS))
    share = sum(a.level is Level.CAUTION for a in run(DivergenceMonitor(), series)) / STEPS
    # 0.62 % of a normal distribution lies above 2.5 sigma; the running mean and variance add their own noise
    assert 0.004 < share < 0.011
    assert worst(run(DivergenceMonitor(sigma=5.0), series)).level is Level.NORMAL


def test_an_observation_costs_microseconds() -> None:
    series = recorded("gpt_jumps")
    assert len(series) == STEPS
    assert cost(lambda: run(DivergenceMonitor(), series)) < 20  # 10 when written: 16 microseconds an observation


def test_a_loss_that_jumps_and_stays_is_a_warning_in_6_steps(trained) -> None:
    monitor, future = trained
    noise = float(np.std([row[0] for row in future[:200]]))
    assert steps_until(Level.WARNING, monitor, altered(future, loss=[6.0 * noise] * 10)) <= 6


def test_a_blow_up_is_critical_within_14_steps_of_passing_the_start(trained) -> None:
    monitor, future = trained
    series = altered(future, loss=[0.5 * 1.1**k for k in range(100)])
    above_start = next(k for k, row in enumerate(series, start=1) if row[0] > 1.25 * 5.95)
    state = json.loads(json.dumps(monitor.state_dict()))
    assert steps_until(Level.WARNING, monitor, series) <= 15  # the loss has risen by half
    monitor.load_state_dict(state)
    assert steps_until(Level.CRITICAL, monitor, series) <= above_start + 14


def test_a_blow_up_that_goes_on_is_aborted(trained) -> None:
    monitor, future = trained
    series = altered(future, loss=[min(0.5 * 1.1**k, 50.0) for k in range(200)])
    recoveries = [a.recovery for a in run(monitor, series)]
    assert recoveries.index(Recovery.FORCE_FULL) < recoveries.index(Recovery.ABORT) < 100


def test_a_run_that_blows_up_from_its_first_step_is_critical_within_30() -> None:
    """Its noise level is nothing but the blow-up: only the first loss can tell."""
    rng = np.random.default_rng(0)
    loss = np.concatenate([[5.5, 6.0], rng.lognormal(4.0, 1.0, 60)])
    assert steps_until(Level.CRITICAL, DivergenceMonitor(), rows(loss, np.ones(62))) <= 30


def test_a_run_that_slowly_unlearns_is_a_warning_before_half_is_lost(trained) -> None:
    monitor, future = trained
    learned = 5.95 - 2.1
    creep = [k * learned / 2000 for k in range(1000)]
    assert steps_until(Level.WARNING, monitor, altered(future, loss=creep)) < 1000


def test_an_overshoot_right_after_a_prediction_is_rolled_back_at_once(trained) -> None:
    monitor, future = trained
    loss, norm, _ = future[0]
    assessment = monitor.observe_real(loss + 2.5, norm, after_prediction=True)
    assert (assessment.level, assessment.recovery) == (Level.WARNING, Recovery.ROLLBACK)
    assert "right after a prediction" in assessment.reasons[0]


def test_a_smaller_overshoot_is_rolled_back_in_3_steps(trained) -> None:
    monitor, future = trained
    series = [(loss + 1.4, norm, k == 0) for k, (loss, norm, _) in enumerate(future[:3])]
    recoveries = [a.recovery for a in run(monitor, series)]
    assert recoveries == [Recovery.REDUCE_PREDICT_RATIO, Recovery.CONTINUE, Recovery.ROLLBACK]


def test_the_same_jump_without_a_prediction_waits_for_a_second_opinion(trained) -> None:
    monitor, future = trained
    loss, norm, _ = future[0]
    alone = monitor.observe_real(loss + 2.5, norm, after_prediction=False)
    assert (alone.level, alone.recovery) == (Level.CAUTION, Recovery.CONTINUE)
    run(monitor, future[1:200])
    with_gradient = monitor.observe_real(loss + 3.0, 20 * norm, after_prediction=False)
    assert (with_gradient.level, with_gradient.recovery) == (Level.WARNING, Recovery.SKIP_BATCH)


@pytest.mark.parametrize(
    ("growth", "level", "within"),
    [(2.0, Level.WARNING, 8), (1.2, Level.WARNING, 25), (10.0, Level.CRITICAL, 6), (1e5, Level.CRITICAL, 1)],
)
def test_exploding_gradients(trained, growth: float, level: Level, within: int) -> None:
    monitor, future = trained
    factors = [min(growth**k, 1e30) for k in range(1, within + 1)]
    assert steps_until(level, monitor, altered(future, norm=factors)) <= within


@pytest.mark.parametrize(("decay", "within"), [(1e-4, 5), (0.5, 20), (0.9, 150), (0.98, 900)])
def test_vanishing_gradients(trained, decay: float, within: int) -> None:
    monitor, future = trained
    factors = [max(decay**k, 1e-30) for k in range(1, within + 1)]
    assert steps_until(Level.WARNING, monitor, altered(future, norm=factors)) <= within


def test_a_gradient_of_exactly_zero_has_vanished(trained) -> None:
    monitor, future = trained
    assessments = run(monitor, altered(future, norm=[0.0] * 5))
    assert assessments[-1].level is Level.WARNING
    assert assessments[-1].recovery is Recovery.FORCE_FULL


def test_a_prediction_error_above_2_only_shortens_the_next_jump_however_often_it_returns() -> None:
    monitor = DivergenceMonitor()
    assert worst([monitor.observe_prediction(e) for e in (0.9, 1.0, 1.1) * 100]).level is Level.NORMAL
    found = [monitor.observe_prediction(error) for error in (2.5, 6.0, 60.0) * 10]
    assert {(a.level, a.recovery) for a in found} == {(Level.CAUTION, Recovery.REDUCE_PREDICT_RATIO)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_caught_at_once(trained, bad: float) -> None:
    monitor, future = trained
    loss, norm, _ = future[0]
    assert monitor.observe_real(bad, norm, after_prediction=False).recovery is Recovery.SKIP_BATCH
    assert monitor.observe_real(loss, bad, after_prediction=False).recovery is Recovery.FORCE_FULL
    assert monitor.observe_prediction(bad).level is not Level.NORMAL
    assert monitor.observe_real(loss, norm, after_prediction=False).level is Level.NORMAL  # it learned nothing


LADDERS = {
    "nonfinite loss": "skip_batch force_full reset_predictor force_full abort abort",
    "nonfinite loss after a prediction": "rollback force_full reset_predictor force_full abort abort",
    "nonfinite update": "reset_predictor reset_predictor force_full force_full abort abort",
    "overshoot": "rollback raise_threshold reset_predictor reset_predictor",
    "bad step": "skip_batch skip_batch force_full force_full",
    "critical": "skip_batch reset_predictor force_full force_full abort",
    "critical after a prediction": "rollback reset_predictor force_full force_full abort",
    "vanishing": "force_full force_full reset_predictor reset_predictor",
}


def provoke(what: str, monitor: DivergenceMonitor, row: Row) -> Recovery:
    """Make one kind of trouble; the recovery that is asked for."""
    loss, norm, _ = row
    after = what == "overshoot" or what.endswith("after a prediction")
    if what.startswith("nonfinite loss"):
        return monitor.observe_nonfinite("loss", after_prediction=after).recovery
    if what == "nonfinite update":
        return monitor.observe_nonfinite("update").recovery
    if what == "vanishing":
        return [monitor.observe_real(loss, 1e-6 * norm, after_prediction=False).recovery for _ in range(5)][-1]
    loss, factor = {"overshoot": (loss + 4.0, 1.0), "bad step": (loss, 300.0)}.get(what, (loss, 1e5))
    return monitor.observe_real(loss, factor * norm, after_prediction=after).recovery


@pytest.mark.parametrize("what", LADDERS)
def test_repeated_trouble_escalates_as_the_table_says(trained, what: str) -> None:
    monitor, future = trained
    future = iter(future)
    recoveries = []
    for _ in LADDERS[what].split():
        recoveries.append(provoke(what, monitor, next(future)))
        assert worst(run(monitor, [next(future) for _ in range(12)])).level.rank <= Level.CAUTION.rank
    assert " ".join(recoveries) == LADDERS[what]


def test_every_recovery_is_reachable(trained) -> None:
    reached = {Recovery(name) for ladder in LADDERS.values() for name in ladder.split()}
    monitor, future = trained
    loss, norm, _ = future[0]
    reached |= {monitor.observe_real(loss, norm, after_prediction=True).recovery}
    reached |= {monitor.observe_real(loss + 1.0, norm, after_prediction=True).recovery}
    assert reached == set(Recovery)


def test_trouble_long_past_starts_the_ladder_anew(trained) -> None:
    monitor, future = trained
    assert monitor.observe_nonfinite("loss").recovery is Recovery.SKIP_BATCH
    run(monitor, future[:250])
    assert monitor.observe_nonfinite("loss").recovery is Recovery.SKIP_BATCH


def test_a_recovery_is_given_ten_steps_before_the_next(trained) -> None:
    monitor, future = trained
    loss, norm, _ = future[0]
    recoveries = [monitor.observe_real(loss, 300 * norm, after_prediction=False).recovery for _ in range(3)]
    assert recoveries == [Recovery.SKIP_BATCH, Recovery.CONTINUE, Recovery.CONTINUE]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_sigma_that_cannot_work_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        DivergenceMonitor(sigma)


numbers = st.floats(allow_nan=True, allow_infinity=True)
observations = st.lists(st.tuples(numbers, numbers.map(abs), st.booleans()), max_size=120)


@settings(max_examples=60, deadline=None)
@given(observations)
def test_any_numbers_get_an_answer_and_none_that_is_not_finite_goes_through(series: list[Row]) -> None:
    monitor = DivergenceMonitor()
    for loss, norm, after in series:
        assessment = monitor.observe_real(loss, norm, after_prediction=after)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            assert assessment.recovery is not Recovery.CONTINUE
            assert assessment.level.rank >= Level.WARNING.rank
        assert bool(assessment.reasons) == (assessment.level is not Level.NORMAL)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 900), st.sampled_from(["gpt_jumps", "mlp_sgd"]))
def test_a_restored_monitor_goes_on_as_if_never_stopped(stop: int, name: str) -> None:
    series = recorded(name)[:1000]
    series[500:530] = [(loss + 3.0, 50 * norm, after) for loss, norm, after in series[500:530]]
    monitor, restored = DivergenceMonitor(), DivergenceMonitor()
    run(monitor, series[:stop])
    restored.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert run(restored, series[stop:]) == run(monitor, series[stop:])


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_units_of_the_loss_do_not_matter(scale: float) -> None:
    series = recorded("gpt_jumps")[:3000]
    series[2500:2530] = [(loss + 3.0, norm, after) for loss, norm, after in series[2500:2530]]
    scaled = [(scale * loss, scale * norm, after) for loss, norm, after in series]
    assert [a.level for a in run(DivergenceMonitor(), scaled)] == [a.level for a in run(DivergenceMonitor(), series)]
