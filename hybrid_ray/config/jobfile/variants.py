"""The variants of a comparison: each is the job with some settings changed."""

import re
from dataclasses import replace
from typing import Any

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.jobfile.values import changed_job, plain_values
from hybrid_ray.errors import ConfigError

__all__ = ["check_variants", "variant_jobs"]

# Settings that are the same in every configuration of a comparison.
_SHARED = ("train.steps", "train.device", "train.threads")


def variant_jobs(job: JobConfig) -> dict[str, JobConfig]:
    """The job of each variant in ``compare.variants``, by name, checked like any job.

    Raises:
        ConfigError: lists every problem of every variant.
    """
    jobs, problems = check_variants(job)
    if problems:
        raise ConfigError(problems)
    return jobs


def check_variants(job: JobConfig) -> tuple[dict[str, JobConfig], list[str]]:
    """The variants, and the problems that the job itself does not have."""
    jobs, problems = {}, []
    alone = replace(job, compare=replace(job.compare, variants={}))
    for name, settings in job.compare.variants.items():
        found: list[str] = []
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("baseline", "hybrid") or name.endswith("_plain"):
            found.append(f"the name {name!r} must match [a-z0-9_]+, be neither baseline nor hybrid, not end in _plain")
        jobs[name], wrong = changed_job(job, plain_values(alone), settings, _path_problem)
        problems += [f"compare.variants.{name}: {problem}" for problem in [*found, *wrong]]
    return jobs, problems


def _path_problem(path: str, value: Any) -> str | None:
    """Why a variant can't change this setting; None if it can."""
    depth = 2 if path.startswith("hybrid.predictor.") else 1
    if path.partition(".")[0] not in ("model", "train", "hybrid") or path.count(".") != depth:
        return f"{path} is not a setting of model, train or hybrid: a variant can't change seeds, data or statistics"
    if path in _SHARED:
        return f"{path} is the same in all configurations that are compared: set it for the whole job"
    if path == "train.micro_batch_size" and value == "auto":
        return f"{path} is 'auto', which is chosen once for the whole job: give the variant a number"
    return None
