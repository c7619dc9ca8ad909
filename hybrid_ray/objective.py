"""Computes speedup, degradation and score of a trial from its measurements and the baseline's. Pure functions.

Times are in *plain steps*: training seconds divided by the seconds of a plain step in the same run (docs/method.md,
section 4), so that runs on different or busy machines can be compared.

Every function returns a finite number for any input, because one NaN would break a scheduler. A loss or time that is
not finite counts as the worst possible.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.run_result import RunResult, was_trained

__all__ = ["LARGEST", "Baseline", "degradation", "mismatches", "pareto_front", "ranked", "score", "speedup"]

LARGEST = 1e9
"""Bound of every result: far beyond any meaningful value, far below overflow."""

_SMALLEST = 1.0 / LARGEST


def _bounded(value: float) -> float:
    return max(-LARGEST, min(LARGEST, value))


def speedup(baseline_time: float, time: float) -> float:
    """Baseline time / run time at the same number of nominal steps, in plain steps; above 1 is faster.

    A time of 0 counts as 1 / `LARGEST`; a time that is not finite gives 0.
    """
    if not (math.isfinite(baseline_time) and math.isfinite(time)):
        return 0.0
    return _bounded(max(0.0, baseline_time) / max(_SMALLEST, time))


def degradation(loss: float, baseline_loss: float) -> float:
    """Relative rise of the held-out loss over the baseline's; lower is better, below 0 is an improvement.

    A loss that is not finite (a diverged run) gives `LARGEST`.
    """
    if not (math.isfinite(loss) and math.isfinite(baseline_loss)):
        return LARGEST
    return _bounded((loss - baseline_loss) / max(_SMALLEST, abs(baseline_loss)))


def score(speedup: float, degradation: float, config: ObjectiveConfig) -> float:
    """Speedup minus a penalty for degradation beyond the tolerance (docs/method.md, section 4); higher is better.

    The score alone rewards stopping early, so always show ``net_speedup`` next to it.
    """
    if math.isnan(speedup) or math.isnan(degradation):
        return -LARGEST
    penalty = config.penalty_weight * max(0.0, _bounded(degradation) - config.tolerance)
    return _bounded(_bounded(speedup) - penalty)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (speedup, degradation) pair is on the Pareto front: no other is as good in both and better in one.

    Equal pairs are on the front together. A pair with a NaN is never on it.
    """
    return [
        not any(math.isnan(value) for value in mine)
        and not any(other[0] >= mine[0] and other[1] <= mine[1] and other != mine for other in points)
        for mine in points
    ]


def ranked(rows: Iterable[Mapping[str, Any]], mode: str) -> list[Mapping[str, Any]]:
    """The rows of the finished trials that predict, highest ``objective`` first. Of equal trials, only the trained one.

    In mode ``pareto`` trials on the front come first, and the score orders them. Trials that barely predict (inert)
    still count in the front; a trial they dominate gained nothing from predicting.
    """
    ended = (row for row in rows if row["state"] == "COMPLETE" and row["diverged"] != 1 and was_trained(row))
    done = [row for row in ended if _worth(row) > -math.inf]
    points = [(row["speedup"], row["degradation"]) for row in done]
    first = pareto_front(points) if mode == "pareto" else [False] * len(done)
    order = sorted(zip(first, done, strict=True), key=lambda pair: (pair[0], _worth(pair[1])), reverse=True)
    return [row for _, row in order if row["inert"] != 1]


def _worth(row: Mapping[str, Any]) -> float:
    """The value a trial is ranked by; minus infinity if it has none."""
    known = (row[name] for name in ("objective", "score") if row[name] is not None and not math.isnan(row[name]))
    return next(known, -math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The baseline's curve, with which trials are compared at equal nominal steps, even before they finish.

    ``steps``, ``losses`` (val split, in the task's loss unit) and ``times`` (plain steps) are its evaluation points.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    times: tuple[float, ...]
    fingerprint: Mapping[str, Any]

    @classmethod
    def from_result(cls, result: RunResult) -> "Baseline":
        """The baseline of a finished run.

        Raises:
            ValueError: the run did not finish, or its curve has a loss that is not finite and above 0.
        """
        if result.status != "finished":
            reason = result.error or "run it again"
            raise ValueError(f"the baseline run is {result.status!r} but must be 'finished': {reason}")
        curve = sorted(result.curve, key=lambda evaluation: evaluation.step)
        if not curve or not all(math.isfinite(point.loss) and point.loss > 0 for point in curve):
            raise ValueError("the baseline run needs at least one evaluation, each with a finite loss above 0")
        return cls(
            steps=tuple(point.step for point in curve),
            losses=tuple(point.loss for point in curve),
            times=tuple(point.time for point in curve),
            fingerprint=result.fingerprint,
        )

    @property
    def loss(self) -> float:
        """Held-out loss at the end of the baseline."""
        return self.losses[-1]

    @property
    def time(self) -> float:
        """Training time of the whole baseline, in plain steps."""
        return self.times[-1]

    def loss_at(self, step: int) -> float:
        """Held-out loss at a nominal step, interpolated linearly in log-log between evaluations.

        Outside the curve the nearest value is used: extrapolating two early points would predict far too low a loss.
        """
        right = bisect_left(self.steps, step)
        if right == 0 or right == len(self.steps):
            return self.losses[min(right, len(self.steps) - 1)]
        return _power_law(step, self.steps[right - 1 : right + 1], self.losses[right - 1 : right + 1])

    def time_at(self, step: int) -> float:
        """Training time of the baseline at a nominal step, in plain steps: interpolated linearly, 0 at step 0."""
        steps, times = (0, *self.steps), (0.0, *self.times)
        right = min(max(1, bisect_left(steps, step)), len(steps) - 1)
        share = (step - steps[right - 1]) / (steps[right] - steps[right - 1])
        return times[right - 1] + share * (times[right] - times[right - 1])

    def mismatches(self, fingerprint: Mapping[str, Any]) -> list[str]:
        """Why a run with this fingerprint cannot be compared with the baseline, one phrase each; empty if it can."""
        return mismatches(self.fingerprint, fingerprint)


def mismatches(baseline: Mapping[str, Any], run: Mapping[str, Any], *, but: Collection[str] = ()) -> list[str]:
    """Why runs with these two fingerprints cannot be compared, one phrase each; empty if they can.

    Args:
        but: entries in which they may differ.
    """
    different = [name for name in sorted({*baseline, *run} - {*but}) if baseline.get(name) != run.get(name)]
    return [_difference(name, baseline.get(name), run.get(name)) for name in different]


def _difference(name: str, baseline: Any, run: Any) -> str:
    said = f"{name}: the baseline ran with {baseline!r} but this run with {run!r}"
    return f"{said}; {_mend(baseline, run)}" if name == "setting" and baseline and run else said


def _mend(baseline: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The settings that make two runs comparable after one of them fell back at its start (training/start.py)."""
    settings = []
    if baseline["micro_batch_size"] != run["micro_batch_size"]:
        settings.append(f"train.micro_batch_size to {min(baseline['micro_batch_size'], run['micro_batch_size'])}")
    if baseline["compiled"] != run["compiled"]:
        settings.append("train.compile to false")
    if not settings:
        return "one of them was resumed in another setting than it began in: train it again"
    return (
        "one of them fell back to other settings at its start, so their times are not comparable: "
        f"set {' and '.join(settings)} in the job, for all its runs"
    )


def _power_law(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    share = math.log(x / xs[0]) / math.log(xs[1] / xs[0])
    return ys[0] * math.exp(share * math.log(ys[1] / ys[0]))
