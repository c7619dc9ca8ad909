"""What the runs of one candidate say: rows, paired comparisons, the net speedup with its interval, a verdict.

The verdict rests on the net speedup, and the same said in loss (`net_speedup`); dearer real steps, or a placebo that
does as well, refuse a gain. The other numbers explain it and are not corrected for their number.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, Literal

from hybrid_ray.config import Split
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.paired import ArmRuns
from hybrid_ray.evaluation.statistics import MIN_BOOTSTRAP, MIN_SEEDS, bootstrap_interval, log_ratios, paired_interval
from hybrid_ray.run_result import RunResult

__all__ = [
    "INERT_SHARE",
    "Verdict",
    "comparisons",
    "frontier_of_seed",
    "mean_predicted_share",
    "net_speedup",
    "paired_ratio",
    "rows",
    "shown_above",
    "shown_below",
    "verdict",
]

INERT_SHARE = 0.05
"""A run that predicts less than this share of its steps is no test of predicting."""

Verdict = Literal["real gain", "no gain shown", "worse than stopping early", "inert"]

_REFERENCES: tuple[str, ...] = ("equal_steps", "baseline")

_BACKWARD = 2.0
"""FLOPs of a backward pass, in forward passes (PaLM's 6N = 2N + 4N)."""


def rows(results: Mapping[int, RunResult], split: Split) -> list[dict[str, Any]]:
    """One JSON-ready row a seed. Time is in plain steps; what a failed run lacks is None."""
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
    """The hybrid against each other arm, paired by seed: mean ratio, interval, p.

    ``loss_vs_<arm>`` below 1 is good for the hybrid. ``speedup`` (calibrated time), ``step_speedup`` and
    ``flop_speedup`` are the baseline's cost over the hybrid's. ``real_step_cost`` above 1 says that the method slows
    its real steps too, which calibrated time alone would not show: raw seconds then count. A pair whose control
    failed is left out and named in ``note``. A seed on which the hybrid itself failed is never left out, that would
    flatter it: then there is no interval at all.
    """
    hybrid = runs["hybrid"]
    found = {
        f"loss_vs_{arm}": paired_ratio(hybrid, others, lambda result: result.heldout[split].loss, "loss ratio", level)
        for arm, others in runs.items()
        if arm != "hybrid"
    }
    baselines = runs["baseline"]
    found["speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / result.time, "times", level)
    found["step_speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / result.real_steps, "times", level)
    found["flop_speedup"] = paired_ratio(hybrid, baselines, lambda result: 1 / _flops(result), "times", level)
    found["real_step_cost"] = paired_ratio(hybrid, baselines, lambda result: result.real_step_cost, "cost ratio", level)
    return found


def _flops(result: RunResult) -> float:
    """In forward passes of a token."""
    return (1 + _BACKWARD) * result.tokens["gradient"] + result.tokens["forward_only"]


def paired_ratio(
    hybrid: Mapping[int, RunResult],
    others: Mapping[int, RunResult],
    value: Callable[[RunResult], float],
    unit: str,
    level: float,
) -> dict[str, Any]:
    """The mean of value(hybrid) / value(other) over the seeds that both finished."""
    failed = [seed for seed, result in hybrid.items() if result.status != "finished"]
    if failed:
        return _no_interval(0, unit, f"the hybrid did not finish on seeds {failed}")
    dropped = [seed for seed, result in others.items() if result.status != "finished"]
    seeds = [seed for seed in hybrid if seed in others and seed not in dropped]
    note = f"left out: the other arm did not finish on seeds {dropped}" if dropped else None
    logs = log_ratios([value(hybrid[seed]) for seed in seeds], [value(others[seed]) for seed in seeds])
    return _interval(logs, unit, note, level)


def _interval(logs: Sequence[float], unit: str, note: str | None, level: float) -> dict[str, Any]:
    if len(logs) < MIN_SEEDS:
        return _no_interval(len(logs), unit, note or f"an interval needs at least {MIN_SEEDS} seeds")
    found: dict[str, Any] = {**asdict(paired_interval(logs, level=level)), "unit": unit, "note": note}
    if len(logs) >= MIN_BOOTSTRAP:
        found["bootstrap"] = list(bootstrap_interval(logs, level=level))
    return found


def _no_interval(n: int, unit: str, note: str) -> dict[str, Any]:
    return {"mean": None, "low": None, "high": None, "n": n, "p": 1.0, "spread": None, "unit": unit, "note": note}


def frontier_of_seed(frontier: Frontier, split: Split, references: Sequence[RunResult]) -> Frontier | None:
    """The frontier as this seed would have it; None if no reference can tell.

    The frontier was fitted on another seed, and seeds differ by more than the effects looked for. So it is shifted (in
    log loss) through this seed's own real-steps-only run: the first of ``references`` that finished with a time on the
    range. With ``equal_steps`` first, a hybrid that equals it has a net speedup of 1.
    """
    for result in references:
        usual = frontier.loss_at(result.time) if result.status == "finished" else None
        if usual is not None:
            return frontier.shifted(math.log(result.heldout[split].loss / usual))
    return None


def net_speedup(runs: ArmRuns, frontier: Frontier, split: Split, *, level: float = 0.95) -> dict[str, Any]:
    """Mean and interval of the net speedup over seeds, and beside it (``advantage``, ``p``) the same in terms of loss.

    What bias is left: inverting a frontier that has kinks, or flattens, turns symmetric noise in loss into lopsided
    noise in time, and the kinks, noise themselves, are the same for every seed. In simulations with 1 % of loss noise
    that alone called 9 % of null comparisons decided. So a verdict needs the advantage as well: the loss that the
    seed's frontier reaches in the hybrid's own time, over the hybrid's loss. No curve is inverted there, its noise is
    symmetric under the null, and both say the same: above 1 is a real gain. Where ``equal_steps`` is off the range and
    the baseline takes its place, the slope between the two times is that of one seed, and its noise stays.

    Off the frontier's range only a bound is known. The bound then stands in for the value, and the end of the interval
    that it cannot vouch for is None: ``high`` after a loss below the range (the truth is better), ``low`` after one
    above it (the truth is worse), so that no claim can rest on a guess. Where the hybrid failed on a seed there
    is no interval at all; a seed with no usable reference is left out and named.
    """
    hybrid = runs["hybrid"]
    failed = [seed for seed, result in hybrid.items() if result.status != "finished"]
    if failed:
        nothing = _no_interval(0, "times", f"the hybrid did not finish on seeds {failed}")
        return {**nothing, "advantage": {**nothing, "unit": "loss ratio"}, "seeds": {}}
    frontiers = {
        seed: frontier_of_seed(frontier, split, [runs[arm][seed] for arm in _REFERENCES if arm in runs])
        for seed in hybrid
    }
    known = {seed: own for seed, own in frontiers.items() if own is not None}
    measured = {seed: (hybrid[seed].heldout[split].loss, hybrid[seed].time) for seed in known}
    net = {seed: own.net_speedup_bounds(*measured[seed]) for seed, own in known.items()}
    advantage = {seed: own.advantage_bounds(*measured[seed]) for seed, own in known.items()}
    unknown = [seed for seed, own in frontiers.items() if own is None]
    found = _censored(net, unknown, "times", level)
    found["advantage"] = _censored(advantage, unknown, "loss ratio", level)
    found["p"] = found["advantage"]["p"]
    found["seeds"] = {seed: [low or None, high if high < math.inf else None] for seed, (low, high) in net.items()}
    return found


def _censored(
    bounds: Mapping[int, tuple[float, float]], unknown: Sequence[int], unit: str, level: float
) -> dict[str, Any]:
    """An interval over seeds of which some are known to one side only (low 0 or high infinite)."""
    better = [seed for seed, (_, high) in bounds.items() if high == math.inf]
    worse = [seed for seed, (low, _) in bounds.items() if low == 0]
    parts = [
        (better, "off the frontier's range (a lower bound stands in)"),
        (worse, "off the frontier's range (an upper bound stands in)"),
        (unknown, "without a real-steps-only run on the frontier's range (left out)"),
    ]
    note = "; ".join(f"seeds {list(seeds)} {what}" for seeds, what in parts if seeds) or None
    logs = [math.log(high if low == 0 else low) for low, high in bounds.values()]
    found = _interval(logs, unit, note, level)
    if better:
        found["high"] = None
    if worse:
        found["low"] = None
    return found


def mean_predicted_share(results: Iterable[RunResult]) -> float:
    """Over the runs that finished; not a number where none did, since such a run says nothing about predicting."""
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
    """What may be said of a candidate, and where a gain is refused, why.

    Args:
        net: as `net_speedup` gives it. Its interval and its advantage's must both lie on one side of 1.
        compared: as `comparisons` gives them: what can void a gain (`_refusal`).
        predicted_share: mean share of predicted steps (`mean_predicted_share`).
        p_corrected: the p of ``net``, corrected for the number of candidates (`holm`); asked of a gain only.
        alpha: two-sided level that the intervals belong to.
    """
    if predicted_share < INERT_SHARE:
        return "inert", None
    if shown_above(net) and p_corrected <= alpha:
        refusal = _refusal(float(net["low"]), compared)
        return ("real gain", None) if refusal is None else ("no gain shown", refusal)
    return ("worse than stopping early" if shown_below(net) else "no gain shown"), None


def shown_above(net: Mapping[str, Any]) -> bool:
    """Whether a net speedup lies above 1, and its advantage as well (`net_speedup` says why both)."""
    return all(found["low"] is not None and found["low"] > 1 for found in (net, net["advantage"]))


def shown_below(net: Mapping[str, Any]) -> bool:
    """The same below 1."""
    return all(found["high"] is not None and found["high"] < 1 for found in (net, net["advantage"]))


def _refusal(low: float, compared: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a net gain of at least ``low`` is not one of predicting.

    Time is told in the run's own real steps. If these are dearer than plain ones the gain must be larger than that: by
    the mean as measured, however noisy, and by the whole interval once it shows that they are. And a placebo must do
    worse: what skipping the same steps and doing nothing gains as well does not come from predicting.
    """
    cost, placebo = compared["real_step_cost"], compared.get("loss_vs_placebo", {"high": None})
    if cost["mean"] is not None:
        dearer = cost["high"] if cost["low"] > 1 else cost["mean"]
        if low <= dearer:
            return f"its real steps cost {cost['mean']:.2f} times a plain step's, and the gain is not surely more"
    if placebo["high"] is None or placebo["high"] >= 1:
        return "a placebo that skips the same steps and does nothing is not shown to do worse"
    return None
