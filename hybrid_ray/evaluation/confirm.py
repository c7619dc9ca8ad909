"""Confirmation: run the best trials again on fresh seeds, with controls of equal cost, scored on an unused split.

The result of the best of many noisy trials is biased upwards, because selection favours lucky noise (the winner's
curse). Fresh seeds and fresh data remove this bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, Split
from hybrid_ray.config.evaluation import MOST_SEEDS
from hybrid_ray.evaluation.arms import REQUIRED
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.paired import ArmRuns, Candidate, run_arms
from hybrid_ray.evaluation.runner import Execute
from hybrid_ray.evaluation.statistics import holm
from hybrid_ray.evaluation.summary import comparisons, mean_predicted_share, net_speedup, rows, shown_above, verdict

__all__ = ["ALPHA", "Candidate", "confirm", "confirmation_runs", "fresh_seeds"]

ALPHA = 0.05

_SPLIT: Split = "test"


def fresh_seeds(job: JobConfig, number: int, *, block: int = 1) -> list[int]:
    """Seeds that no trial of the search used: trials use ``job.seed``; block n starts at ``job.seed + 1000 * n``.

    Confirmation (block 1) and comparison (block 2) have at most 1000 seeds each, so they share none. Settings that were
    selected for their results on some seeds would look too good on those same seeds.
    """
    return [job.seed + block * MOST_SEEDS + index for index in range(number)]


def confirmation_runs(job: JobConfig, candidates: int) -> int:
    """Number of runs of `confirm`: per seed one baseline, and per candidate the hybrid run and its controls."""
    arms = {*REQUIRED, *job.confirm.arms}
    return job.confirm.seeds * (1 + candidates * (1 + len(arms))) if candidates else 0


def confirm(
    job: JobConfig,
    candidates: Sequence[Candidate],
    *,
    execute: Execute,
    directory: Path,
    frontier: Frontier,
    fingerprint: Mapping[str, Any] | None = None,
    looks: Sequence[int] = (),
) -> dict[str, Any]:
    """Run the candidates and their controls on ``job.confirm.seeds`` fresh seeds and decide which gains hold.

    Args:
        candidates: the best trials, best first.
        execute: executes the runs, in this process or in parallel on a cluster.
        directory: the study's ``confirmation`` folder. Runs that an earlier session finished there are not repeated.
        frontier: built from the losses of the search's frontier runs on the confirmation split.
        fingerprint: the fingerprint of those runs, which every run here must have (`run_arms`).
        looks: the numbers of seeds at which this study has been judged before. Adding seeds until a gain is shown finds
            one where there is none, so each other number multiplies the p-values once more (Bonferroni).

    Returns:
        The content of ``confirmation.json``: for each candidate its runs by arm, paired comparisons, the net speedup
        with a 95 % t-interval, and a verdict. If there are several candidates, a "real gain" must also be significant
        at 5 % after Holm's correction (``p_corrected``). The controls of `arms.REQUIRED` always run. ``looks`` has this
        number of seeds too.
    """
    seeds = fresh_seeds(job, job.confirm.seeds)
    job = replace(job, train=replace(job.train, evaluations=1))  # the claims use final losses only
    arms: list[str] = [*REQUIRED, *job.confirm.arms]
    runs, _ = run_arms(
        job, candidates, seeds=seeds, arms=arms, execute=execute, directory=directory, fingerprint=fingerprint
    )
    nets = [net_speedup(arm_runs, frontier, _SPLIT, level=1 - ALPHA) for arm_runs in runs]
    looks = [*dict.fromkeys([*looks, len(seeds)])]
    corrected = [min(1.0, len(looks) * p) for p in holm([net["p"] for net in nets])]
    return {
        "candidates": [
            _entry(candidate, arm_runs, net, p, looks)
            for candidate, arm_runs, net, p in zip(candidates, runs, nets, corrected, strict=True)
        ],
        "split": _SPLIT,
        "seeds": seeds,
        "looks": looks,
    }


def _entry(
    candidate: Candidate, runs: ArmRuns, net: dict[str, Any], p_corrected: float, looks: Sequence[int]
) -> dict[str, Any]:
    share = mean_predicted_share(runs["hybrid"].values())
    compared = comparisons(runs, _SPLIT, level=1 - ALPHA)
    found, refusal = verdict(net, compared, predicted_share=share, p_corrected=p_corrected, alpha=ALPHA)
    if len(looks) > 1 and p_corrected > ALPHA and shown_above(net):
        numbers = ", ".join(map(str, looks))
        refusal = f"it was judged at {numbers} seeds, and p is {p_corrected:.2g} after a correction for that"
    return {
        "trial": candidate.trial,
        "params": dict(candidate.params),
        "runs": {arm: rows(results, _SPLIT) for arm, results in runs.items()},
        "comparisons": compared,
        "net_speedup": {**net, "p_corrected": p_corrected},
        "verdict": found,
        "refusal": refusal,
    }
