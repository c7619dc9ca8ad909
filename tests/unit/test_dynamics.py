"""Dynamics models and the bandit on synthetic runs, where the true effect of every jump is known."""

import copy
import io
import math
import random
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from cpu_cost import cost

from hybrid_ray.calibration import auroc, reliability
from hybrid_ray.method.gate.dynamics import FEATURES, DynamicsName, Forecast, LinUCB, make_dynamics

NAMES: tuple[DynamicsName, ...] = get_args(DynamicsName)
DECISIVE = 7  # the feature that says whether a jump harms
HARM = 0.04


def cycles(count: int, *, seed: int, noise: float = 0.004) -> Iterator[tuple[list[float], float, float, float]]:
    """Features of very different scales, the jump, the measured outcome, and the true effect of a full jump."""
    draw = random.Random(seed)
    for _ in range(count):
        standard = [draw.gauss(0.0, 1.0) for _ in range(FEATURES)]
        effect = HARM * (standard[DECISIVE] > 0.5) - 0.25 * HARM
        jump = draw.choice([0.0, 0.5, 1.0])
        features = [10.0 ** (place % 5 - 2) * (value + place) for place, value in enumerate(standard)]
        yield features, jump, jump * effect + draw.gauss(0.0, noise), effect


def state(harmful: bool, *, at: int = DECISIVE) -> list[float]:
    """An average state but for one feature, which is two standard deviations from its mean."""
    features = [10.0 ** (place % 5 - 2) * place for place in range(FEATURES)]
    features[at] += 10.0 ** (at % 5 - 2) * (2.0 if harmful else -2.0)
    return features


def trained(name: DynamicsName, count: int, *, seed: int = 0, **options: Any) -> Any:
    model = make_dynamics(name, seed=seed)
    for features, jump, outcome, _ in cycles(count, seed=seed, **options):
        model.observe(features, jump, outcome)
    return model


def test_confidence_is_the_probability_of_being_paid_back() -> None:
    assert Forecast(mean=0.0, std=0.01).paid_back(0.0) == 0.5
    assert Forecast(mean=0.0, std=0.01).paid_back(math.expm1(0.01)) == pytest.approx(0.8413, abs=1e-4)
    assert Forecast(mean=0.05, std=0.01).paid_back(0.005) < 1e-4
    assert Forecast(mean=0.001, std=0.0).paid_back(0.005) == 1.0
    assert Forecast(mean=0.006, std=0.0).paid_back(0.005) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_new_model_expects_no_harm_but_is_not_sure(name: DynamicsName) -> None:
    forecast = make_dynamics(name, seed=3).forecast(state(harmful=True), 1.0)
    assert forecast.mean == pytest.approx(0.0, abs=1e-9)
    assert 0.002 < forecast.std < 0.1
    assert 0.5 < forecast.paid_back(0.005) < 0.95


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_jump_that_harms_only_in_some_states_is_learnt_in_50_cycles(name: DynamicsName) -> None:
    for seed in range(3):
        model = trained(name, 50, seed=seed, noise=0.002)
        harmful, safe = (model.forecast(state(harmful), 1.0) for harmful in (True, False))
        assert harmful.mean > safe.mean + 0.004
        assert harmful.paid_back(0.0) < safe.paid_back(0.0)
        other = [abs(model.forecast(state(True, at=at), 1.0).mean - safe.mean) for at in range(10, 20)]
        assert harmful.mean - safe.mean > sum(other) / len(other), "the wrong feature was blamed"


@pytest.mark.parametrize("name, least", [("linear", 0.75), ("mlp", 0.65)])
def test_confidence_ranks_states_by_whether_a_jump_is_paid_back(name: DynamicsName, least: float) -> None:
    model, scores, happened = make_dynamics(name, seed=1), [], []
    for number, (features, jump, outcome, effect) in enumerate(cycles(200, seed=1)):
        if number >= 80:
            scores.append(model.forecast(features, 1.0).paid_back(0.0))
            happened.append(effect <= 0.0)
        model.observe(features, jump, outcome)
    found = auroc(scores, happened)
    assert found is not None
    assert found > least


@pytest.mark.parametrize("name", NAMES)
def test_a_jump_that_always_harms_loses_confidence_and_one_that_gains_wins_it(name: DynamicsName) -> None:
    """Whatever the features say, all models must see this, the recurrent one included."""
    for effect, bounds in ((0.05, (0.0, 0.25)), (-0.05, (0.75, 1.0))):
        model, draw = make_dynamics(name, seed=0), random.Random(0)
        for features, jump, _, _ in cycles(160, seed=0):
            model.observe(features, jump, jump * effect + draw.gauss(0.0, 0.005))
        fresh = [features for features, *_ in cycles(30, seed=5)]
        confidence = sum(model.forecast(features, 1.0).paid_back(0.0) for features in fresh) / len(fresh)
        assert bounds[0] <= confidence <= bounds[1]


def test_linear_confidence_is_calibrated_where_its_assumptions_hold() -> None:
    probabilities, happened = [], []
    for seed in range(10):
        draw, model = random.Random(seed), make_dynamics("linear", seed=0)
        slopes = [draw.gauss(0.0, 0.01 / FEATURES**0.5) for _ in range(FEATURES)]
        level = draw.gauss(0.0, 0.005)
        for number in range(120):
            features = [draw.gauss(0.0, 1.0) for _ in range(FEATURES)]
            effect = level + sum(slope * value for slope, value in zip(slopes, features, strict=True))
            jump = draw.choice([0.0, 0.5, 1.0])
            if number >= 20:
                probabilities.append(model.forecast(features, 1.0).paid_back(0.001))
                happened.append(effect + draw.gauss(0.0, 0.01) <= math.log1p(0.001))
            model.observe(features, jump, jump * effect + draw.gauss(0.0, 0.01))
    full = [bin_ for bin_ in reliability(probabilities, happened, bins=5) if bin_.count >= 60]
    assert len(full) >= 3
    assert all(abs(bin_.share - bin_.probability) < 0.12 for bin_ in full)


