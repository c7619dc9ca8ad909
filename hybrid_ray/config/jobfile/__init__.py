"""Job files: read YAML and return a checked `JobConfig`.

A wrong job raises one `ConfigError` with all problems. Each names the setting (``train.steps``), the value, the rule
and, for an unknown key, the key that was probably meant.
"""

from hybrid_ray.config.jobfile.read import dump_job, job_from_dict, job_from_text, named_modules, read_job
from hybrid_ray.config.jobfile.relations import job_problems
from hybrid_ray.config.jobfile.rungs import keep_share, rung_jobs
from hybrid_ray.config.jobfile.values import plain_values
from hybrid_ray.config.jobfile.variants import variant_jobs
from hybrid_ray.config.jobfile.yaml_core import parse_yaml

__all__ = [
    "dump_job",
    "job_from_dict",
    "job_from_text",
    "job_problems",
    "keep_share",
    "named_modules",
    "parse_yaml",
    "plain_values",
    "read_job",
    "rung_jobs",
    "variant_jobs",
]
