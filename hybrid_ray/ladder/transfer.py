"""What one rung hands to the next: settings to try first, and narrower ranges around the best of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_ray.config import JobConfig, LadderConfig
from hybrid_ray.config.jobfile import keep_share
from hybrid_ray.objective import ranked
from hybrid_ray.study.candidates import params_of

__all__ = ["Carried", "carry"]

Ranges = Mapping[str, Mapping[str, Any]]
"""Of a search space, by setting: Optuna's distribution as plain values (`SearchSpace.ranges`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """Settings for the next rung, in its own steps, and ranges that contain them."""

    first: Mapping[str, Mapping[str, Any]]  # by name, in the order to try them
    origins: Mapping[str, int]  # by the same names: the trial on the rung below
    ranges: Mapping[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "first": {name: dict(values) for name, values in self.first.items()},
            "origins": dict(self.origins),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Carried":
        ranges = {name: (ends[0], ends[1]) for name, ends in data["ranges"].items()}
        return cls(first=data["first"], origins=data["origins"], ranges=ranges)


def carry(
    rows: Sequence[Mapping[str, Any]], *, below: JobConfig, above: JobConfig, ladder: LadderConfig, space: Ranges
) -> Carried:
    """Choose what is carried from one rung to the next. Nothing if no trial below finished and predicted.

    The best settings come first. They, widened by ``ladder.margin`` of the space's range, are the ranges on the next
    rung. The others come from inside these ranges, evenly spread over the rest of the ranking.

    Args:
        rows: the trials of the rung below.
        below: the job of that rung.
        above: the job of the next one.
        space: the whole search space of the next rung.
    """
    factor = above.train.steps / below.train.steps
    mapped: dict[int, dict[str, Any]] = {}
    for row in ranked(rows, below.objective.mode):
        params = {
            name: _into_space(keep_share(name, value, factor=factor, shares=ladder.shares_of_run), space.get(name))
            for name, value in params_of(row).items()
            if value is not None
        }
        if params.keys() == space.keys() and params not in mapped.values():
            mapped[row["number"]] = params
    order = list(mapped)
    best = order[: min(ladder.best, above.search.trials)]
    ranges = _ranges_around([mapped[number] for number in best], space, ladder.margin)
    inside = [number for number in order[len(best) :] if _is_inside(mapped[number], ranges)]
    others = _spread(inside, min(ladder.others, above.search.trials - len(best)))
    names = {number: f"{below.name} trial {number}" for number in [*best, *others]}
    return Carried(
        first={name: mapped[number] for number, name in names.items()},
        origins={name: number for number, name in names.items()},
        ranges=ranges,
    )


def _into_space(value: Any, allowed: Mapping[str, Any] | None) -> Any:
    """The nearest value that the space of the next rung allows."""
    if allowed is None or not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if "choices" in allowed:
        numbers = [choice for choice in allowed["choices"] if isinstance(choice, int | float)]
        return min(numbers, key=lambda choice: abs(choice - value), default=value)
    inside = min(allowed["high"], max(allowed["low"], value))
    return round(inside) if allowed["kind"] == "IntDistribution" else float(inside)


def _ranges_around(best: Sequence[Mapping[str, Any]], space: Ranges, margin: float) -> dict[str, tuple[float, float]]:
    """For each number: the span of these values, widened on both sides, inside the space."""
    found = {}
    for name, allowed in space.items():
        if "choices" in allowed or not best:
            continue
        scale, back = (math.log, math.exp) if allowed.get("log") else (float, float)
        values = [scale(params[name]) for params in best]
        extra = margin * (scale(allowed["high"]) - scale(allowed["low"]))
        low, high = back(min(values) - extra), back(max(values) + extra)
        if allowed["kind"] == "IntDistribution":  # outwards, but not because of a rounding error
            low, high = math.floor(low + 1e-9), math.ceil(high - 1e-9)
        found[name] = (max(allowed["low"], low), min(allowed["high"], high))
    return found


def _is_inside(params: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> bool:
    return all(low <= params[name] <= high for name, (low, high) in ranges.items())


def _spread(ranking: Sequence[int], count: int) -> list[int]:
    """``count`` trials evenly spread over a ranking, its last one included; all if there are not more."""
    if count >= len(ranking):
        return list(ranking)
    return [ranking[math.ceil((place + 1) * len(ranking) / count) - 1] for place in range(count)]
