"""All arms over the same seeds, in two waves: baselines and hybrids, then the controls that need a hybrid's result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import Arm, HybridConfig, JobConfig
from hybrid_ray.evaluate.arms import baseline, control
from hybrid_ray.evaluate.execute import Execute, Task, execute_missing, failed_result
from hybrid_ray.records import RunResult

__all__ = ["ArmRuns", "Candidate", "run_arms"]

ArmRuns = dict[Arm, dict[int, RunResult]]
"""Results of one candidate by arm, then by seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A hybrid configuration to be tried again: a searched trial, or a job's own settings."""

    trial: int
    hybrid: HybridConfig
    params: Mapping[str, Any] = field(default_factory=dict)


def run_arms(
    job: JobConfig,
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    execute: Execute,
    directory: Path,
    beside: Sequence[Task] = (),
) -> tuple[list[ArmRuns], list[RunResult]]:
    """Baseline, hybrid and the given control arms of every candidate on every seed, and the results of ``beside``.

    The baselines are shared: they do not depend on the candidate. Each run fills ``directory/<trial>/<arm>-<seed>``
    (baselines: ``directory/baseline/baseline-<seed>``); runs that an earlier session finished there are not repeated.

    Args:
        beside: other runs of the same seeds whose raw seconds are compared with these: they take turns with them, seed
            by seed, so that a machine which slows down slows all of them.
    """
    plain = [
        Task(run=baseline(job.run(seed=seed)), directory=directory / "baseline" / f"baseline-{seed}") for seed in seeds
    ]
    hybrid = [_hybrid(job, candidate, seed, directory) for candidate in candidates for seed in seeds]
    tasks = [*plain, *hybrid, *beside]
    turns = (
        sorted(range(len(tasks)), key=lambda index: seeds.index(tasks[index].run.seed)) if beside else range(len(tasks))
    )
    done = dict(zip(turns, execute_missing(execute, [tasks[index] for index in turns]), strict=True))
    results = iter([done[index] for index in range(len(tasks))])
    baselines = {seed: next(results) for seed in seeds}
    runs: list[ArmRuns] = [
        {"baseline": baselines, "hybrid": {seed: next(results) for seed in seeds}} for _ in candidates
    ]
    _run_controls(runs, hybrid, list(dict.fromkeys(arms)), execute)
    return runs, list(results)


def _hybrid(job: JobConfig, candidate: Candidate, seed: int, directory: Path) -> Task:
    run = job.run(arm="hybrid", seed=seed, hybrid=candidate.hybrid)
    return Task(run=run, directory=directory / str(candidate.trial) / f"hybrid-{seed}")


def _run_controls(runs: list[ArmRuns], hybrid: Sequence[Task], arms: Sequence[Arm], execute: Execute) -> None:
    """Second wave: add every control's results to ``runs``. A control that cannot be made is a failed result."""
    made: list[tuple[ArmRuns, Arm, Task]] = []
    remaining = iter(hybrid)
    for arm_runs in runs:
        for seed, result in arm_runs["hybrid"].items():
            task = next(remaining)
            for arm in arms:
                try:
                    run = control(arm, task.run, result, task.directory / "result.json")
                except ValueError as error:
                    arm_runs.setdefault(arm, {})[seed] = failed_result(replace(task.run, arm=arm), str(error))
                else:
                    made.append((arm_runs, arm, Task(run=run, directory=task.directory.parent / f"{arm}-{seed}")))
    results = execute_missing(execute, [task for _, _, task in made])
    for (arm_runs, arm, task), result in zip(made, results, strict=True):
        arm_runs.setdefault(arm, {})[task.run.seed] = result
