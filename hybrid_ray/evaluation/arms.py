"""The arms of docs/method.md, section 4: what a hybrid run is compared with. Each is a configuration, never other code.

A control is a pure function of the hybrid run, what it and the baseline of its seed left, and the path of its
``result.json``. Data order depends on the seed alone, and the schedule on ``train.steps``, so a shorter run reads the
same batches and decays fully. Controls without predictions, and the placebo, train at the rate that was tuned for plain
training; the others at the hybrid's own (`HybridConfig.lr_factor`).

A user's own control is such a function, named in ``compare.arms`` or ``confirm.arms`` by ``package.module:function``:

    def two_thirds(hybrid: Finished) -> RunConfig:
        return real_run(hybrid.run, "two_thirds", 2 * hybrid.result.real_steps // 3)   # real steps only

It is called once a seed, when the hybrid run of that seed has finished. What it returns is trained like every other
run, and must not change ``seed``, ``task``, ``model``, ``data`` or ``workers``, or it could not be paired with the
hybrid. Results and reports call it by the name of the function. A ValueError says why a seed has no such control.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid_ray.config import (
    Arm,
    ControlArm,
    HybridConfig,
    JobConfig,
    PredictorConfig,
    PredictorName,
    RunConfig,
    arm_label,
)
from hybrid_ray.config.named import load_named, one_sentence
from hybrid_ray.errors import ConfigError
from hybrid_ray.run_result import RunResult

__all__ = [
    "CONTROLS", "MIN_STEPS", "REQUIRED", "Control", "Finished", "baseline", "check_arms", "control", "frontier_run",
    "frontier_runs", "real_run", "steps_in",
]  # fmt: skip

MIN_STEPS = 10
"""Fewest steps a run may have (`TrainConfig.steps`)."""

REQUIRED: tuple[ControlArm, ...] = ("equal_steps", "placebo")
"""Controls that run wherever a gain could be claimed, asked for or not: a seed's net speedup needs the first, and what
skipping the same steps and doing nothing gains as well does not come from predicting.
"""

_PLAIN = HybridConfig(predictor=PredictorConfig(name="none"))
_PAIRED = ("seed", "task", "model", "data", "workers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A finished hybrid run that a control is made of."""

    run: RunConfig
    result: RunResult
    path: Path  # of its result.json
    baseline: RunResult  # of its seed


Control = Callable[[Finished], RunConfig]
"""A finished hybrid run -> the control's run."""


def baseline(run: RunConfig) -> RunConfig:
    """All nominal steps real. Hybrid settings go back to their defaults, so that equal baselines share a cache key."""
    return replace(run, arm="baseline", hybrid=_PLAIN, replay=None)


def frontier_run(run: RunConfig, length: float) -> RunConfig:
    """Real steps only, ``length`` times as many as nominal. Length 1 is the baseline itself, with its whole curve.

    Of the others only the end is a point of the frontier, so they are evaluated there alone.
    """
    if length == 1.0:
        return baseline(run)
    shorter = real_run(run, "frontier", round(run.train.steps * length))
    return replace(shorter, train=replace(shorter.train, evaluations=1))


def frontier_runs(job: JobConfig, *, seed: int | None = None) -> dict[float, RunConfig]:
    """The runs of the job's frontier by length, shortest first."""
    plain = job.run(seed=seed)
    return {length: frontier_run(plain, length) for length in sorted(set(job.frontier.lengths))}


def control(arm: str, hybrid: Finished) -> RunConfig:
    """The run of one control arm, ours or a user's own.

    Raises ValueError if the hybrid run did not finish: there is nothing to make a control of. Or if the arm can't be
    made of it.
    """
    status, run = hybrid.result.status, hybrid.run
    if status != "finished":
        raise ValueError(f"the hybrid run of seed {run.seed} is {status!r} but a control needs a finished one")
    if arm in CONTROLS:
        return CONTROLS[arm](hybrid)
    with one_sentence(f"the arm {arm}"):
        made = load_named(arm, setting="arms", folders=run.folders)(hybrid)
    if not isinstance(made, RunConfig):
        raise ConfigError(f"the arm {arm} returned a {type(made).__name__} but must return a RunConfig")
    changed = [name for name in _PAIRED if getattr(made, name) != getattr(run, name)]
    if changed:
        raise ConfigError(f"the arm {arm} changed {', '.join(changed)} but a control is paired with the hybrid by them")
    return replace(made, arm=arm_label(arm))


