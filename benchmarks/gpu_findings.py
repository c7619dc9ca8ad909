"""AdamW, slow momentum and AdEMAMix on a GPU: GPT-2 with 14M parameters, 4,000 real steps of 4,096 tokens, in bf16.

    python benchmarks/gpu_findings.py --json RESULTS.jsonl [--processes 7] [--minutes 8]
    python benchmarks/gpu_findings.py --json RESULTS.jsonl --cpu     a rehearsal on a CPU with tiny sizes
    python benchmarks/findings_report.py RESULTS.jsonl               the tables of a results file

First every arm is trained with each of its learning rates, then at its best rate with other seeds, and AdamW also for
longer, which gives the frontier. A single run leaves most of a large GPU idle, so several train at the same time in
processes of their own; their losses are comparable and their times are not. Runs in the file are not repeated. After
the given minutes no further run begins, and the runs under way are left to finish. Needs no Ray, Optuna or network.
Seven runs at a time on an H200 took 36 ms per step each, so all 21 take about eight minutes after the text is prepared.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import findings_arms
import findings_report
from findings import Results
from findings_arms import Spec

from hybrid_ray.config import DataConfig, RunConfig
from hybrid_ray.run_result import RunResult
from hybrid_ray.training.loop import train

WIDTH, STEPS = 384, 4000
RATES = {
    "adamw": (2.5e-4, 5e-4, 1e-3),
    "slow_momentum": (1.25e-4, 2.5e-4, 5e-4),
    "ademamix": (1.25e-4, 2.5e-4, 5e-4),
}
TUNING_SEED, SEEDS = findings_arms.TUNING_SEEDS[0], (1, 2, 3)
LONGER = (5200,)  # AdamW's, for its frontier


def on_gpu(spec: Spec) -> RunConfig:
    run = spec.run()
    return replace(
        run,
        data=DataConfig(tokenizer="bpe", vocab_size=8192),
        train=replace(run.train, sequence_length=256, lr_warmup_fraction=0.1, precision="bf16", device="cuda"),
    )


def one(spec: Spec, cpu: bool) -> tuple[Spec, RunResult]:
    return spec, train(spec.run() if cpu else on_gpu(spec))


def tuning(width: int, steps: int) -> list[Spec]:
    """One run per arm and rate."""
    return [findings_arms.ARMS[arm](width, steps, TUNING_SEED, rate) for arm, rates in RATES.items() for rate in rates]


def finals(results: Results, width: int, steps: int) -> Iterator[Spec]:
    """Each arm at its best rate, seed by seed, with longer runs of AdamW."""
    best = {arm: best_rate(results, arm) for arm in RATES}
    for seed in SEEDS:
        for arm, rate in best.items():
            yield findings_arms.ARMS[arm](width, steps, seed, rate)
        for length in LONGER:
            yield findings_arms.adamw(width, length * steps // STEPS, seed, best["adamw"])


def best_rate(results: Results, arm: str) -> float:
    """The rate with the lowest loss on the val split.

    Raises:
        ValueError: no tuning run of the arm is in the file.
    """
    found = [
        (row["val"] if row["status"] == "finished" else float("inf"), row["spec"]["rate"])
        for row in results.rows
        if row["spec"]["arm"] == arm and row["spec"]["seed"] == TUNING_SEED
    ]
    return float(min(found)[1])


def train_all(specs: Sequence[Spec], results: Results, *, processes: int, until: float, cpu: bool) -> None:
    """Train the runs that the file does not have yet, some at a time, in new processes."""
    missing = [spec for spec in specs if not results.has(spec)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one, spec, cpu) for spec in missing]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            spec, result = future.result()
            results.add(spec, result)
            print(
                f"{spec.arm} steps {spec.steps} rate {spec.rate:g} seed {spec.seed}: {results.rows[-1]['val']}, "
                f"{result.status}, {1e3 * result.train_seconds / result.steps:.1f} ms per step",
                flush=True,
            )
            if time.monotonic() > until:
                for later in futures:
                    later.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file with one JSON line per run")
    parser.add_argument("--processes", type=int, default=7, help="runs at the same time")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further run begins")
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU: width 32, 100 steps")
    options = parser.parse_args()
    width, steps = (32, 100) if options.cpu else (WIDTH, STEPS)
    results, until = Results(options.json), time.monotonic() + 60 * options.minutes

    def go(specs: Sequence[Spec]) -> None:
        train_all(specs, results, processes=options.processes, until=until, cpu=options.cpu)

    go(tuning(width, steps))
    if time.monotonic() < until:
        go(list(finals(results, width, steps)))
    arms = findings_report.by_arm(results.rows)
    for place in [place for place in arms if (place[0], place[2]) == (width, steps)]:
        print("\n".join(findings_report.section(place, arms[place], arms)))
    print("\n".join(findings_report.tuning(results.rows)))


if __name__ == "__main__":
    main()
