"""Train all arms and peers, seed by seed at the interim analyses, until the comparison is decided.

Two hypotheses are tested in a fixed order, so neither needs a correction for the other: is the hybrid faster than
stopping the job's own optimizer early (`verdict`), and is it faster than every peer (`predicting_pays`)? Only these two
spend alpha. All other intervals have the same level, explain the result, and are not corrected for multiple testing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from hybrid_ray.config import JobConfig, Split
from hybrid_ray.config.jobfile import variant_jobs
from hybrid_ray.evaluation.arms import REQUIRED
from hybrid_ray.evaluation.comparable import fingerprint_of
from hybrid_ray.evaluation.comparison.configurations import Runs, configurations, variant_runs, variant_tasks
from hybrid_ray.evaluation.comparison.peers import Peers, best_peer, missing_peer, predicting_pays
from hybrid_ray.evaluation.confirm import fresh_seeds
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.interim_analyses import InterimAnalyses, seeds_needed
from hybrid_ray.evaluation.paired import ArmRuns, Candidate, run_arms
from hybrid_ray.evaluation.runner import Execute
from hybrid_ray.evaluation.statistics import median_interval, time_to_target
from hybrid_ray.evaluation.summary import comparisons, mean_predicted_share, net_speedup, rows, verdict
from hybrid_ray.run_result import backward_share

__all__ = ["SPLIT", "decide"]

SPLIT: Split = "test"
"""The split of every reported loss."""

_POWER = 0.8
_SEED_BLOCK = 2  # block 1 belongs to the confirmation of studies


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
    peers = peers or Peers((), SPLIT)
    analyses = InterimAnalyses(seeds=job.compare.interim_analyses, spending=job.compare.spending)
    seeds = fresh_seeds(job, analyses.seeds[-1], block=_SEED_BLOCK)
    trained = _Trained(fingerprint=fingerprint)
    for until, level in zip(analyses.seeds, analyses.levels, strict=True):
        new = seeds[len(trained.runs.get("hybrid", ())) : until]
        trained.add(job, new, peers=peers, execute=execute, directory=directory)
        analysis = _analyse(trained, peers, frontier, alpha=level)
        if analysis.decided:
            break
    return {
        "split": SPLIT,
        "seeds": seeds[:until],
        "level": 1 - level,
        "interim_analyses": {**asdict(analyses), "levels": analyses.levels},
        "frontier": asdict(frontier),
        **_measured(job, trained, analysis, frontier, level=1 - level),
        "planning": _planning(job, analyses, analysis.net),
    }


@dataclass(kw_only=True, slots=True)
class _Trained:
    """The finished runs of all seeds so far."""

    fingerprint: Mapping[str, Any] | None  # that every run must share; None until a baseline has one
    runs: ArmRuns = field(default_factory=dict)
    variants: dict[str, Runs] = field(default_factory=dict)

    def add(self, job: JobConfig, seeds: Sequence[int], *, peers: Peers, execute: Execute, directory: Path) -> None:
        """Run every arm, variant and peer on more seeds."""
        tasks = variant_tasks(job, variant_jobs(job), seeds, directory / "variants")
        (added,), beside = run_arms(
            job, [Candidate(trial=0, hybrid=job.hybrid)], seeds=seeds, arms=[*REQUIRED, *job.compare.arms],
            execute=execute, directory=directory / "arms", fingerprint=self.fingerprint,
            beside=[task for several in tasks.values() for task in several],
        )  # fmt: skip
        for arm, results in added.items():
            self.runs.setdefault(arm, {}).update(results)
        for name, results in variant_runs(tasks, beside).items():
            self.variants.setdefault(name, {}).update(results)
        self.fingerprint = self.fingerprint or fingerprint_of(self.runs["baseline"].values())
        peers.run(added["hybrid"], execute=execute, directory=directory / "peers", fingerprint=self.fingerprint)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Analysis:
    """What one interim analysis found."""

    net: dict[str, Any]
    comparisons: dict[str, dict[str, Any]]
    verdict: str
    refusal: str | None
    peers: list[dict[str, Any]]
    predicting_pays: bool | None

    @property
    def decided(self) -> bool:
        if self.verdict == "real gain":
            return not self.peers or self.predicting_pays is not None
        return self.verdict != "no gain shown"


def _analyse(trained: _Trained, peers: Peers, frontier: Frontier, *, alpha: float) -> _Analysis:
    """Test both hypotheses with the error level ``alpha``."""
    runs = trained.runs
    net = net_speedup(runs, frontier, SPLIT, level=1 - alpha)
    compared = comparisons(runs, SPLIT, level=1 - alpha)
    share = mean_predicted_share(runs["hybrid"].values())
    found, refusal = verdict(net, compared, predicted_share=share, p_corrected=net["p"], alpha=alpha)
    measured = peers.measured(runs, frontier, level=1 - alpha)
    return _Analysis(
        net=net,
        comparisons=compared,
        verdict=found,
        refusal=refusal,
        peers=measured,
        predicting_pays=predicting_pays(measured) if found == "real gain" else None,
    )


def _measured(
    job: JobConfig, trained: _Trained, analysis: _Analysis, frontier: Frontier, *, level: float
) -> dict[str, Any]:
    """Runs and findings of the last analysis as in ``comparison.json``."""
    runs = trained.runs
    compared = {"baseline": runs["baseline"], "hybrid": runs["hybrid"], **trained.variants}
    best = best_peer(analysis.peers)
    missing = missing_peer(job) if analysis.predicting_pays else None
    return {
        "arms": {arm: rows(results, SPLIT) for arm, results in runs.items()},
        "comparisons": analysis.comparisons,
        "configurations": configurations(
            compared, job.compare.variants, SPLIT, level=level, frontier=frontier, net=analysis.net
        ),
        "net_speedup": analysis.net,
        "verdict": analysis.verdict,
        "refusal": analysis.refusal,
        "peers": analysis.peers,
        "best_peer": best["name"] if best else None,
        "missing_peer": missing,
        "predicting_pays": None if missing else analysis.predicting_pays,
        "backward_share": backward_share(runs["baseline"].values()),
        "machine": dict(trained.fingerprint or {}),
        "time_to_target": _time_to_target(job, runs),
    }


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