def check_arms(job: JobConfig) -> None:
    """Raises `ConfigError` with all that is wrong with the arms of the user's own that a job names."""
    problems: list[str] = []
    for place, name in job.named.items():
        if ".arms." not in place:
            continue
        try:
            inspect.signature(load_named(name, setting=place, folders=job.folders)).bind(None)
        except ConfigError as error:
            problems += error.problems
        except (TypeError, ValueError) as error:
            problems.append(f"{place} is {name!r} but it can't be called with the hybrid's run alone: {error}")
    if problems:
        raise ConfigError(problems)


def steps_in(time: float, plain: RunResult) -> int:
    """How many real steps fit into ``time`` (plain steps), by what one took in ``plain``, a run of real steps only.

    A real step of a run takes a little more than a plain step: the trainer's own work around it is time as well.

    Raises ValueError if that run did not finish.
    """
    if plain.status != "finished":
        raise ValueError(
            f"the {plain.arm} run of seed {plain.seed} is {plain.status!r}: it can't tell what a step takes"
        )
    return math.floor(time * plain.real_steps / plain.time)


def real_run(run: RunConfig, arm: str, steps: int) -> RunConfig:
    """Real steps only. Warmup and decay are fractions of the run, so the schedule rescales by itself."""
    steps = max(MIN_STEPS, steps)
    train = replace(run.train, steps=steps, evaluations=min(run.train.evaluations, steps))
    return replace(baseline(run), arm=arm, train=train)


def _equal_steps(hybrid: Finished) -> RunConfig:
    """As many real steps as the hybrid took: "just stop earlier"."""
    return real_run(hybrid.run, "equal_steps", hybrid.result.real_steps)


def _equal_time(hybrid: Finished) -> RunConfig:
    """As many real steps as the baseline does in the hybrid's training time."""
    return real_run(hybrid.run, "equal_time", steps_in(hybrid.result.time, hybrid.baseline))


def _lr_matched(hybrid: Finished) -> RunConfig:
    """`equal_steps` at the learning rate that moves as far as the hybrid did along its mean direction.

    Raises ValueError if the hybrid measured no displacement (it never predicted).
    """
    ratio = hybrid.result.statistics.get("displacement_ratio")
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
        raise ValueError(
            f"displacement_ratio is {ratio!r} in the hybrid's statistics but lr_matched needs a number above 0: "
            "the hybrid never predicted, or moved against its own real steps"
        )
    rate = hybrid.run.optimizer_settings.learning_rate * ratio
    run = replace(hybrid.run, train=replace(hybrid.run.train, learning_rate=rate))
    return real_run(run, "lr_matched", hybrid.result.real_steps)


def _placebo(hybrid: Finished) -> RunConfig:
    """The hybrid's own phase decisions of that seed. Predicted steps do nothing, so it has plain training's rate."""
    return _replay("placebo", "zero", replace(hybrid.run.hybrid, lr_factor=1.0), hybrid)


def _replay(arm: Arm, predictor: PredictorName, settings: HybridConfig, hybrid: Finished) -> RunConfig:
    changed = replace(settings, predictor=settings.predictor.changed_to(predictor))
    return replace(hybrid.run, arm=arm, hybrid=changed, replay=str(hybrid.path))


def _random_direction(hybrid: Finished) -> RunConfig:
    """The same decisions; predicted steps are as long as the hybrid's and go anywhere."""
    return _replay("random_direction", "random", hybrid.run.hybrid, hybrid)


def _reversed(hybrid: Finished) -> RunConfig:
    """The same decisions; predicted steps go the other way."""
    return _replay("reversed", "reversed", hybrid.run.hybrid, hybrid)


CONTROLS: dict[str, Control] = {
    "equal_steps": _equal_steps,
    "equal_time": _equal_time,
    "placebo": _placebo,
    "random_direction": _random_direction,
    "reversed": _reversed,
    "lr_matched": _lr_matched,
}
"""Arms that need the hybrid's result first."""
