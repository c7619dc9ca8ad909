"""Which trials of a search are worth confirming."""

from collections.abc import Iterable, Mapping
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluate.paired import Candidate
from hybrid_ray.objective import ranked
from hybrid_ray.tune.space import settings

__all__ = ["best_candidates", "params_of"]


def best_candidates(rows: Iterable[Mapping[str, Any]], job: JobConfig) -> list[Candidate]:
    """The best finished trials that do predict (`ranked`), as many as the job confirms."""
    best = ranked(rows, job.objective.mode)[: job.confirm.best]
    return [
        Candidate(trial=row["number"], hybrid=settings(job, params), params=params)
        for row in best
        for params in [params_of(row)]
    ]


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a trial's row."""
    return {name.removeprefix("params_"): value for name, value in row.items() if name.startswith("params_")}
