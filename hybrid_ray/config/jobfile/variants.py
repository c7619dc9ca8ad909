"""The variants of a comparison: each is the job with some settings of its own."""

import re
from dataclasses import replace
from typing import Any

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.jobfile.relations import job_problems
from hybrid_ray.config.jobfile.values import check_values, plain_values, put
from hybrid_ray.errors import ConfigError

__all__ = ["check_variants", "variant_jobs"]

# What every configuration of a comparison shares, whatever its variants change.
_SHARED = ("train.steps", "train.device", "train.threads")


def variant_jobs(job: JobConfig) -> dict[str, JobConfig]:
    """The job as each of ``compare.variants`` has it, by name, checked as a job is.

    Raises:
        ConfigError: all that is wrong with all of them.
    """
    jobs, problems = check_variants(job)
    if problems:
        raise ConfigError(problems)
    return jobs


def check_variants(job: JobConfig) -> tuple[dict[str, JobConfig], list[str]]:
    """The variants, and what is wrong with them and is not the job's own fault."""
    jobs, problems, own = {}, [], set(job_problems(job))
    for name, settings in job.compare.variants.items():
        found: list[str] = []
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("baseline", "hybrid") or name.endswith("_plain"):
            found.append(f"the name {name!r} must match [a-z0-9_]+, be neither baseline nor hybrid, not end in _plain")
        values = plain_values(replace(job, compare=replace(job.compare, variants={})))
        for path, value in settings.items():
            wrong = _path_problem(path, value)
            if wrong is None:
                put(values, path.split("."), value)
            else:
                found.append(wrong)
        jobs[name], wrong_values = check_values(values)
        found += wrong_values
        found += [problem for problem in job_problems(jobs[name]) if problem not in own]
        problems += [f"compare.variants.{name}: {problem}" for problem in found]
    return jobs, problems


def _path_problem(path: str, value: Any) -> str | None:
    """What keeps a setting from being one of a variant."""
    depth = 2 if path.startswith("hybrid.predictor.") else 1
    if path.partition(".")[0] not in ("model", "train", "hybrid") or path.count(".") != depth:
        return f"{path} is not a setting of model, train or hybrid: seeds, data and statistics are the comparison's own"
    if path in _SHARED:
        return f"{path} is the same in all configurations that are compared: set it for the whole job"
    if path == "train.micro_batch_size" and value == "auto":
        return f"{path} is 'auto', which is resolved for the job as a whole: give the variant a number"
    return None
