"""Peers: other optimizers that skip no steps, each tuned like the baseline and timed in the baseline's plain steps.

If another optimizer has the same gain over AdamW without predictions, the gain does not come from predicting. So each
peer has its own frontier, which says how soon *it* reaches the hybrid's loss, and on every seed a run as long as the
hybrid's, which places that frontier. Time is in plain steps of the job's own optimizer
(``train.clock_optimizer``), so an optimizer with more expensive steps takes more time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, OptimizerName, Split
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation import runner
from hybrid_ray.evaluation.arms import real_run, steps_in
from hybrid_ray.evaluation.comparable import comparable
from hybrid_ray.evaluation.comparison.tuning import Tuned
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.paired import ArmRuns
from hybrid_ray.evaluation.runner import Execute, execute_missing, failed_result
from hybrid_ray.evaluation.summary import net_speedup, rows, shown_above, shown_below
from hybrid_ray.run_result import RunResult
from hybrid_ray.tasks import Task

__all__ = ["Peer", "Peers", "best_peer", "check_peers", "missing_peer", "peer_job", "predicting_pays"]

# Schedule-free averages weights instead of decaying the rate: warmup, then constant (arXiv 2405.15682).
_OWN: Mapping[str, Mapping[str, Any]] = {"schedule_free": {"schedule": "constant"}}

_WITH_SLOW_AVERAGE: Mapping[str, OptimizerName] = {
    **dict.fromkeys(("adamw", "adam", "adamwspam"), "ademamix"),
    "muon": "muon_ademamix",
}


def peer_job(job: JobConfig, name: OptimizerName) -> JobConfig:
    """The job with a peer as its optimizer, timed in plain steps of the job's own optimizer."""
    train, own = job.train, _OWN.get(name, {})
    return replace(
        job, train=replace(train, optimizer=name, clock_optimizer=train.clock_optimizer or train.optimizer, **own)
    )


def check_peers(job: JobConfig, task: Task) -> None:
    """Raises `ConfigError` if the job has peers but the task makes its own optimizer for every run."""
    if job.compare.peers and type(task).optimizer is not Task.optimizer:
        raise ConfigError(
            f"compare.peers is {list(job.compare.peers)}, but {type(task).__name__} makes its own optimizer, which "
            "every run would use: remove the peers, or the task's optimizer()"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One tuned optimizer.

    ``whole`` is the longest of its frontier runs, used for the time of a step. ``runs`` are its results by seed.
    """

    name: OptimizerName
    job: JobConfig
    tuned: Tuned | None
    frontier: Frontier
    whole: RunResult
    runs: dict[int, RunResult] = field(default_factory=dict)

    def task(self, seed: int, hybrid: RunResult, directory: Path) -> runner.Task:
        """A run with as many steps as fit into the time of the hybrid run."""
        run = real_run(self.job.run(seed=seed), "peer", steps_in(hybrid.time, self.whole))
        return runner.Task(run=run, directory=directory / self.name / f"peer-{seed}")

    def net_speedup(self, runs: ArmRuns, split: Split, level: float) -> dict[str, Any]:
        """The hybrid's net speedup over this peer."""
        return net_speedup({"hybrid": runs["hybrid"], "equal_steps": self.runs}, self.frontier, split, level=level)


class Peers:
    """The peers of a comparison, with their runs on its seeds."""

    def __init__(self, peers: Sequence[Peer], split: Split) -> None:
        self._peers, self._split = peers, split

    def run(
        self,
        hybrids: Mapping[int, RunResult],
        *,
        execute: Execute,
        directory: Path,
        fingerprint: Mapping[str, Any] | None,
    ) -> None:
        """Run every peer on the seeds of these hybrid runs; a failed result where the hybrid run did not finish."""
        finished = {seed: hybrid for seed, hybrid in hybrids.items() if hybrid.status == "finished"}
        pairs = [(peer, seed) for seed in finished for peer in self._peers]
        tasks = [peer.task(seed, finished[seed], directory) for peer, seed in pairs]
        results = comparable(execute_missing(execute, tasks), fingerprint)
        for (peer, seed), result in zip(pairs, results, strict=True):
            peer.runs[seed] = result
        for seed in hybrids.keys() - finished.keys():
            for peer in self._peers:
                run = replace(peer.job.run(seed=seed), arm="peer")
                peer.runs[seed] = failed_result(run, f"the hybrid run of seed {seed} did not finish")

    def measured(self, runs: ArmRuns, frontier: Frontier, *, level: float) -> list[dict[str, Any]]:
        """The peers as in ``comparison.json``, JSON-ready.

        ``net_speedup`` is the hybrid's over the peer; ``over_baseline`` is the peer's over the baseline's optimizer.
        """
        return [
            {
                "name": peer.name,
                "tuning": peer.tuned.as_dict() if peer.tuned else None,
                "learning_rate": peer.job.train.learning_rate,
                "frontier": asdict(peer.frontier),
                "runs": rows(peer.runs, self._split),
                "net_speedup": peer.net_speedup(runs, self._split, level),
                "over_baseline": net_speedup({**runs, "hybrid": peer.runs}, frontier, self._split, level=level),
            }
            for peer in self._peers
        ]


def best_peer(measured: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The peer over which the hybrid gains least; those without a net speedup come last. None: there are no peers."""

    def gained(peer: Mapping[str, Any]) -> float:
        mean = peer["net_speedup"]["mean"]
        return float("inf") if mean is None else float(mean)

    return min(measured, key=gained, default=None)


def missing_peer(job: JobConfig) -> OptimizerName | None:
    """The optimizer that takes the average of slow momentum into each of its steps, if it is not compared.

    Without it a gain over all peers may be that of the average, so nothing is said of predicting (docs/findings.md).
    """
    if job.hybrid.predictor.name != "slow_momentum":
        return None
    own = _WITH_SLOW_AVERAGE.get(job.train.optimizer_name)
    return None if own in job.compare.peers else own


def predicting_pays(measured: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the hybrid is faster than every peer; None if that is undecided or there are no peers.

    True needs all peers and False needs one, so the number of peers needs no correction.
    """
    if not measured:
        return None
    if all(shown_above(peer["net_speedup"]) for peer in measured):
        return True
    return False if any(shown_below(peer["net_speedup"]) for peer in measured) else None
