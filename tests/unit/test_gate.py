"""The gate: always, by confidence, by lot; and the part of the run in which predictions are made."""

import re
from functools import cache
from typing import Any

import pytest
from hybrid_toy import quick, toy_run

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.gate.decision import Gate
from hybrid_ray.method.gate.loss_trend import LossTrend
from hybrid_ray.method.gate.payback import Payback
from hybrid_ray.method.guard.divergence import Recovery
from hybrid_ray.method.guard.recovery import Backoff


def phases(steps: int = 100, **changes: Any) -> str:
    trainer, batches = toy_run(quick(correct_steps=0, **changes), total_steps=steps)
    for _ in range(steps):
        trainer.step(batches)
    return trainer.replay_record().phases


def test_always_predicts_whatever_the_confidence() -> None:
    letters = phases(gate="always", confidence_threshold=1.0)
    assert letters.count("P") == 30
    assert "P" not in phases(gate="confidence", confidence_threshold=1.0, explore=0.0)


def test_the_lot_has_its_rate_and_is_drawn_alike() -> None:
    gate, same = (Gate(HybridConfig(gate="random", gate_rate=0.3), seed=4) for _ in range(2))
    draws = [gate.choose(unlearnt(), threshold=0.0, decision=number, rising=False) for number in range(2000)]
    assert sum(draws) / 2000 == pytest.approx(0.3, abs=0.04)
    assert draws == [same.choose(unlearnt(), threshold=1.0, decision=number, rising=False) for number in range(2000)]


@cache
def unlearnt() -> Payback:
    return Payback(HybridConfig(), seed=0)


def test_predictions_keep_to_their_part_of_the_run() -> None:
    letters = phases(gate="always", first_fraction=0.5)
    assert re.search("P", letters).start() == 55  # the first decision at or after half of the run
    assert phases(gate="always", first_fraction=0.0).index("P") == 15


def test_slow_momentum_predicts_from_the_first_step_to_the_last_unless_told_otherwise() -> None:
    own = HybridConfig(predictor="slow_momentum")
    assert (own.predicts_from, own.predicts_until, own.gate_kind, own.trust_kind) == (0.0, 1.0, "always", "loss_trend")
    told = HybridConfig(predictor="slow_momentum", first_fraction=0.1, off_fraction=0.2, gate="confidence")
    assert (told.predicts_from, told.predicts_until, told.gate_kind) == (0.1, 0.8, "confidence")


def test_no_gate_opens_while_the_loss_rises_if_the_trend_is_to_be_trusted() -> None:
    trend = LossTrend()
    for number in range(400):
        trend.observe(3.0 - 0.001 * number)
    assert not trend.rising
    for number in range(40):
        trend.observe(2.6 + 0.01 * number)
    assert trend.rising
    trusting = Gate(HybridConfig(gate="always", trust="off"))
    careful = Gate(HybridConfig(gate="always", trust="loss_trend"))
    assert trusting.choose(unlearnt(), threshold=1.0, decision=0, rising=True) == 1.0
    assert careful.choose(unlearnt(), threshold=0.0, decision=0, rising=True) == 0.0
    assert careful.choose(unlearnt(), threshold=1.0, decision=0, rising=False) == 1.0


def test_the_trend_goes_on_from_a_saved_state() -> None:
    trend, again = LossTrend(), LossTrend()
    for loss in (3.0, 2.0, 2.5):
        trend.observe(loss)
    again.load_state_dict(trend.state_dict())
    for each in (trend, again):
        each.observe(4.0)
    assert trend.state_dict() == again.state_dict()


def test_where_no_threshold_decides_a_recovery_shortens_the_jumps_instead() -> None:
    gated, always = Backoff(), Backoff(gated=False)
    for backoff in (gated, always):
        backoff.observe(Recovery.RAISE_THRESHOLD)
    assert (gated.ratio, gated.threshold(0.3)) == (1.0, 0.4)
    assert (always.ratio, always.threshold(0.3)) == (0.5, 0.3)
