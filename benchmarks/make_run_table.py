"""Train the real runs on which studies are simulated, and store them in one small table.

    nice -n 15 python benchmarks/make_run_table.py [--seeds 3] [--processes 2]

The job is tests/simulation/nano_runs.yaml with runs of half the length (300 steps, a warmup of 30), a quarter of the
held-out text and 6 evaluations, so that a run takes about 9 s on one core. It trains in this order: baseline, frontier
and a grid over the three knobs with seed 0; the best settings and their controls on fresh seeds, as the confirmation of
a study does; the grid with the other seeds, the best settings first, so that an interrupted command has the runs that
matter most. 417 runs, about half an hour on two idle cores.

Each run is stored in studies/run_table when it finishes and is not repeated. After each stage the whole table is
written to tests/simulation/nano_runs.parquet (read by tests/simulation/run_table.py). Times are in a run's own real
steps, so other programs on the machine hardly affect them; losses are those of one thread.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/simulation"))

from run_table import write_run_table

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.confirm import fresh_seeds
from hybrid_ray.evaluation.paired import Candidate, run_arms
from hybrid_ray.evaluation.runner import Execute, Task, execute_here, execute_missing
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.json_files import read_json

TABLE = Path("tests/simulation/nano_runs.parquet")
SHORTER = (
    "train.steps=300",
    "train.evaluations=6",
    "train.calibration_steps=5",
    "train.sample_tokens=0",
    "train.device=cpu",
    "hybrid.warmup_steps=30",
    "data.heldout_tokens=16384",
)
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5)  # confidence in these runs: 0.05 to 0.5, most of it below 0.3
HORIZONS = (1, 2, 3, 5, 8, 13, 20, 30)
INTERVALS = (0, 1, 3, 6)

Params = Mapping[str, Any]


def grid() -> list[Params]:
    """All settings of the grid. Intervals that the horizon never reaches are left out: they equal interval 0."""
    return [
        {"confidence_threshold": threshold, "prediction_horizon": horizon, "correction_interval": interval}
        for threshold, horizon, interval in product(THRESHOLDS, HORIZONS, INTERVALS)
        if interval < horizon
    ]


def searched_runs(job: JobConfig, seed: int, settings: Sequence[Params], folder: Path) -> list[Task]:
    """The baseline, the frontier and these settings, all with one seed."""
    plain = [
        Task(run=run, directory=folder / f"frontier-{length:.2f}-{seed}")
        for length, run in frontier_runs(job, seed=seed).items()
    ]
    return plain + [
        Task(
            run=job.run(seed=seed, hybrid=replace(job.hybrid, **params)),
            directory=folder / f"{'-'.join(f'{value:g}' for value in params.values())}-{seed}",
        )
        for params in settings
    ]


def side_by_side(pool: ProcessPoolExecutor) -> Execute:
    """An ``Execute`` that runs tasks in the pool's processes and prints a line for each."""
    done = count(1)

    def execute(tasks: Sequence[Task]) -> list[RunResult]:
        results = []
        for task, result in zip(tasks, pool.map(_run, tasks), strict=True):
            print(f"{next(done):4}  {task.directory.name:32} {result.status} {result.error or ''}", flush=True)
            results.append(result)
        return results

    return execute


def _run(task: Task) -> RunResult:
    return execute_here([task])[0]


def ranked(job: JobConfig, results: Sequence[RunResult], mode: str) -> list[Params]:
    """The grid ordered by the results of one seed, best first. Settings that barely predict (inert) come last."""
    plain, hybrid = results[: -len(grid())], results[-len(grid()) :]
    scorer = TrialScorer.from_results(plain, replace(job.objective, mode=mode))
    rows = [scorer.final(result) for result in hybrid]
    order = sorted(range(len(rows)), key=lambda index: (rows[index]["inert"], -rows[index]["objective"]))
    return [grid()[index] for index in order]


def best_settings(job: JobConfig, results: Sequence[RunResult], number: int) -> list[Candidate]:
    """The settings with the highest score and those with the highest net speedup.

    A simulated search finds such settings, and their confirmation needs real runs.
    """
    best = {grid().index(params): params for mode in ("score", "net") for params in ranked(job, results, mode)[:number]}
    return [
        Candidate(trial=index, hybrid=replace(job.hybrid, **params), params=params) for index, params in best.items()
    ]


def confirmed_runs(job: JobConfig, best: Sequence[Candidate], execute: Execute, folder: Path) -> None:
    """Train these settings as the confirmation of a study with the job's own seed does."""
    run_arms(
        replace(job, train=replace(job.train, evaluations=1)),
        best,
        seeds=fresh_seeds(job, job.confirm.seeds),
        arms=["equal_steps", *job.confirm.arms],
        execute=execute,
        directory=folder / "confirmation",
    )


def kept_runs(folder: Path) -> Iterator[tuple[Mapping[str, Any], RunResult]]:
    """All finished runs, of this command and of earlier ones."""
    for path in sorted(folder.glob("**/result.json")):
        yield read_json(path.parent / "run.json"), RunResult.from_dict(read_json(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--confirm", type=int, default=2, help="number of settings to confirm by score, and by net speedup"
    )
    options = parser.parse_args()
    job, folder = read_job("tests/simulation/nano_runs.yaml", SHORTER), Path("studies/run_table").absolute()
    with ProcessPoolExecutor(options.processes) as pool:
        execute = side_by_side(pool)
        first = execute_missing(execute, searched_runs(job, 0, grid(), folder))
        confirmed_runs(job, best_settings(job, first, options.confirm), execute, folder)
        for seed in range(1, options.seeds):
            write_run_table(TABLE, job, kept_runs(folder))
            execute_missing(execute, searched_runs(job, seed, ranked(job, first, "score"), folder))
    write_run_table(TABLE, job, kept_runs(folder))
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
