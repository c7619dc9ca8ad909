"""The arms of docs/method.md, section 4: what a hybrid run is compared with. Each is a configuration, never other code.

A control is a pure function of the hybrid run, its result and the path of its ``result.json``. Data order depends on
the seed alone, and the schedule on ``train.steps``, so a shorter run reads the same batches and decays fully.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hybrid_ray.config import Arm, HybridConfig, JobConfig, PredictorName, RunConfig
from hybrid_ray.run_result import RunResult

__all__ = ["CONTROLS", "MIN_STEPS", "Control", "baseline", "control", "frontier_run", "frontier_runs"]

MIN_STEPS = 10
"""Fewest steps a run may have (`TrainConfig.problems`)."""

_PLAIN = HybridConfig(predictor="none")

Control = Callable[[RunConfig, RunResult, Path], RunConfig]
"""(hybrid run, its finished result, path of its result.json) -> the control's run."""


def baseline(run: RunConfig) -> RunConfig:
    """All nominal steps real. Hybrid settings go back to their defaults, so that equal baselines share a cache key."""
    return replace(run, arm="baseline", hybrid=_PLAIN, replay=None)


def frontier_run(run: RunConfig, length: float) -> RunConfig:
    """Real steps only, ``length`` times as many as nominal. Length 1 is the baseline itself, with its whole curve.

    Of the others only the end is a point of the frontier, so they are evaluated there alone.
    """
    if length == 1.0:
        return baseline(run)
    shorter = _real(run, "frontier", round(run.train.steps * length))
    return replace(shorter, train=replace(shorter.train, evaluations=1))


def frontier_runs(job: JobConfig, *, seed: int | None = None) -> dict[float, RunConfig]:
    """The runs of the job's frontier by length, shortest first."""
    plain = job.run(seed=seed)
    return {length: frontier_run(plain, length) for length in sorted(set(job.frontier.lengths))}


def control(arm: Arm, run: RunConfig, result: RunResult, path: Path) -> RunConfig:
    """The run of one control arm.

    Raises ValueError if the hybrid run did not finish: there is nothing to make a control of.
    """
    if result.status != "finished":
        raise ValueError(f"the hybrid run of seed {run.seed} is {result.status!r} but a control needs a finished one")
    return CONTROLS[arm](run, result, path)


def _real(run: RunConfig, arm: Arm, steps: int) -> RunConfig:
    """Real steps only. Warmup and decay are fractions of the run, so the schedule rescales by itself."""
    steps = max(MIN_STEPS, steps)
    train = replace(run.train, steps=steps, evaluations=min(run.train.evaluations, steps))
    return replace(baseline(run), arm=arm, train=train)


def _equal_steps(run: RunConfig, result: RunResult, path: Path) -> RunConfig:
    """As many real steps as the hybrid took: "just stop earlier"."""
    return _real(run, "equal_steps", result.real_steps)


def _equal_time(run: RunConfig, result: RunResult, path: Path) -> RunConfig:
    """As many real steps as fit into the hybrid's calibrated training time, which is counted in plain steps already."""
    return _real(run, "equal_time", math.floor(result.time))


def _lr_matched(run: RunConfig, result: RunResult, path: Path) -> RunConfig:
    """`equal_steps` at the learning rate that moves as far as the hybrid did along its mean direction.

    Raises ValueError if the hybrid measured no displacement (it never predicted).
    """
    ratio = result.statistics.get("displacement_ratio")
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
        raise ValueError(
            f"displacement_ratio is {ratio!r} in the hybrid's statistics but lr_matched needs a number above 0: "
            "the hybrid never predicted, or moved against its own real steps"
        )
    run = replace(run, train=replace(run.train, learning_rate=run.train.learning_rate * ratio))
    return _real(run, "lr_matched", result.real_steps)


def _replay(arm: Arm, predictor: PredictorName) -> Control:
    """The hybrid's own phase decisions of that seed; predicted steps do something else, or nothing."""

    def make(run: RunConfig, result: RunResult, path: Path) -> RunConfig:
        return replace(run, arm=arm, hybrid=replace(run.hybrid, predictor=predictor), replay=str(path))

    return make


CONTROLS: dict[Arm, Control] = {
    "equal_steps": _equal_steps,
    "equal_time": _equal_time,
    "placebo": _replay("placebo", "zero"),
    "random_direction": _replay("random_direction", "random"),
    "reversed": _replay("reversed", "reversed"),
    "lr_matched": _lr_matched,
}
"""Arms that need the hybrid's result first."""