def test_one_absurd_outcome_does_not_decide_but_many_do() -> None:
    model = trained("linear", 60)
    before = model.forecast(state(harmful=False), 1.0)
    model.observe(state(harmful=False), 1.0, math.nan)
    once = model.forecast(state(harmful=False), 1.0)
    assert before.mean < once.mean < before.mean + 0.03
    for _ in range(15):
        model.observe(state(harmful=False), 1.0, math.inf)
    assert model.forecast(state(harmful=False), 1.0).paid_back(0.02) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_missing_or_absurd_do_no_harm(name: DynamicsName) -> None:
    model = trained(name, 30)
    features = state(harmful=False)
    features[3], features[4], features[5] = math.nan, math.inf, 1e30
    model.observe(features, 1.0, 0.0)
    forecast = model.forecast(features, 1.0)
    assert math.isfinite(forecast.mean)
    assert 0.0 < forecast.std < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_model_continues_bit_for_bit(name: DynamicsName) -> None:
    """Through torch.save, and with the first model running on in between: its state must have been a copy."""
    model = trained(name, 37)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    kept = model.state_dict()
    later = list(cycles(30, seed=9))

    def continued(one: Any) -> list[Forecast]:
        forecasts = []
        for features, jump, outcome, _ in later:
            forecasts += [one.forecast(features, 1.0), one.forecast(features, 0.5)]
            one.observe(features, jump, outcome)
        return forecasts

    first = continued(model)
    stored.seek(0)
    for loaded in (torch.load(stored, weights_only=True), kept):
        other = make_dynamics(name, seed=99)
        other.load_state_dict(loaded)
        assert continued(other) == first
    again = make_dynamics(name, seed=98)
    again.load_state_dict(kept)  # which running the model loaded from it has not changed
    assert continued(again) == first


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_its_seed_and_leaves_global_randomness_alone(name: DynamicsName) -> None:
    before = torch.get_rng_state()
    first, second = (trained(name, 20).forecast(state(harmful=True), 1.0) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_change_nothing(name: DynamicsName) -> None:
    model = trained(name, 20)
    other = copy.deepcopy(model)
    forecasts = {model.forecast(state(harmful=True), 1.0) for _ in range(3)}
    assert len(forecasts) == 1
    model.observe(state(harmful=False), 1.0, 0.01)
    other.observe(state(harmful=False), 1.0, 0.01)
    assert model.forecast(state(harmful=True), 1.0) == other.forecast(state(harmful=True), 1.0)


@pytest.mark.parametrize("name, most", [("linear", 2**20), ("mlp", 2**21), ("rssm", 3 * 2**20)])
def test_memory_is_small_and_flat(name: DynamicsName, most: int) -> None:
    def stored(one: Any) -> int:
        return sum(tensor.nbytes for tensor in _tensors(one.state_dict()))

    model = trained(name, 20)
    early = stored(model)
    for features, jump, outcome, _ in cycles(60, seed=2):
        model.observe(features, jump, outcome)
    assert stored(model) == early <= most


@pytest.mark.parametrize("name, most", [("linear", 0.25), ("mlp", 1.2), ("rssm", 2.4)])
def test_a_cycle_costs_few_milliseconds(name: DynamicsName, most: float) -> None:
    """Three forecasts and an update, relative to a reference of about 16 ms."""
    model = trained(name, 20)

    def work() -> None:
        for features, jump, outcome, _ in cycles(24, seed=4):
            for length in (1.0, 0.5, 0.25):
                model.forecast(features, length)
            model.observe(features, jump, outcome)

    assert cost(work) / 24 < most


def test_rollouts_of_the_recurrent_model_go_further_ahead() -> None:
    model = trained("rssm", 40)
    several = model.rollout(state(harmful=True), [1.0, 0.0, 0.0])
    assert len(several) == 3
    assert several[0] == model.forecast(state(harmful=True), 1.0)


def test_the_bandit_learns_which_length_pays_in_which_state() -> None:
    """In one kind of state the full jump gains, in the other none does. The unit of the reward does not matter."""
    for unit in (1e-4, 50.0):
        bandit, draw, right = LinUCB(), random.Random(0), []
        for number in range(300):
            good = draw.random() < 0.5
            features = [draw.gauss(0.0, 1.0) for _ in range(FEATURES)]
            features[0] = 1.0 if good else -1.0
            arm = bandit.choose(features, [0.0, 0.5, 1.0])
            bandit.observe(features, arm, unit * (arm * (1.0 if good else -1.0) + draw.gauss(0.0, 0.3)))
            if number >= 200:
                right.append(arm == (1.0 if good else 0.0))
        assert sum(right) / len(right) > 0.8


def test_a_restored_bandit_chooses_alike() -> None:
    def played(one: LinUCB, seed: int) -> list[float]:
        arms = []
        for features, _, outcome, effect in cycles(25, seed=seed):
            arms.append(one.choose(features, [0.0, 0.5, 1.0]))
            one.observe(features, arms[-1], arms[-1] * -effect - outcome)
        return arms

    bandit, other = LinUCB(), LinUCB()
    played(bandit, 0)
    stored = io.BytesIO()
    torch.save(bandit.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert played(other, 1) == played(bandit, 1)
    assert other.state_dict()["scale"] == bandit.state_dict()["scale"]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
