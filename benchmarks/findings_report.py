"""Print the results of ``benchmarks/findings.py`` as the Markdown tables of docs/findings.md.

    python benchmarks/findings_report.py RESULTS.jsonl

For every width and length: each arm at its tuned rate, paired by seed with AdamW and with the best peer (the optimizer
without predictions that has the lowest mean loss). Losses are on the ``test`` split; rates were chosen on ``val``.

The frontier converts a loss to steps: a curve through the losses of AdamW (or of the peer) at several lengths and the
rate tuned for this one, with a level for each seed (evaluation/loss_curve.py). Outside the trained lengths only a bound
is known. The cost of a real step is the arm's training time divided by the time of its own data, forward and backward:
a busy machine slows both. It is given relative to AdamW's, and a net speedup is divided by it.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from findings_arms import SEEDS, TUNING_SEEDS
from scipy.stats import t as student

from hybrid_ray.evaluation.loss_curve import LossCurve
from hybrid_ray.evaluation.summary import over_curve

Row = Mapping[str, Any]
PEERS = ("adamw", "ademamix", "muon", "muon_slow_each_step", "schedule_free")
SPLIT = "test"


def by_arm(rows: Sequence[Row]) -> dict[tuple[int, int, int], dict[str, dict[int, Row]]]:
    """(width, batch size, steps) -> arm -> seed -> run, at the rate with the most seeds; else the best in tuning."""
    found: dict[tuple[int, int, int], dict[str, dict[float, dict[int, Row]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        spec = row["spec"]
        if spec["seed"] not in TUNING_SEEDS and row["status"] == "finished":
            runs = found[spec["width"], spec["batch"], spec["steps"]][spec["arm"]]
            runs.setdefault(spec["rate"], {})[spec["seed"]] = row
    tuned = tuning_losses(rows)

    def chosen(place: tuple[int, int, int], arm: str, rates: Mapping[float, dict[int, Row]]) -> dict[int, Row]:
        return rates[
            min(rates, key=lambda rate: (-len(rates[rate]), fmean(tuned.get((*place, arm, rate), [math.inf]))))
        ]

    return {place: {arm: chosen(place, arm, rates) for arm, rates in arms.items()} for place, arms in found.items()}


def tuning_losses(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[float]]:
    """(width, batch size, steps, arm, rate) -> val losses of the tuning seeds."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        spec = row["spec"]
        if spec["seed"] in TUNING_SEEDS:
            loss = row["val"] if row["status"] == "finished" else math.inf
            found[spec["width"], spec["batch"], spec["steps"], spec["arm"], spec["rate"]].append(loss)
    return found


def rate_of(runs: Mapping[int, Row]) -> float | None:
    """The learning rate of an arm's runs."""
    return next((row["spec"]["rate"] for row in runs.values()), None)


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of the 95 % t-interval."""
    if len(values) < 2:
        return f"{fmean(values):+.4f} (1 seed)"
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):+.4f} +- {half:.4f}"


def step_cost(runs: Mapping[int, Row]) -> float:
    """Training seconds / seconds of data, forward and backward; mean over runs."""
    return fmean(
        row["train_seconds"] / sum(row["part_seconds"][part] for part in ("data", "forward", "backward"))
        for row in runs.values()
    )


def section(place: tuple[int, int, int], arms: Mapping[str, Mapping[int, Row]], all_arms: Any) -> Iterator[str]:
    width, batch, steps = place
    plain = arms.get("adamw", {})
    peers = [arm for arm in PEERS if arm in arms]
    best_peer = min(peers, key=lambda arm: fmean(row[SPLIT] for row in arms[arm].values())) if peers else None
    frontiers = {
        peer: {
            seed: {
                length: others[peer][seed][SPLIT]
                for (*others_place, length), others in all_arms.items()
                if others_place == [width, batch] and rate_of(others.get(peer, {})) == rate_of(arms[peer])
                if seed in others[peer]
            }
            for seed in SEEDS
        }
        for peer in peers
    }
    yield f"\n### Width {width}, {steps} real steps" + (f", batch size {batch}\n" if batch != 16 else "\n")
    columns = "arm, rate, seeds, loss (min to max), minus AdamW paired, better, cost of a step, net speedup over AdamW"
    yield f"| {columns.replace(', ', ' | ')} | net speedup over {best_peer} |\n|---|---|---|---|---|---|---|---|---|"
    for arm, runs in sorted(arms.items(), key=lambda item: fmean(row[SPLIT] for row in item[1].values())):
        losses = [row[SPLIT] for row in runs.values()]
        both = sorted(set(runs) & set(plain))
        differences = [runs[seed][SPLIT] - plain[seed][SPLIT] for seed in both]
        cost = step_cost(runs) / step_cost(plain) if plain else math.nan
        nets = [
            net_speedup(runs, frontiers[peer], step_cost(runs) / step_cost(arms[peer])) if peer else "-"
            for peer in ("adamw" if plain else None, best_peer)
        ]
        yield (
            f"| {arm} | {rate_of(runs):g} | {len(runs)} | "
            f"{fmean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f}) | "
            f"{interval(differences) if differences else '-'} | {sum(d < 0 for d in differences)} of {len(both)} | "
            f"{cost:.3f} | {nets[0]} | {nets[1]} |"
        )


def net_speedup(runs: Mapping[int, Row], plain: Mapping[int, Mapping[int, float]], cost: float) -> str:
    """Geometric mean over the seeds with its 95 % interval, relative to the plain losses by seed and length."""
    points = {seed: [(float(length), loss) for length, loss in plain.get(seed, {}).items()] for seed in runs}
    if len({length for losses in points.values() for length, _ in losses}) < 2:
        return "-"
    measured = {seed: (row[SPLIT], row["real_steps"] * cost) for seed, row in runs.items()}
    found = over_curve(measured, LossCurve.fit(points))
    if found["mean"] is None:
        return "-"
    low, high = (f"{found[end]:.2f}" if found[end] is not None else "unknown" for end in ("low", "high"))
    return f"{found['mean']:.2f} ({low} to {high})" + ("; " + found["note"] if found["note"] else "")


def tuning(rows: Sequence[Row]) -> Iterator[str]:
    yield "\n### Tuning (val split, mean over the tuning seeds)\n"
    yield "| width | batch | steps | arm | rate | loss | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for (width, batch, steps, arm, rate), losses in sorted(tuning_losses(rows).items()):
        yield f"| {width} | {batch} | {steps} | {arm} | {rate:g} | {fmean(losses):.4f} | {len(losses)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    arms = by_arm(rows)
    for place, there in sorted(arms.items()):
        print("\n".join(section(place, there, arms)))
    print("\n".join(tuning(rows)))


if __name__ == "__main__":
    main()
