"""Build the scheduler that stops trials early: ASHA, the median rule, none, or another of Ray Tune's.

Time is the nominal step that a trial reports as ``step``, because Ray's counters restart after a retry or include the
start-up. Schedulers compare ``objective``, which is finite in every report: a single NaN would corrupt ASHA's rungs.
"""

from typing import TYPE_CHECKING, Any, cast

from hybrid_ray.config import JobConfig
from hybrid_ray.config.named import make_named
from hybrid_ray.ray_tune.space import SearchSpace

if TYPE_CHECKING:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

__all__ = ["build_scheduler", "grace_steps", "rungs"]


def grace_steps(job: JobConfig, space: SearchSpace) -> int:
    """Nominal steps before any trial may be stopped: warmup, full and 3 of the longest cycles among the presets.

    Earlier, a trial has hardly predicted, so only its warmup could be judged. A typical trial has done more than 3
    cycles by then: horizons are searched on a log scale, and most are far below the longest of the presets. The trial
    with the longest possible cycle (longest horizon, a real step after each predicted one) has done at least 1. Waiting
    for three such cycles would take most of a run, so no trial would be stopped. ``search.grace_steps`` overrides this.
    """
    hybrid = job.hybrid
    own = job.search.grace_steps or space.latest_start(hybrid) + 3 * space.preset_cycle(hybrid)
    return min(own, job.train.steps)


_LATEST = 0.75  # share of a run after which a trial is not stopped: it would save little and lose the final result


def rungs(job: JobConfig, space: SearchSpace) -> list[int]:
    """Nominal steps at which ASHA compares a trial with earlier ones; empty if the first would be too late."""
    found, step = [], grace_steps(job, space)
    while step <= _LATEST * job.train.steps:
        found.append(step)
        step *= job.search.reduction_factor
    return found


def build_scheduler(job: JobConfig, space: SearchSpace) -> "TrialScheduler":
    """The job's scheduler, with its metric and mode set.

    ``max_t`` is one step more than the run, so that a trial ends by itself. If Tune ended it at ``max_t``, it would
    count as stopped, and a TorchTrainer inside it would leak its placement group. A class that the job names gets these
    arguments too, if it accepts them and the job does not set them.

    Raises:
        ConfigError: the scheduler that the job names can't be made.
    """
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    usual: dict[str, Any] = {"time_attr": "step", "metric": "objective", "mode": "max", "max_t": job.train.steps + 1}
    if "scheduler" in job.search.named:
        made = make_named(job.scheduler, TrialScheduler, place="search.scheduler", usual=usual, folders=job.folders)
        return cast(TrialScheduler, made)
    if job.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    asha, median = _predicting_trials_only(late=_LATEST * job.train.steps)
    grace = grace_steps(job, space)
    if job.scheduler == "asha":
        return asha(grace_period=grace, reduction_factor=job.search.reduction_factor, **usual)
    return median(time_attr="step", metric="objective", mode="max", grace_period=grace)


def _predicting_trials_only(*, late: float) -> "tuple[type[AsyncHyperBandScheduler], type[MedianStoppingRule]]":
    """ASHA and the median rule, which see only the trials that predict.

    A trial that is inert so far is plain training. Its score, close to 1, would be the cutoff for trials that predict,
    and it could not be the best. So it neither counts in a rung nor is stopped at one.

    Args:
        late: the nominal step after which ASHA stops no trial.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

    class Asha(AsyncHyperBandScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result["inert"] or result["step"] > late:
                return str(TrialScheduler.CONTINUE)
            return str(super().on_trial_result(tune_controller, trial, result))

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            if not result.get("inert"):
                super().on_trial_complete(tune_controller, trial, result)

    class Median(MedianStoppingRule):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result["inert"]:
                return str(TrialScheduler.CONTINUE)
            return str(super().on_trial_result(tune_controller, trial, result))

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            if not result.get("inert"):
                super().on_trial_complete(tune_controller, trial, result)

    return Asha, Median
