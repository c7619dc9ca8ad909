"""How many runs a job takes, stage by stage, and how many steps that cost what a real step costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.arms import REQUIRED, frontier_runs
from hybrid_ray.evaluation.comparison.tuning import tuning_runs
from hybrid_ray.evaluation.confirm import confirmation_runs

__all__ = ["Stage", "comparison_stages", "stages"]

_TRIAL_SHARE = 0.75  # of a trial's nominal steps that are real, where a gate decides


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Runs of one kind, and the real steps they take together; predicted ones are nearly free."""

    name: str
    runs: int
    steps: int


def stages(job: JobConfig) -> Iterator[Stage]:
    """The runs of a study by stage."""
    frontier = [run.train.steps for run in frontier_runs(job).values()]
    steps, real = job.train.steps, _real_steps(job)
    yield Stage(name="frontier", runs=len(frontier), steps=sum(frontier))
    yield Stage(name="search", runs=job.search.trials, steps=real * job.search.trials)
    runs = confirmation_runs(job, job.confirm.best)
    baselines = job.confirm.seeds if runs else 0
    yield Stage(name="confirmation", runs=runs, steps=baselines * steps + (runs - baselines) * real)


def comparison_stages(job: JobConfig) -> Iterator[Stage]:
    """The runs of a comparison that goes to its last analysis, by stage."""
    frontier = [run.train.steps for run in frontier_runs(job).values()]
    compare, steps, real, optimizers = job.compare, job.train.steps, _real_steps(job), 1 + len(job.compare.peers)
    plain, hybrid = tuning_runs(job) if compare.tune_baseline else (0, 0)
    tuned = optimizers * plain
    yield Stage(name="tuning", runs=tuned + hybrid, steps=tuned * steps + hybrid * real)
    yield Stage(name="frontiers", runs=optimizers * len(frontier), steps=optimizers * sum(frontier))
    seeds, variants = compare.interim_analyses[-1], 2 * len(compare.variants)
    alike = 1 + len({*REQUIRED, *compare.arms}) + len(compare.peers)  # the hybrid, and what takes as long
    yield Stage(
        name=f"{seeds} seeds",
        runs=seeds * (1 + alike + variants),
        steps=seeds * ((1 + variants) * steps + alike * real),
    )


def _real_steps(job: JobConfig) -> int:
    """Of a run that predicts; predicted steps are nearly free."""
    steps = job.train.steps
    always = job.hybrid.gate_kind == "always"
    return round(job.hybrid.real_steps(steps) if always else _TRIAL_SHARE * steps)
