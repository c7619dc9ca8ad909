"""Every arm as a configuration: what it keeps of the hybrid run, and what it changes."""

from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from micro_runs import micro_run
from simulated_runs import result

from hybrid_ray.config import ControlArm, HybridConfig, JobConfig, RunConfig, TrainConfig
from hybrid_ray.evaluation.arms import CONTROLS, Finished, baseline, control, frontier_run, frontier_runs
from hybrid_ray.run_result import RunResult
from hybrid_ray.training.loop import train

RUN = RunConfig(arm="hybrid", seed=7, train=TrainConfig(steps=600), hybrid=HybridConfig(prediction_horizon=9))
DONE = result(RUN, real_steps=420, predicted_steps=180, train_seconds=450.9 * 0.02)
PATH = Path("trials/0003/result.json")
WHOLE = result(baseline(RUN), train_seconds=600 * 0.02 * 1.05)  # a step of a run takes 5 % more than a plain step


def finished(done: RunResult = DONE, *, run: RunConfig = RUN, whole: RunResult = WHOLE) -> Finished:
    return Finished(run=run, result=done, path=PATH, baseline=whole)


def changed(run: RunConfig) -> set[str]:
    """Which parts of the hybrid run differ, with the parts of ``train`` named apart."""
    names = {f.name for f in fields(RunConfig) if getattr(run, f.name) != getattr(RUN, f.name)} - {"train"}
    trains = [f.name for f in fields(TrainConfig) if getattr(run.train, f.name) != getattr(RUN.train, f.name)]
    return names | {f"train.{name}" for name in trains}


def test_there_is_a_control_for_every_control_arm_and_each_names_itself() -> None:
    assert set(CONTROLS) == set(get_args(ControlArm))
    for arm in CONTROLS:
        assert control(arm, finished()).arm == arm


@pytest.mark.parametrize(
    "arm, differs",
    [
        ("equal_steps", {"arm", "hybrid", "train.steps"}),
        ("equal_time", {"arm", "hybrid", "train.steps"}),
        ("lr_matched", {"arm", "hybrid", "train.steps", "train.learning_rate"}),
        ("placebo", {"arm", "hybrid", "replay"}),
        ("random_direction", {"arm", "hybrid", "replay"}),
        ("reversed", {"arm", "hybrid", "replay"}),
    ],
)
def test_a_control_changes_only_what_makes_it_one(arm: str, differs: set[str]) -> None:
    assert changed(control(arm, finished())) == differs  # type: ignore[arg-type]


def test_real_steps_only_arms_cost_what_they_say() -> None:
    steps = {arm: control(arm, finished()) for arm in ("equal_steps", "equal_time", "lr_matched")}  # type: ignore[arg-type]
    assert {arm: run.train.steps for arm, run in steps.items()} == {
        "equal_steps": 420,
        "equal_time": 429,  # 450.9 plain steps of time, at 1.05 a step
        "lr_matched": 420,
    }
    assert all(run.hybrid.predictor.name == "none" for run in steps.values())
    assert steps["lr_matched"].train.learning_rate == pytest.approx(RUN.train.learning_rate * 1.3)


@pytest.mark.parametrize(
    "arm, predictor", [("placebo", "zero"), ("random_direction", "random"), ("reversed", "reversed")]
)
def test_replays_differ_in_the_predictor_alone(arm: str, predictor: str) -> None:
    run = control(arm, finished())  # type: ignore[arg-type]
    assert run.replay == str(PATH)
    assert replace(run.hybrid, predictor=RUN.hybrid.predictor) == RUN.hybrid
    assert run.hybrid.predictor.name == predictor


@pytest.mark.parametrize("mine", [{"name": "slow_momentum", "alpha": 3.0}, {"name": "my_file:Mine", "gain": 2.0}])
def test_reversed_reverses_the_hybrids_own_predictor(mine: dict[str, object]) -> None:
    run = replace(RUN, hybrid=HybridConfig(predictor=mine))
    reverse = control("reversed", finished(run=run)).hybrid.predictor
    assert (reverse.name, reverse.moving) == ("reversed", run.hybrid.predictor)


