"""Which trials are stopped early: ASHA, the median rule, none, or another of Ray Tune's schedulers.

Time is the nominal step that a trial reports with its own ``step``; Ray's counters restart after a retry or include
start-up.
What is compared is ``objective``, which every report holds and which is always finite: one NaN would poison ASHA's
rungs.
"""

from typing import TYPE_CHECKING, Any, cast

from hybrid_ray.config import JobConfig
from hybrid_ray.config.named import make_named
from hybrid_ray.ray_tune.space import SearchSpace

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

__all__ = ["build_scheduler", "grace_steps", "rungs"]


def grace_steps(job: JobConfig, space: SearchSpace) -> int:
    """Nominal steps before any trial may be stopped: warmup, full and 3 of the longest cycles among the presets.

    Before that a trial has hardly predicted, and stopping it would judge its warmup. A typical trial has done more than
    3 cycles by then: horizons are searched in logarithms, and most are far below the presets' longest. One at the far
    corner of the space (the longest horizon, a real step after each predicted one) has done at least 1. Three cycles of
    that corner would be most of a run, and nothing would ever be stopped. ``search.grace_steps`` overrules it.
    """
    hybrid = job.hybrid
    own = job.search.grace_steps or space.latest_start(hybrid) + 3 * space.preset_cycle(hybrid)
    return min(own, job.train.steps)


_LATEST = 0.75  # share of a run after which stopping a trial would save little and lose how it ends


def rungs(job: JobConfig, space: SearchSpace) -> list[int]:
    """Nominal steps at which ASHA compares a trial with those before it; empty if the first would come too late."""
    found, step = [], grace_steps(job, space)
    while step <= _LATEST * job.train.steps:
        found.append(step)
        step *= job.search.reduction_factor
    return found


def build_scheduler(job: JobConfig, space: SearchSpace) -> "TrialScheduler":
    """The scheduler a job names, with its metric and mode set.

    ``max_t`` is one step beyond the run: a trial ends by itself. A trial that Tune ends at ``max_t`` would be a
    stopped one, and a TorchTrainer inside it would leak its placement group. What the job names gets these arguments
    too, where it takes them and the job does not give them.

    Raises:
        ConfigError: what the job names can't be made.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

    usual: dict[str, Any] = {"time_attr": "step", "metric": "objective", "mode": "max", "max_t": job.train.steps + 1}
    if "scheduler" in job.search.named:
        own = job.search.scheduler
        made = make_named(own, TrialScheduler, place="search.scheduler", usual=usual, folders=job.folders)
        return cast(TrialScheduler, made)

    class LateTrialsFinish(AsyncHyperBandScheduler):
        """ASHA without the rungs of a run's last part."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result["step"] > _LATEST * job.train.steps:
                return str(AsyncHyperBandScheduler.CONTINUE)
            return str(super().on_trial_result(tune_controller, trial, result))

    grace = grace_steps(job, space)
    if job.search.scheduler == "asha":
        return LateTrialsFinish(grace_period=grace, reduction_factor=job.search.reduction_factor, **usual)
    if job.search.scheduler == "median":
        return MedianStoppingRule(time_attr="step", metric="objective", mode="max", grace_period=grace)
    return FIFOScheduler()  # type: ignore[no-untyped-call]
