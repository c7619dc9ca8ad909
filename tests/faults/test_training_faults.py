"""Faults 5 and 6: a number that is not finite is refused before it is applied, by all ranks alike; repeated, it is
Diverged.

The injector (`rank_scenarios.Fault`) is keyed on rank and nominal step. The scenario's phases, without a fault, by
step: WWWW FFFF PPCPPCCC PPCPPCCC ... (W warmup, F full, P predict, C correct and micro-corrections).
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from rank_pool import RankPool
from rank_scenarios import CONFIG, Fault, Job, Story, Training, train

from hybrid_ray.errors import Diverged

REAL_STEPS = {"warmup": 2, "full": 6, "micro-correction": 11, "correct": 14, "late correct": 16}
FIRST_PREDICTED = 9


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    pool = RankPool(2)
    yield pool
    pool.close()


def here(*faults: Fault, **settings: object) -> Job:
    """A job for this process alone: rank 0."""
    return Job(faults=tuple(replace(fault, rank=0) for fault in faults), config=replace(CONFIG, **settings))


def flat(training: Training) -> torch.Tensor:
    return torch.tensor(training.weights())


def optimizer_state(training: Training) -> list[torch.Tensor]:
    states = training.optimizer.state_dict()["state"].values()
    return [value.clone() for state in states for value in state.values()]


def test_the_scenario_has_the_phases_the_faults_are_aimed_at() -> None:
    letters = "".join(phase[0].upper() for phase in train(here()).phases)
    assert letters.startswith("WWWWFFFFPPCPPCCCPPCPPCCC")


@pytest.mark.parametrize("phase", REAL_STEPS)
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_or_gradient_is_refused_before_it_is_applied(phase: str, what: str, value: float) -> None:
    step = REAL_STEPS[phase]
    training = Training(here(Fault(what=what, steps=(step,), value=value)))
    for _ in range(step - 1):
        training.step()
    weights, moments = flat(training), optimizer_state(training)
    result = training.step()
    assert not result.predicted
    assert str(result.level) in ("warning", "critical")
    assert result.event is not None
    after = flat(training)
    assert after.isfinite().all()
    for before, now in zip(moments, optimizer_state(training), strict=True):
        assert torch.equal(before, now)  # neither moments nor step counts moved
    if phase in ("warmup", "full"):
        assert torch.equal(after, weights)
    following = training.step()
    assert str(following.phase) == "full"
    assert following.loss is not None
    assert math.isfinite(following.loss)


def test_a_bad_gradient_right_after_a_prediction_takes_the_prediction_back() -> None:
    step = REAL_STEPS["micro-correction"]
    training = Training(here(Fault(what="loss", steps=(step,))))
    for _ in range(FIRST_PREDICTED - 1):
        training.step()
    before = flat(training)
    for _ in range(FIRST_PREDICTED, step):
        assert training.step().predicted
    moved = (flat(training) - before).norm()
    training.step()
    assert moved > 1e-3
    assert (flat(training) - before).norm() < 1e-5 * moved + 1e-6


def test_a_prediction_whose_place_is_taken_by_the_next_plan_stays_and_is_recorded() -> None:
    """Full after Correct: the next displacement is planned, so the last can't be taken back."""
    job = here(gate="random", correct_steps=1, full_steps=2)
    phases = " ".join(phase[0] for phase in train(job).phases)
    step = phases.index("p c f") // 2 + 3
    training = Training(replace(job, faults=(Fault(what="loss", steps=(step,), rank=0),)))
    for _ in range(step - 1):
        training.step()
    weights = flat(training)
    event = training.step().event or ""
    assert event.startswith("skip_batch: ")  # what happens, and not the rollback that was advised
    assert "rollback" not in training.trainer.statistics()["events"]
    assert torch.equal(flat(training), weights)
    assert all(norm > 0.0 for norms in training.trainer.replay_record().norms for norm in norms)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_one_bad_micro_batch_spoils_the_whole_step_and_nothing_else(accumulate: int) -> None:
    training = Training(replace(here(), accumulate=accumulate))
    for _ in range(5):
        training.step()
    before = flat(training)
    calls = iter([math.nan] + [1.0] * (accumulate - 1))
    result = training.trainer.step(lambda: training.closure() * next(calls))
    assert result.event is not None
    assert torch.equal(flat(training), before)
    assert next(calls, None) is None  # all of its micro-batches were read: data stays in step with the ranks


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_predicted_update_never_reaches_the_weights(value: float) -> None:
    training = Training(here(Fault(what="update", steps=(FIRST_PREDICTED - 1,), value=value)))
    story = [training.step() for _ in range(FIRST_PREDICTED - 1)]
    before = flat(training)
    assert before.isfinite().all()
    story += [training.step() for _ in range(training.job.steps - len(story))]
    assert flat(training).isfinite().all()
    assert any("reset_predictor" in (result.event or "") for result in story)
    assert any(result.predicted for result in story)  # it forgot the bad number and predicts again


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("predictor", ["ema_nesterov", "none"])
def test_a_bad_number_that_keeps_coming_is_diverged_with_the_last_good_weights(what: str, predictor: str) -> None:
    fault = Fault(what=what, steps=tuple(range(6, 40)))
    training = Training(here(fault, predictor=predictor))
    for _ in range(5):
        training.step()
    good = flat(training)
    with pytest.raises(Diverged, match="finite"):
        _ = [training.step() for _ in range(20)]
    assert training.steps < 15
    assert torch.equal(flat(training), good)


