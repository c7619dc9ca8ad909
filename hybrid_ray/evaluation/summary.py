"""Summarise the runs of one candidate: rows, paired comparisons, the net speedup with its interval, a verdict.

The verdict rests on the net speedup and on the loss ratio at equal time (`net_speedup`). A gain is refused if the
method's real steps are too expensive, or if the placebo is not shown to do worse. The other numbers are explanations,
not corrected for multiple testing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import NormalDist, fmean
from typing import Any, Literal

from hybrid_ray.config import Split
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.loss_curve import LossCurve
from hybrid_ray.evaluation.paired import ArmRuns
from hybrid_ray.evaluation.statistics import MIN_BOOTSTRAP, MIN_SEEDS, bootstrap_interval, log_ratios, paired_interval
from hybrid_ray.run_result import RunResult

__all__ = [
    "INERT_SHARE",
    "Verdict",
    "comparisons",
    "mean_predicted_share",
    "net_speedup",
    "over_curve",
    "paired_ratio",
    "rows",
    "shown_above",
    "shown_below",
    "verdict",
]

INERT_SHARE = 0.05
"""A run that predicts less than this share of its steps is inert: it does not test predicting."""

Verdict = Literal["real gain", "no gain shown", "worse than stopping early", "inert"]

_PLAIN: tuple[str, ...] = ("equal_steps", "equal_time", "baseline")
"""Arms without predictions, which place a seed's frontier."""

_BACKWARD = 2.0
"""FLOPs of a backward pass / those of a forward pass (PaLM's 6N = 2N + 4N)."""


def rows(results: Mapping[int, RunResult], split: Split) -> list[dict[str, Any]]:
    """One JSON-ready row per seed. Time is in plain steps; values that a failed run does not have are None."""
    return [_row(seed, result, split) for seed, result in sorted(results.items())]


def _row(seed: int, result: RunResult, split: Split) -> dict[str, Any]:
    done = result.status == "finished"
    return {
        "seed": seed,
        "loss": result.heldout[split].loss if done else None,
        "time": result.time if done else None,
        "train_seconds": result.train_seconds,
        "real_steps": result.real_steps,
        "predicted_share": result.predicted_share,
        "accuracy": result.heldout[split].accuracy if done else None,
        "status": result.status,
        "error": result.error,
    }


