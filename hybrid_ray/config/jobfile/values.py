"""A job from plain values, its types and bounds checked."""

import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.section import place_of, sentences

__all__ = ["check_values", "put"]


def check_values(values: Mapping[str, Any]) -> tuple[JobConfig, list[str]]:
    """The job that the values say, and what is wrong with them. Settings with a wrong value keep their default."""
    try:
        data: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        return JobConfig(), [f"the job must hold plain values (text, numbers, lists, mappings) but {error}"]
    job, wrong = TypeAdapter(JobConfig), list[str]()
    while True:  # not more than twice: what is wrong is left out
        try:
            return job.validate_json(json.dumps(data)), wrong
        except ValidationError as error:
            wrong += sentences(error, data, JobConfig)
            for place in {place_of(detail["loc"], data) for detail in error.errors(include_url=False)}:
                _leave_out(data, place)


def put(values: MutableMapping[str, Any], path: Sequence[str], value: Any) -> str | None:
    """Set the value of ``train.steps`` in a mapping of sections. Returns the key on the way that is no section."""
    for key in path[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, MutableMapping):
            return key
        values = child
    values[path[-1]] = value
    return None


def _leave_out(data: MutableMapping[str, Any], place: Sequence[str]) -> None:
    for key in place[:-1]:
        data = data[key]
    data.pop(place[-1], None)
