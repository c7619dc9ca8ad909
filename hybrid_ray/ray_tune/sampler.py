"""Build the sampler that proposes settings: TPE, random, or another Optuna sampler that the job names."""

import warnings
from typing import TYPE_CHECKING, cast

from hybrid_ray.config import JobConfig
from hybrid_ray.config.named import make_named

if TYPE_CHECKING:
    import optuna

__all__ = ["build_sampler"]


def build_sampler(job: JobConfig, *, seed: int) -> "optuna.samplers.BaseSampler":
    """The job's sampler: TPE, ``random``, or the class that the job names, which gets ``seed`` if it accepts one.

    Our TPE models the knobs jointly. It treats running trials as bad ones, so that parallel trials get different
    settings.

    Raises:
        ConfigError: the sampler that the job names can't be made.
    """
    import optuna

    search = job.search
    if "sampler" in search.named:
        return cast(
            optuna.samplers.BaseSampler,
            make_named(
                search.sampler,
                optuna.samplers.BaseSampler,
                place="search.sampler",
                usual={"seed": seed},
                folders=job.folders,
            ),
        )
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True, seed=seed
        )
