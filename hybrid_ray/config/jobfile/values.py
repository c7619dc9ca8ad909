"""Make a job from plain values; check types and bounds."""

import json
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.jobfile.relations import job_problems
from hybrid_ray.config.section import place_of, sentences

__all__ = ["changed_job", "check_values", "plain_values", "put"]

_NAMED = ("hybrid.predictor", "train.optimizer", "search.scheduler", "search.sampler")
"""Settings that are either a name or a mapping of a name and options."""


def check_values(values: Mapping[str, Any]) -> tuple[JobConfig, list[str]]:
    """The job and the problems of its values. A setting with a wrong value keeps its default."""
    try:
        data: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        return JobConfig(), [f"the job must hold plain values (text, numbers, lists, mappings) but {error}"]
    job = TypeAdapter(JobConfig)
    wrong: list[str] = []
    while True:  # at most twice: wrong values are left out the second time
        try:
            return job.validate_json(json.dumps(data)), wrong
        except ValidationError as error:
            wrong += sentences(error, data, JobConfig)
            for place in {place_of(detail["loc"], data) for detail in error.errors(include_url=False)}:
                _leave_out(data, place)


def changed_job(
    job: JobConfig, values: dict[str, Any], settings: Mapping[str, Any], refusal: Callable[[str, Any], str | None]
) -> tuple[JobConfig, list[str]]:
    """The job of ``values`` with these settings, by path, over it; and the problems that ``job`` itself does not have.

    ``refusal`` says why a setting can't be changed here; None if it can.
    """
    problems, own = [], set(job_problems(job))
    for path, value in settings.items():
        problem = refusal(path, value)
        if problem is None and (single := put(values, path.split("."), value)) is not None:
            problem = f"{path}: {single} is a single value, not a section"
        if problem is not None:
            problems.append(problem)
    changed, wrong_values = check_values(values)
    return changed, problems + wrong_values + [found for found in job_problems(changed) if found not in own]


def put(values: MutableMapping[str, Any], path: Sequence[str], value: Any) -> str | None:
    """Set the value at a path such as ``train.steps``. Returns the first key on the way that is no section, if any."""
    for depth, key in enumerate(path[:-1], 1):
        child = values.setdefault(key, {})
        if isinstance(child, str) and ".".join(path[:depth]) in _NAMED:
            child = values[key] = {"name": child}
        if not isinstance(child, MutableMapping):
            return key
        values = child
    values[path[-1]] = value
    return None


def plain_values(job: JobConfig) -> dict[str, Any]:
    """The job as plain values that `check_values` takes."""
    plain = asdict(job)
    predictor = job.hybrid.predictor
    plain["hybrid"]["predictor"] = {"name": predictor.name, **predictor.options}
    return plain


def _leave_out(data: MutableMapping[str, Any], place: Sequence[str]) -> None:
    for key in place[:-1]:
        data = data[key]
    data.pop(place[-1], None)
