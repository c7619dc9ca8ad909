"""Which settings are asked for next: ours (TPE, random) or another of Optuna's samplers, as a job names it."""

import warnings
from typing import TYPE_CHECKING, cast

from hybrid_ray.config import JobConfig
from hybrid_ray.config.named import make_named

if TYPE_CHECKING:
    import optuna

__all__ = ["build_sampler"]


def build_sampler(job: JobConfig, *, seed: int) -> "optuna.samplers.BaseSampler":
    """TPE that models the knobs together and counts trials still running as bad, so that neighbours don't ask the
    same; no model at all (``random``); or what the job names, which gets ``seed`` if it takes one.

    Raises:
        ConfigError: what the job names can't be made.
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