def comparisons(runs: ArmRuns, split: Split, *, level: float = 0.95) -> dict[str, dict[str, Any]]:
    """The hybrid relative to every other arm, paired by seed: mean ratio, interval, p.

    ``loss_vs_<arm>`` is hybrid / arm: below 1 is good. ``speedup`` (time in plain steps), ``step_speedup`` (real steps)
    and ``flop_speedup`` are baseline / hybrid: above 1 is good. A seed on which the other arm failed is left out and
    named in ``note``. If the hybrid failed on any seed there is no interval at all, because leaving that seed out would
    favour the hybrid.

    Two show whether the method slows its own real steps, which time in plain steps hides (`verdict` accounts for it):
    ``real_step_cost``, the hybrid's own measure beside the same steps without prediction before it starts, and
    ``plain_step_seconds``, the seconds of its plain steps / those of `equal_steps` over both whole runs. The second
    varies with the machine's load, and sees what the first can't: work in a thread or in a hook of the optimizer, and
    work that begins later.
    """
    hybrid = runs["hybrid"]
    found = {
        f"loss_vs_{arm}": paired_ratio(hybrid, others, lambda result: result.heldout[split].loss, level)
        for arm, others in runs.items()
        if arm != "hybrid"
    }
    baselines = runs["baseline"]
    found["speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / result.time, level)
    found["step_speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / result.real_steps, level)
    found["flop_speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / _flops(result), level)
    found["plain_step_seconds"] = paired_ratio(hybrid, runs["equal_steps"], lambda result: result.step_seconds, level)
    costs = [result.real_step_cost for result in hybrid.values() if result.status == "finished"]
    found["real_step_cost"] = _interval([math.log(cost) for cost in costs], None, level)
    return found


def _flops(result: RunResult) -> float:
    """FLOPs of a run, in forward passes of one token."""
    return (1 + _BACKWARD) * result.tokens["gradient"] + result.tokens["forward_only"]


def paired_ratio(
    hybrid: Mapping[int, RunResult],
    others: Mapping[int, RunResult],
    value: Callable[[RunResult], float],
    level: float,
) -> dict[str, Any]:
    """Geometric mean of value(hybrid) / value(other) over the seeds on which both finished, with its interval."""
    failed = [seed for seed, result in hybrid.items() if result.status != "finished"]
    if failed:
        return _no_interval(0, f"the hybrid did not finish on seeds {failed}")
    dropped = [seed for seed, result in others.items() if result.status != "finished"]
    seeds = [seed for seed in hybrid if seed in others and seed not in dropped]
    note = f"left out: the other arm did not finish on seeds {dropped}" if dropped else None
    logs = log_ratios([value(hybrid[seed]) for seed in seeds], [value(others[seed]) for seed in seeds])
    return _interval(logs, note, level)


def _interval(logs: Sequence[float], note: str | None, level: float) -> dict[str, Any]:
    if len(logs) < MIN_SEEDS:
        return _no_interval(len(logs), note or f"an interval needs at least {MIN_SEEDS} seeds")
    found: dict[str, Any] = {**asdict(paired_interval(logs, level=level)), "note": note}
    if len(logs) >= MIN_BOOTSTRAP:
        found["bootstrap"] = list(bootstrap_interval(logs, level=level))
    return found


def _no_interval(n: int, note: str) -> dict[str, Any]:
    return {"mean": None, "low": None, "high": None, "n": n, "p": 1.0, "spread": None, "note": note}


def net_speedup(runs: ArmRuns, frontier: Frontier, split: Split, *, level: float = 0.95) -> dict[str, Any]:
    """Mean and interval of the net speedup over seeds; ``advantage`` and ``p`` are of the loss ratio at equal time.

    Why two measures. The net speedup inverts the frontier. If the frontier has kinks or flattens, inverting turns
    symmetric noise in loss into skewed noise in time, and the kinks, which are noise themselves, are the same for every
    seed. In simulations with 1 % of loss noise and no effect, this alone made 9 % of comparisons significant. So a
    verdict also needs the advantage: the loss that the seed's frontier reaches in the hybrid's time / the hybrid's
    loss. It inverts no curve, and its noise is symmetric under the null hypothesis. For both, above 1 is a real gain.

    A seed's frontier is a curve through its own plain runs; its shape is fitted to all plain runs (`LossCurve`). The
    error of its slope widens the interval of the net speedup.

    Outside the frontier's range only a bound is known. The bound replaces the value, and the end of the interval that
    it cannot support is None: ``high`` if the loss is below the range (the true value is better), ``low`` if it is
    above (the true value is worse). If the hybrid failed on a seed, or if two of its seeds are the same run, there is
    no interval at all. A seed without a usable reference is left out and named.
    """
    hybrid = runs["hybrid"]
    nothing = None
    if failed := [seed for seed, result in hybrid.items() if result.status != "finished"]:
        nothing = _no_interval(0, f"the hybrid did not finish on seeds {failed}")
    elif same := _same(hybrid, split):
        nothing = _no_interval(0, f"seeds {same} end at exactly the same loss: nothing in the task depends on the seed")
    if nothing:
        return {**nothing, "advantage": dict(nothing), "seeds": {}, "curve": None}
    law = LossCurve.fit(
        {seed: _plain_points(runs, seed, split) for seed in hybrid},
        near={seed: result.time for seed, result in hybrid.items()},
        other=tuple(zip(frontier.times, frontier.losses, strict=True)),
    )
    measured = {seed: (result.heldout[split].loss, result.time) for seed, result in hybrid.items()}
    return over_curve(measured, law, level=level)


def _same(results: Mapping[int, RunResult], split: Split) -> list[int]:
    """Seeds that end at exactly the loss of another one: they are no independent runs."""
    losses = [result.heldout[split].loss for result in results.values()]
    return [seed for seed, result in results.items() if losses.count(result.heldout[split].loss) > 1]


def over_curve(measured: Mapping[int, tuple[float, float]], law: LossCurve, *, level: float = 0.95) -> dict[str, Any]:
    """What `net_speedup` returns, for runs given as (final loss, time in plain steps) by seed."""
    frontiers = {seed: law.frontier(seed) for seed in measured}
    known = {seed: own for seed, own in frontiers.items() if own is not None}
    net = {seed: own.net_speedup_bounds(*measured[seed]) for seed, own in known.items()}
    advantage = {seed: own.advantage_bounds(*measured[seed]) for seed, own in known.items()}
    unknown = [seed for seed, own in frontiers.items() if own is None]
    found = _widened(_censored(net, unknown, level), law.relative_error, level)
    found["advantage"] = _censored(advantage, unknown, level)
    found["p"] = found["advantage"]["p"]
    found["curve"] = law.as_dict()
    found["seeds"] = {seed: [low or None, high if high < math.inf else None] for seed, (low, high) in net.items()}
    return found


def _plain_points(runs: ArmRuns, seed: int, split: Split) -> list[tuple[float, float]]:
    """(Time, loss) of the seed's plain runs."""
    plain = [runs[arm][seed] for arm in _PLAIN if seed in runs.get(arm, {})]
    return [(result.time, result.heldout[split].loss) for result in plain if result.status == "finished"]


def _widened(interval: dict[str, Any], slope_error: float, level: float) -> dict[str, Any]:
    """The interval with the relative error of the frontier's slope, by which every log net speedup is off alike."""
    if interval["mean"] is None:
        return interval
    mean = math.log(interval["mean"])
    common = NormalDist().inv_cdf((1 + level) / 2) * mean * slope_error
    found = dict(interval)
    for end in ("low", "high"):
        if interval[end] is not None:
            distance = math.log(interval[end]) - mean
            found[end] = math.exp(mean + math.copysign(math.hypot(distance, common), distance))
    return found


def _censored(bounds: Mapping[int, tuple[float, float]], unknown: Sequence[int], level: float) -> dict[str, Any]:
    """An interval over seeds; for some of them only a bound is known (low is 0, or high is infinite)."""
    better = [seed for seed, (_, high) in bounds.items() if high == math.inf]
    worse = [seed for seed, (low, _) in bounds.items() if low == 0]
    parts = [
        (better, "outside the frontier's range (a lower bound is used)"),
        (worse, "outside the frontier's range (an upper bound is used)"),
        (unknown, "without a run of real steps only in the frontier's range (left out)"),
    ]
    note = "; ".join(f"seeds {list(seeds)} {what}" for seeds, what in parts if seeds) or None
    logs = [math.log(high if low == 0 else low) for low, high in bounds.values()]
    found = _interval(logs, note, level)
    if better:
        found["high"] = None
    if worse:
        found["low"] = None
    return found


def mean_predicted_share(results: Iterable[RunResult]) -> float:
    """Mean over the finished runs; NaN if none finished."""
    shares = [result.predicted_share for result in results if result.status == "finished"]
    return fmean(shares) if shares else math.nan


def verdict(
    net: Mapping[str, Any],
    compared: Mapping[str, Mapping[str, Any]],
    *,
    predicted_share: float,
    p_corrected: float,
    alpha: float,
) -> tuple[Verdict, str | None]:
    """The verdict on a candidate, and the reason if a gain is refused (else None).

    Args:
        net: from `net_speedup`. Its interval and that of its advantage must both lie on the same side of 1.
        compared: from `comparisons`; they can refuse a gain (`_refusal`).
        predicted_share: mean share of predicted steps (`mean_predicted_share`).
        p_corrected: the p of ``net``, corrected for the number of candidates (`holm`); only a gain needs it.
        alpha: two-sided level of the intervals.
    """
    if predicted_share < INERT_SHARE:
        return "inert", None
    if shown_above(net) and p_corrected <= alpha:
        refusal = _refusal(float(net["low"]), compared)
        return ("real gain", None) if refusal is None else ("no gain shown", refusal)
    return ("worse than stopping early" if shown_below(net) else "no gain shown"), None


def shown_above(net: Mapping[str, Any]) -> bool:
    """Whether the intervals of the net speedup and of its advantage lie above 1 (`net_speedup` says why both)."""
    return all(found["low"] is not None and found["low"] > 1 for found in (net, net["advantage"]))


def shown_below(net: Mapping[str, Any]) -> bool:
    """Whether both intervals lie below 1."""
    return all(found["high"] is not None and found["high"] < 1 for found in (net, net["advantage"]))


def _refusal(low: float, compared: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a net speedup of at least ``low`` is not credited to predicting; None if it is.

    Time is measured in the run's own real steps. If these cost more than plain steps, the gain must exceed that
    overhead: its mean, or the upper end of its interval if the interval shows an overhead. If they are shown to take
    more seconds than those of the same training without prediction, the gain must exceed that too. And the placebo must
    do worse: a gain that comes from skipping the same steps without predicting is no gain of predicting.
    """
    cost, seconds = compared["real_step_cost"], compared["plain_step_seconds"]
    placebo = compared.get("loss_vs_placebo", {"high": None})
    if cost["mean"] is None:
        return "what its real steps cost is not known"
    overhead = cost["high"] if cost["low"] > 1 else cost["mean"]
    if low <= overhead:
        return (
            f"its real steps cost {cost['mean']:.2f} times as much as plain steps, and the measured gain may not "
            "exceed that overhead"
        )
    if seconds["low"] is not None and seconds["low"] > 1 and low <= seconds["high"]:
        return (
            f"its plain steps took {seconds['mean']:.2f} times as many seconds as those of equal_steps, and the "
            "measured gain may not exceed that: the method works within them, or the machine was busier"
        )
    if placebo["high"] is None or placebo["high"] >= 1:
        return "a placebo, which skips the same steps and does nothing in them, is not shown to do worse"
    return None
