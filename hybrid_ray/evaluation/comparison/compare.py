"""The whole comparison: tuning, frontiers, all arms and peers on seeds added at interim analyses, statistics, verdict.

This is what `hybrid-ray compare` does. The hybrid settings are those of the job, except for the tuned learning rate, so
no setting is selected by its result. Two hypotheses are tested in a fixed order, so neither needs a correction for the
other: is the hybrid faster than stopping the job's own optimizer early (`verdict`), and is it faster than every peer
(`predicting_pays`)? Only these two spend alpha. All other intervals have the same level, explain the result, and are
not corrected for multiple testing.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from hybrid_ray.config import JobConfig, OptimizerName, Split
from hybrid_ray.config.jobfile import variant_jobs
from hybrid_ray.errors import HybridRayError
from hybrid_ray.evaluation.arms import REQUIRED, frontier_runs
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.comparison.configurations import Runs, configurations, variant_runs, variant_tasks
from hybrid_ray.evaluation.comparison.peers import Peer, Peers, best_peer, peer_job, predicting_pays
from hybrid_ray.evaluation.comparison.text import comparison_text
from hybrid_ray.evaluation.comparison.tuning import Tuned, first_error, tune, tune_hybrid
from hybrid_ray.evaluation.confirm import fresh_seeds
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.interim_analyses import InterimAnalyses, seeds_needed
from hybrid_ray.evaluation.paired import ArmRuns, Candidate, run_arms
from hybrid_ray.evaluation.runner import Execute, Task, check_results_version, execute_missing
from hybrid_ray.evaluation.statistics import median_interval, time_to_target
from hybrid_ray.evaluation.summary import comparisons, mean_predicted_share, net_speedup, rows, verdict
from hybrid_ray.report.comparison_page import write_comparison
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.tasks.load import words_of

__all__ = ["compare", "decide"]

_SPLIT: Split = "test"
_POWER = 0.8
_SEED_BLOCK = 2  # block 1 belongs to the confirmation of studies


def compare(
    job: JobConfig, *, execute: Execute, directory: Path, execute_plain: Execute | None = None
) -> dict[str, Any]:
    """Run every arm of ``job.compare`` and decide. Writes ``comparison.json``, ``comparison.txt`` and the report.

    Args:
        execute: does the runs, in this process or in parallel on a cluster.
        directory: of the comparison. A second call after an interruption does not repeat finished runs.
        execute_plain: the same for tuning and frontier runs, which depend on the job alone and so can be cached
            (`cache.cached`). None: ``execute``.

    Returns:
        The content of ``comparison.json``.

    Raises:
        ConfigError: a variant of the job is invalid, or the directory holds finished runs of another results version.
        HybridRayError: no baseline run finished, or too few frontier runs did.
    """
    variant_jobs(job)  # reports an invalid variant before anything runs
    check_results_version(directory)
    plain = execute_plain or partial(
        execute_missing, execute
    )  # a cache checks for finished runs itself, and compares more than the run
    asked, tuned = job, None
    if job.compare.tune_baseline:
        tuned = tune(asked, execute=plain, directory=directory / "tuning" / "baseline")
        job = tuned.job
    frontier, _, fingerprint = _frontier(job, plain, directory / "frontier")
    peers = Peers([_peer(asked, name, plain, directory, fingerprint) for name in asked.compare.peers], _SPLIT)
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
    except HybridRayError:
        return None


def _peer(
    asked: JobConfig, name: OptimizerName, execute: Execute, directory: Path, fingerprint: Mapping[str, Any] | None
) -> Peer:
    """A peer with its frontier, tuned from the same starting values as the baseline."""
    job, tuned = peer_job(asked, name), None
    if asked.compare.tune_baseline:
        tuned = tune(job, execute=execute, directory=directory / "tuning" / name)
        job = tuned.job
    frontier, whole, _ = _frontier(job, execute, directory / "peers" / name / "frontier", fingerprint)
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
        frontier = Frontier.from_results(results, _SPLIT)
    except ValueError as error:
        raise HybridRayError(f"{error}; the first: {first_error(results)}") from error
    return frontier, [result for result in results if result.status == "finished"][-1], fingerprint


def decide(
    job: JobConfig,
    *,
    execute: Execute,
    directory: Path,
    frontier: Frontier,
    fingerprint: Mapping[str, Any] | None = None,
    peers: Peers | None = None,
) -> dict[str, Any]:
    """Add seeds at the interim analyses of ``job.compare`` until both questions are decided or no analysis is left.

    At each analysis the interval has the level that the spending function allows (`InterimAnalyses.levels`), so the
    probability that noise alone is called a gain or a loss is at most 5 % over all analyses together.

    Args:
        fingerprint: of the frontier's runs; every run here must share it (`run_arms`).
        peers: the tuned peers. None: there are none.
    """
    peers = peers or Peers((), _SPLIT)
    analyses = InterimAnalyses(seeds=job.compare.interim_analyses, spending=job.compare.spending)
    seeds = fresh_seeds(job, analyses.seeds[-1], block=_SEED_BLOCK)
    arms: list[str] = [*REQUIRED, *job.compare.arms]
    candidate, variants = Candidate(trial=0, hybrid=job.hybrid), variant_jobs(job)
    runs: ArmRuns = {}
    others: dict[str, Runs] = {}
    for until, level in zip(analyses.seeds, analyses.levels, strict=True):
        new = seeds[len(runs.get("hybrid", ())) : until]
        tasks = variant_tasks(job, variants, new, directory / "variants")
        (added,), beside = run_arms(
            job, [candidate], seeds=new, arms=arms, execute=execute, directory=directory / "arms",
            beside=[task for several in tasks.values() for task in several], fingerprint=fingerprint,
        )  # fmt: skip
        for arm, results in added.items():
            runs.setdefault(arm, {}).update(results)
        for name, results in variant_runs(tasks, beside).items():
            others.setdefault(name, {}).update(results)
        net = net_speedup(runs, frontier, _SPLIT, level=1 - level)
        fingerprint = fingerprint or fingerprint_of(runs["baseline"].values())
        share = mean_predicted_share(runs["hybrid"].values())
        compared = comparisons(runs, _SPLIT, level=1 - level)
        found, refusal = verdict(net, compared, predicted_share=share, p_corrected=net["p"], alpha=level)
        peers.run(added["hybrid"], execute=execute, directory=directory / "peers", fingerprint=fingerprint)
        measured = peers.measured(runs, frontier, level=1 - level)
        pays = predicting_pays(measured) if found == "real gain" else None
        if found != "no gain shown" and not (found == "real gain" and measured and pays is None):
            break
    return {
        "split": _SPLIT,
        "seeds": seeds[:until],
        "level": 1 - level,
        "interim_analyses": {**asdict(analyses), "levels": analyses.levels},
        "frontier": asdict(frontier),
        "arms": {arm: rows(results, _SPLIT) for arm, results in runs.items()},
        "comparisons": compared,
        "configurations": configurations(
            {"baseline": runs["baseline"], "hybrid": runs["hybrid"], **others},
            job.compare.variants,
            _SPLIT,
            level=1 - level,
            frontier=frontier,
            net=net,
        ),
        "net_speedup": net,
        "verdict": found,
        "refusal": refusal,
        "peers": measured,
        "best_peer": best["name"] if (best := best_peer(measured)) else None,
        "predicting_pays": pays,
        "backward_share": _backward_share(runs["baseline"].values()),
        "machine": dict(fingerprint or {}),
        "time_to_target": _time_to_target(job, runs),
        "planning": _planning(job, analyses, net),
    }


def _backward_share(baselines: Iterable[RunResult]) -> float | None:
    """Share of a real step's time in backward and optimizer; it bounds the speedup (docs/method.md, section 2)."""
    parts: Counter[str] = Counter()
    for result in baselines:
        parts.update(result.part_seconds)
    whole = sum(parts[part] for part in ("data", "forward", "backward", "optimizer"))
    return (parts["backward"] + parts["optimizer"]) / whole if whole else None


def _time_to_target(job: JobConfig, runs: ArmRuns) -> dict[str, Any] | None:
    """Plain steps in which each arm reaches the baselines' mean final val loss plus the tolerance; None: never."""
    losses = [result.heldout["val"].loss for result in runs["baseline"].values() if result.status == "finished"]
    if not losses:
        return None
    target = fmean(losses) * (1 + job.objective.tolerance)
    times = {arm: [time_to_target(result, target) for result in results.values()] for arm, results in runs.items()}
    return {"target": target, "arms": {arm: _plain(asdict(median_interval(values))) for arm, values in times.items()}}


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """Infinity as None, because JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _planning(job: JobConfig, analyses: InterimAnalyses, net: dict[str, Any]) -> dict[str, Any]:
    """Seeds needed to detect ``job.compare.effect`` with the measured spread, at the level of the last analysis."""
    spread = net["spread"]
    needed = None
    if spread is not None:
        needed = seeds_needed(
            job.compare.effect, spread, power_wanted=_POWER, level=analyses.levels[-1], pilot=net["n"]
        )
    return {"effect": job.compare.effect, "power": _POWER, "spread": spread, "seeds_needed": needed}
