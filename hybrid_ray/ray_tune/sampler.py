"""Which settings are asked for next: Optuna's sampler, as a job names it."""

import warnings
from typing import TYPE_CHECKING

from hybrid_ray.config import JobConfig

if TYPE_CHECKING:
    import optuna

__all__ = ["build_sampler"]


def build_sampler(job: JobConfig, *, seed: int) -> "optuna.samplers.BaseSampler":
    """TPE that models the knobs together and counts trials still running as bad, so that neighbours don't ask the
    same; or no model at all (``random``).
    """
    import optuna

    search = job.search
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True, seed=seed
        )
