"""What a run's time is told in: nobody pays in their own coin."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from micro_runs import micro_run

from hybrid_ray.config import HybridConfig
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.method.predictors.slow_momentum import SlowMomentum
from hybrid_ray.optim import AdEMAMix
from hybrid_ray.tasks import load_task
from hybrid_ray.training.loop import train
from hybrid_ray.training.setup import TrainSetup
from hybrid_ray.training.step_costs import time_steps

JUMPS = HybridConfig(predictor="slow_momentum", warmup_steps=0, full_steps=4, correct_steps=0, prediction_horizon=4)
FRONTIER = Frontier(times=(10.0, 20.0, 30.0, 40.0, 80.0, 400.0), losses=(6.0, 5.8, 5.6, 5.4, 5.2, 5.0))


def slowed(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, seconds: float) -> None:
    work = getattr(kind, name)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return work(*arguments, **options)

    monkeypatch.setattr(kind, name, slow)


def test_a_dearer_optimizer_pays_for_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, AdEMAMix, "step", 0.1)
    run = micro_run(optimizer="ademamix", steps=20, evaluations=1, sample_tokens=0)
    own = train(run)
    assert own.optimizer_cost == 1.0
    assert own.time < 1.2 * own.real_steps
    against = train(replace(run, train=replace(run.train, clock_optimizer="adamw")))
    assert against.optimizer_cost > 5.0
    assert against.time > 1.5 * own.time
    assert against.heldout["val"].loss == own.heldout["val"].loss


def test_real_steps_that_a_predictor_slows_without_taking_part_in_them_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example by using up the caches: the run's own unit of time then hides it."""
    run = micro_run(hybrid=JUMPS, steps=20, evaluations=1, sample_tokens=0, calibration_steps=100)
    observe, step, debt = SlowMomentum.observe, torch.optim.AdamW.step, []

    def leaves_a_debt(*arguments: Any, **options: Any) -> Any:
        debt.append(0.02)
        return observe(*arguments, **options)

    def pays_it(*arguments: Any, **options: Any) -> Any:
        time.sleep(debt.pop() if debt else 0.0)
        return step(*arguments, **options)

    fair = train(run)
    monkeypatch.setattr(SlowMomentum, "observe", leaves_a_debt)
    monkeypatch.setattr(torch.optim.AdamW, "step", pays_it)
    slow = train(run)
    assert 0.8 < fair.real_step_cost < 1.25
    assert slow.real_step_cost > 1.5 * fair.real_step_cost
    assert slow.time < 1.25 * fair.time
    assert train(replace(run, hybrid=HybridConfig(predictor="none"))).real_step_cost == 1.0


def test_timed_steps_stand_still_also_where_a_task_chooses_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    run = micro_run(hybrid=JUMPS, steps=20, clock_optimizer="ademamix")
    task = load_task(run)
    monkeypatch.setattr(
        type(task), "optimizer", lambda self, model, settings: torch.optim.AdamW(model.parameters(), lr=1.0)
    )
    setup = TrainSetup(run, task, torch.device("cpu"))
    before = [weight.clone() for weight in setup.module.parameters()]
    time_steps(setup)
    torch.testing.assert_close(list(setup.module.parameters()), before, rtol=0.0, atol=1e-7)


def test_what_a_predictor_adds_to_a_real_step_lowers_net_speedup(monkeypatch: pytest.MonkeyPatch) -> None:
    run = micro_run(hybrid=JUMPS, steps=20, evaluations=1, sample_tokens=0)
    quick = train(run)
    slowed(monkeypatch, SlowMomentum, "observe", 0.1)
    slow = train(run)
    assert slow.heldout["val"].loss == quick.heldout["val"].loss
    assert slow.time > 1.5 * quick.time

    def net(time_taken: float) -> float | None:
        return FRONTIER.net_speedup(loss=5.3, time=time_taken)

    before, after = net(quick.time), net(slow.time)
    assert before is not None
    assert after is not None
    assert after < 0.7 * before
