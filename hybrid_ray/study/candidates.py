"""Choose the trials of a search that are confirmed."""

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
    """The best finished trials that predict (`ranked`), as many as the job confirms, and those confirmed ``before``.

    Of trials with identical runs only the first is taken. Two thresholds give the same run if the confidence crosses
    them at the same steps.

    An extended study may have other best trials. Those confirmed earlier are included so that the correction for
    multiple tests (`holm`) covers all trials that were ever confirmed.
    """
    best = _different(ranked(rows, job.objective.mode))[: job.confirm.best]
    best += [row for row in rows if row["number"] in before and row not in best]
    return [
        Candidate(trial=row["number"], hybrid=settings(job, params), params=params)
        for row in best
        for params in [params_of(row)]
    ]


def _different(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows without duplicates: the same loss, to the last bit, after the same number of real steps."""
    first: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault((row["loss"], row["real_steps"]), row)
    return list(first.values())


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a trial's row."""
    return {name.removeprefix("params_"): value for name, value in row.items() if name.startswith("params_")}
