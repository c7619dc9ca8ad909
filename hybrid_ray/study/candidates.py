"""Which trials of a search are confirmed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.paired import Candidate
from hybrid_ray.objective import ranked
from hybrid_ray.ray_tune.space import settings

__all__ = ["best_candidates", "params_of"]


def best_candidates(
    rows: Sequence[Mapping[str, Any]], job: JobConfig, *, before: Collection[int] = ()
) -> list[Candidate]:
    """The best finished trials that do predict (`ranked`), as many as the job confirms, and those confirmed ``before``.

    Of trials that trained the very same weights only the first is taken: where confidence crosses two thresholds at the
    same steps, two settings are one run, and confirming it twice says nothing more.

    A study that is extended has other best trials then. What was confirmed first still counts: asking again and again
    until something is called a gain must cost what asking all at once does (`holm`).
    """
    best = _different(ranked(rows, job.objective.mode))[: job.confirm.best]
    best += [row for row in rows if row["number"] in before and row not in best]
    return [
        Candidate(trial=row["number"], hybrid=settings(job, params), params=params)
        for row in best
        for params in [params_of(row)]
    ]


def _different(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each that ended at the same loss, to the last bit, after as many real steps."""
    first: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault((row["loss"], row["real_steps"]), row)
    return list(first.values())


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a trial's row."""
    return {name.removeprefix("params_"): value for name, value in row.items() if name.startswith("params_")}
