"""The arms that a hybrid run is compared with (docs/method.md, section 4). Arms differ in configuration, not in code.

A control is a pure function of the hybrid run, its result, the baseline's result for the same seed, and the path of the
hybrid's ``result.json``. Data order depends only on the seed, and the schedule only on ``train.steps``, so a shorter
run reads the same batches and its learning rate decays fully. Controls without predictions, and the placebo, use the
learning rate that was tuned for plain training; the others use the hybrid's own (`HybridConfig.lr_factor`).

Users can write such a function and name it in ``compare.arms`` or ``confirm.arms`` as ``package.module:function``:

    def two_thirds(hybrid: Finished) -> RunConfig:
        return real_run(hybrid.run, "two_thirds", 2 * hybrid.result.real_steps // 3)   # real steps only

The function is called once per seed, after the hybrid run of that seed has finished. The run that it returns is trained
like every other run. It must not change ``seed``, ``task``, ``model``, ``data`` or ``workers``, because it is paired
with the hybrid run. Results and reports use the function's name for the arm. If a seed has no such control, the
function raises a ValueError that states the reason.
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
"""Minimum number of steps of a run (`TrainConfig.steps`)."""

MOST_MATCHED = 10.0
"""Largest factor of `_lr_matched` on the learning rate. A tenfold rate is no match of anything: training fails."""

REQUIRED: tuple[ControlArm, ...] = ("equal_steps", "placebo")
"""Controls that always run where a gain may be claimed. The net speedup of a seed needs ``equal_steps``. ``placebo``
skips the same steps without predicting, so a gain that it has as well does not come from predicting.
"""

_PLAIN = HybridConfig(predictor=PredictorConfig(name="none"))
_PAIRED = ("seed", "task", "model", "data", "workers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A finished hybrid run, the input from which a control is built."""

    run: RunConfig
    result: RunResult
    path: Path  # of the run's result.json
    baseline: RunResult  # of the same seed


Control = Callable[[Finished], RunConfig]
"""Maps a finished hybrid run to the run of the control."""


def baseline(run: RunConfig) -> RunConfig:
    """The run with real steps only. Its hybrid settings are reset, so that equal baselines have the same cache key."""
    return replace(run, arm="baseline", hybrid=_PLAIN, replay=None)


def frontier_run(run: RunConfig, length: float) -> RunConfig:
    """A run of ``length`` times the nominal steps, with real steps only.

    Length 1 is the baseline itself, with all its evaluations. The other runs are evaluated only at their end, because
    the frontier uses only their final loss.
    """
    if length == 1.0:
        return baseline(run)
    shorter = real_run(run, "frontier", round(run.train.steps * length))
    return replace(shorter, train=replace(shorter.train, evaluations=1))


def frontier_runs(job: JobConfig, *, seed: int | None = None) -> dict[float, RunConfig]:
    """The frontier runs of the job, keyed by length, shortest first."""
    plain = job.run(seed=seed)
    return {length: frontier_run(plain, length) for length in sorted(set(job.frontier.lengths))}


def control(arm: str, hybrid: Finished) -> RunConfig:
    """The run of one control arm, built-in or written by the user.

    Raises ValueError if the hybrid run did not finish or if the arm cannot be built from it.
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
    """Check the user-written arms that the job names. Raises `ConfigError` with all problems found."""
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
    """How many real steps fit into ``time`` (in plain steps), based on ``plain``, a run with real steps only.

    A real step of a run takes slightly longer than a plain step, because it includes the trainer's overhead.

    Raises ValueError if ``plain`` did not finish.
    """
    if plain.status != "finished":
        raise ValueError(
            f"the {plain.arm} run of seed {plain.seed} is {plain.status!r}: it can't tell what a step takes"
        )
    return math.floor(time * plain.real_steps / plain.time)


def real_run(run: RunConfig, arm: str, steps: int) -> RunConfig:
    """A run with real steps only. Warmup and decay are fractions of the run, so the schedule scales with its length."""
    steps = max(MIN_STEPS, steps)
    train = replace(run.train, steps=steps, evaluations=min(run.train.evaluations, steps))
    return replace(baseline(run), arm=arm, train=train)


def _equal_steps(hybrid: Finished) -> RunConfig:
    """As many real steps as the hybrid took: the control for stopping earlier."""
    return real_run(hybrid.run, "equal_steps", hybrid.result.real_steps)


def _equal_time(hybrid: Finished) -> RunConfig:
    """As many real steps as the baseline takes in the hybrid's training time."""
    return real_run(hybrid.run, "equal_time", steps_in(hybrid.result.time, hybrid.baseline))


def _lr_matched(hybrid: Finished) -> RunConfig:
    """`equal_steps` with the learning rate multiplied by the hybrid's measured ``displacement_ratio``.

    At this rate the real steps alone move as far as the hybrid did along its mean direction. Raises ValueError if no
    learning rate can do that: the hybrid never predicted, or its real steps hardly moved along that direction, as after
    jumps that the real steps partly take back (slow momentum).
    """
    ratio = hybrid.result.statistics.get("displacement_ratio")
    if not isinstance(ratio, int | float) or not 0 < ratio <= MOST_MATCHED:
        raise ValueError(
            f"displacement_ratio is {ratio!r} in the hybrid's statistics but lr_matched needs a number above 0 and at "
            f"most {MOST_MATCHED:g}: the hybrid never predicted, or its real steps did not move along with it"
        )
    rate = hybrid.run.optimizer_settings.learning_rate * ratio
    run = replace(hybrid.run, train=replace(hybrid.run.train, learning_rate=rate))
    return real_run(run, "lr_matched", hybrid.result.real_steps)


def _placebo(hybrid: Finished) -> RunConfig:
    """Replay the hybrid's phase decisions; predicted steps do nothing, so it uses plain training's learning rate."""
    return _replay("placebo", PredictorConfig(name="zero"), replace(hybrid.run.hybrid, lr_factor=1.0), hybrid)


def _replay(arm: Arm, predictor: PredictorConfig, settings: HybridConfig, hybrid: Finished) -> RunConfig:
    changed = replace(settings, predictor=predictor)
    return replace(hybrid.run, arm=arm, hybrid=changed, replay=str(hybrid.path))


def _random_direction(hybrid: Finished) -> RunConfig:
    """Replay the hybrid's phase decisions; predicted steps have the hybrid's length and a random direction."""
    return _replay("random_direction", PredictorConfig(name="random"), hybrid.run.hybrid, hybrid)


def _reversed(hybrid: Finished) -> RunConfig:
    """Replay the hybrid's phase decisions and step lengths; its own predictor's direction is reversed."""
    mine = hybrid.run.hybrid.predictor
    reverse = PredictorConfig(name="reversed", options={"of": {"name": mine.name, **mine.options}})
    return _replay("reversed", reverse, hybrid.run.hybrid, hybrid)


CONTROLS: dict[str, Control] = {
    "equal_steps": _equal_steps,
    "equal_time": _equal_time,
    "placebo": _placebo,
    "random_direction": _random_direction,
    "reversed": _reversed,
    "lr_matched": _lr_matched,
}
"""The built-in control arms by name. They need the result of the hybrid run."""
