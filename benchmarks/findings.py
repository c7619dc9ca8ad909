"""Train the runs that docs/findings.md reports, one after another, and store one JSON line for each.

    nice -n 15 python benchmarks/findings.py --out RESULTS.jsonl [--only TEXT] [--processes N] [--list]

Every run uses the training loop of hybrid_ray (`hybrid_ray.training`) on one thread, without Ray. `queue` lists the
runs, the most informative first. Runs that are already in the file are skipped, so the command can be stopped and
started again. A stage that needs a learning rate takes the best of its tuning runs (mean loss on the val split over the
tuning seeds), so the queue is computed again after every run. The runs themselves are in `findings_arms.py`.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from findings_arms import (
    ARMS,
    SEEDS,
    STABILITY_STEPS,
    TUNING_SEEDS,
    Spec,
    adamw,
    ademamix,
    rates,
    slow,
    slow_alpha,
    slow_cautious,
    slow_clipped,
    slow_trusting,
)

from hybrid_ray.run_result import RunResult
from hybrid_ray.training.loop import train


class Results:
    """The finished runs of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [
            json.loads(line) for line in lines if line.endswith("}")
        ]  # a run whose line is incomplete is trained again
        self._keys = {json.dumps(row["spec"], sort_keys=True) for row in self.rows}

    def has(self, spec: Spec) -> bool:
        return spec.key in self._keys

    def add(self, spec: Spec, result: RunResult) -> None:
        row = {"spec": asdict(spec), **_kept(result)}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._keys.add(spec.key)

    def best_rate(self, arm: str, width: int, steps: int, batch: int = 16) -> float | None:
        """The learning rate whose tuning runs have the lowest mean loss. None while a tuning run is missing."""
        losses: dict[float, list[float]] = defaultdict(list)
        for row in self.rows:
            spec = row["spec"]
            here = (spec["arm"], spec["width"], spec["steps"], spec["batch"]) == (arm, width, steps, batch)
            if here and spec["seed"] in TUNING_SEEDS:
                losses[spec["rate"]].append(row["val"] if row["status"] == "finished" else float("inf"))
        wanted = rates(arm, width, steps, batch)
        if any(len(losses[rate]) < len(TUNING_SEEDS) for rate in wanted):
            return None
        return min(wanted, key=lambda rate: fmean(losses[rate]))


def _kept(result: RunResult) -> dict[str, Any]:
    statistics = result.statistics
    names = ("decisions", "jumps", "overshoots", "events", "mean_cosine", "mean_alpha", "mean_error")
    return {
        "status": result.status,
        "error": result.error,
        "val": result.heldout["val"].loss if "val" in result.heldout else None,
        "test": result.heldout["test"].loss if "test" in result.heldout else None,
        "steps": result.steps,
        "real_steps": result.real_steps,
        "train_seconds": result.train_seconds,
        "step_seconds": result.step_seconds,
        "part_seconds": dict(result.part_seconds),
        "phase_seconds": dict(result.phase_seconds),
        "statistics": {name: statistics.get(name) for name in names},
        "corpus": result.fingerprint["corpus"],
        "hardware": result.fingerprint["hardware"],
        "finished_at": time.time(),
    }


def queue(results: Results) -> Iterator[Spec]:
    """All runs, the most informative first. A stage whose rates are not tuned yet has only its tuning runs."""
    # Do these repeat the earlier trial runs?
    yield adamw(32, 4000, 1, 6e-3)
    yield slow(32, 4000, 1, 4e-3)
    yield ademamix(32, 4000, 1, 4e-3)
    yield from stage(results, 32, 4000, ("adamw", "slow_momentum", "ademamix"))
    yield from frontier(results, "adamw", 32, 4000, (3200, 4800, 5600, 6400), SEEDS)
    yield from tuning("adamw_long_warmup", 32, 4000)
    yield from stage(results, 32, 4000, ("placebo",))
    yield from frontier(results, "ademamix", 32, 4000, (3200, 4800, 5600), SEEDS[:3])
    yield from stage(results, 32, 4000, ("ema_nesterov",))
    for kind, alpha in (("sign", 12.0), ("shrink", 12.0), ("shrink", 8.0), ("sign", 8.0)):
        yield slow_cautious(kind, alpha, 32, 4000, TUNING_SEEDS[0], 4e-3)
    yield from stage(results, 64, 4000, ("adamw", "slow_momentum", "ademamix"))
    yield from frontier(results, "adamw", 64, 4000, (4800, 5600, 6400), SEEDS[:3])
    yield from stage(results, 64, 4000, ("placebo", "ema_nesterov"))
    yield from stage(results, 32, 8000, ("adamw", "slow_momentum", "ademamix"))
    yield from stage(
        results, 32, 4000, ("muon", "muon_ademamix", "orthogonal_jumps", "muon_slow_momentum", "muon_slow_each_step")
    )
    yield from frontier(results, "muon", 32, 4000, (4800, 5600), SEEDS[:3])
    yield from stage(results, 64, 4000, ("muon", "orthogonal_jumps", "muon_slow_momentum"))
    yield from stage(results, 32, 2000, ("muon", "muon_ademamix", "orthogonal_jumps", "ademamix", "adamw"))
    yield from frontier(results, "muon", 32, 2000, (1600, 2400), SEEDS)
    yield from frontier(results, "adamw", 32, 2000, (2400, 2800, 3200), SEEDS)
    yield from stage(results, 32, 2000, ("slow_momentum", "muon_slow_momentum", "placebo", "ema_nesterov"))
    yield from stage(results, 32, 8000, ("placebo", "ema_nesterov"))
    for arm in ("slow_momentum_long_average", "ademamix_long_average"):
        yield from tuning(arm, 32, 8000)
    yield from stage(results, 64, 8000, ("adamw", "slow_momentum", "ademamix", "placebo", "ema_nesterov"))
    yield from frontier(results, "adamw", 64, 8000, (11200,), SEEDS[:3])
    for steps, batch in ((1000, 16), (4000, 4), (1000, 64), (4000, 64)):
        yield from stage(results, 32, steps, ("adamw", "slow_momentum", "ademamix"), batch)
    # The cost of the trust rule in healthy runs, and its benefit at twice the best rate.
    if (rate := results.best_rate("slow_momentum", 32, 4000)) is not None:
        for seed in SEEDS[:3]:
            yield slow_trusting(32, 4000, seed, rate)
            yield from (arm(64, 4000, seed, 6e-3) for arm in (slow, slow_trusting))
    yield from stage(results, 32, 4000, ("ademamix_slow_momentum", "schedule_free"))
    for rate in (2e-3, 4e-3):
        yield from stability(128, STABILITY_STEPS, 1, rate)


