"""`ClusterNodes`: the nodes of a cluster that may train the runs of a study, as they come and go.

Before anything trains, every node is asked whether it shares the study's folder, and what hardware and software it
has. All runs of a study must have the same, because their times are compared, so the kind of node with the most room is
taken, and the others are left out. A node that joins later is asked too. The number of runs at a time follows the
nodes.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.ray_tune.cluster import Resources, worker_slots
from hybrid_ray.ray_tune.nodes.probe import NodeReport, Probe
from hybrid_ray.ray_tune.nodes.room import runs_that_fit
from hybrid_ray.study.stopping import StopFlag
from hybrid_ray.training.hardware.node import other_machine, write_nodes

__all__ = ["ClusterNodes", "cluster_nodes"]

log = logging.getLogger("hybrid_ray")

_POLL_SECONDS = 1.0
_LONGEST_ANSWER = 120.0  # seconds for a node to start a process and to answer
_LONGEST_WAIT = 600.0  # seconds to wait at the start for a node that can take a worker
_FILE = "nodes.json"


def cluster_nodes(job: JobConfig, storage: Path) -> "ClusterNodes | None":
    """The nodes of the connected Ray; None if it is a single machine."""
    return ClusterNodes(job, storage) if job.resources.address != "local" or len(_alive()) > 1 else None


class ClusterNodes:
    """The nodes of the connected Ray.

    Args:
        job: its ``resources`` say what one worker needs.
        storage: folder in the study's directory, which every node must read and write.
    """

    def __init__(self, job: JobConfig, storage: Path) -> None:
        self._job, self._storage = job, storage.absolute()
        self._reports: dict[str, NodeReport] = {}
        self._asked: dict[str, tuple[Probe, float]] = {}
        self._run: RunConfig | None = None
        self._machine: Mapping[str, Any] = {}
        self._unfit: dict[str, str] = {}
        self._checked, self._fit = 0.0, 1

    @property
    def file(self) -> Path:
        """Read by the runs (`training.hardware.node`)."""
        return self._storage / _FILE

    def start(self, run: RunConfig, *, flag: StopFlag, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask all nodes and choose those that train. Waits for a node if the cluster has none that can take a worker.

        Args:
            known: hardware and software of the study's earlier runs, which is kept if a node still has it.

        Returns:
            Hardware and software that all runs will have.

        Raises:
            ConfigError: a node does not share the folder, or no node has the device of the run.
            HybridRayError: no node came.
            Stopped: a signal came.
        """
        self._storage.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._wait_for_a_node(flag)
        while True:
            flag.raise_if_set()
            nodes = self._ask(run)
            if any(node in self._reports for node in nodes) and not self._asked:
                break
            time.sleep(0.1)
        self._refuse_unshared(nodes)
        self._machine = self._choose(nodes, known)
        self._judge(nodes)
        return dict(self._machine)

    def runs(self) -> int:
        """How many runs may be under way now, at least 1: it waits for a node if there is none.

        With ``resources.max_concurrent``, one more run than fits is allowed. It waits in Ray, where an autoscaler sees
        that another node is needed.
        """
        now = time.monotonic()
        if self._run is not None and now - self._checked >= _POLL_SECONDS:
            self._checked = now
            self._judge(self._ask(self._run))
        return max(1, self._fit + (self._job.resources.max_concurrent is not None))

    def _wait_for_a_node(self, flag: StopFlag) -> None:
        """The pending task tells an autoscaler that a node is needed."""
        import ray

        needs = self._job.resources
        if any(map(self._takes_worker, self._nodes().values())):
            return
        log.warning(
            "no node of the cluster can take a worker (%d CPUs, %g GPUs): waiting up to %g seconds for one",
            needs.cpus_per_worker, needs.gpus, _LONGEST_WAIT,
        )  # fmt: skip
        demand = ray.remote(num_cpus=needs.cpus_per_worker, num_gpus=needs.gpus)(_nothing).remote()
        deadline = time.monotonic() + _LONGEST_WAIT
        try:
            while not any(map(self._takes_worker, self._nodes().values())):
                flag.raise_if_set()
                if time.monotonic() > deadline:
                    raise HybridRayError(
                        f"no node that can take a worker ({needs.cpus_per_worker} CPUs, {needs.gpus:g} GPUs) joined "
                        f"the cluster within {_LONGEST_WAIT:g} seconds: start one, then continue; finished runs are "
                        "kept"
                    )
                time.sleep(0.2)
        finally:
            ray.cancel(demand, force=True)

    def _nodes(self) -> dict[str, Resources]:
        """The alive nodes that can take a worker, or the controller of a run with several workers; by id."""
        controllers = self._job.resources.workers > 1
        has = {
            node["NodeID"]: Resources(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
            for node in _alive()
        }
        return {node: one for node, one in has.items() if self._takes_worker(one) or (controllers and one.cpus > 0)}

    def _takes_worker(self, node: Resources) -> bool:
        return worker_slots(self._job, node) > 0

    def _ask(self, run: RunConfig) -> dict[str, Resources]:
        """Ask the nodes that are new, and collect answers that have come. Returns the nodes there are."""
        import ray

        nodes, now = self._nodes(), time.monotonic()
        for node in nodes:
            if node not in self._reports and node not in self._asked:
                self._asked[node] = (Probe(node, self._storage, run), now)
        for node, (probe, since) in list(self._asked.items()):
            if ray.wait([probe.reference], timeout=0)[0]:
                report = probe.report()
            elif now - since > _LONGEST_ANSWER:
                report = NodeReport(unshared=f"it did not answer within {_LONGEST_ANSWER:g} seconds")
            else:
                continue
            probe.close()
            del self._asked[node]
            if report is not None:
                self._reports[node] = report
        return nodes

    def _refuse_unshared(self, nodes: Mapping[str, Resources]) -> None:
        problems = [
            f"node {_name(node)} cannot use {self._storage.parent} ({self._reports[node].unshared}): every node must "
            "read and write the study's folder; mount the same storage at that path on all nodes, or name a folder on "
            "such storage (studies_dir)"
            for node in nodes
            if node in self._reports and self._reports[node].unshared
        ]
        if problems:
            raise ConfigError(problems)

    def _choose(self, nodes: Mapping[str, Resources], known: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """The hardware and software of the runs: as before, else the kind of node with the most room."""
        hosts = [node for node in nodes if node in self._reports and self._takes_worker(nodes[node])]
        machines = {node: self._reports[node].machine for node in hosts}
        kinds: dict[str, int] = defaultdict(int)
        of_kind: dict[str, Mapping[str, Any]] = {}
        for node, machine in machines.items():
            if machine is not None:
                if known is not None and other_machine(known, machine) is None:
                    return machine
                kind = repr(machine)
                kinds[kind] += worker_slots(self._job, nodes[node])
                of_kind[kind] = machine
        if not of_kind:
            raise ConfigError([f"node {_name(node)}: {self._reports[node].problem}" for node in machines])
        return of_kind[max(kinds, key=kinds.__getitem__)]

    def _judge(self, nodes: Mapping[str, Resources]) -> None:
        """Count the runs that fit, and write down the nodes that are left out if they have changed."""
        unfit = {node: reason for node in nodes if (reason := self._reason(node)) is not None}
        if unfit != self._unfit or not self.file.exists():
            for node in unfit.keys() - self._unfit.keys():
                log.warning("node %s trains no run of this study: %s", _name(node), unfit[node])
            unshared = {node: unfit[node] for node in unfit if self._reports[node].unshared}
            write_nodes(self.file, machine=self._machine, unfit=unfit, unshared=unshared)
            self._unfit = unfit
        fit = runs_that_fit(self._job, [nodes[node] for node in nodes if node in self._reports and node not in unfit])
        if self._fit and not fit:
            log.warning("the nodes of the cluster cannot hold a run now: runs wait for a node, then go on")
        self._fit = fit

    def _reason(self, node: str) -> str | None:
        """Why a node must not train; None if it may, or has not answered."""
        report = self._reports.get(node)
        if report is None:
            return None
        if report.unshared:
            return f"it cannot use {self._storage.parent} ({report.unshared})"
        if report.machine is None:
            return report.problem
        return other_machine(self._machine, report.machine)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _nothing() -> None:
    """Only its demand for resources counts."""


def _name(node: str) -> str:
    """A node's address and id, for messages."""
    address = next((one["NodeManagerAddress"] for one in _alive() if one["NodeID"] == node), "?")
    return f"{address} ({node[:8]})"
