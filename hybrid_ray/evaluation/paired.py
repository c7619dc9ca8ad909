"""Run all arms on the same seeds: first baselines and hybrids, then the controls that need a hybrid's result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import HybridConfig, JobConfig, arm_label
from hybrid_ray.evaluation.arms import Finished, baseline, control
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.runner import Execute, Task, execute_missing, failed_result
from hybrid_ray.run_result import RunResult

__all__ = ["ArmRuns", "Candidate", "run_arms"]

ArmRuns = dict[str, dict[int, RunResult]]
"""Results of one candidate by arm, then by seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A hybrid configuration to run again: that of a trial of the search, or the job's own settings."""

    trial: int
    hybrid: HybridConfig
    params: Mapping[str, Any] = field(default_factory=dict)


def run_arms(
    job: JobConfig,
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int],
    arms: Sequence[str],
    execute: Execute,
    directory: Path,
    beside: Sequence[Task] = (),
    fingerprint: Mapping[str, Any] | None = None,
) -> tuple[list[ArmRuns], list[RunResult]]:
    """Run the baseline, the hybrid and the given control arms of every candidate on every seed, and ``beside``.

    All candidates share the baselines, which do not depend on the candidate. Each run writes to
    ``directory/<trial>/<arm>-<seed>`` (baselines: ``directory/baseline/baseline-<seed>``). Runs that an earlier session
    finished there are not repeated. Runs are started seed by seed, and each seed starts with a different arm, so that a
    slowdown of the machine affects all arms.

    Args:
        beside: further runs on the same seeds, whose raw seconds are compared with these runs. Their settings may
            differ.
        fingerprint: the fingerprint that every run must have; None: that of the first finished baseline. A run with
            another fingerprint becomes a failed result that states the reason.

    Returns:
        The results of each candidate, by arm and seed, and the results of ``beside``.
    """
    plain = [
        Task(run=baseline(job.run(seed=seed)), directory=directory / "baseline" / f"baseline-{seed}") for seed in seeds
    ]
    hybrid = [_hybrid(job, candidate, seed, directory) for candidate in candidates for seed in seeds]
    tasks = [*plain, *hybrid, *beside]
    done = _in_turns(execute, tasks)
    fingerprint = fingerprint or fingerprint_of(done[: len(plain)])
    own = len(tasks) - len(beside)
    results = iter(comparable(done[:own], fingerprint))
    baselines = {seed: next(results) for seed in seeds}
    runs: list[ArmRuns] = [
        {"baseline": baselines, "hybrid": {seed: next(results) for seed in seeds}} for _ in candidates
    ]
    _run_controls(runs, hybrid, list(dict.fromkeys(arms)), execute, fingerprint)
    return runs, comparable(done[own:], fingerprint, but=("setting",))


def _in_turns(execute: Execute, tasks: Sequence[Task]) -> list[RunResult]:
    """Run the tasks seed by seed, each seed starting with a different task; results are in the order of ``tasks``."""
    by_seed: dict[int, list[int]] = {}
    for index, task in enumerate(tasks):
        by_seed.setdefault(task.run.seed, []).append(index)
    turns = [
        index
        for place, own in enumerate(by_seed.values())
        for index in (*own[place % len(own) :], *own[: place % len(own)])
    ]
    done = dict(zip(turns, execute_missing(execute, [tasks[index] for index in turns]), strict=True))
    return [done[index] for index in range(len(tasks))]


def _hybrid(job: JobConfig, candidate: Candidate, seed: int, directory: Path) -> Task:
    run = job.run(arm="hybrid", seed=seed, hybrid=candidate.hybrid)
    return Task(run=run, directory=directory / str(candidate.trial) / f"hybrid-{seed}")


def _run_controls(
    runs: list[ArmRuns],
    hybrid: Sequence[Task],
    arms: Sequence[str],
    execute: Execute,
    fingerprint: Mapping[str, Any] | None,
) -> None:
    """Run the controls and add their results to ``runs``. A control that cannot be built becomes a failed result."""
    made: list[tuple[ArmRuns, str, Task]] = []
    remaining = iter(hybrid)
    for arm_runs in runs:
        for seed, result in arm_runs["hybrid"].items():
            task = next(remaining)
            path = task.directory / "result.json"
            finished = Finished(run=task.run, result=result, path=path, baseline=arm_runs["baseline"][seed])
            for arm in arms:
                try:
                    run = control(arm, finished)
                except ValueError as error:
                    label = arm_label(arm)
                    arm_runs.setdefault(label, {})[seed] = failed_result(replace(task.run, arm=label), str(error))
                else:
                    folder = task.directory.parent / f"{run.arm}-{seed}"
                    made.append((arm_runs, run.arm, Task(run=run, directory=folder)))
    results = comparable(_in_turns(execute, [task for _, _, task in made]), fingerprint)
    for (arm_runs, arm, task), result in zip(made, results, strict=True):
        arm_runs.setdefault(arm, {})[task.run.seed] = result
