"""Two ranks train as one process does: the same decisions on every rank, the same weights, no needless traffic."""

from dataclasses import replace
from typing import Any

import pytest
from rank_pool import RankError, RankPool
from rank_scenarios import CONFIG, Fault, Job, Story, energy, gradient_size, hang_on_rank_1, traffic, train

from hybrid_ray.run_result import Replay

SMALL = 40  # numbers that ranks may exchange to decide; the smallest gradient of the model is larger


def together(ranks: RankPool, job: Job) -> Story:
    """The story of a job on all ranks, which must tell the same one."""
    first, second = ranks.run(train, job)
    assert repr(first) == repr(second)  # NaN included
    return first


def real_losses(story: Story) -> list[float]:
    return [loss for loss in story.losses if loss is not None]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("predictor", ["ema_nesterov", "snoo", "linear_fit", "momentum", "slow_momentum"])
def test_two_ranks_are_one_process_with_the_same_global_batch(ranks: RankPool, parallel: str, predictor: str) -> None:
    config = replace(CONFIG, predictor={"name": predictor, **({"alpha": 2.0} if predictor == "slow_momentum" else {})})
    job = Job(config=config, steps=32, total_steps=32)
    alone, story = train(job), together(ranks, replace(job, parallel=parallel))
    assert set(alone.phases) == {"warmup", "full", "predict", "correct"}
    assert story.phases == alone.phases
    assert story.levels == alone.levels
    assert story.events == alone.events
    assert real_losses(story) == pytest.approx(real_losses(alone), rel=1e-4)
    assert story.weights == pytest.approx(alone.weights, abs=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_confidence_that_decides_is_the_same_on_every_rank(ranks: RankPool, parallel: str) -> None:
    config = replace(CONFIG, confidence_threshold=0.7)
    alone = train(Job(config=config, steps=80))
    story = together(ranks, Job(config=config, steps=80, parallel=parallel))
    assert 0 < alone.phases.count("predict") < train(Job(steps=80)).phases.count("predict")  # it did decide
    assert story.confidences == pytest.approx(alone.confidences, abs=1e-3)
    assert story.phases == alone.phases


RECORDED = Replay(phases="W" * 4 + "F" * 4 + "PPMPPCCC" * 2, norms=((0.02,),) * 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16 buffers": {"buffer_dtype": "bfloat16"},
    "host buffers": {"buffer_device": "host"},
    "scaled horizon, residual feedback": {"horizon_mode": "scaled", "residual_feedback": 0.5},
    "sampled coordinates": {"sample_one_in": 64, "confidence_threshold": 0.3},
    "slow momentum in bf16": {"predictor": "slow_momentum", "buffer_dtype": "bfloat16"},
    "adaptive horizon": {"horizon_mode": "adaptive", "confidence_threshold": 0.3},
    "bandit, mlp": {"horizon_mode": "linucb", "dynamics": "mlp", "explore": 0.5},
    "drawn by lot": {"gate": "random", "gate_rate": 0.7},
    "random direction": {"predictor": "random"},
    "reversed direction": {"predictor": "reversed"},
    "placebo": {"predictor": "zero"},
    "off": {"predictor": "none"},
}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_the_ranks_together(ranks: RankPool, parallel: str, variant: str) -> None:
    """DDP's copies of the weights are compared bit for bit: nothing may depend on the rank or on chance of its own."""
    config = replace(CONFIG, **VARIANTS[variant])
    replay = RECORDED if config.predictor.name in ("random", "reversed", "zero") else None
    story = together(ranks, Job(config=config, parallel=parallel, replay=replay, steps=24, total_steps=24))
    assert ("predict" in story.phases) == (config.predictor.name != "none")
    if replay is not None:
        assert "".join(phase[0] for phase in story.phases) == replay.phases.lower().replace("m", "c")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_an_overflow_on_one_rank_lowers_the_loss_scale_of_all(ranks: RankPool, parallel: str) -> None:
    """A scale that differed would show in every later loss: gradients are summed while they are scaled."""
    fault = Fault(what="gradient", steps=(6,))
    story = together(ranks, Job(parallel=parallel, scaled=True, faults=(fault,), steps=20))
    alone = train(Job(scaled=True, faults=(replace(fault, rank=0),), steps=20))
    assert (story.events[5] or "").startswith("overflow: ")
    assert story.phases == alone.phases
    assert story.weights == pytest.approx(alone.weights, abs=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_accumulating_micro_batches_changes_nothing_but_rounding(ranks: RankPool, parallel: str) -> None:
    alone = train(Job(steps=20))
    story = together(ranks, Job(accumulate=4, parallel=parallel, steps=20))
    assert story.phases == alone.phases
    assert story.weights == pytest.approx(alone.weights, abs=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_gradients_travel_once_a_real_step_and_never_in_a_predicted_one(ranks: RankPool, parallel: str) -> None:
    """However many micro-batches a step has. What a rank sends in a predicted step is a few numbers at most."""
    config = replace(CONFIG, warmup_steps=2)
    rows = ranks.run(traffic, Job(config=config, accumulate=4, parallel=parallel, steps=14))[0]
    for step, (phase, collectives) in enumerate(rows, start=1):
        reduced = [size for size in collectives.get("all_reduce", []) if size > SMALL]
        others = [size for name, moved in collectives.items() if name != "all_reduce" for size in moved]
        if phase == "predict":
            assert reduced == [], step
            assert all(size <= SMALL for size in others), step
        else:
            assert sum(reduced) == gradient_size(parallel), (
                step,
                phase,
            )  # gloo's reduce-scatter (FSDP2) is an all-reduce too
    assert {phase for phase, _ in rows} == {"warmup", "full", "predict", "correct"}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("step", [6, 10, 13])  # in Full, in Predict, in Correct
def test_a_stopped_run_goes_on_bit_for_bit(ranks: RankPool, parallel: str, step: int) -> None:
    job = Job(parallel=parallel, steps=24)
    whole = together(ranks, job)
    resumed = together(ranks, replace(job, restore_at=step))
    assert resumed == whole


def test_the_energy_of_a_device_that_ranks_share_counts_once(ranks: RankPool) -> None:
    assert ranks.run(energy, ("GPU-a", "GPU-b")) == [200.0, 200.0]
    assert ranks.run(energy, ("GPU-a", "GPU-a")) == [100.0, 100.0]


def test_a_rank_that_hangs_is_told_in_time(ranks: RankPool) -> None:
    """The pool itself: silence must not pass for success. Last, since it ends the group."""
    with pytest.raises(RankError, match=r"rank 1: .*hangs"):
        ranks.run(hang_on_rank_1, timeout=1.0)
