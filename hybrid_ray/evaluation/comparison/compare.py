"""The whole comparison: tuning, frontiers, all arms and peers on seeds added at interim analyses, statistics, verdict.

This is what `hybrid-ray compare` does. The hybrid settings are those of the job, except for the tuned learning rate, so
no setting is selected by its result. `decide` adds the seeds and draws the conclusion.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, OptimizerName
from hybrid_ray.config.jobfile import variant_jobs
from hybrid_ray.errors import HybridRayError, NothingFinished
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.comparison.decide import SPLIT, decide
from hybrid_ray.evaluation.comparison.peers import Peer, Peers, peer_job
from hybrid_ray.evaluation.comparison.text import comparison_text
from hybrid_ray.evaluation.comparison.tuning import Tuned, first_error, tune, tune_hybrid
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.runner import Execute, Task, check_results_version, execute_missing
from hybrid_ray.report.comparison_page import write_comparison
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.tasks.load import words_of

__all__ = ["compare"]

_DEAR = 1.15
"""Relative time of a peer's step from which its frontier needs shorter runs."""


def compare(
    job: JobConfig, *, execute: Execute, directory: Path, execute_plain: Execute | None = None
) -> dict[str, Any]:
    """Run every arm of ``job.compare`` and decide. Writes ``comparison.json``, ``comparison.txt`` and the report.

    Args:
        execute: does the runs, in this process or in parallel on a cluster.
        directory: of the comparison. A second call after an interruption does not repeat finished runs.
        execute_plain: the same for tuning and frontier runs, which depend on the job alone and so can be cached
            (`runner.cached`). None: `runner.execute_missing` with ``execute``.

    Returns:
        The content of ``comparison.json``.

    Raises:
        ConfigError: a variant of the job is invalid, or the directory holds finished runs of another results version.
        HybridRayError: no baseline run finished, or too few frontier runs did.
    """
    variant_jobs(job)  # reports an invalid variant before anything runs
    check_results_version(directory)
    # A cache finds finished runs by more than their settings (the machine), so `execute_missing` must not do it before.
    plain = execute_plain or partial(execute_missing, execute)
    asked, tuned = job, None
    if job.compare.tune_baseline:
        tuned = tune(asked, execute=plain, directory=directory / "tuning" / "baseline")
        job = tuned.job
    frontier, whole, fingerprint = _frontier(job, plain, directory / "frontier")
    peers = Peers([_peer(asked, name, plain, directory, fingerprint, whole) for name in asked.compare.peers], SPLIT)
    of_hybrid = None
    if tuned is not None:
        of_hybrid = _tune_hybrid(asked, job, plain, directory)
        job = of_hybrid.job if of_hybrid else job
    result = decide(job, execute=execute, directory=directory, frontier=frontier, fingerprint=fingerprint, peers=peers)
    result = {
        "name": job.name,
        "job": _settings(job),
        "tuning": {
            name: one.as_dict() for name, one in (("baseline", tuned), ("hybrid", of_hybrid)) if one is not None
        },
        "learning_rate": job.train.learning_rate,
        **result,
    }
    write_json_atomic(directory / "comparison.json", result)
    write_atomic(directory / "comparison.txt", (comparison_text(result) + "\n").encode())
    write_comparison(directory)
    return result


def _settings(job: JobConfig) -> dict[str, Any]:
    """The facts about the job that the report shows."""
    train, hybrid = job.train, job.hybrid
    return {
        "model": job.model_name,
        "words": words_of(job),
        "corpus": job.data.corpus,
        "published": job.published,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "sequence_length": train.sequence_length,
        "optimizer": train.optimizer_name,
        "schedule": f"{train.schedule} schedule",
        "predictor": hybrid.predictor.name,
        "confidence_threshold": hybrid.confidence_threshold,
    }


def _tune_hybrid(asked: JobConfig, job: JobConfig, execute: Execute, directory: Path) -> Tuned | None:
    """Tune the hybrid's learning rate. None if no run finished; then the arms report the failure, seed by seed."""
    try:
        return tune_hybrid(
            job, rate=asked.train.learning_rate, execute=execute, directory=directory / "tuning" / "hybrid"
        )
    except NothingFinished:
        return None


def _peer(
    asked: JobConfig,
    name: OptimizerName,
    execute: Execute,
    directory: Path,
    fingerprint: Mapping[str, Any] | None,
    plain: RunResult,
) -> Peer:
    """A peer with its frontier, tuned from the same starting values as the baseline.

    If its steps take longer than the baseline's (``plain``), it does fewer of them in the hybrid's time, so its
    frontier gets shorter runs as well.
    """
    job, tuned = peer_job(asked, name), None
    if asked.compare.tune_baseline:
        tuned = tune(job, execute=execute, directory=directory / "tuning" / name)
        job = tuned.job
    place = directory / "peers" / name / "frontier"
    frontier, whole, _ = _frontier(job, execute, place, fingerprint)
    lengths = job.frontier.lengths
    cost = whole.time / whole.real_steps / (plain.time / plain.real_steps)
    shorter = [round(length / cost, 2) for length in lengths if length / cost < min(lengths)]
    if cost > _DEAR:
        job = replace(job, frontier=replace(job.frontier, lengths=(*shorter, *lengths)))
        frontier, whole, _ = _frontier(job, execute, place, fingerprint)
    return Peer(name=name, job=job, tuned=tuned, frontier=frontier, whole=whole)


def _frontier(
    job: JobConfig, execute: Execute, directory: Path, fingerprint: Mapping[str, Any] | None = None
) -> tuple[Frontier, RunResult, Mapping[str, Any] | None]:
    """The frontier, its longest run, and the fingerprint that every run compared with it must share."""
    tasks = [Task(run=run, directory=directory / f"{length:.2f}") for length, run in frontier_runs(job).items()]
    results = execute(tasks)
    fingerprint = fingerprint or fingerprint_of(results)
    results = comparable(results, fingerprint)
    try:
        frontier = Frontier.from_results(results, SPLIT)
    except ValueError as error:
        raise HybridRayError(f"{error}; the first: {first_error(results)}") from error
    return frontier, [result for result in results if result.status == "finished"][-1], fingerprint