def stability(width: int, steps: int, seed: int, rate: float) -> Iterator[Spec]:
    """What keeps slow momentum from diverging at AdamW's own rate, where its default gain is too large?"""
    yield adamw(width, steps, seed, rate)
    yield slow(width, steps, seed, rate)
    yield slow_trusting(width, steps, seed, rate)
    yield slow(width, steps, seed, rate / 2)
    yield slow_alpha(4.0, width, steps, seed, rate)
    yield from (slow_clipped(longest, width, steps, seed, rate) for longest in (1.0, 2.0))


def stage(results: Results, width: int, steps: int, arms: Sequence[str], batch: int = 16) -> Iterator[Spec]:
    """Tune each arm on the tuning seeds, then train it at its best rate, seed by seed. Placebo uses AdamW's rate."""
    for arm in arms:
        if arm != "placebo":
            yield from tuning(arm, width, steps, batch)
    for seed in SEEDS:
        for arm in arms:
            rate = results.best_rate("adamw" if arm == "placebo" else arm, width, steps, batch)
            if rate is not None:
                yield replace(ARMS[arm](width, steps, seed, rate), batch=batch)


def tuning(arm: str, width: int, steps: int, batch: int = 16) -> Iterator[Spec]:
    for rate in rates(arm, width, steps, batch):
        yield from (replace(ARMS[arm](width, steps, seed, rate), batch=batch) for seed in TUNING_SEEDS)


def frontier(
    results: Results, arm: str, width: int, steps: int, lengths: Sequence[int], seeds: Sequence[int]
) -> Iterator[Spec]:
    """Plain training with other numbers of steps, at the rate tuned for ``steps``."""
    rate = results.best_rate(arm, width, steps)
    if rate is not None:
        yield from (ARMS[arm](width, length, seed, rate) for seed in seeds for length in lengths)


def next_run(results: Results, only: str, under_way: Sequence[Spec] = ()) -> Spec | None:
    missing = (spec for spec in queue(results) if only in spec.key and not results.has(spec))
    return next((spec for spec in missing if spec not in under_way), None)


def work(results: Results, only: str, processes: int) -> None:
    """Train all missing runs, several at a time, each in a process with one thread."""
    under_way: dict[Future[RunResult], tuple[Spec, float]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        while True:
            while len(under_way) < processes:
                spec = next_run(results, only, [spec for spec, _ in under_way.values()])
                if spec is None:
                    break
                under_way[pool.submit(train, spec.run())] = spec, time.time()
            if not under_way:
                return
            time.sleep(0.5)
            for pending in [pending for pending in under_way if pending.done()]:
                spec, started = under_way.pop(pending)
                try:
                    result = pending.result()
                except BrokenProcessPool:
                    sys.exit(f"the process of {spec.arm} or of another run died; finished runs are kept: start again")
                if result.status == "stopped":  # by a signal; the next call trains this run again
                    return
                results.add(spec, result)
                row = results.rows[-1]
                print(
                    f"{spec.arm} width {spec.width} steps {spec.steps} rate {spec.rate:g} seed {spec.seed}: "
                    f"{row['val']} / {row['test']} in {time.time() - started:.0f} s, {row['statistics']['events']}",
                    flush=True,
                )


def _stop() -> None:
    for process in active_children():
        process.kill()
    sys.exit("stopped; the runs under way are lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file with one JSON line per run")
    parser.add_argument("--only", default="", help="only runs whose settings, as JSON, contain this text")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time; at most one per core")
    parser.add_argument("--list", action="store_true", help="count the missing runs known so far; train none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = Results(arguments.out)
    if arguments.list:
        missing = [spec for spec in queue(results) if arguments.only in spec.key and not results.has(spec)]
        print(f"{len(results.rows)} done, {len(missing)} known to be missing")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    work(results, arguments.only, arguments.processes)


if __name__ == "__main__":
    main()
