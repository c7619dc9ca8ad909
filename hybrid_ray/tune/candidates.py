"""Which trials of a search are confirmed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluate.paired import Candidate
from hybrid_ray.objective import ranked
from hybrid_ray.tune.space import settings

__all__ = ["best_candidates", "params_of"]


def best_candidates(
    rows: Sequence[Mapping[str, Any]], job: JobConfig, *, before: Collection[int] = ()
) -> list[Candidate]:
    """The best finished trials that do predict (`ranked`), as many as the job confirms, and those confirmed ``before``.

    A study that is extended has other best trials then. What was confirmed first still counts: asking again and again
    until something is called a gain must cost what asking all at once does (`holm`).
    """
    best = ranked(rows, job.objective.mode)[: job.confirm.best]
    best += [row for row in rows if row["number"] in before and row not in best]
    return [
        Candidate(trial=row["number"], hybrid=settings(job, params), params=params)
        for row in best
        for params in [params_of(row)]
    ]


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a trial's row."""
    return {name.removeprefix("params_"): value for name, value in row.items() if name.startswith("params_")}
