"""Test the sampler, scheduler and callbacks of a job before anything starts."""

import warnings
from typing import TYPE_CHECKING

from hybrid_ray.config import JobConfig
from hybrid_ray.config.named import make_named, one_sentence
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.sampler import build_sampler
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.space import SearchSpace

if TYPE_CHECKING:
    from ray import tune

__all__ = ["build_callbacks", "check_search"]

_ASKED = 12
"""Trials a sampler is tested with: Optuna's samplers draw up to 10 at random before they use their model."""


def build_callbacks(job: JobConfig) -> "list[tune.Callback]":
    """The Ray Tune callbacks that a job names. They run in the driver process.

    Raises:
        ConfigError: a callback can't be made.
    """
    if not job.search.callbacks:
        return []
    from ray import tune

    return [
        make_named(one, tune.Callback, place=f"search.callbacks.{index}", usual={}, folders=job.folders)
        for index, one in enumerate(job.search.callbacks)
    ]


def check_search(job: JobConfig, space: SearchSpace) -> None:
    """Make the user's sampler, scheduler and callbacks, and let the sampler draw some trials of a temporary study.

    Raises:
        ConfigError: lists everything that can't be made or can't be used in a search.
    """
    problems: list[str] = []
    for check in (_check_sampler, _check_scheduler, lambda job, space: build_callbacks(job)):
        try:
            check(job, space)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _check_sampler(job: JobConfig, space: SearchSpace) -> None:
    """Some samplers fail only when they draw: several objectives are not supported, or a package is missing."""
    if "sampler" not in job.search.named:
        return
    import optuna

    several = job.objective.mode == "pareto"
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(), one_sentence(f"search.sampler {job.search.named['sampler']}"):
            warnings.simplefilter("ignore")
            study = optuna.create_study(
                directions=["maximize", "minimize"] if several else ["maximize"],
                sampler=build_sampler(job, seed=job.search.seed),
            )
            for number in range(min(_ASKED, job.search.trials)):
                trial = study.ask()
                space.ask(trial, job)
                study.tell(trial, [float(number), 0.0] if several else float(number))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _check_scheduler(job: JobConfig, space: SearchSpace) -> None:
    if job.objective.mode == "net" and job.scheduler in ("asha", "median"):
        raise ConfigError(
            f"search.scheduler is {job.scheduler!r} but objective.mode is 'net': the net speedup half-way through a "
            "run does not predict the one at its end, so good trials would be stopped; leave the scheduler out, or set "
            "it to none"
        )
    if "scheduler" not in job.search.named:
        return
    from ray.tune import schedulers

    name, made = job.search.named["scheduler"], build_scheduler(job, space)
    changing = (schedulers.PopulationBasedTraining, schedulers.PopulationBasedTrainingReplay)
    if isinstance(made, (*changing, schedulers.ResourceChangingScheduler, schedulers.HyperBandForBOHB)):
        raise ConfigError(
            f"search.scheduler is {name!r}, which changes running trials or needs its own searcher: name "
            "one that only stops or pauses trials, such as ray.tune.schedulers:HyperBandScheduler"
        )
    if isinstance(made, schedulers.HyperBandScheduler) and not job.train.checkpoint_every:
        raise ConfigError(
            f"search.scheduler is {name!r}, which pauses trials, but train.checkpoint_every is 0, so a paused "
            f"trial would restart at step 0: set it, for example to {max(1, job.train.steps // 10)}"
        )
