"""Confidence: the probability that a jump is paid back, on a problem where it is known which jumps are."""

import io
import math
from typing import Any

import pytest
import torch
from noisy_quadratic import NoisyQuadratic, quadratic_run

from hybrid_ray import HybridTrainer
from hybrid_ray.calibration import CalibrationCounts
from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import ConfigError, Diverged
from hybrid_ray.method.gate.features import FEATURE_NAMES
from hybrid_ray.method.gate.payback import Payback
from hybrid_ray.method.gate.real_step_trend import RealStepTrend
from hybrid_ray.method.guard.divergence import Level

SAFE, TOO_LONG = 1.0, 64.0  # gains
STEPS = 500


def finished(steps: int = STEPS, **changes: Any) -> tuple[float, dict[str, Any]]:
    """The loss without noise at the end of a run, and its statistics."""
    trainer, model = quadratic_run(steps, **changes)
    for _ in range(steps):
        trainer.step(model.batch)
    return float(model.loss().detach()), trainer.statistics()


def share(statistics: dict[str, Any]) -> float:
    return statistics["predicted_steps"] / statistics["steps"]


def test_a_run_whose_jumps_are_too_long_diverges_with_gate_always_and_ends_healthy_with_confidence() -> None:
    with pytest.raises(Diverged):
        finished(800, gate="always", gain=TOO_LONG)
    loss, statistics = finished(gate="confidence", confidence_threshold=0.5, gain=TOO_LONG)
    assert loss < 1.03  # real steps alone: 1.01
    assert share(statistics) < 0.1


def test_where_jumps_are_safe_most_are_made() -> None:
    loss, statistics = finished(gate="confidence", confidence_threshold=0.3, gain=SAFE)
    assert loss < 1.03
    assert statistics["jumps"] > 0.8 * statistics["decisions"]


def test_a_high_threshold_predicts_less() -> None:
    low, high = (
        share(finished(gate="confidence", confidence_threshold=threshold, gain=3.0)[1]) for threshold in (0.3, 0.9)
    )
    assert low > 0.25
    assert high < 0.1


def test_features_are_64_numbers_that_every_predictor_and_loss_gives() -> None:
    assert len(set(FEATURE_NAMES)) == 64
    for predictor in ("ema_nesterov", "snoo", "linear_fit"):
        trainer, model = quadratic_run(200, predictor=predictor, gate="always")
        for _ in range(200):
            trainer.step(lambda: model.batch() - 2.0)  # noqa: B023 - a loss that becomes negative
        known = trainer._cycle.payback.state.values
        assert set(known) <= set(FEATURE_NAMES)
        assert sum(math.isfinite(known.get(name, math.nan)) for name in FEATURE_NAMES) >= 50


@pytest.mark.parametrize("dynamics, mode", [("linear", "linucb"), ("mlp", "fixed"), ("rssm", "adaptive")])
def test_a_run_restored_in_the_middle_of_a_cycle_goes_on_bit_for_bit(dynamics: str, mode: str) -> None:
    settings = {"gate": "confidence", "confidence_threshold": 0.4, "dynamics": dynamics, "horizon_mode": mode}

    def results(restore_at: int | None) -> list[tuple[Any, ...]]:
        trainer, model = quadratic_run(240, gain=4.0, **settings)
        found = []
        for number in range(240):
            if number == restore_at:
                file = io.BytesIO()
                torch.save([model.state_dict(), trainer.state_dict()], file)
                file.seek(0)
                weights, state = torch.load(file, weights_only=False)
                taken = model.taken
                trainer, model = quadratic_run(240, gain=4.0, **settings)
                model.load_state_dict(weights)
                model.taken = taken
                trainer.load_state_dict(state)
            result = trainer.step(model.batch)
            found.append((result.phase, result.loss, result.confidence, result.event))
        return found

    whole = results(None)
    assert any(phase == "predict" for phase, *_ in whole[100:])
    assert results(103) == whole


def test_adaptive_makes_shorter_jumps_where_long_ones_are_not_paid_back() -> None:
    lengths = {}
    for gain in (SAFE, 6.0):
        trainer, model = quadratic_run(STEPS, gain=gain, gate="confidence", horizon_mode="adaptive", explore=0.1)
        for _ in range(STEPS):
            trainer.step(model.batch)
        jumps = [len(run) for run in trainer.replay_record().phases.replace("W", "F").split("F") if run]
        lengths[gain] = sum(jumps) / len(jumps)
    assert lengths[SAFE] > 4.0
    assert lengths[6.0] < lengths[SAFE] - 0.5


def test_adaptive_needs_a_threshold() -> None:
    with pytest.raises(ConfigError, match="horizon_mode is 'adaptive' but gate is 'always'"):
        quadratic_run(100, gate="always", horizon_mode="adaptive")


