"""The number of runs and of real steps in each stage of a job."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.arms import REQUIRED, frontier_runs
from hybrid_ray.evaluation.comparison.tuning import tuning_runs
from hybrid_ray.evaluation.confirm import confirmation_runs

__all__ = ["Stage", "comparison_stages", "stages"]

_TRIAL_SHARE = 0.75  # assumed fraction of real steps in a trial, if a gate decides when to predict


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Runs of one kind, and the sum of their real steps. Predicted steps cost almost nothing."""

    name: str
    runs: int
    steps: int


def stages(job: JobConfig) -> Iterator[Stage]:
    """The stages of a study."""
    frontier = [run.train.steps for run in frontier_runs(job).values()]
    steps, real = job.train.steps, _real_steps(job)
    yield Stage(name="frontier", runs=len(frontier), steps=sum(frontier))
    yield Stage(name="search", runs=job.search.trials, steps=real * job.search.trials)
    runs = confirmation_runs(job, job.confirm.best)
    baselines = job.confirm.seeds if runs else 0
    yield Stage(name="confirmation", runs=runs, steps=baselines * steps + (runs - baselines) * real)


def comparison_stages(job: JobConfig) -> Iterator[Stage]:
    """The stages of a comparison that continues to its last analysis."""
    frontier = [run.train.steps for run in frontier_runs(job).values()]
    compare, steps, real, optimizers = job.compare, job.train.steps, _real_steps(job), 1 + len(job.compare.peers)
    plain, hybrid = tuning_runs(job) if compare.tune_baseline else (0, 0)
    tuned = optimizers * plain
    yield Stage(name="tuning", runs=tuned + hybrid, steps=tuned * steps + hybrid * real)
    yield Stage(name="frontiers", runs=optimizers * len(frontier), steps=optimizers * sum(frontier))
    seeds, variants = compare.interim_analyses[-1], 2 * len(compare.variants)
    alike = 1 + len({*REQUIRED, *compare.arms}) + len(compare.peers)  # the hybrid and all arms of the same cost
    yield Stage(
        name=f"{seeds} seeds",
        runs=seeds * (1 + alike + variants),
        steps=seeds * ((1 + variants) * steps + alike * real),
    )


def _real_steps(job: JobConfig) -> int:
    """Real steps of a run that predicts."""
    steps = job.train.steps
    always = job.hybrid.gate_kind == "always"
    return round(job.hybrid.real_steps(steps) if always else _TRIAL_SHARE * steps)