def test_a_bad_predicted_update_that_keeps_coming_is_diverged() -> None:
    training = Training(here(Fault(what="update", steps=tuple(range(5, 80)))))
    with pytest.raises(Diverged, match="update is not finite"):
        _ = [training.step() for _ in range(80)]
    assert flat(training).isfinite().all()
    assert "P" not in training.trainer.replay_record().phases


def test_a_learning_rate_far_too_large_is_diverged_though_all_is_finite() -> None:
    training = Training(replace(here(), learning_rate=10.0))
    with pytest.raises(Diverged, match=r"far above the .* the run began with"):
        _ = [training.step() for _ in range(300)]


def test_a_plain_run_is_told_of_a_blow_up_but_left_alone() -> None:
    """With ``predictor="none"`` a run is a baseline: single bad batches are left out, as in every arm, and no more."""
    story = train(replace(here(predictor="none"), learning_rate=10.0, steps=120))
    assert story.error is None
    assert "critical" in story.levels
    assert any(event and event.startswith("advised") for event in story.events)


def test_bad_numbers_far_apart_are_lived_with() -> None:
    job = here(Fault(what="loss", steps=(150, 400)), Fault(what="gradient", steps=(650,)))
    story = train(replace(job, steps=700))
    assert story.error is None
    assert len(story.phases) == 700
    assert story.phases[-100:].count("predict") > 20


def together(ranks: RankPool, job: Job) -> Story:
    """The story of a job on all ranks, which must tell the same one."""
    first, second = ranks.run(train, job)
    assert repr(first) == repr(second)  # NaN included
    return first


def finite(story: Story) -> bool:
    return all(map(math.isfinite, story.weights))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [6, 14])  # in Full, and the first real step after a prediction
def test_nan_on_one_rank_is_refused_by_all(ranks: RankPool, parallel: str, what: str, step: int) -> None:
    fault = Fault(what=what, steps=(step,))
    alone, story = train(here(fault)), together(ranks, Job(parallel=parallel, faults=(fault,)))
    assert story.error is None
    assert (story.phases, story.events) == (alone.phases, alone.events)
    assert story.weights == pytest.approx(alone.weights, abs=1e-4)
    assert story.levels[step - 1] in ("warning", "critical")
    assert story.events[step - 1]
    assert story.phases[step] == "full"
    assert finite(story)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_predicted_update_that_is_not_finite_on_one_rank_is_refused_by_all(ranks: RankPool, parallel: str) -> None:
    story = together(ranks, Job(parallel=parallel, faults=(Fault(what="update", steps=(FIRST_PREDICTED - 1,)),)))
    assert story.error is None
    assert "update is not finite" in (story.events[FIRST_PREDICTED - 2] or "")
    assert story.phases[FIRST_PREDICTED - 1] == "full"
    assert "predict" in story.phases  # the memory is clean again
    assert finite(story)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_nan_that_keeps_coming_on_one_rank_ends_all_ranks_alike(ranks: RankPool, parallel: str) -> None:
    story = together(ranks, Job(parallel=parallel, faults=(Fault(what="loss", steps=tuple(range(10, 40))),)))
    assert story.error is not None
    assert story.error.startswith("Diverged")
    assert len(story.phases) < 20
    assert finite(story)