def test_a_shorter_jump_of_slow_momentum_is_that_share_of_it() -> None:
    model = NoisyQuadratic()
    config = HybridConfig(
        predictor="slow_momentum", prediction_horizon=4, full_steps=4, correct_steps=0, warmup_steps=0
    )
    trainer = HybridTrainer(model, torch.optim.AdamW(model.parameters(), lr=0.01), config, total_steps=100)
    for _ in range(12):  # a full phase, a jump, a full phase
        trainer.step(model.batch)
    assert trainer.phases.position.phase == "predict"
    cycle = trainer._cycle
    whole = cycle.planned_norms[0]
    assert cycle.plan(trainer._rate, ratio=1.0, share=0.5) == 2
    assert cycle.planned_norms[0] == pytest.approx(whole / 2)
    assert cycle.share == 0.5


def test_the_trend_of_real_steps_never_rises_and_is_not_below_what_the_loss_reached() -> None:
    trend = RealStepTrend()
    for step in range(1, 400):
        trend.observe(2.0 + math.exp(-step / 50), step)
    flat = trend.line(400)
    assert flat is not None
    assert flat.level == pytest.approx(2.0, abs=0.01)
    for step in range(400, 600):
        trend.observe(2.0 + 0.005 * (step - 400), step)
    risen = trend.line(600)
    assert risen is not None
    assert risen.level < 2.2  # the loss is 3
    assert risen.at(610) <= risen.level


def test_a_look_at_held_out_data_replaces_the_noisy_losses_of_the_cycle() -> None:
    seen: list[int] = []

    def decide(number: int) -> torch.Tensor:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(number)
        return model.loss()

    trainer, model = quadratic_run(300, gate="always", look_every=4)
    config = trainer.config
    trainer = HybridTrainer(model, torch.optim.SGD(model.parameters(), lr=0.2), config, total_steps=300, decide=decide)
    for _ in range(300):
        trainer.step(model.batch)
    assert len(seen) >= 10
    assert seen[0::2][: len(seen) // 2] == seen[1::2]  # the same batch before and after
    assert model.training
    plain, model = quadratic_run(300, gate="always", look_every=4)  # nothing to look at
    for _ in range(300):
        plain.step(model.batch)
    assert plain.statistics()["jumps"] > 10


def test_an_undone_jump_counts_against_the_next_one() -> None:
    trainer, model = quadratic_run(200, gate="confidence", confidence_threshold=0.0)
    for _ in range(200):
        trainer.step(model.batch)
    payback = trainer._cycle.payback

    def confidence(*losses: float) -> float:
        other = Payback(trainer.config, seed=0)
        other.load_state_dict(payback.state_dict())
        for loss in losses:
            other.begin_cycle()
            other.jumps(1.0, predicted=5)
            cycle = other.break_off(loss)
            assert (cycle.paid_back, cycle.confidence is None) == (False, False)
        other.begin_cycle()
        return other.confidence

    assert confidence(*[3.0] * 4) < confidence()
    assert confidence(math.nan) < confidence()


def test_the_share_of_jumps_paid_back_is_the_confidence_in_them() -> None:
    """Every jump is made, so no choice by confidence blurs the comparison."""
    settings = {"confidence_threshold": 0.0, "gain": 3.0}
    counts = CalibrationCounts()
    for seed in range(3):
        statistics = finished(1000, gate="confidence", seed=seed, **settings)[1]
        assert statistics["jumps"] > 0.9 * statistics["decisions"]
        counts = CalibrationCounts([*counts.rows, *statistics["calibration"]])
    assert counts.count > 250
    mean = sum(row[3] for row in counts.rows) / counts.count
    share = counts.happened / counts.count
    assert mean == pytest.approx(share, abs=0.1)
    assert counts.brier < share * (1.0 - share) + 0.02


@pytest.mark.parametrize("gate", ["always", "random"])
def test_a_gate_that_needs_no_confidence_computes_none(gate: str) -> None:
    trainer, model = quadratic_run(200, gate=gate)
    assert {trainer.step(model.batch).confidence for _ in range(200)} == {None}
    assert trainer.statistics()["calibration"] == []


def test_the_recovery_that_resets_the_predictor_keeps_what_was_learnt_about_jumps() -> None:
    """Otherwise the jumps that led to it are recommended again after one cycle without a jump."""
    trainer, model = quadratic_run(200, gate="confidence", confidence_threshold=0.0)
    for _ in range(200):
        trainer.step(model.batch)
    cycle = trainer._cycle
    for _ in range(6):
        cycle.begin(200, looked=math.nan)
        cycle.payback.jumps(1.0, predicted=5)
        cycle.withdraw(keep=True, loss=3.0)
    cycle.begin(200, looked=math.nan)
    cycle.payback.jumps(1.0, predicted=5)
    before = cycle.confidence
    finished = cycle.forget(keep=True, loss=3.0)
    assert (finished.paid_back, finished.confidence) == (False, before)
    cycle.begin(200, looked=math.nan)
    for _ in range(5):
        cycle.payback.observe_step(1.05, 0.1)
    cycle.payback.end_cycle(Level.NORMAL)
    cycle.begin(205, looked=math.nan)
    assert cycle.confidence < 0.4  # of a model that has seen one cycle: above 0.5
