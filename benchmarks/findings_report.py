"""Print the results of ``benchmarks/findings.py`` as the Markdown tables of docs/findings.md.

    python benchmarks/findings_report.py RESULTS.jsonl

For every width and length: each arm at its tuned rate, paired by seed with AdamW and with the best peer (the optimizer
without predictions that has the lowest mean loss). Losses are on the ``test`` split; rates were chosen on ``val``.

The frontier converts a loss to steps: the losses of AdamW (or of the peer) with the same seed at several lengths, with
straight lines between them on log-log axes. Outside the trained lengths there is no value. The cost of a real step is
the arm's training time divided by the time of its own data, forward and backward: a busy machine slows both. It is
given relative to AdamW's, and a net speedup is divided by it.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from findings import TUNING_SEEDS
from scipy.stats import t as student

Row = Mapping[str, Any]
PEERS = ("adamw", "ademamix", "muon", "muon_slow_each_step", "schedule_free")
SPLIT = "test"


def by_arm(rows: Sequence[Row]) -> dict[tuple[int, int], dict[str, dict[int, Row]]]:
    """(width, steps) -> arm -> seed -> run, at the rate with the most seeds, which is the tuned one."""
    found: dict[tuple[int, int], dict[str, dict[float, dict[int, Row]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        spec = row["spec"]
        if spec["seed"] not in TUNING_SEEDS and row["status"] == "finished":
            runs = found[spec["width"], spec["steps"]][spec["arm"]]
            runs.setdefault(spec["rate"], {})[spec["seed"]] = row
    return {place: {arm: max(rates.values(), key=len) for arm, rates in arms.items()} for place, arms in found.items()}


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


def equivalent_steps(loss: float, points: Mapping[int, float]) -> float | None:
    """Real steps at which the frontier has this loss; None outside its range."""
    lengths = sorted(points)
    for short, long in pairwise(lengths):
        if points[long] <= loss <= points[short]:
            share = math.log(points[short] / loss) / math.log(points[short] / points[long])
            return short * (long / short) ** share
    return None


def section(width: int, steps: int, arms: Mapping[str, Mapping[int, Row]], all_arms: Any) -> Iterator[str]:
    plain = arms.get("adamw", {})
    peers = [arm for arm in PEERS if arm in arms]
    best_peer = min(peers, key=lambda arm: fmean(row[SPLIT] for row in arms[arm].values())) if peers else None
    frontiers = {
        peer: {
            length: {seed: row[SPLIT] for seed, row in others[peer].items()}
            for (other, length), others in all_arms.items()
            if other == width and peer in others
        }
        for peer in peers
    }
    yield f"\n### Width {width}, {steps} real steps\n"
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
        rate = next(iter(runs.values()))["spec"]["rate"]
        yield (
            f"| {arm} | {rate:g} | {len(runs)} | {fmean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f}) | "
            f"{interval(differences) if differences else '-'} | {sum(d < 0 for d in differences)} of {len(both)} | "
            f"{cost:.3f} | {nets[0]} | {nets[1]} |"
        )


def net_speedup(runs: Mapping[int, Row], frontier: Mapping[int, Mapping[int, float]], cost: float) -> str:
    """Net speedup over the frontier of each seed: geometric mean and 95 % interval."""
    ratios = []
    for seed, row in runs.items():
        points = {length: losses[seed] for length, losses in frontier.items() if seed in losses}
        found = equivalent_steps(row[SPLIT], points)
        if found is not None:
            ratios.append(math.log(found / row["real_steps"] / cost))
    if not ratios:
        return "outside the range"
    if len(ratios) == 1:
        return f"{math.exp(ratios[0]):.2f} (1 of {len(runs)})"
    half = float(student.ppf(0.975, len(ratios) - 1)) * stdev(ratios) / math.sqrt(len(ratios))
    mean = fmean(ratios)
    low, middle, high = (math.exp(value) for value in (mean - half, mean, mean + half))
    return f"{middle:.2f} ({low:.2f} to {high:.2f}; {len(ratios)} of {len(runs)})"


def tuning(rows: Sequence[Row]) -> Iterator[str]:
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        spec = row["spec"]
        if spec["seed"] in TUNING_SEEDS:
            loss = row["val"] if row["status"] == "finished" else math.inf
            found[spec["width"], spec["steps"], spec["arm"], spec["rate"]].append(loss)
    yield "\n### Tuning (val split, mean over the tuning seeds)\n\n| width | steps | arm | rate | loss | seeds |"
    yield "|---|---|---|---|---|---|"
    for (width, steps, arm, rate), losses in sorted(found.items()):
        yield f"| {width} | {steps} | {arm} | {rate:g} | {fmean(losses):.4f} | {len(losses)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().results.read_text().splitlines()]
    arms = by_arm(rows)
    for (width, steps), there in sorted(arms.items()):
        print("\n".join(section(width, steps, there, arms)))
    print("\n".join(tuning(rows)))


if __name__ == "__main__":
    main()
