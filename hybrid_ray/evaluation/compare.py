"""The whole comparison: tuned baseline, frontier, all arms over seeds added at fixed looks, statistics, verdict.

What `hybrid-ray compare` does. The hybrid settings are the job's own; nothing is searched, so nothing is picked for
its luck. The one primary test is the net speedup; it alone spends the alpha. All other intervals are given at the same
level as an explanation, uncorrected for their number (what else can refuse a gain: `summary.verdict`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from hybrid_ray.config import Arm, JobConfig, Split
from hybrid_ray.config.jobfile import variant_jobs
from hybrid_ray.errors import HybridRayError
from hybrid_ray.evaluation.arms import baseline, frontier_runs
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.comparison_text import comparison_text
from hybrid_ray.evaluation.configurations import Runs, configurations, variant_runs, variant_tasks
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
_SEED_BLOCK = 2  # the first is the confirmation's


def compare(
    job: JobConfig, *, execute: Execute, directory: Path, execute_plain: Execute | None = None
) -> dict[str, Any]:
    """Run every arm of ``job.compare`` and say what is shown. Writes ``comparison.json``, ``.txt`` and pages.

    Args:
        execute: runs the runs, here or side by side on a cluster.
        directory: the study directory. Called again after an interruption it repeats nothing finished.
        execute_plain: for tuning and frontier runs, which depend on the job alone: one that caches (`cache.cached`).

    Returns:
        What ``comparison.json`` holds.

    Raises:
        ConfigError: a variant of the job can't be, or the directory holds finished runs of another results version.
        HybridRayError: no baseline, or too little of the frontier, finished.
    """
    variant_jobs(job)  # what is wrong with one is said before anything runs
    check_results_version(directory)
    plain = execute_plain or partial(execute_missing, execute)  # a cache looks by itself, and by more than the run
    tuning = _tune(job, plain, directory) if job.compare.tune_baseline else None
    if tuning is not None:
        job = replace(job, train=replace(job.train, learning_rate=tuning["learning_rate"]))
    frontier, fingerprint = _frontier(job, plain, directory)
    result = decide(job, execute=execute, directory=directory, frontier=frontier, fingerprint=fingerprint)
    result = {
        "name": job.name, "job": _settings(job), "tuning": tuning, "learning_rate": job.train.learning_rate, **result
    }  # fmt: skip
    write_json_atomic(directory / "comparison.json", result)
    write_atomic(directory / "comparison.txt", (comparison_text(result) + "\n").encode())
    write_comparison(directory)
    return result


def _settings(job: JobConfig) -> dict[str, Any]:
    """What the page says of the job."""
    train, hybrid = job.train, job.hybrid
    return {
        "model": job.model_name,
        "words": words_of(job),
        "corpus": job.data.corpus,
        "published": job.published,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "sequence_length": train.sequence_length,
        "optimizer": train.optimizer,
        "schedule": f"{train.schedule} schedule",
        "predictor": hybrid.predictor,
        "confidence_threshold": hybrid.confidence_threshold,
    }


def _tune(job: JobConfig, execute: Execute, directory: Path) -> dict[str, Any]:
    """The baseline at several learning rates: an untuned one flatters every method. Scored on the val split."""
    factors = sorted(set(job.compare.lr_factors))
    rates = [job.train.learning_rate * factor for factor in factors]
    tasks = [
        Task(
            run=baseline(replace(job, train=replace(job.train, learning_rate=rate)).run()),
            directory=directory / "tuning" / f"{factor:g}",
        )
        for factor, rate in zip(factors, rates, strict=True)
    ]
    results = execute(tasks)
    results = comparable(results, fingerprint_of(results))
    losses = [result.heldout["val"].loss if result.status == "finished" else None for result in results]
    finished = [(loss, rate) for loss, rate in zip(losses, rates, strict=True) if loss is not None]
    if not finished:
        raise HybridRayError(f"no baseline run finished, so nothing can be compared: {_first_error(results)}")
    best = min(finished)[1]
    return {
        "learning_rate": best,
        "losses": [{"learning_rate": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=True)],
        "at_edge": best in (rates[0], rates[-1]),
    }


def _frontier(job: JobConfig, execute: Execute, directory: Path) -> tuple[Frontier, Mapping[str, Any] | None]:
    """And the fingerprint of its runs, which everything measured against them must share."""
    tasks = [
        Task(run=run, directory=directory / "frontier" / f"{length:.2f}") for length, run in frontier_runs(job).items()
    ]
    results = execute(tasks)
    fingerprint = fingerprint_of(results)
    results = comparable(results, fingerprint)
    try:
        return Frontier.from_results(results, _SPLIT), fingerprint
    except ValueError as error:
        raise HybridRayError(f"{error}; the first: {_first_error(results)}") from error


def _first_error(results: Sequence[RunResult]) -> str:
    return next((result.error or result.status for result in results if result.status != "finished"), "no error")


def decide(
    job: JobConfig,
    *,
    execute: Execute,
    directory: Path,
    frontier: Frontier,
    fingerprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Add seeds at the fixed looks of ``job.compare`` until the net speedup is decided, or the looks are used up.

    At each look the interval has the level that the spending function leaves it (`InterimAnalyses.levels`), so the
    chance that noise alone is ever called a gain or a loss is at most 5 % over all looks together.

    Args:
        fingerprint: of the frontier's runs, which every run here must share (`run_arms`).
    """
    analyses = InterimAnalyses(seeds=job.compare.interim_analyses, spending=job.compare.spending)
    seeds = fresh_seeds(job, analyses.seeds[-1], block=_SEED_BLOCK)
    arms: list[Arm] = ["equal_steps", *job.compare.arms]
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
        if found != "no gain shown":
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
        "backward_share": _backward_share(runs["baseline"].values()),
        "machine": dict(fingerprint or {}),
        "time_to_target": _time_to_target(job, runs),
        "planning": _planning(job, analyses, net),
    }


def _backward_share(baselines: Iterable[RunResult]) -> float | None:
    """Of backward and optimizer in a real step: what a speedup's ceiling is made of (docs/method.md, section 2)."""
    parts: Counter[str] = Counter()
    for result in baselines:
        parts.update(result.part_seconds)
    whole = sum(parts[part] for part in ("data", "forward", "backward", "optimizer"))
    return (parts["backward"] + parts["optimizer"]) / whole if whole else None


def _time_to_target(job: JobConfig, runs: ArmRuns) -> dict[str, Any] | None:
    """Plain steps to the baselines' mean final search loss plus the tolerance, by arm. None: missed (infinity)."""
    losses = [result.heldout["val"].loss for result in runs["baseline"].values() if result.status == "finished"]
    if not losses:
        return None
    target = fmean(losses) * (1 + job.objective.tolerance)
    times = {arm: [time_to_target(result, target) for result in results.values()] for arm, results in runs.items()}
    return {"target": target, "arms": {arm: _plain(asdict(median_interval(values))) for arm, values in times.items()}}


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _planning(job: JobConfig, analyses: InterimAnalyses, net: dict[str, Any]) -> dict[str, Any]:
    """How many seeds the effect of ``job.compare.effect`` asks for, given the spread seen, at the last look's level."""
    spread = net["spread"]
    needed = None
    if spread is not None:
        needed = seeds_needed(
            job.compare.effect, spread, power_wanted=_POWER, level=analyses.levels[-1], pilot=net["n"]
        )
    return {"effect": job.compare.effect, "power": _POWER, "spread": spread, "seeds_needed": needed}