def test_against_the_hybrids_own_direction_real_training_is_slower(tmp_path: Path) -> None:
    """The control makes the jumps of slow momentum, as long and at the same steps, the other way."""
    hybrid = HybridConfig(
        predictor={"name": "slow_momentum", "beta3": 0.95}, trust="off", warmup_steps=0, full_steps=5,
        prediction_horizon=1, correct_steps=0,
    )  # fmt: skip
    run = micro_run(hybrid=hybrid, steps=120, learning_rate=3e-3, evaluations=1)
    done = train(run, directory=tmp_path)
    opposite = train(control("reversed", Finished(run=run, result=done, path=tmp_path / "result.json", baseline=done)))
    assert (done.status, opposite.status) == ("finished", "finished")
    assert opposite.replay.phases == done.replay.phases
    assert [norm for norms in opposite.replay.norms for norm in norms] == pytest.approx(
        [norm for norms in done.replay.norms for norm in norms], rel=1e-3
    )
    assert opposite.heldout["val"].loss > 1.05 * done.heldout["val"].loss


def test_a_very_short_control_is_still_a_valid_run() -> None:
    tiny = result(RUN, real_steps=3, train_seconds=3.9 * 0.02)
    for arm in ("equal_steps", "equal_time"):
        run = control(arm, finished(tiny))  # type: ignore[arg-type]
        assert run.train.steps >= 10
        assert run.train.evaluations <= run.train.steps


@pytest.mark.parametrize("ratio", [None, 0.0, -1.0, float("nan"), 1600.0])
def test_lr_matched_needs_a_measured_displacement(ratio: float | None) -> None:
    with pytest.raises(ValueError, match="displacement_ratio"):
        control("lr_matched", finished(replace(DONE, statistics={"displacement_ratio": ratio})))


def test_a_control_of_a_run_that_diverged_is_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        control("placebo", finished(replace(DONE, status="diverged")))


def test_all_trials_share_one_baseline_and_the_frontier_ends_are_whole_runs() -> None:
    other = replace(
        RUN,
        hybrid=HybridConfig(prediction_horizon=50, predictor={"name": "ema_nesterov", "gain": 0.1}),
        replay="somewhere",
    )
    assert baseline(other) == baseline(RUN)
    assert frontier_run(RUN, 1.0) == baseline(RUN)
    runs = frontier_runs(JobConfig())
    assert list(runs) == sorted(runs)
    assert runs[0.4].train.steps == 240
    assert runs[1.1].train.steps == 660


def test_equal_time_fits_into_the_hybrids_time() -> None:
    """Counted in plain steps it would have trained 5 % longer than the hybrid."""
    steps = control("equal_time", finished()).train.steps
    assert steps * WHOLE.time / WHOLE.real_steps <= DONE.time < (steps + 1) * WHOLE.time / WHOLE.real_steps
    with pytest.raises(ValueError, match="can't tell what a step takes"):
        control("equal_time", finished(whole=replace(WHOLE, status="failed")))


def test_a_rate_of_the_hybrids_own_leaves_plain_training_at_its_tuned_rate() -> None:
    """So a rate that suits the hybrid weakens no baseline, and the placebo is not made weak by it either."""
    run = replace(RUN, hybrid=replace(RUN.hybrid, lr_factor=0.5))
    usual = RUN.train.learning_rate
    rates = {arm: control(arm, finished(DONE, run=run)).optimizer_settings.learning_rate / usual for arm in CONTROLS}
    assert run.optimizer_settings.learning_rate == usual / 2
    assert baseline(run) == baseline(RUN)
    assert rates == pytest.approx(
        {
            "equal_steps": 1.0, "equal_time": 1.0, "placebo": 1.0,
            "random_direction": 0.5, "reversed": 0.5, "lr_matched": 0.5 * 1.3,
        }
    )  # fmt: skip
